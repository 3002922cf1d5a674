package oci

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// TestLinksInTheImage: an image has symbolic links to the host where the runtime mounts,
// or makes directories, files and devices. Nothing may come about outside the image.
//
// CVE-2019-18837 (crun), CVE-2024-45310 and CVE-2026-41579 (runc), CVE-2025-54867 (youki).
func TestLinksInTheImage(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		targets := map[string]string{
			"absolute": r.canary,
			"upward":   strings.Repeat("../", 20) + r.canary,
			"below":    filepath.Join(r.canary, "made", "by", "link"),
		}
		bind := func(kind, source string) func(string) specs.Mount {
			return func(dst string) specs.Mount {
				return specs.Mount{Destination: dst, Type: kind, Source: source, Options: []string{"rbind", "rw"}}
			}
		}
		r.mkdir("volume")
		r.file("volume-file", "", 0o644)
		tmpfs := func(dst string) specs.Mount {
			return specs.Mount{Destination: dst, Type: "tmpfs", Source: "tmpfs", Options: []string{"size=68k"}}
		}
		dirBind, fileBind := bind("bind", filepath.Join(r.bundle, "volume")), bind("bind", filepath.Join(r.bundle, "volume-file"))
		for _, a := range []struct {
			name    string
			link    string // in the image, to the target
			without string // the mount that would cover the link
			mount   *specs.Mount
			change  func(*specs.Spec)
		}{
			{name: "proc", link: "proc"},
			{name: "sys", link: "sys"},
			{name: "dev", link: "dev"},
			{name: "pts", link: "dev/pts", without: "/dev"},
			{name: "shm", link: "dev/shm", without: "/dev"},
			{name: "devices", link: "dev", without: "/dev"},
			{name: "null", link: "dev/null", without: "/dev"},
			{name: "fd", link: "dev/fd", without: "/dev"},
			{name: "ptmx", link: "dev/ptmx", without: "/dev"},
			{name: "tmpfs", link: "data", mount: ptr(tmpfs("/data"))},
			{name: "tmpfs below", link: "data", mount: ptr(tmpfs("/data/a/b"))},
			{name: "directory", link: "data", mount: ptr(dirBind("/data"))},
			{name: "directory below", link: "data", mount: ptr(dirBind("/data/a/b"))},
			{name: "file", link: "data", mount: ptr(fileBind("/data"))},
			{name: "file below", link: "data", mount: ptr(fileBind("/data/a/b"))},
			{name: "cgroup", link: "data", mount: &specs.Mount{Destination: "/data/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro"}}},
			{name: "device below", link: "data", change: func(s *specs.Spec) {
				s.Linux.Devices = []specs.LinuxDevice{{Path: "/data/x/zero", Type: "c", Major: 1, Minor: 5}}
			}},
			{name: "working directory", link: "data", change: func(s *specs.Spec) { s.Process.Cwd = "/data/w" }},
		} {
			for kind, target := range targets {
				r.fresh()
				r.symlink(target, "rootfs/"+a.link)
				if a.without != "" {
					r.without(a.without)
				}
				if a.mount != nil {
					r.spec.Mounts = append(r.spec.Mounts, *a.mount)
				}
				if a.change != nil {
					a.change(r.spec)
				}
				o := r.run("cat /proc/self/mountinfo; cat /data/secret /data/*/secret /proc/secret /dev/secret 2>/dev/null; true")
				r.safe(o)
				if o.err == nil && a.mount != nil && a.mount.Type == "tmpfs" && !strings.Contains(o.output, "size=68k") {
					t.Errorf("escape: it was mounted somewhere else: %s", o.output)
				}
				if t.Failed() {
					t.Fatalf("%s, %s", a.name, kind)
				}
				t.Logf("%s, %s: %s", a.name, kind, failure(o))
			}
		}
	})
}

// TestLinksControl: an escape by a link is seen, if there is one.
func TestLinksControl(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		r.spec.Mounts = append(r.spec.Mounts, specs.Mount{Destination: "/data", Type: "bind", Source: r.canary, Options: []string{"rbind"}})
		before := r.before
		out := r.must(r.run("cat /data/secret; mkdir /data/new"))
		if r.look() == before || !strings.Contains(out, secret) {
			t.Errorf("a container that is given the directory shows no change: %s", out)
		}
	})
}

// TestProcIsProc: a container whose /proc is none, or is covered, is not started: what the
// runtime writes there (labels, system controls) would go astray.
//
// CVE-2019-16884, CVE-2019-19921, CVE-2023-27561, CVE-2023-28642, CVE-2025-52881 (runc),
// CVE-2025-62596 (youki).
func TestProcIsProc(t *testing.T) {
	const isProc = `[ "$(stat -f -c %t /proc)" = 9fa0 ] && [ "$(stat -f -c %t /proc/self/attr 2>/dev/null || echo 9fa0)" = 9fa0 ] && [ "$(stat -f -c %t /proc/sys)" = 9fa0 ] && echo genuine`
	each(t, func(t *testing.T, r *rig) {
		r.mkdir("fake/self/attr")
		r.mkdir("fake/sys/net/ipv4")
		r.mkdir("fake/thread-self/attr")
		r.symlink(filepath.Join(r.canary, "secret"), "fake/sys/net/ipv4/ip_forward")
		fake := filepath.Join(r.bundle, "fake")
		mount := func(dst, kind, source string, options ...string) specs.Mount {
			return specs.Mount{Destination: dst, Type: kind, Source: source, Options: options}
		}
		for name, attack := range map[string]func(){
			"a link": func() {
				r.mkdir("rootfs/elsewhere")
				r.symlink("/elsewhere", "rootfs/proc")
			},
			"a directory of the host": func() {
				r.instead("/proc", mount("/proc", "bind", fake, "rbind"))
			},
			"covered by a directory":     func() { r.spec.Mounts = append(r.spec.Mounts, mount("/proc", "bind", fake, "rbind")) },
			"covered by a tmpfs":         func() { r.spec.Mounts = append(r.spec.Mounts, mount("/proc", "tmpfs", "tmpfs")) },
			"its attributes are covered": func() { r.spec.Mounts = append(r.spec.Mounts, mount("/proc/self/attr", "tmpfs", "tmpfs")) },
			"its controls are covered": func() {
				r.spec.Mounts = append(r.spec.Mounts, mount("/proc/sys", "bind", filepath.Join(fake, "sys"), "rbind"))
			},
			"covered through a link": func() {
				r.symlink("/proc", "rootfs/alias")
				r.spec.Mounts = append(r.spec.Mounts, mount("/alias/sys", "bind", filepath.Join(fake, "sys"), "rbind"))
			},
		} {
			r.fresh()
			r.spec.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1"}
			r.spec.Linux.MaskedPaths, r.spec.Linux.ReadonlyPaths = nil, nil
			attack()
			o := r.run(isProc)
			r.safe(o)
			t.Logf("%s: %s", name, failure(o))
			if o.err == nil && !strings.Contains(o.output, "genuine") {
				t.Errorf("%s: the container runs without its /proc: %s", name, o.output)
			}
		}
		// Control: an ordinary one runs, and is genuine.
		r.fresh()
		if out := r.must(r.run(isProc)); !strings.Contains(out, "genuine") {
			t.Errorf("an ordinary container: %s", out)
		}
	})
}

// TestControlsOfTheHost: names of system controls that lead out of the container's
// namespaces, or out of /proc/sys, change nothing.
//
// CVE-2025-52881 (runc) is about where such writes end.
func TestControlsOfTheHost(t *testing.T) {
	const control = "/proc/sys/kernel/printk_ratelimit_burst"
	before, err := os.ReadFile(control)
	if err != nil {
		t.Skip("needs ", control, ": ", err)
	}
	alone(t, func(t *testing.T, r *rig) {
		defer func() {
			if now, _ := os.ReadFile(control); string(now) != string(before) {
				t.Errorf("escape: %s of the host is %s, was %s", control, now, before)
				_ = os.WriteFile(control, before, 0o644)
			}
		}()
		for _, name := range []string{
			"kernel.printk_ratelimit_burst", "net/../kernel/printk_ratelimit_burst", "net.ipv4/../../kernel/printk_ratelimit_burst", "net...kernel.printk_ratelimit_burst",
			"net/" + strings.Repeat("../", 20) + filepath.Join(r.canary, "secret"), "/" + r.canary + "/secret", "fs.mqueue/../../../../kernel/printk_ratelimit_burst",
		} {
			r.spec.Linux.Sysctl = map[string]string{name: "7"}
			o := r.run("true")
			r.safe(o)
			t.Logf("%s: %s", name, failure(o))
			if o.err == nil {
				t.Errorf("%s: the container was started", name)
			}
		}
		r.spec.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1"}
		if out := r.must(r.run("cat /proc/sys/net/ipv4/ip_forward")); strings.TrimSpace(out) != "1" {
			t.Errorf("a control of the container's own: %q", out)
		}
	})
}

// TestMaskedByLinks: the image brings its own /dev, in which null, that hides what is
// masked, is a link to something else of /proc.
//
// CVE-2025-31133 (runc), CVE-2025-62161 (youki).
func TestMaskedByLinks(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		// The mask would show this file, and let it be written if it were another.
		const shown = "Linux version"
		script := fmt.Sprintf("cat %s 2>/dev/null; true", strings.Join(r.spec.Linux.MaskedPaths, " "))
		masked := func(o outcome, how string) {
			t.Helper()
			r.safe(o)
			t.Logf("%s: %s", how, failure(o))
			if o.err == nil && strings.Contains(o.output, shown) {
				t.Errorf("escape, %s: a masked path shows another file: %s", how, o.output)
			}
		}
		for _, target := range []string{"/proc/version", "../proc/version", "/proc/self/../version", "/proc/1/root/proc/version"} {
			r.fresh()
			r.without("/dev")
			r.symlink(target, "rootfs/dev/null")
			masked(r.run(script), target)
		}
		// Control: what is not masked shows.
		r.fresh()
		if out := r.must(r.run("cat /proc/version")); !strings.Contains(out, shown) {
			t.Errorf("control: %s", out)
		}
	})
}

// TestNullOfTheHost: the null device, which runtimes hide files with and have on their own
// input, does not change its owner, mode or times by what a container does with it.
func TestNullOfTheHost(t *testing.T) {
	null := func() (mode uint32, uid, gid uint32, mtime unix.Timespec) {
		var st unix.Stat_t
		if err := unix.Stat("/dev/null", &st); err != nil {
			t.Fatal(err)
		}
		return st.Mode, st.Uid, st.Gid, st.Mtim
	}
	const old = 30 * 86400 // January 1970
	mode, uid, gid, _ := null()
	check := func(t *testing.T, how string) {
		t.Helper()
		nowMode, nowUID, nowGID, mtime := null()
		if nowMode != mode || nowUID != uid || nowGID != gid || mtime.Sec < old {
			t.Errorf("escape, %s: the host's /dev/null has mode %o, owner %d:%d, time %d", how, nowMode, nowUID, nowGID, mtime.Sec)
			_ = os.Chown("/dev/null", int(uid), int(gid))
			_ = os.Chmod("/dev/null", os.FileMode(mode&0o777))
			_ = os.Chtimes("/dev/null", time.Now(), time.Now())
		}
	}
	alone(t, func(t *testing.T, r *rig) {
		// Mode and times by one who may do all that with a file.
		for _, path := range []string{"/proc/keys", "/proc/kcore", "/proc/timer_list", "/dev/null", "/proc/self/fd/0"} {
			o := r.run("chmod 0640 " + path + "; touch -d 1970-01-02 " + path)
			check(t, path)
			t.Logf("%s: %q", path, o.output)
		}
		// A /dev in which null is another device: the runtime's own input is not known by it.
		r.fresh()
		r.mkdir("dev")
		for _, name := range []string{"null", "zero"} {
			if err := unix.Mknod(filepath.Join(r.bundle, "dev", name), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))); err != nil {
				t.Fatal(err)
			}
		}
		r.instead("/dev", specs.Mount{Destination: "/dev", Type: "bind", Source: filepath.Join(r.bundle, "dev"), Options: []string{"rbind"}})
		r.spec.Linux.MaskedPaths = nil
		r.spec.Process.User = specs.User{UID: 1234, GID: 1234}
		o := r.run("echo started")
		check(t, "another null")
		t.Logf("another null: %v %q", o.err, o.output)
	})
}

// TestMountsStayInside: with the bundle on a mount that is shared, as on most hosts, nothing
// that is mounted in the container comes about on the host, while it runs or afterwards.
func TestMountsStayInside(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		dir := filepath.Dir(r.bundle)
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		}()
		if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
			t.Fatal(err)
		}
		r.mkdir("volume/inner")
		count := func() int {
			b, err := os.ReadFile("/proc/self/mountinfo")
			if err != nil {
				t.Fatal(err)
			}
			return strings.Count(string(b), dir)
		}
		before := count()
		for _, propagation := range []string{"", "rprivate", "rslave", "shared", "rshared"} {
			r.fresh()
			r.spec.Linux.RootfsPropagation = propagation
			options := []string{"rbind"}
			if strings.Contains(propagation, "shared") {
				options = append(options, "rprivate") // as engines say: without, a volume may be shared as well
			}
			r.spec.Mounts = append(r.spec.Mounts,
				specs.Mount{Destination: "/volume", Type: "bind", Source: filepath.Join(r.bundle, "volume"), Options: options},
				specs.Mount{Destination: "/volume/inner", Type: "tmpfs", Source: "tmpfs"},
				specs.Mount{Destination: "/volume/made", Type: "tmpfs", Source: "tmpfs"})
			r.start("/bin/sleep", "60")
			during := count()
			r.call("delete", "--force", r.id)
			if after := count(); after != before || during != before {
				t.Errorf("escape, %q: %d mounts before, %d while it runs, %d afterwards", propagation, before, during, after)
			}
		}
	})
}

func ptr[T any](v T) *T { return &v }

// failure is for the log of a test: what a runtime said of an attack that it refused.
func failure(o outcome) string {
	if o.err == nil {
		return "started"
	}
	line, _, _ := strings.Cut(o.output, "\n")
	return line
}

package oci

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestCapabilities(t *testing.T) {
	h := v1Host()
	h.Capabilities = without(h.Capabilities, []string{"CAP_AUDIT_WRITE"}) // a host that lacks a default one
	b := New(h)
	thirteen := without(defaultCapabilities, []string{"CAP_AUDIT_WRITE"})
	for _, c := range []struct {
		add, drop  []string
		privileged bool
		want       []string
	}{
		{nil, nil, false, thirteen},
		{nil, []string{"all"}, false, nil},
		{[]string{"ALL"}, nil, false, h.Capabilities},
		{[]string{"ALL"}, []string{"CAP_CHOWN"}, false, without(h.Capabilities, []string{"CAP_CHOWN"})},
		{[]string{"SYS_ADMIN"}, []string{"ALL"}, false, []string{"CAP_SYS_ADMIN"}},
		{[]string{"ALL"}, []string{"ALL"}, false, h.Capabilities},
		{[]string{"kill", "cap_sys_ptrace"}, []string{"MKNOD"}, false, append(without(thirteen, []string{"CAP_MKNOD"}), "CAP_SYS_PTRACE")},
		{nil, []string{"ALL"}, true, h.Capabilities},
	} {
		got, err := b.capabilities(c.add, c.drop, c.privileged)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("+%v -%v: %v, %v; want %v", c.add, c.drop, got, err, c.want)
		}
	}
}

func TestSeccomp(t *testing.T) {
	b := New(v1Host())
	allowed := func(f *specs.LinuxSeccomp, call string) bool {
		return slices.ContainsFunc(f.Syscalls, func(s specs.LinuxSyscall) bool {
			return s.Action == specs.ActAllow && len(s.Args) == 0 && slices.Contains(s.Names, call)
		})
	}
	get := func(hc container.HostConfig, engine string, caps ...string) *specs.LinuxSeccomp {
		t.Helper()
		s, err := ParseSecurity(hc.SecurityOpt, false)
		if err != nil {
			t.Fatal(err)
		}
		f, err := b.seccomp(Options{HostConfig: &hc, SeccompProfile: engine}, s, caps)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	const mine = `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod"],"action":"SCMP_ACT_ERRNO"}]}`

	f := get(container.HostConfig{}, "", defaultCapabilities...)
	if f == nil || f.DefaultAction != specs.ActErrno || *f.DefaultErrnoRet != uint(unix.EPERM) || !allowed(f, "openat") || !allowed(f, "chroot") || allowed(f, "mount") {
		t.Fatalf("default filter %+v", f)
	}
	// clone3's flags cannot be looked into: a C library has to fall back to clone.
	if !slices.ContainsFunc(f.Syscalls, func(s specs.LinuxSyscall) bool {
		return slices.Contains(s.Names, "clone3") && s.Action == specs.ActErrno && s.ErrnoRet != nil && *s.ErrnoRet == uint(unix.ENOSYS)
	}) {
		t.Error("clone3 does not answer ENOSYS")
	}
	if f := get(container.HostConfig{}, "", "CAP_SYS_ADMIN"); !allowed(f, "mount") || allowed(f, "chroot") {
		t.Error("the filter does not follow the capabilities")
	}
	again := get(container.HostConfig{}, "", defaultCapabilities...)
	if again == f || !reflect.DeepEqual(again, f) {
		t.Error("a kept filter is shared or differs")
	}
	if f := get(container.HostConfig{Privileged: true}, ""); f != nil {
		t.Error("privileged has a filter")
	}
	opt := func(o string) container.HostConfig { return container.HostConfig{SecurityOpt: []string{o}} }
	if get(opt("seccomp=unconfined"), "") != nil || get(container.HostConfig{}, "unconfined") != nil {
		t.Error("unconfined has a filter")
	}
	if f := get(opt("seccomp=builtin"), "unconfined"); f == nil || !allowed(f, "openat") {
		t.Error("builtin has none")
	}
	for _, f := range []*specs.LinuxSeccomp{get(opt("seccomp="+mine), ""), get(container.HostConfig{}, mine), get(container.HostConfig{Privileged: true, SecurityOpt: []string{"seccomp=" + mine}}, "")} {
		if f == nil || f.DefaultAction != specs.ActAllow || len(f.Syscalls) != 1 {
			t.Errorf("own profile: %+v", f)
		}
	}
	for range 3 * maxProfiles {
		get(opt("seccomp="+strings.Replace(mine, "chmod", "c"+strings.Repeat("h", len(b.profiles.byID)), 1)), "")
	}
	if n := len(b.profiles.byID); n > maxProfiles {
		t.Errorf("%d profiles are kept", n)
	}

	h := v1Host()
	h.Seccomp = false
	b = New(h)
	if get(container.HostConfig{}, "") != nil {
		t.Error("a filter where the kernel has none")
	}
	hc := opt("seccomp=" + mine)
	s, _ := ParseSecurity(hc.SecurityOpt, false)
	if _, err := b.seccomp(Options{HostConfig: &hc}, s, nil); err == nil || err.Error() != "seccomp is not enabled in your kernel, cannot run a custom seccomp profile" {
		t.Errorf("own profile where the kernel has none: %v", err)
	}
}

func TestMergeEnv(t *testing.T) {
	for _, c := range []struct{ env, over, want string }{
		{"A=1 B=2", "", "A=1 B=2"},
		{"A=1 B=2", "A=3 C=4", "A=3 B=2 C=4"},
		{"A=1 B=2", "A", "B=2"},
		{"A=1 B=2", "A A=5", "A=5 B=2"},
		{"A=1", "A=2 A=3", "A=3"},
		{"A=1", "X Y=", "A=1 Y="},
	} {
		got := mergeEnv(strings.Fields(c.env), strings.Fields(c.over))
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s + %s: %v, want %s", c.env, c.over, got, c.want)
		}
	}
}

func TestLookupUser(t *testing.T) {
	root := testRootfs(t)
	for spec, want := range map[string]specs.User{
		"":            {AdditionalGids: []uint32{0}},
		"bob":         {UID: 1000, GID: 100, AdditionalGids: []uint32{100, 29, 44}},
		"1000":        {UID: 1000, GID: 100, AdditionalGids: []uint32{100, 29, 44}},
		"bob:video":   {UID: 1000, GID: 44, AdditionalGids: []uint32{44}},
		"4711":        {UID: 4711, AdditionalGids: []uint32{0}},
		"4711:4712":   {UID: 4711, GID: 4712, AdditionalGids: []uint32{4712}},
		":audio":      {GID: 29, AdditionalGids: []uint32{29}},
		"2147483647:": {UID: 2147483647, AdditionalGids: []uint32{0}},
	} {
		if got, err := LookupUser(root, spec, nil); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, %v; want %+v", spec, got, err, want)
		}
	}
	got, err := LookupUser(root, "bob", []string{"4711", "root", "29"})
	if want := []uint32{100, 29, 44, 0, 4711}; err != nil || !slices.Equal(got.AdditionalGids, want) {
		t.Errorf("added groups: %v, %v", got.AdditionalGids, err)
	}
}

// TestAccountFilesOfHostileTrees: what an image makes of /etc/passwd must
// neither lead out of it nor stop the engine.
func TestAccountFilesOfHostileTrees(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "passwd")
	if err := os.WriteFile(outside, []byte("evil:x:666:666::/:\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, make := range map[string]func(root string) error{
		"absolute link":  func(root string) error { return os.Symlink(outside, root+"/etc/passwd") },
		"relative link":  func(root string) error { return os.Symlink("../../../../../.."+outside, root+"/etc/passwd") },
		"magic link":     func(root string) error { return os.Symlink("/proc/self/root"+outside, root+"/etc/passwd") },
		"link to itself": func(root string) error { return os.Symlink("passwd", root+"/etc/passwd") },
		"directory":      func(root string) error { return os.Mkdir(root+"/etc/passwd", 0o755) },
		"fifo":           func(root string) error { return unix.Mkfifo(root+"/etc/passwd", 0o644) },
		"etc is a file": func(root string) error {
			if err := os.Remove(root + "/etc"); err != nil {
				return err
			}
			return os.WriteFile(root+"/etc", nil, 0o644)
		},
		"nothing": func(string) error { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			if err := os.Mkdir(root+"/etc", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := make(root); err != nil {
				t.Fatal(err)
			}
			if u, err := LookupUser(root, "evil", nil); err == nil || err.Error() != "unable to find user evil: no matching entries in passwd file" {
				t.Errorf("%+v, %v", u, err)
			}
			if u, err := LookupUser(root, "", nil); err != nil || u.UID != 0 {
				t.Errorf("root: %+v, %v", u, err)
			}
		})
	}
	t.Run("link inside", func(t *testing.T) {
		root := testRootfs(t)
		if err := os.Rename(root+"/etc/passwd", root+"/etc/accounts"); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("/etc/accounts", root+"/etc/passwd"); err != nil {
			t.Fatal(err)
		}
		if u, err := LookupUser(root, "bob", nil); err != nil || u.UID != 1000 {
			t.Errorf("%+v, %v", u, err)
		}
	})
	t.Run("too large", func(t *testing.T) {
		root := testRootfs(t)
		if err := os.Truncate(root+"/etc/passwd", maxAccountFile+1); err != nil {
			t.Fatal(err)
		}
		if _, err := LookupUser(root, "bob", nil); err == nil || !strings.Contains(err.Error(), "larger than") {
			t.Error(err)
		}
	})
}

func TestDevicesAt(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("/dev/null", dir+"/link"); err != nil {
		t.Fatal(err)
	}
	d, err := devicesAt(dir+"/link", "")
	if err != nil || len(d) != 1 || d[0].Path != dir+"/link" || d[0].Type != "c" || d[0].Major != 1 || d[0].Minor != 3 {
		t.Errorf("link: %+v, %v", d, err)
	}
	if d, err := devicesAt(dir, "/x"); err == nil {
		t.Errorf("a directory without devices: %+v", d)
	}
	d, err = devicesAt("/dev/pts", "/terms")
	if err == nil && !slices.ContainsFunc(d, func(d specs.LinuxDevice) bool { return d.Path == "/terms/ptmx" }) {
		t.Errorf("a directory: %+v", d)
	}
	all, err := allDevices("/dev")
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, d := range all {
		paths = append(paths, d.Path)
		if d.Type != "c" && d.Type != "b" || strings.HasPrefix(d.Path, "/dev/pts/") || d.Path == "/dev/console" {
			t.Errorf("%+v", d)
		}
	}
	if !slices.Contains(paths, "/dev/null") {
		t.Errorf("devices of the host: %v", paths)
	}
}

func TestRlimits(t *testing.T) {
	ask := []*container.Ulimit{{Name: "nofile", Soft: -1, Hard: -1}, {Name: "nproc", Soft: 3, Hard: 600}, {Name: "core", Soft: -1, Hard: -1}}
	o := Options{HostConfig: &container.HostConfig{Resources: container.Resources{Ulimits: ask}}}
	got, warnings := New(v1Host()).rlimits(o)
	want := []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 1024}, {Type: "RLIMIT_NPROC", Soft: 3, Hard: 500}, {Type: "RLIMIT_CORE", Soft: 1<<64 - 1, Hard: 1<<64 - 1}}
	if !reflect.DeepEqual(got, want) || len(warnings) != 2 || warnings[0] != "Ulimit nofile: hard limit unlimited is above what the engine may set, lowered to 1024." {
		t.Errorf("%+v %q", got, warnings)
	}
	got, warnings = New(v2Host()).rlimits(o)
	if got[0].Hard != 1048576 || got[1].Hard != 600 || len(warnings) != 1 {
		t.Errorf("with the capability: %+v %q", got, warnings)
	}
}

func TestOOMScore(t *testing.T) {
	root := testRootfs(t)
	for _, c := range []struct {
		raise              bool
		own, ask, want, ws int
	}{{false, 0, -500, 0, 1}, {false, -500, -500, -500, 0}, {true, 0, -500, -500, 0}, {false, 200, 0, 200, 0}, {false, -900, 0, 0, 0}} {
		h := v1Host()
		h.RaiseLimits, h.OOMScoreAdj = c.raise, c.own
		o := options(root)
		o.HostConfig.OomScoreAdj = c.ask
		spec, warnings, err := New(h).Spec(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		if spec.Process.OOMScoreAdj == nil || *spec.Process.OOMScoreAdj != c.want || len(warnings) != c.ws {
			t.Errorf("%+v: %d, %q", c, *spec.Process.OOMScoreAdj, warnings)
		}
	}
}

func TestLookupInit(t *testing.T) {
	dir := t.TempDir()
	b, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("needs a static program: ", err)
	}
	if err := checkStatic("/bin/busybox"); err != nil {
		t.Skip("needs a static program: ", err)
	}
	if err := os.WriteFile(dir+"/docker-init", b, 0o755); err != nil {
		t.Fatal(err)
	}
	if path, err := LookupInit("", dir); err != nil || path != dir+"/docker-init" {
		t.Errorf("%q, %v", path, err)
	}
	if path, err := LookupInit(dir + "/docker-init"); err != nil || path != dir+"/docker-init" {
		t.Errorf("%q, %v", path, err)
	}
	if _, err := LookupInit("no-such-init-at-all"); err == nil {
		t.Error("one that is not there was found")
	}
	if err := checkStatic("/bin/ls"); err == nil {
		t.Error("/bin/ls is taken for static")
	}
	if err := os.WriteFile(dir+"/tini-static", []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := LookupInit(dir + "/tini-static"); err == nil {
		t.Error("a script is taken for an init")
	}
}

func FuzzLookupUser(f *testing.F) {
	f.Add([]byte(testPasswd), []byte(testGroup), "bob:audio", "video")
	f.Add([]byte("a:::::::::\n:\n"), []byte("x:y:-1:a"), "a", "x")
	f.Fuzz(func(t *testing.T, passwd, group []byte, spec, add string) {
		u, err := lookupUser(passwd, group, spec, []string{add})
		if err != nil {
			return
		}
		if int32(u.UID) < 0 || int32(u.GID) < 0 || len(u.AdditionalGids) == 0 || u.AdditionalGids[0] != u.GID {
			t.Errorf("%+v", u)
		}
	})
}

func FuzzSecurity(f *testing.F) {
	f.Add("seccomp=unconfined")
	f.Add(`seccomp={"defaultAction":"SCMP_ACT_ALLOW","archMap":[{"architecture":"SCMP_ARCH_X86_64"}],"syscalls":[{"name":"a","includes":{"caps":["CAP_CHOWN"],"minKernel":"4.8"}},null]}`)
	f.Add("no-new-privileges:true")
	b := New(v1Host())
	f.Fuzz(func(t *testing.T, opt string) {
		s, err := ParseSecurity([]string{opt}, false)
		if err != nil {
			return
		}
		filter, err := b.seccomp(Options{HostConfig: &container.HostConfig{}}, s, defaultCapabilities)
		if err != nil {
			return
		}
		if _, err := json.Marshal(filter); err != nil {
			t.Error(err)
		}
	})
}

func FuzzDeviceRules(f *testing.F) {
	f.Add("c 42:* rmw")
	f.Add("a *:* rwm")
	f.Fuzz(func(t *testing.T, rule string) {
		if r, err := appendDeviceRules(nil, []string{rule}); err == nil && (*r[0].Major < -1 || *r[0].Minor < -1 || r[0].Access == "") {
			t.Errorf("%+v", r[0])
		}
	})
}

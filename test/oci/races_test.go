package oci

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// swap exchanges two names of a directory over and over, as another container that has
// the same volume would, until stop is called, which tells how often.
func swap(t *testing.T, dir, a, b string) (stop func() int) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Renameat2(fd, a, fd, b, unix.RENAME_EXCHANGE); err != nil {
		_ = unix.Close(fd)
		t.Skip("needs a file system that exchanges names below ", dir, ": ", err)
	}
	done, times := make(chan struct{}), 0
	var over sync.WaitGroup
	over.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				// A name that the runtime has mounted on cannot be moved just then.
				if unix.Renameat2(fd, a, fd, b, unix.RENAME_EXCHANGE) == nil {
					times++
				}
			}
		}
	})
	return sync.OnceValue(func() int {
		close(done)
		over.Wait()
		_ = unix.Close(fd)
		return times
	})
}

// rounds of a race. The advisories' own programs need some hundred for one success; each
// of ours has several mounts that can go astray.
const rounds = 15

// TestExchangedTargets: where the runtime mounts, inside of a volume that another container
// has too, a directory is exchanged with a link to the host while it works.
//
// CVE-2021-30465, CVE-2024-45310 (runc).
func TestExchangedTargets(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		r.mkdir("volume/real")
		r.mkdir("source")
		r.file("source-file", "", 0o644)
		r.symlink(r.canary, "volume/link")
		volume := filepath.Join(r.bundle, "volume")
		stop := swap(t, volume, "real", "link")
		defer stop()
		bind := []string{"rbind", "rw"}
		started := 0
		for n := range rounds {
			r.fresh()
			base := len(r.spec.Mounts)
			r.spec.Mounts = append(r.spec.Mounts, specs.Mount{Destination: "/volume", Type: "bind", Source: volume, Options: bind})
			for i := range 4 {
				r.spec.Mounts = append(r.spec.Mounts,
					specs.Mount{Destination: fmt.Sprintf("/volume/real/made-%d-%d/deep", n, i), Type: "tmpfs", Source: "tmpfs", Options: []string{fmt.Sprintf("size=%dk", 68+4*i)}},
					specs.Mount{Destination: fmt.Sprintf("/volume/real/dir-%d-%d", n, i), Type: "bind", Source: filepath.Join(r.bundle, "source"), Options: bind},
					specs.Mount{Destination: fmt.Sprintf("/volume/real/file-%d-%d", n, i), Type: "bind", Source: filepath.Join(r.bundle, "source-file"), Options: bind})
			}
			o := r.run("cat /proc/self/mountinfo")
			r.safe(o)
			if o.err != nil {
				continue
			}
			started++
			// The private /sys/fs/cgroup of version 1 adds to what the specification lists.
			if got := strings.Count(o.output, " - "); got < len(r.spec.Mounts) {
				t.Errorf("escape: the container has %d mounts, should have %d and %d: some lie somewhere else\n%s", got, base, len(r.spec.Mounts)-base, o.output)
			}
			for i := range 4 {
				if !strings.Contains(o.output, fmt.Sprintf("size=%dk", 68+4*i)) {
					t.Errorf("escape: tmpfs %d was mounted somewhere else:\n%s", i, o.output)
				}
			}
		}
		times := stop()
		t.Logf("%d of %d containers were started, names were exchanged %d times", started, rounds, times)
		if times < rounds {
			t.Errorf("names were exchanged %d times: there was no race", times)
		}
	})
}

// TestExchangedNull: the container's /dev is a volume, in which somebody exchanges null with
// a link while the runtime hides files with it.
//
// CVE-2025-31133 (runc), CVE-2025-62161 (youki).
func TestExchangedNull(t *testing.T) {
	const shown = "Linux version"
	each(t, func(t *testing.T, r *rig) {
		r.mkdir("dev")
		if err := unix.Mknod(filepath.Join(r.bundle, "dev/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
			t.Fatal(err)
		}
		r.symlink("/proc/version", "dev/other")
		stop := swap(t, filepath.Join(r.bundle, "dev"), "null", "other")
		defer stop()
		started := 0
		for range rounds {
			r.fresh()
			r.instead("/dev", specs.Mount{Destination: "/dev", Type: "bind", Source: filepath.Join(r.bundle, "dev"), Options: []string{"rbind", "rw"}})
			o := r.run("for f in " + strings.Join(r.spec.Linux.MaskedPaths, " ") + "; do [ -f $f ] || [ -c $f ] && cat $f; done; true")
			r.safe(o)
			if o.err == nil {
				started++
			}
			if strings.Contains(o.output, shown) {
				t.Errorf("escape: a masked path shows another file: %s", o.output)
			}
		}
		times := stop()
		t.Logf("%d of %d containers were started, names were exchanged %d times", started, rounds, times)
		if times < rounds {
			t.Errorf("names were exchanged %d times: there was no race", times)
		}
	})
}

// TestConsole: with a terminal, where /dev/console and the devices of terminals lie in the
// image and are links, what is mounted there is the terminal and nothing else, and no file
// of the host is touched.
//
// CVE-2025-52565 (runc).
func TestConsole(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		for name, attack := range map[string]func(){
			"none":             func() {},
			"console absolute": func() { r.without("/dev"); r.symlink(filepath.Join(r.canary, "secret"), "rootfs/dev/console") },
			"console upward": func() {
				r.without("/dev")
				r.symlink(strings.Repeat("../", 20)+filepath.Join(r.canary, "new"), "rootfs/dev/console")
			},
			"console in proc": func() { r.without("/dev"); r.symlink("/proc/sys/kernel/core_pattern", "rootfs/dev/console") },
			"terminals": func() {
				r.mkdir("pts")
				for i := range 32 {
					r.symlink("/proc/version", fmt.Sprintf("pts/%d", i))
				}
				r.instead("/dev/pts", specs.Mount{Destination: "/dev/pts", Type: "bind", Source: filepath.Join(r.bundle, "pts"), Options: []string{"rbind"}})
			},
			"multiplexer": func() { r.without("/dev"); r.symlink("/proc/version", "rootfs/dev/ptmx") },
		} {
			r.fresh()
			attack()
			r.spec.Process.Terminal = true
			r.spec.Process.Args = []string{"/bin/sh", "-c", "stat -c 'console %F' /dev/console; stat -c 'output %F' /proc/self/fd/1 -L; cat /dev/console/secret"}
			r.config()
			said, o := r.terminal()
			r.safe(outcome{output: said + o.output, err: o.err})
			t.Logf("%s: %s %q", name, failure(o), said)
			if o.err == nil && !strings.Contains(said, "console character special file") || name == "none" && o.err != nil {
				t.Errorf("%s: /dev/console is no terminal: %v %s", name, o.err, said+o.output)
			}
		}
	})
}

// terminal runs the container of config.json with a terminal, and returns what came of it.
func (r *rig) terminal() (string, outcome) {
	r.t.Helper()
	// The address of a socket is short.
	dir, err := os.MkdirTemp("", "oci")
	if err != nil {
		r.t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	defer unix.Close(fd)
	path := filepath.Join(dir, "c")
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		r.t.Fatal(err)
	}
	if err := unix.Listen(fd, 1); err != nil {
		r.t.Fatal(err)
	}
	said := make(chan string, 1)
	go func() { said <- receive(fd) }()
	o := r.call("run", "--detach", "--console-socket", path, "--bundle", r.bundle, r.id)
	if o.err != nil {
		_ = unix.Shutdown(fd, unix.SHUT_RDWR) // wakes whoever accepts
	}
	text := <-said
	r.call("delete", "--force", r.id)
	return text, o
}

// receive takes a terminal off a socket and reads it until its container has ended.
func receive(listener int) string {
	conn, _, err := unix.Accept(listener)
	if err != nil {
		return ""
	}
	defer unix.Close(conn)
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(conn, buf, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil || n == 0 {
		return ""
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) == 0 {
		return ""
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) == 0 {
		return ""
	}
	tty := os.NewFile(uintptr(fds[0]), "terminal")
	defer tty.Close()
	var text strings.Builder
	for {
		n, err := tty.Read(buf)
		text.Write(buf[:n])
		if err != nil { // EIO: nobody has the other end
			return text.String()
		}
	}
}

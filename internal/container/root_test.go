package container

import (
	"errors"
	"os"
	osexec "os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// look reads a file below a root that has no name.
func look(t *testing.T, root *os.File, name string) string {
	t.Helper()
	fd, err := unix.Openat(int(root.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err.Error()
	}
	defer unix.Close(fd)
	buf := make([]byte, 100)
	n, err := unix.Read(fd, buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:n])
}

func TestBareRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	dir := t.TempDir()
	if err := unix.Mount("bare", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("inside"), 0o600); err != nil {
		t.Fatal(err)
	}
	// A process whose root is the mount, with another mount of its own in it.
	sub := filepath.Join(dir, "sub")
	if err := errors.Join(os.Mkdir(sub, 0o755), os.Mkdir(filepath.Join(dir, "old"), 0o755), os.WriteFile(filepath.Join(sub, "f"), []byte("below"), 0o600)); err != nil {
		t.Fatal(err)
	}
	script := `mount --make-rprivate / && mount --bind "$0" "$0" && mount -t tmpfs over "$0/sub" && cd "$0" && pivot_root . old && echo ready && read x`
	cmd := osexec.Command("/bin/sh", "-c", script, dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); _ = cmd.Wait() })
	if n, err := out.Read(make([]byte, 10)); n == 0 {
		t.Skipf("no process with a root of its own: %v", err)
	}
	st := &State{Pid: cmd.Process.Pid, PidStart: pidStart(cmd.Process.Pid)}

	check := func(what string, b *bareRoot) {
		t.Helper()
		root, err := b.open(dir, st)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		defer root.Close()
		if got := look(t, root, "f"); got != "inside" {
			t.Errorf("%s: file of the root: %q", what, got)
		}
		if got := look(t, root, "sub/f"); got != "below" {
			t.Errorf("%s: what the process mounted shows: %q", what, got)
		}
	}
	var first bareRoot
	check("while it is mounted", &first)
	if err := first.hide(dir, st, func(d string) error { return unix.Unmount(d, unix.MNT_DETACH) }); err != nil {
		t.Fatal(err)
	}
	if isMounted(dir) {
		t.Error("hidden, but still mounted")
	}
	check("hidden", &first)
	var later bareRoot // of an engine that came later
	check("from the process", &later)
	first.close()
	first.close()
	if _, err := first.open(dir, st); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after close: %v", err)
	}
	later.close()
	var stranger bareRoot
	if _, err := stranger.open(dir, &State{Pid: st.Pid, PidStart: st.PidStart + 1}); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("of a process that has another's pid: %v", err)
	}
	if ns, err := os.Readlink("/proc/self/ns/mnt"); err != nil {
		t.Fatal(err)
	} else if of, _ := os.Readlink("/proc/thread-self/ns/mnt"); of != ns {
		t.Errorf("this thread is in %s, the process in %s", of, ns)
	}
}

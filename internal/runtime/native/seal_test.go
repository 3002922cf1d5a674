package native

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A file system that is read-only now may be made writable later: the program that a
// container sees is of a mount that cannot.
func TestProgramOfReadOnlyMount(t *testing.T) {
	l := newLab(t, "exec sleep 1000")
	l.write()
	// A copy: our own is somebody's text for as long as the test runs.
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(l.bundle, "program")
	if err := os.WriteFile(program, self, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(program, program, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(program, unix.MNT_DETACH)
	if err := unix.Mount("", program, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) {
		cmd := exec.Command(program, append([]string{"--root", l.states}, args...)...)
		cmd.Env, cmd.Dir = append(os.Environ(), asRuntime+"=1"), l.bundle
		if err := cmd.Run(); err != nil {
			t.Fatalf("%v: %v", args, err)
		}
	}
	run("create", l.id)
	held, err := os.OpenFile("/proc/"+strconv.Itoa(l.state().Pid)+"/exe", unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	run("start", l.id)
	run("exec", l.id, "true") // executes itself anew, once
	if err := unix.Mount("", program, "", unix.MS_REMOUNT|unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	l.must("delete", "--force", l.id)
	f, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(int(held.Fd())), os.O_WRONLY, 0)
	if !errors.Is(err, unix.EROFS) {
		f.Close()
		t.Errorf("opened for writing: %v", err)
	}
}

// A program that was replaced on the disk after it was started from a mount of its own does its work.
func TestSealedProgramIsRemoved(t *testing.T) {
	l := newLab(t, "exec sleep 1000")
	l.write()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(l.bundle, "program")
	if err := os.WriteFile(name, self, 0o755); err != nil {
		t.Fatal(err)
	}
	tree, err := openTree(name, false)
	if err == nil {
		err = setTree(tree, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}, false)
	}
	if err == nil {
		err = os.Remove(name)
	}
	if err != nil {
		t.Fatal(err)
	}
	mount := os.NewFile(uintptr(tree), name)
	defer mount.Close()
	for _, args := range [][]string{{"create", l.id}, {"start", l.id}, {"exec", l.id, "true"}} {
		cmd := exec.Command("/proc/self/fd/3", append([]string{"--root", l.states}, args...)...)
		cmd.Env, cmd.Dir, cmd.ExtraFiles = append(os.Environ(), asRuntime+"=1"), l.bundle, []*os.File{mount}
		var said strings.Builder
		if args[0] != "create" { // whose streams its process keeps
			cmd.Stderr = &said
		}
		if err := cmd.Run(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, said.String())
		}
	}
}

// Where the kernel executes no memory files, an exec in a user namespace works all the same.
func TestExecWithoutMemoryFiles(t *testing.T) {
	const barred = "/proc/sys/vm/memfd_noexec" // of a pid namespace
	if !exists(barred) {
		t.Skip("needs vm.memfd_noexec (Linux 6.3)")
	}
	l := newLab(t, "exec sleep 1000")
	withUsers(l)
	l.write()
	script := `mount -t proc proc /proc && echo 2 >` + barred + ` || exit 9
		"$0" --root "$1" run -d "$2" >out 2>&1 </dev/null && "$0" --root "$1" exec "$2" id -u; code=$?
		"$0" --root "$1" delete --force "$2" && exit $code`
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", script, self, l.states, l.id)
	cmd.Env, cmd.Dir = append(os.Environ(), asRuntime+"=1"), l.bundle
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID, Unshareflags: unix.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if err != nil || string(out) != "0\n" {
		t.Errorf("%v: %s", err, out)
	}
}

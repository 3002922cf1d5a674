package freezer

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestFreezeAndThaw(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes a cgroup")
	}
	f := Freezer{Root: "/sys/fs/cgroup"}
	name := "escale-freezer-test-" + strconv.Itoa(os.Getpid())
	dir := filepath.Join(f.Root, name)
	if !f.unified() {
		dir = filepath.Join(f.Root, "freezer", name)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skip("needs a freezer cgroup: ", err)
	}
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		f.Thaw(name)
		cmd.Process.Kill()
		cmd.Wait()
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Freeze(name); err != nil {
		t.Fatal(err)
	}
	if s := frozen(t, f, dir); !s {
		t.Error("not frozen after Freeze")
	}
	if err := f.Thaw(name); err != nil {
		t.Fatal(err)
	}
	if s := frozen(t, f, dir); s {
		t.Error("still frozen after Thaw")
	}
	if err := f.Freeze("escale-no-such-cgroup"); err == nil {
		t.Error("freezing what is not there succeeded")
	}
}

func frozen(t *testing.T, f Freezer, dir string) bool {
	t.Helper()
	file, want := "freezer.state", "FROZEN"
	if f.unified() {
		file, want = "cgroup.events", "frozen 1"
	}
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(b), want)
}

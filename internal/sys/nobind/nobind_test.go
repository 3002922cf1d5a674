package nobind

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

func root(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
}

// folder is a prepared folder, undone at the end of the test.
func folder(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "dir")
	if err := Prepare(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Release(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestPrepareIsIdempotentAndPrivate(t *testing.T) {
	root(t)
	dir := folder(t)
	for range 3 {
		if err := Prepare(dir); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	mounts := 0
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); f[4] == dir {
			mounts++
			if strings.Contains(line, "shared:") || !strings.Contains(line, "unbindable") {
				t.Errorf("not alone: %s", line)
			}
		}
	}
	if mounts != 1 {
		t.Errorf("%d mounts on the folder, want 1", mounts)
	}
}

func TestReleaseKeepsWhatIsLeft(t *testing.T) {
	root(t)
	dir := folder(t)
	left := filepath.Join(dir, "left")
	if err := os.Mkdir(left, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Release(dir); err == nil {
		t.Error("released with something in it")
	}
	if err := os.Remove(left); err != nil {
		t.Fatal(err)
	}
}

// A recursive bind of a directory above must not keep what is mounted here busy.
func TestRecursiveBindLeavesItOut(t *testing.T) {
	root(t)
	dir := folder(t)
	point := filepath.Join(dir, "point")
	if err := os.Mkdir(point, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", point, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	copied := t.TempDir()
	if err := unix.Mount(filepath.Dir(dir), copied, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(copied, unix.MNT_DETACH)
	if mounted, err := mountinfo.Mounted(filepath.Join(copied, "dir", "point")); err != nil || mounted {
		t.Errorf("mounted in the bind: %t, %v", mounted, err)
	}
	if err := unix.Unmount(point, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(point); err != nil {
		t.Errorf("removing what is not mounted any more: %v", err)
	}
}

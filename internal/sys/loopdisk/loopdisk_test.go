package loopdisk

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

func TestMount(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: loop devices, mounts")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("needs loop devices:", err)
	}
	root := t.TempDir()
	file, dir := filepath.Join(root, "disk.img"), filepath.Join(root, "dir")
	if err := os.WriteFile(file+".new", []byte("of one that was killed"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	for range 2 {
		err := Mount(t.Context(), file, dir)
		if errors.Is(err, ErrNoTool) {
			t.Skip("needs", err)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(dir))
	if err != nil || len(mounts) != 1 || mounts[0].FSType != "ext4" {
		t.Fatalf("mounts: %v, %v", mounts, err)
	}
	kept := filepath.Join(dir, "kept")
	if err := os.WriteFile(kept, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil || st.Blocks*512 > 512<<20 || st.Size < st.Blocks*512 {
		t.Errorf("the file takes %d MB of %d: %v", st.Blocks>>11, st.Size>>20, err)
	}
	if _, err := os.Stat(file + ".new"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("half a file is left: %v", err)
	}
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	if err := Mount(t.Context(), file, dir); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(kept); err != nil || string(b) != "x" {
		t.Errorf("after a second mount: %q, %v", b, err)
	}
}

package blockgroup

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// ext4Magic is EXT4_SUPER_MAGIC of linux/magic.h.
const ext4Magic = 0xef53

func TestSpread(t *testing.T) {
	dir := t.TempDir()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	if st.Type != ext4Magic || os.Getuid() != 0 {
		t.Skip("needs root, and ext4 below the directory of temporary files")
	}
	flags := func() uint32 {
		t.Helper()
		f, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		got, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	before := flags()
	for range 2 {
		Spread(dir)
		if got := flags(); got != before|topDir {
			t.Errorf("flags %#x, then %#x", before, got)
		}
	}
}

func TestSpreadElsewhere(t *testing.T) {
	Spread(filepath.Join(t.TempDir(), "none"))
	Spread("/proc/self")
}

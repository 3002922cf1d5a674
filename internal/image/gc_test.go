package image

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCollectOnFullDisk: what a collection lays out for itself goes, though it is begun
// while the disk is full, and is laid out anew once there is room.
func TestCollectOnFullDisk(t *testing.T) {
	needRoot(t)
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=8m"); err != nil {
		t.Skipf("needs tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s := open(t, Config{Root: filepath.Join(disk, "store"), MinFree: -1})
	before := count(t, s)
	filler, err := os.Create(filepath.Join(disk, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer filler.Close()
	block := make([]byte, 4096)
	for err == nil {
		_, err = filler.Write(block)
	}
	s.gc.kick(true)
	_ = s.Collect(t.Context()) // what cannot be done now is done later
	if err := filler.Truncate(0); err != nil {
		t.Fatal(err)
	}
	s.gc.mu.Lock()
	again := s.gc.full
	s.gc.mu.Unlock()
	if !again {
		t.Error("the next collection does not look for what no record knows of")
	}
	if after := count(t, s); after != before {
		t.Errorf("left: %+v, before %+v", after, before)
	}
}

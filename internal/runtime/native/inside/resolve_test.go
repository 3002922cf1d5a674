package inside

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime/native/plan"
)

// Of two containers that find the place of a mount missing in a directory they share, one
// makes it and the other takes it; nobody takes a link.
func TestPlaceMadeMeanwhile(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(root)
	h := &half{Plan: &plan.Plan{}, root: root}
	fd, err := h.make("/file", false, 0)
	if err != nil {
		t.Fatal("a file that is there by now: ", err)
	}
	unix.Close(fd)
	if _, err := h.make("/link", false, 0); !errors.Is(err, unix.ELOOP) {
		t.Errorf("a link that is there by now: %v", err)
	}
}

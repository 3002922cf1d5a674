package monitor

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSeal: our own program is given by a descriptor, a script of its name, which its
// interpreter has to find, by its path.
func TestSeal(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "escale-runtime")
	if err := os.WriteFile(name, []byte("#!/bin/sh\nexec true\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if path, fd := seal(name, 3); path != name || fd != -1 {
		t.Errorf("a script: %s, %d", path, fd)
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: open_tree")
	}
	if err := os.WriteFile(name, []byte("\x7fELF, says it"), 0o755); err != nil {
		t.Fatal(err)
	}
	path, fd := seal(name, 40)
	if fd < 40 || path != "/proc/self/fd/"+itoa(int64(fd)) {
		t.Fatalf("a program: %s, %d", path, fd)
	}
	defer unix.Close(fd)
	if f, err := os.OpenFile(path, os.O_WRONLY, 0); err == nil {
		f.Close()
		t.Error("it can be written to")
	}
}

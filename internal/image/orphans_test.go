package image

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
)

// TestOrphanedSnapshotIsSetAside makes what an engine leaves that was killed
// between the directory of a snapshot and its entry in the metadata.
func TestOrphanedSnapshotIsSetAside(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: opens the overlay snapshotter")
	}
	root := t.TempDir()
	open := func() *Store {
		s, err := Open(t.Context(), Config{Root: root, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	orphan := filepath.Join(root, "snapshots", "snapshots", "1")
	if err := os.MkdirAll(filepath.Join(orphan, "fs", "file"), 0o755); err != nil {
		t.Fatal(err)
	}
	s = open()
	defer s.Close()
	if _, err := os.Stat(orphan); err == nil {
		t.Errorf("%s keeps a number that is given out again", orphan)
	}
	if _, err := s.backend.Prepare(t.Context(), "next", ""); err != nil {
		t.Errorf("the snapshot that gets the number: %v", err)
	}
	if err := s.backend.Remove(t.Context(), "next"); err != nil {
		t.Error(err)
	}
}

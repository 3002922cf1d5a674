package du

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestSize(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, n int) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, make([]byte, n), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("a", 1000)
	write("sub/b", 234)
	if err := os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "sub", "again")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("12345", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	got, err := Size(context.Background(), dir)
	if want := int64(1000 + 234); err != nil || got != want {
		t.Errorf("Size = %d, %v, want %d", got, err, want)
	}
	if _, err := Size(context.Background(), filepath.Join(dir, "nosuch")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Size of what is not there: %v", err)
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Size(ended, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("Size after the end: %v", err)
	}
}

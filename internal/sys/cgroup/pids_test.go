package cgroup

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestPids(t *testing.T) {
	root := t.TempDir()
	for path, text := range map[string]string{
		"pids/c/cgroup.procs": "7\n0\n3\n", "pids/c/below/cgroup.procs": "9\n3\n", "v2/c/cgroup.procs": "5\n", "pids/d/tasks": "",
	} {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	legacy := Info{Mode: Legacy, Mounts: map[string]string{"pids": root + "/pids"}}
	unified := Info{Mode: Unified, Unified: root + "/v2"}
	if got, err := legacy.Pids("/c"); err != nil || !slices.Equal(got, []int{3, 7, 9}) {
		t.Errorf("version 1: %v, %v", got, err)
	}
	if got, err := unified.Pids("c"); err != nil || !slices.Equal(got, []int{5}) {
		t.Errorf("version 2: %v, %v", got, err)
	}
	for _, i := range []Info{legacy, unified, {}} {
		if got, err := i.Pids("/gone"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v, %v", i.Mode, got, err)
		}
	}
	if got, err := legacy.Pids("/d"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("removed while it was read: %v, %v", got, err)
	}
}

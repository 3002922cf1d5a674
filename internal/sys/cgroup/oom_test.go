package cgroup

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// The real kernel: a cgroup that runs out of memory tells, ends when it is
// removed, and when nobody wants to know.
func TestOOMs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: cgroups")
	}
	i, err := Detect()
	if err != nil {
		t.Fatal(err)
	}
	name := "/escale-test-oom-" + filepath.Base(t.TempDir())
	dir, ok := i.Dir("memory", name)
	if !ok {
		t.Skip("no memory controller")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(dir) })
	if _, err := os.Stat(filepath.Join(dir, "memory.oom_control")); i.Mode == Unified && err == nil {
		t.Fatal("version 1's file in version 2")
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- i.OOMs(ctx, name, func(bool) {}) }()
	gone, enough := context.WithCancel(t.Context())
	defer enough()
	go func() { ended <- i.OOMs(gone, name, func(bool) {}) }()
	time.Sleep(20 * time.Millisecond) // both wait by then; if not, the rest holds all the same
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if i.Mode == Unified {
		enough() // whether inotify tells the end differs between kernels
	}
	select {
	case err := <-ended:
		if err != nil && gone.Err() == nil {
			t.Errorf("removed: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the end of the cgroup was not told")
	}
	if err := i.OOMs(t.Context(), name, func(bool) {}); err != nil {
		t.Errorf("no such cgroup: %v", err)
	}
}

func TestOOMKills(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	for text, want := range map[string]uint64{
		"oom_kill_disable 0\nunder_oom 0\noom_kill 7\n":                7,
		"low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n": 2,
		"": 0,
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if n, ok := oomKills(file); n != want || !ok {
			t.Errorf("%q: %d, %v", text, n, ok)
		}
	}
	if _, ok := oomKills(file + "x"); ok {
		t.Error("no file is no count")
	}
}

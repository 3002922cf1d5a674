package atomicfile

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestWriteReplacesAndSetsMode(t *testing.T) {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	for _, sync := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "record.json")
		for _, content := range []string{"first, the longer one", "second", ""} {
			if err := Write(path, []byte(content), 0o644, Options{Sync: sync}); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(path)
			if err != nil || string(got) != content {
				t.Fatalf("read %q, %v; want %q", got, err, content)
			}
		}
		if st, _ := os.Stat(path); st.Mode().Perm() != 0o644 {
			t.Errorf("mode %v, want 0644", st.Mode())
		}
		if n := names(t, filepath.Dir(path)); len(n) != 1 {
			t.Errorf("left over: %q", n)
		}
	}
}

func TestWriteRelativePath(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := Write("x", []byte("1"), 0o600, Options{Sync: true}); err != nil {
		t.Fatal(err)
	}
	if n := names(t, "."); len(n) != 1 || n[0] != "x" {
		t.Errorf("directory holds %q", n)
	}
}

func TestWriteErrorsLeaveNothing(t *testing.T) {
	dir := t.TempDir()
	if err := Write(filepath.Join(dir, "gone", "x"), nil, 0o600, Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing directory: %v", err)
	}
	// A directory in the way: the rename fails after everything else went well.
	if err := os.MkdirAll(filepath.Join(dir, "d", "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Write(filepath.Join(dir, "d"), []byte("1"), 0o600, Options{}); err == nil {
		t.Error("a directory was replaced")
	}
	if n := names(t, dir); len(n) != 1 {
		t.Errorf("left over: %q", n)
	}
}

func TestWriteOnFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts a small tmpfs")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("needs to mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "x")
	if err := Write(path, []byte("old"), 0o600, Options{Sync: true}); err != nil {
		t.Fatal(err)
	}
	if err := Write(path, make([]byte, 1<<20), 0o600, Options{Sync: true}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("full disk: %v", err)
	}
	if got, _ := os.ReadFile(path); string(got) != "old" {
		t.Errorf("content after a failed write: %q", got)
	}
	if n := names(t, dir); len(n) != 1 {
		t.Errorf("left over: %q", n)
	}
}

func TestCollect(t *testing.T) {
	dir := t.TempDir()
	for _, n := range []string{".a.atomic-123", ".b.json.atomic-9", "a", ".hidden", "x.atomic-1", ".atomic-sub"} {
		if err := os.WriteFile(filepath.Join(dir, n), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := Collect(dir); err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(names(t, dir)), "[.atomic-sub .hidden a x.atomic-1]"; got != want {
		t.Errorf("after Collect %s, want %s", got, want)
	}
	if err := Collect(filepath.Join(dir, "missing")); err != nil {
		t.Errorf("missing directory: %v", err)
	}
}

// Collect beside living writers: every Write succeeds all the same.
func TestCollectBesideWriters(t *testing.T) {
	dir := t.TempDir()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if err := Collect(dir); err != nil {
					t.Error(err)
					return
				}
				time.Sleep(200 * time.Microsecond) // a start of an engine, not a siege
			}
		}
	})
	for i := range 500 {
		if err := Write(filepath.Join(dir, "x"), []byte{byte(i)}, 0o600, Options{}); err != nil {
			t.Errorf("write %d: %v", i, err)
			break
		}
	}
	close(stop)
	wg.Wait()
}

// A writer killed at random leaves a whole file, and only what Collect knows.
func TestKilledWriter(t *testing.T) {
	if dir := os.Getenv("ATOMICFILE_WRITER"); dir != "" {
		for i := 0; ; i++ {
			content := bytes.Repeat([]byte{byte('a' + i%26)}, 100_000)
			if err := Write(filepath.Join(dir, "x"), content, 0o600, Options{Sync: true}); err != nil {
				os.Exit(3)
			}
		}
	}
	dir, left := t.TempDir(), 0
	for round := range 10 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledWriter$")
		cmd.Env = append(os.Environ(), "ATOMICFILE_WRITER="+dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(30+7*round) * time.Millisecond)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		got, err := os.ReadFile(filepath.Join(dir, "x"))
		if err == nil && (len(got) != 100_000 || bytes.Count(got, got[:1]) != len(got)) {
			t.Fatalf("round %d: torn file of %d bytes", round, len(got))
		}
		for _, n := range names(t, dir) {
			if IsTemp(n) {
				left++
			}
		}
		if err := Collect(dir); err != nil {
			t.Fatal(err)
		}
		if n := names(t, dir); len(n) > 1 {
			t.Fatalf("not collected: %q", n)
		}
	}
	t.Logf("killed writers left %d temporaries, all collected", left)
}

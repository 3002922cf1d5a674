package daemon

import (
	"crypto/rand"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// An engine that shares any of its roots or its name with one that runs would
// take that one's containers and links for remains: it does not start.
func TestOneEngineHasRootsAndName(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: the names of engines are locked in " + instancesFile)
	}
	name := "t" + strings.ToLower(rand.Text()[:8])
	dirs := func() (string, string) { return t.TempDir(), t.TempDir() }
	open := func(data, exec, instance string) (*Daemon, error) {
		d := &Daemon{cfg: &Config{DataRoot: data, ExecRoot: exec, Instance: instance}, log: slog.New(slog.DiscardHandler)}
		return d, d.lockAll()
	}
	data, exec := dirs()
	first, err := open(data, exec, name)
	t.Cleanup(func() { first.Close() })
	if err != nil {
		t.Fatal(err)
	}
	otherData, otherExec := dirs()
	for _, c := range []struct{ what, data, exec, instance string }{
		{"data root", data, otherExec, name + "2"},
		{"exec root", otherData, exec, name + "2"},
		{"instance", otherData, otherExec, name},
	} {
		d, err := open(c.data, c.exec, c.instance)
		if err == nil || !strings.HasPrefix(err.Error(), c.what+" ") || !strings.Contains(err.Error(), "another engine") {
			t.Errorf("same %s: %v", c.what, err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	again, err := open(data, exec, name)
	if err != nil {
		t.Errorf("after the first has ended: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
	for _, dir := range []string{data, exec} {
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
}

// Owners that come and go and remove the file never hold it two at a time.
func TestLockExcludes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	var inside, wins, clashes int
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				f, err := lock(path)
				if errors.Is(err, syscall.EWOULDBLOCK) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				wins++
				if inside++; inside > 1 {
					clashes++
				}
				mu.Unlock()
				mu.Lock()
				inside--
				mu.Unlock()
				os.Remove(path)
				f.Close()
			}
		})
	}
	wg.Wait()
	if clashes > 0 || wins == 0 {
		t.Errorf("%d owners at a time with others, of %d", clashes, wins)
	}
}

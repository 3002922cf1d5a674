package netns

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
}

// folder is a folder of handles, undone at the end of the test.
func folder(t testing.TB) *Folder {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "netns")
	f, err := OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Destroy(); err != nil {
			t.Error(err)
		}
		if left, _ := filepath.Glob(dir + "*"); len(left) > 0 {
			t.Errorf("left: %q", left)
		}
	})
	return f
}

func current(t testing.TB) string {
	t.Helper()
	s, err := os.Readlink(self)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestNewRunsInAnotherNamespace(t *testing.T) {
	root(t)
	f := folder(t)
	path := f.Path("a")
	h, err := f.New("a")
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	var inside string
	if err := h.Do(func() error { inside, err = os.Readlink(self); return err }); err != nil {
		t.Fatal(err)
	}
	if inside == current(t) {
		t.Fatalf("Do runs in %s, the namespace of the caller", inside)
	}
	if !Bound(path) {
		t.Error("the namespace is not bound to its file")
	}
	again, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	var same string
	if err := again.Do(func() error { same, err = os.Readlink(self); return err }); err != nil {
		t.Fatal(err)
	}
	if same != inside {
		t.Errorf("Open entered %s, want %s", same, inside)
	}
}

// Every thread of the process must still be where it was, however many handles
// came and went.
func TestNoThreadIsLeftInside(t *testing.T) {
	root(t)
	dir := folder(t)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			h, err := dir.New(string(rune('a' + i)))
			if err != nil {
				t.Error(err)
				return
			}
			_ = h.Do(func() error { runtime.Gosched(); return nil })
			h.Close()
		})
	}
	wg.Wait()
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	var names map[string]string
	for range 200 { // a thread that has ended stays in /proc for a moment
		names = map[string]string{}
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range tasks {
			ns, err := os.Readlink("/proc/self/task/" + task.Name() + "/ns/net")
			if err == nil && ns != home {
				names[task.Name()] = ns
			}
		}
		if len(names) == 0 {
			return
		}
		runtime.Gosched()
		_ = unix.Nanosleep(&unix.Timespec{Nsec: 5e6}, nil)
	}
	t.Errorf("threads left in other namespaces: %v", names)
}

func TestNewRefusesAnExistingFile(t *testing.T) {
	root(t)
	f := folder(t)
	path := f.Path("a")
	if err := os.WriteFile(path, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := f.New("a"); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("New on an existing file: %v", err)
	}
	if b, _ := os.ReadFile(path); string(b) != "kept" {
		t.Errorf("the file was changed to %q", b)
	}
	if Bound(path) {
		t.Error("a namespace is bound to a file that was there before")
	}
}

func TestOpenRefusesWhatIsNoNamespace(t *testing.T) {
	root(t)
	dir := t.TempDir()
	if _, err := Open(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open of nothing: %v", err)
	}
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(plain); !errors.Is(err, unix.EINVAL) {
		t.Errorf("Open of a plain file: %v", err)
	}
	if _, err := Open("/proc/self/ns/uts"); !errors.Is(err, unix.EINVAL) {
		t.Errorf("Open of another kind of namespace: %v", err)
	}
}

func TestRemoveIsIdempotent(t *testing.T) {
	root(t)
	f := folder(t)
	path := f.Path("a")
	h, err := f.New("a")
	if err != nil {
		t.Fatal(err)
	}
	h.Close()
	for range 2 {
		if err := f.Remove("a"); err != nil {
			t.Fatal(err)
		}
	}
	half := path + "half" // made, never bound
	if err := os.WriteFile(half, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := f.Remove("ahalf"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(half); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the file is still there")
	}
}

func TestLockExcludes(t *testing.T) {
	unlock, err := Lock()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("a second lock: %v", err)
	}
	unlock()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Errorf("after unlock: %v", err)
	}
}

func BenchmarkNew(b *testing.B) {
	root(b)
	dir := folder(b)
	for b.Loop() {
		h, err := dir.New("x")
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		h.Close()
		if err := dir.Remove("x"); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

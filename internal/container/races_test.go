package container

import (
	"bytes"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"escale.dev/escale/internal/runtime"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
)

// A monitor that does not answer holds up its own container and nobody else.
func TestStuckMonitorHoldsUpNobodyElse(t *testing.T) {
	f := newFakeEngine()
	m := f.manager(t, t.TempDir())
	defer m.Close()
	id := create(t, m, "web", nil)
	if err := m.Start(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	task := f.tasks[string(id)]
	task.stuck = make(chan struct{})
	removed := make(chan error, 1)
	go func() { removed <- m.Remove(t.Context(), "web", Remove{Force: true}) }()
	time.Sleep(50 * time.Millisecond) // the signal is under way
	listed := make(chan int, 1)
	go func() { listed <- len(m.List()) }()
	select {
	case n := <-listed:
		if n != 1 {
			t.Errorf("%d containers listed, want 1", n)
		}
	case <-time.After(5 * time.Second):
		t.Error("the list waits for a monitor")
	}
	close(task.stuck)
	if err := <-removed; err != nil {
		t.Error(err)
	}
}

func TestStopGoesAheadOfALongerOne(t *testing.T) {
	world(t, func(t *testing.T, f *fakeEngine, m *Manager) {
		id := create(t, m, "web", nil)
		if err := m.Start(t.Context(), "web"); err != nil {
			t.Fatal(err)
		}
		f.tasks[string(id)].ignore = syscall.SIGTERM
		forever, soon := -1, 3
		first := make(chan error, 1)
		go func() { first <- m.Stop(t.Context(), "web", Stop{Timeout: &forever}) }()
		synctest.Wait()
		begun := time.Now()
		if err := m.Stop(t.Context(), "web", Stop{Timeout: &soon}); err != nil && !errors.Is(err, ErrNotModified) {
			t.Error(err)
		}
		if d := time.Since(begun); d != 3*time.Second {
			t.Errorf("the second stop took %s, want 3s", d)
		}
		if err := <-first; err != nil {
			t.Errorf("the first stop: %v", err)
		}
		if s := status(t, m, id); s.Status != Exited || s.ExitCode != 137 {
			t.Errorf("after both: %+v", s)
		}
	})
}

func TestStopTimeoutDoesNotOverflow(t *testing.T) {
	for n, want := range map[int]time.Duration{
		0: 0, 1: time.Second, -1: -time.Second,
		10_000_000_000: math.MaxInt64 / time.Second * time.Second, math.MaxInt: math.MaxInt64 / time.Second * time.Second,
	} {
		if got := seconds(n); got != want {
			t.Errorf("seconds(%d) = %d, want %d", n, got, want)
		}
	}
}

// A client that attaches after the monitor was there and before the start is
// recorded gets its stream too.
func TestAttachWhileTheProcessIsMade(t *testing.T) {
	world(t, func(t *testing.T, f *fakeEngine, m *Manager) {
		create(t, m, "web", nil)
		ended := make(chan error, 1)
		f.starting = func() {
			go func() {
				ended <- m.Attach(t.Context(), "web", Attach{Stream: true, Stdout: true}, func(bool) (io.ReadWriteCloser, error) {
					return &memoryConn{}, nil
				})
			}()
			synctest.Wait()
		}
		if err := m.Start(t.Context(), "web"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		default:
			t.Error("the client still waits for a start that has been")
		}
		if err := m.Remove(t.Context(), "web", Remove{Force: true}); err != nil {
			t.Error(err)
		}
	})
}

type memoryConn struct{ bytes.Buffer }

func (*memoryConn) Close() error { return nil }

// Between the end of a process and the record of it, clients get the answer
// they would get a moment later.
func TestAttachToAMonitorThatHasLeft(t *testing.T) {
	f := newFakeEngine()
	task := &fakeTask{f: f, done: make(chan struct{})}
	task.finish(0)
	e := newEntry(Record{ID: "0123456789abcdef"})
	e.run, e.rec.State.Status = &run{task: task}, Running
	if _, _, err := e.join(t.Context(), runtime.Attach{}); !errdefs.IsConflict(err) {
		t.Errorf("attach: %v, want a conflict", err)
	}
}

// A stop between the start of the engine and Resume is not undone by Resume.
func TestStopBeforeResume(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEngine()
		m := f.manager(t, dir)
		id := create(t, m, "web", &container.HostConfig{RestartPolicy: container.RestartPolicy{Name: "unless-stopped"}})
		if err := m.Start(t.Context(), "web"); err != nil {
			t.Fatal(err)
		}
		f.end(id, 1)
		synctest.Wait()
		if s := status(t, m, id); s.Status != Restarting {
			t.Fatalf("after the crash: %s", s.Status)
		}
		m.Close()
		m = f.manager(t, dir)
		defer m.Close()
		if err := m.Stop(t.Context(), "web", Stop{}); err != nil {
			t.Errorf("stop of what waits for its restart: %v", err)
		}
		m.Resume(t.Context())
		time.Sleep(time.Hour)
		if s := status(t, m, id); s.Status != Exited {
			t.Errorf("stopped, and yet %s", s.Status)
		}
	})
}

func TestRootsMayHaveBracketsInTheirNames(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a[b]*?")
	f := newFakeEngine()
	m := f.manager(t, dir)
	id := create(t, m, "web", nil)
	m.Close()
	left := filepath.Join(dir, "run", string(id), "1")
	if err := os.MkdirAll(left, 0o700); err != nil {
		t.Fatal(err)
	}
	gone := filepath.Join(dir, "containers", removedPrefix+"1234")
	if err := os.MkdirAll(gone, 0o700); err != nil {
		t.Fatal(err)
	}
	m = f.manager(t, dir)
	m.Close() // waits for the collection
	for _, path := range []string{left, filepath.Dir(left), gone} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s was not swept: %v", path, err)
		}
	}
}

// One record that cannot be read does not keep the engine from the others, and
// what belongs to it is not collected.
func TestUnreadableRecord(t *testing.T) {
	dir := t.TempDir()
	f := newFakeEngine()
	m := f.manager(t, dir)
	bad, good := create(t, m, "bad", nil), create(t, m, "good", nil)
	m.Close()
	record := filepath.Join(dir, "containers", string(bad), recordFile)
	if err := os.WriteFile(record, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	run := filepath.Join(dir, "run", string(bad), "1")
	if err := os.MkdirAll(run, 0o700); err != nil {
		t.Fatal(err)
	}
	m = f.manager(t, dir)
	m.Close()
	if all := m.List(); len(all) != 1 || all[0].ID != good {
		t.Errorf("listed %d containers, want the good one", len(all))
	}
	if !f.prepared[string(bad)] {
		t.Error("its root file system is gone")
	}
	for _, path := range []string{record, run} {
		if _, err := os.Lstat(path); err != nil {
			t.Error(err)
		}
	}
	if err := os.WriteFile(record, []byte(`{"format":1000000}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := newStore(filepath.Join(dir, "containers")).load(); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a record of a newer engine: %v", err)
	}
}

func TestWaitForTheNextExitOfWhatIsGone(t *testing.T) {
	e := newEntry(Record{ID: "0123456789abcdef"})
	e.removed = true
	s := newStore(t.TempDir())
	s.add(e)
	m := &Manager{runner: &runner{core: &core{store: s}}}
	ch, err := m.Wait(t.Context(), "0123456789abcdef", string(container.WaitConditionNextExit))
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-ch:
	default:
		t.Error("waits for an exit that cannot come")
	}
}

func TestLockAlarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newOpLock()
		if err := l.lock(t.Context()); err != nil {
			t.Fatal(err)
		}
		var once sync.Once
		if err := l.lockAlarm(t.Context(), time.After(time.Second), func() error { once.Do(l.unlock); return nil }); err != nil {
			t.Error(err)
		}
		broken := errors.New("broken")
		if err := l.lockAlarm(t.Context(), time.After(time.Second), func() error { return broken }); !errors.Is(err, broken) {
			t.Errorf("%v, want %v", err, broken)
		}
	})
}

func TestRenameOfWhatWasRemovedMeanwhile(t *testing.T) {
	world(t, func(t *testing.T, f *fakeEngine, m *Manager) {
		create(t, m, "web", nil)
		e, err := m.store.find("web")
		if err != nil {
			t.Fatal(err)
		}
		e.op.lock(t.Context())
		renamed := make(chan error, 1)
		go func() { renamed <- m.Rename(t.Context(), "web", "other") }()
		synctest.Wait()
		if err := m.removeLocked(t.Context(), e, Remove{}); err != nil {
			t.Fatal(err)
		}
		e.op.unlock()
		if err := <-renamed; !errdefs.IsNotFound(err) {
			t.Errorf("rename: %v, want not found", err)
		}
		if err := m.store.reserve("other", "x"); err != nil {
			t.Errorf("the new name is still taken: %v", err)
		}
	})
}

package container

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strings"
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
	// One of a newer engine does, in a sentence that says what to do, and nothing is touched.
	halfMade := filepath.Join(dir, "containers", "00half-made")
	if err := os.Mkdir(halfMade, 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := newStore(filepath.Join(dir, "containers")).load()
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), bad.Short()) || !strings.Contains(err.Error(), "start that version again") || strings.Contains(err.Error(), "\n") {
		t.Errorf("a record of a newer engine: %v", err)
	}
	if _, err := os.Lstat(halfMade); err != nil {
		t.Error("an engine that does not start has collected something")
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

// While a stop waits for its container, everybody else has their answer at once.
func TestNobodyWaitsBehindAStop(t *testing.T) {
	world(t, func(t *testing.T, f *fakeEngine, m *Manager) {
		ctx := t.Context()
		id := create(t, m, "web", nil)
		if err := m.Start(ctx, "web"); err != nil {
			t.Fatal(err)
		}
		f.tasks[string(id)].ignore = syscall.SIGTERM
		forever := -1
		stopped := make(chan error, 1)
		go func() { stopped <- m.Stop(ctx, "web", Stop{Timeout: &forever}) }()
		synctest.Wait()
		begun := time.Now()
		if err := m.Start(ctx, "web"); !errors.Is(err, ErrNotModified) {
			t.Errorf("start: %v, want not modified", err)
		}
		for what, err := range map[string]error{
			"pause": m.Pause(ctx, "web"), "rename": m.Rename(ctx, "web", "www"),
		} {
			if err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
		if err := m.Unpause(ctx, "www"); err != nil {
			t.Errorf("unpause: %v", err)
		}
		if _, err := m.Update(ctx, "www", container.UpdateConfig{RestartPolicy: container.RestartPolicy{Name: "always"}}); err != nil {
			t.Errorf("update: %v", err)
		}
		if err := m.Kill(ctx, "www", ""); err != nil {
			t.Errorf("kill: %v", err)
		}
		if err := <-stopped; err != nil {
			t.Errorf("the stop: %v", err)
		}
		if d := time.Since(begun); d != 0 {
			t.Errorf("all that took %s", d)
		}
		synctest.Wait()
		if s := status(t, m, id); s.Status != Exited || s.ExitCode != 137 {
			t.Errorf("after it: %+v", s)
		}
	})
}

// A removal while a restart waits for the stop it began wins; the restart says so.
func TestRemoveAmidRestart(t *testing.T) {
	world(t, func(t *testing.T, f *fakeEngine, m *Manager) {
		id := create(t, m, "web", &container.HostConfig{AutoRemove: true})
		if err := m.Start(t.Context(), "web"); err != nil {
			t.Fatal(err)
		}
		f.tasks[string(id)].ignore = syscall.SIGTERM
		restarted := make(chan error, 1)
		go func() { restarted <- m.Restart(t.Context(), "web", Stop{}) }()
		synctest.Wait()
		if err := m.Remove(t.Context(), "web", Remove{Force: true}); err != nil {
			t.Fatal(err)
		}
		if err := <-restarted; !errdefs.IsConflict(err) && !errdefs.IsNotFound(err) {
			t.Errorf("restart: %v", err)
		}
		synctest.Wait()
		if len(f.prepared)+len(f.mounted)+len(f.sandboxes) != 0 {
			t.Errorf("left: %v %v %v", f.prepared, f.mounted, f.sandboxes)
		}
	})
}

// An OCI runtime that does not come back is given up in time; rm -f does not
// even wait for that. Either way nothing is left.
func TestStartThatHangs(t *testing.T) {
	for _, forced := range []bool{false, true} {
		world(t, func(t *testing.T, f *fakeEngine, m *Manager) {
			f.hangs = true
			id := create(t, m, "web", nil)
			begun := time.Now()
			started := make(chan error, 1)
			go func() { started <- m.Start(t.Context(), "web") }()
			synctest.Wait()
			if forced {
				if err := m.Remove(t.Context(), "web", Remove{Force: true}); err != nil {
					t.Errorf("rm -f: %v", err)
				}
				if err := <-started; !errdefs.IsConflict(err) {
					t.Errorf("start of what is removed: %v", err)
				}
				if d := time.Since(begun); d != 0 {
					t.Errorf("rm -f took %s", d)
				}
				synctest.Wait()
			} else {
				if err := <-started; err == nil || !strings.Contains(err.Error(), "did not start the container within 2m0s") {
					t.Errorf("start: %v", err)
				}
				if d := time.Since(begun); d != 2*time.Minute {
					t.Errorf("start took %s, want two minutes", d)
				}
				if s := status(t, m, id); s.Status != Created || s.ExitCode != 128 {
					t.Errorf("state %+v", s)
				}
			}
			if len(f.mounted)+len(f.sandboxes) != 0 || f.cleaned[string(id)] != 1 {
				t.Errorf("left behind: mounts %v, sandboxes %v, cleanups %v", f.mounted, f.sandboxes, f.cleaned)
			}
		})
	}
}

// A container that ends while an exec is made in it is a conflict, whatever the
// OCI runtime stumbled over.
func TestEndAmidExec(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newEntry(Record{ID: "0123456789abcdef"})
		r := &run{ended: make(chan struct{})}
		refused := func(code int, words string) error {
			return execError(t.Context(), e, r, &runtime.StartError{Code: code, Message: words})
		}
		if err := refused(127, `exec: "nope": not found`); !errdefs.IsInvalidArgument(err) {
			t.Errorf("unknown command: %v", err)
		}
		begun := time.Now()
		if err := refused(128, "setns: no such process"); errdefs.IsConflict(err) || err == nil || time.Since(begun) != dyingPatience {
			t.Errorf("a refusal of a container that goes on: %v after %s", err, time.Since(begun))
		}
		time.AfterFunc(200*time.Millisecond, func() { close(r.ended) })
		if err := refused(128, "setns: no such process"); !errdefs.IsConflict(err) || !strings.Contains(err.Error(), "is not running") {
			t.Errorf("an exec in a container that ends: %v", err)
		}
	})
}

func TestUnlink(t *testing.T) {
	world(t, func(t *testing.T, f *fakeEngine, m *Manager) {
		ctx := t.Context()
		create(t, m, "db", nil)
		if err := m.Start(ctx, "db"); err != nil {
			t.Fatal(err)
		}
		id := create(t, m, "web", &container.HostConfig{Links: []string{"db:store", "db:other"}})
		if err := m.Start(ctx, "web"); err != nil {
			t.Fatal(err)
		}
		if err := m.Unlink(ctx, "web"); !errdefs.IsConflict(err) {
			t.Errorf("the container's own name: %v", err)
		}
		if err := m.Unlink(ctx, "/web/nope"); !errdefs.IsNotFound(err) || err.Error() != "No such container: /web/nope" {
			t.Errorf("no link: %v", err)
		}
		if err := m.Unlink(ctx, "web/store"); err != nil {
			t.Fatal(err)
		}
		v, _ := m.Get("web")
		hosts, _ := os.ReadFile(m.hostFilesOf(id).hosts)
		if len(v.HostConfig.Links) != 1 || strings.Contains(string(hosts), "store") || !strings.Contains(string(hosts), "other") {
			t.Errorf("links %v, hosts %q", v.HostConfig.Links, hosts)
		}
	})
}

func TestMtabStaysInTheRoot(t *testing.T) {
	outside, root := t.TempDir(), t.TempDir()
	s := &start{e: &entry{}, m: &runner{core: &core{log: slog.New(slog.DiscardHandler)}}, dir: root}
	if err := os.MkdirAll(s.rootfs(), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, s.rootfs()+"/etc"); err != nil {
		t.Fatal(err)
	}
	if err := s.mtab(t.Context()); err != nil {
		t.Error(err)
	}
	if list, _ := os.ReadDir(outside); len(list) != 0 {
		t.Errorf("made outside: %v", list)
	}
	if err := errors.Join(os.Remove(s.rootfs()+"/etc"), s.mtab(t.Context()), s.mtab(t.Context())); err != nil {
		t.Error(err)
	}
	if to, err := os.Readlink(s.rootfs() + "/etc/mtab"); err != nil || to != "/proc/mounts" {
		t.Errorf("/etc/mtab leads to %q, %v", to, err)
	}
	if st, err := os.Lstat(s.rootfs() + "/.dockerenv"); err != nil || st.Mode() != 0o755 || st.Size() != 0 {
		t.Errorf("/.dockerenv: %v, %v", st, err)
	}
	s.rec.State.StartedAt = time.Now()
	if err := errors.Join(os.Remove(s.rootfs()+"/.dockerenv"), os.Remove(s.rootfs()+"/etc/mtab"), s.mtab(t.Context())); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"/etc/mtab", "/.dockerenv"} {
		if _, err := os.Lstat(s.rootfs() + name); err == nil {
			t.Errorf("%s, which the container removed, is back at its second start", name)
		}
	}
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

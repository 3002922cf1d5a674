package container

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"escale.dev/escale/internal/runtime"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
)

func create(t *testing.T, m *Manager, name string, h *container.HostConfig) ID {
	t.Helper()
	r, err := m.Create(t.Context(), Create{Name: name, Config: &container.Config{Image: "debian"}, HostConfig: h})
	if err != nil {
		t.Fatal(err)
	}
	return r.ID
}

func status(t *testing.T, m *Manager, id ID) State {
	t.Helper()
	v, err := m.Get(string(id))
	if err != nil {
		t.Fatal(err)
	}
	return v.State
}

// world runs a test in fake time over a fresh manager, and ends it without leaks.
func world(t *testing.T, run func(t *testing.T, f *fakeEngine, m *Manager)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEngine()
		m := f.manager(t, dir)
		run(t, f, m)
		m.Close()
	})
}

func TestLifeOfAContainer(t *testing.T) {
	world(t, func(t *testing.T, f *fakeEngine, m *Manager) {
		ctx := t.Context()
		id := create(t, m, "web", nil)
		if s := status(t, m, id); s.Status != Created {
			t.Fatalf("after create: %s", s.Status)
		}
		exit, err := m.Wait(ctx, "web", string(container.WaitConditionNextExit))
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Start(ctx, "web"); err != nil {
			t.Fatal(err)
		}
		if s := status(t, m, id); s.Status != Running || s.Pid != 4242 {
			t.Fatalf("after start: %+v", s)
		}
		if err := m.Start(ctx, "web"); !errors.Is(err, ErrNotModified) {
			t.Errorf("second start: %v", err)
		}
		if err := m.Remove(ctx, "web", Remove{}); !errdefs.IsConflict(err) {
			t.Errorf("remove of a running one: %v", err)
		}
		f.end(id, 7)
		if r := <-exit; r.ExitCode != 7 {
			t.Errorf("waited for %d, want 7", r.ExitCode)
		}
		synctest.Wait()
		if s := status(t, m, id); s.Status != Exited || s.ExitCode != 7 || s.Pid != 0 {
			t.Errorf("after exit: %+v", s)
		}
		if len(f.mounted)+len(f.sandboxes) != 0 || f.cleaned[string(id)] != 1 {
			t.Errorf("left behind: mounts %v, sandboxes %v, cleanups %v", f.mounted, f.sandboxes, f.cleaned)
		}
		gone, err := m.Wait(ctx, "web", string(container.WaitConditionRemoved))
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Remove(ctx, "web", Remove{}); err != nil {
			t.Fatal(err)
		}
		<-gone
		synctest.Wait()
		if _, err := m.Get("web"); !errdefs.IsNotFound(err) || err.Error() != "No such container: web" {
			t.Errorf("after remove: %v", err)
		}
		if len(f.prepared) != 0 {
			t.Errorf("root file systems left: %v", f.prepared)
		}
		want := []string{"create", "connect", "start", "die", "disconnect", "destroy"}
		if got := f.actions(); !slices.Equal(got, want) {
			t.Errorf("events %v, want %v", got, want)
		}
	})
}

func TestStopKillsWhatDoesNotListen(t *testing.T) {
	world(t, func(t *testing.T, f *fakeEngine, m *Manager) {
		id := create(t, m, "deaf", &container.HostConfig{RestartPolicy: container.RestartPolicy{Name: "always"}})
		if err := m.Start(t.Context(), "deaf"); err != nil {
			t.Fatal(err)
		}
		f.tasks[string(id)].ignore = syscall.SIGTERM
		before := time.Now()
		three := 3
		if err := m.Stop(t.Context(), "deaf", Stop{Timeout: &three}); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(before); took != 3*time.Second {
			t.Errorf("stop took %v, want its timeout of 3s", took)
		}
		synctest.Wait()
		if s := status(t, m, id); s.Status != Exited || s.ExitCode != 137 {
			t.Errorf("stopped as %+v; a stop must rest the restart policy", s)
		}
		if err := m.Stop(t.Context(), "deaf", Stop{}); !errors.Is(err, ErrNotModified) {
			t.Errorf("second stop: %v", err)
		}
	})
}

func TestHungMonitorIsEnded(t *testing.T) {
	world(t, func(t *testing.T, f *fakeEngine, m *Manager) {
		id := create(t, m, "hung", nil)
		if err := m.Start(t.Context(), "hung"); err != nil {
			t.Fatal(err)
		}
		f.tasks[string(id)].hung = true
		before := time.Now()
		if err := m.Remove(t.Context(), "hung", Remove{Force: true}); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(before); took > 15*time.Second {
			t.Errorf("removing it took %v", took)
		}
		synctest.Wait()
		if _, err := m.Get("hung"); !errdefs.IsNotFound(err) || len(f.prepared)+len(f.mounted)+len(f.sandboxes) != 0 {
			t.Errorf("left: %v, %v %v %v", err, f.prepared, f.mounted, f.sandboxes)
		}
	})
}

func TestRestartPolicyBacksOff(t *testing.T) {
	world(t, func(t *testing.T, f *fakeEngine, m *Manager) {
		id := create(t, m, "flaky", &container.HostConfig{RestartPolicy: container.RestartPolicy{Name: "on-failure", MaximumRetryCount: 3}})
		if err := m.Start(t.Context(), "flaky"); err != nil {
			t.Fatal(err)
		}
		for _, wait := range []time.Duration{100, 200, 400} {
			f.end(id, 1)
			synctest.Wait()
			if s := status(t, m, id); s.Status != Restarting {
				t.Fatalf("after a failure: %s", s.Status)
			}
			time.Sleep(wait*time.Millisecond - time.Millisecond)
			synctest.Wait()
			if s := status(t, m, id); s.Status != Restarting {
				t.Errorf("started before %d ms had passed", wait)
			}
			time.Sleep(2 * time.Millisecond)
			synctest.Wait()
			if s := status(t, m, id); s.Status != Running {
				t.Fatalf("not started after %d ms: %s", wait, s.Status)
			}
		}
		f.end(id, 1)
		synctest.Wait()
		v, _ := m.Get("flaky")
		if v.State.Status != Exited || v.RestartCount != 3 {
			t.Errorf("after three retries: %s, count %d", v.State.Status, v.RestartCount)
		}
	})
}

func TestStopOfARestartingContainer(t *testing.T) {
	world(t, func(t *testing.T, f *fakeEngine, m *Manager) {
		id := create(t, m, "loop", &container.HostConfig{RestartPolicy: container.RestartPolicy{Name: "always"}})
		if err := m.Start(t.Context(), "loop"); err != nil {
			t.Fatal(err)
		}
		f.end(id, 1)
		synctest.Wait()
		if err := m.Stop(t.Context(), "loop", Stop{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if s := status(t, m, id); s.Status != Exited {
			t.Errorf("came back after a stop: %s", s.Status)
		}
	})
}

func TestFailedStartLeavesNothing(t *testing.T) {
	world(t, func(t *testing.T, f *fakeEngine, m *Manager) {
		f.startErr = &runtime.StartError{Code: 127, Message: `exec: "x": executable file not found in $PATH`}
		id := create(t, m, "bad", nil)
		exit, _ := m.Wait(t.Context(), "bad", string(container.WaitConditionNextExit))
		err := m.Start(t.Context(), "bad")
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "executable file not found") {
			t.Errorf("start: %v", err)
		}
		if r := <-exit; r.ExitCode != 127 {
			t.Errorf("waiters were told %d", r.ExitCode)
		}
		synctest.Wait()
		if s := status(t, m, id); s.Status != Created || s.ExitCode != 127 || s.Error == "" {
			t.Errorf("state %+v", s)
		}
		if len(f.mounted)+len(f.sandboxes) != 0 || f.cleaned[string(id)] != 1 {
			t.Errorf("left behind: mounts %v, sandboxes %v, cleanups %v", f.mounted, f.sandboxes, f.cleaned)
		}
		if dirs, _ := os.ReadDir(m.cfg.RunDir); len(dirs) != 0 {
			t.Errorf("run directories left: %v", dirs)
		}
		f.startErr = nil
		if err := m.Start(t.Context(), "bad"); err != nil {
			t.Errorf("start after the failure: %v", err)
		}
	})
}

func TestNamesAreUnique(t *testing.T) {
	world(t, func(t *testing.T, f *fakeEngine, m *Manager) {
		id := create(t, m, "one", nil)
		_, err := m.Create(t.Context(), Create{Name: "one", Config: &container.Config{Image: "debian"}})
		if !errdefs.IsConflict(err) || !strings.Contains(err.Error(), `The container name "/one" is already in use by container "`+string(id)+`"`) {
			t.Errorf("second of a name: %v", err)
		}
		create(t, m, "two", nil)
		if err := m.Rename(t.Context(), "two", "one"); !errdefs.IsConflict(err) {
			t.Errorf("rename onto a name in use: %v", err)
		}
		if err := m.Rename(t.Context(), "two", "three"); err != nil {
			t.Fatal(err)
		}
		create(t, m, "two", nil)
		if _, err := m.Get(string(id[:10])); err != nil {
			t.Errorf("by prefix: %v", err)
		}
		for _, bad := range []string{"a", "/", "-x", "a b", "é"} {
			if _, err := m.Create(t.Context(), Create{Name: bad, Config: &container.Config{Image: "debian"}}); !errdefs.IsInvalidArgument(err) {
				t.Errorf("name %q: %v", bad, err)
			}
		}
		if len(f.prepared) != 3 {
			t.Errorf("%d root file systems for 3 containers", len(f.prepared))
		}
	})
}

func TestAutoRemove(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts a volume")
	}
	world(t, func(t *testing.T, f *fakeEngine, m *Manager) {
		id := create(t, m, "once", &container.HostConfig{AutoRemove: true, Binds: []string{"/data"}})
		gone, _ := m.Wait(t.Context(), "once", string(container.WaitConditionRemoved))
		if err := m.Start(t.Context(), "once"); err != nil {
			t.Fatal(err)
		}
		if err := m.Restart(t.Context(), "once", Stop{}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if s := status(t, m, id); s.Status != Running {
			t.Fatalf("a restart removed it: %s", s.Status)
		}
		f.end(id, 3)
		if r := <-gone; r.ExitCode != 3 {
			t.Errorf("removed with %d", r.ExitCode)
		}
		synctest.Wait()
		if len(f.prepared)+len(f.volumes) != 0 {
			t.Errorf("left: %v %v", f.prepared, f.volumes)
		}
	})
}

// What has --rm and never ran does not outlive the engine: whoever made it has
// lost the connection before the start.
func TestAutoRemoveNeverRan(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEngine()
		first := f.manager(t, dir)
		create(t, first, "once", &container.HostConfig{AutoRemove: true})
		kept := create(t, first, "kept", nil)
		cut := create(t, first, "cut", &container.HostConfig{AutoRemove: true})
		e, _ := first.store.find(string(cut))
		if _, _, err := first.intend(e, true); err != nil {
			t.Fatal(err)
		}
		first.Close()
		second := f.manager(t, dir)
		second.Resume(t.Context())
		synctest.Wait()
		if len(f.prepared) != 1 || !f.prepared[string(kept)] || len(second.store.all()) != 1 {
			t.Errorf("left: %v", f.prepared)
		}
		second.Close()
	})
}

// TestEngineKilled takes a manager away without a word, lets things happen, and
// looks at what the next one makes of it.
func TestEngineKilled(t *testing.T) {
	for _, c := range []struct {
		name     string
		meantime func(f *fakeEngine, m *Manager, id ID)
		policy   container.RestartPolicyMode
		want     Status
		code     int
	}{
		{"it goes on", func(*fakeEngine, *Manager, ID) {}, "", Running, 0},
		{"it ends", func(f *fakeEngine, m *Manager, id ID) {
			f.end(id, 5)
			f.exits[m.store.path(id)] = runtime.Exit{Code: 5, At: now()}
		}, "", Exited, 5},
		{"it ends and has a policy", func(f *fakeEngine, m *Manager, id ID) {
			f.end(id, 5)
			f.exits[m.store.path(id)] = runtime.Exit{Code: 5, At: now()}
		}, "always", Running, 0},
		{"its monitor dies, writing", func(f *fakeEngine, m *Manager, id ID) {
			f.end(id, 0)
			_ = os.WriteFile(filepath.Join(m.store.path(id), "exit-1.tmp"), []byte("{"), 0o600)
		}, "", Exited, 137},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				f := newFakeEngine()
				first := f.manager(t, dir)
				id := create(t, first, "it", &container.HostConfig{RestartPolicy: container.RestartPolicy{Name: c.policy}})
				if err := first.Start(t.Context(), "it"); err != nil {
					t.Fatal(err)
				}
				first.Close() // lets go of the container as a kill would
				c.meantime(f, first, id)
				second := f.manager(t, dir)
				second.Resume(t.Context())
				time.Sleep(time.Second)
				synctest.Wait()
				s := status(t, second, id)
				if s.Status != c.want || s.ExitCode != c.code {
					t.Errorf("taken up as %s %d %q, want %s %d", s.Status, s.ExitCode, s.Error, c.want, c.code)
				}
				running := 0
				if c.want == Running {
					running = 1
				}
				if len(f.mounted) != running || len(f.sandboxes) != running {
					t.Errorf("mounts %v and sandboxes %v, want %d", f.mounted, f.sandboxes, running)
				}
				if left, _ := filepath.Glob(filepath.Join(second.store.path(id), "*.tmp")); len(left) > 0 {
					t.Errorf("left half-written: %q", left)
				}
				second.Close()
			})
		})
	}
}

// TestHalfMadeThingsAreCollected makes what an engine killed half-way leaves.
func TestHalfMadeThingsAreCollected(t *testing.T) {
	dir := t.TempDir()
	f := newFakeEngine()
	m := f.manager(t, dir)
	removed := create(t, m, "removing", nil)
	e, _ := m.store.find("removing")
	if err := m.update(e, false, func(r *Record) error { return r.State.move(Removing) }); err != nil {
		t.Fatal(err)
	}
	starting := create(t, m, "starting", nil)
	e, _ = m.store.find("starting")
	if _, _, err := m.intend(e, true); err != nil {
		t.Fatal(err)
	}
	os.MkdirAll(m.runDir(starting, 1)+"/rootfs", 0o700)
	f.mounted[m.runDir(starting, 1)+"/rootfs"] = true
	f.sandboxes[string(starting)] = true
	f.prepared["orphan"] = true
	os.MkdirAll(m.cfg.Dir+"/"+strings.Repeat("cd", 32), 0o700)
	os.MkdirAll(m.cfg.RunDir+"/"+strings.Repeat("ab", 32)+"/3/rootfs", 0o700)
	m.Close()

	next := f.manager(t, dir)
	next.Resume(context.Background())
	next.loops.Wait()
	if _, err := next.Get(string(removed)); !errdefs.IsNotFound(err) {
		t.Errorf("removal was not finished: %v", err)
	}
	if s := status(t, next, starting); s.Status != Created {
		t.Errorf("half a start: %s", s.Status)
	}
	if len(f.mounted)+len(f.sandboxes) != 0 || len(f.prepared) != 1 || !f.prepared[string(starting)] {
		t.Errorf("left: mounts %v, sandboxes %v, roots %v", f.mounted, f.sandboxes, f.prepared)
	}
	for _, d := range []string{m.cfg.Dir, m.cfg.RunDir} {
		left, _ := os.ReadDir(d)
		for _, l := range left {
			if l.Name() != string(starting) {
				t.Errorf("%s left in %s", l.Name(), d)
			}
		}
	}
	next.Close()
}

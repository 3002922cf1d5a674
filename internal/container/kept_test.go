package container

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"escale.dev/escale/internal/runtime"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
)

// keep makes a container of a task and starts it.
func keep(t *testing.T, m *Manager, task string, f func(*Create)) ID {
	t.Helper()
	c := Create{
		Name: task, Owner: &Owner{Node: "n1", Task: task, Restart: container.RestartPolicy{Name: "unless-stopped"}},
		Config: &container.Config{Image: "debian", Labels: map[string]string{"com.docker.swarm.task.id": task, "com.docker.compose.project": "shop"}}, HostConfig: &container.HostConfig{},
	}
	f(&c)
	r, err := m.Create(t.Context(), c)
	if err == nil {
		err = m.Start(t.Context(), task)
	}
	if err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	return r.ID
}

// attention is an Attend under way.
type attention struct {
	mu    sync.Mutex
	told  []string
	ended bool
	code  int
	err   error
}

func attend(t *testing.T, m *Manager, id ID) *attention {
	a := &attention{}
	go func() {
		code, err := m.Kept().Attend(t.Context(), string(id), func(h container.HealthStatus) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.told = append(a.told, string(h))
		})
		a.mu.Lock()
		defer a.mu.Unlock()
		a.ended, a.code, a.err = true, code, err
	}()
	synctest.Wait()
	return a
}

func (a *attention) is(t *testing.T, ended bool, code int, told string) {
	t.Helper()
	synctest.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	if got := strings.Join(a.told, ","); a.ended != ended || a.code != code || got != told {
		t.Errorf("ended %t with %d, %v, after %q; want %t with %d after %q", a.ended, a.code, a.err, got, ended, code, told)
	}
}

// Restarts and pauses are seen through, ends are not missed.
func TestAttend(t *testing.T) {
	world(t, func(t *testing.T, f *fakeEngine, m *Manager) {
		id := keep(t, m, "t1", func(*Create) {})
		a := attend(t, m, id)
		a.is(t, false, 0, "")
		for range 3 {
			if err := m.Restart(t.Context(), "t1", Stop{}); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(m.Pause(t.Context(), "t1"), m.Unpause(t.Context(), "t1")); err != nil {
			t.Fatal(err)
		}
		a.is(t, false, 0, "")
		f.end(id, 9)
		a.is(t, true, 9, "")
		attend(t, m, id).is(t, true, 9, "") // it ended before somebody looked
	})
}

// A restart whose start goes wrong is an end.
func TestAttendRestartFails(t *testing.T) {
	world(t, func(t *testing.T, f *fakeEngine, m *Manager) {
		id := keep(t, m, "t1", func(*Create) {})
		a := attend(t, m, id)
		f.startErr = errors.New("no")
		if err := m.Restart(t.Context(), "t1", Stop{}); err == nil {
			t.Fatal("the restart went well")
		}
		a.is(t, true, 128, "")
	})
}

func TestAttendRemovedAndNeverStarted(t *testing.T) {
	world(t, func(t *testing.T, _ *fakeEngine, m *Manager) {
		made := create(t, m, "made", nil)
		if a := attend(t, m, made); !errdefs.IsConflict(a.err) {
			t.Errorf("never started: %v", a.err)
		}
		id := keep(t, m, "t1", func(*Create) {})
		a := attend(t, m, id)
		if err := m.Remove(t.Context(), "t1", Remove{Force: true}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !a.ended {
			t.Errorf("it waits for a container that is no more")
		}
		if a := attend(t, m, id); !errdefs.IsNotFound(a.err) {
			t.Errorf("removed before: %v", a.err)
		}
	})
}

// Health is that of the present run: what the one before was is forgotten.
func TestAttendHealth(t *testing.T) {
	world(t, func(t *testing.T, _ *fakeEngine, m *Manager) {
		id := keep(t, m, "t1", func(c *Create) {
			c.Config.Healthcheck = &container.HealthConfig{Test: []string{"CMD", "true"}, Interval: time.Hour}
		})
		e, _ := m.store.find("t1")
		set := func(h container.HealthStatus) {
			e.mu.Lock()
			e.rec.State.Health = &Health{Status: string(h)}
			e.tellChange()
			e.mu.Unlock()
			synctest.Wait()
		}
		a := attend(t, m, id)
		set(container.Healthy)
		set(container.Unhealthy)
		a.is(t, false, 0, "starting,healthy,unhealthy")
		if err := m.Restart(t.Context(), "t1", Stop{}); err != nil {
			t.Fatal(err)
		}
		a.is(t, false, 0, "starting,healthy,unhealthy,starting")
		attend(t, m, id).is(t, false, 0, "starting")
	})
}

// What ended while no engine was there is known to the next one, and not started by it.
func TestAttendAfterTheEngine(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEngine()
		first := f.manager(t, dir)
		id := keep(t, first, "t1", func(*Create) {})
		first.Close()
		f.end(id, 5)
		f.exits[first.store.path(id)] = runtime.Exit{Code: 5, At: now()}
		second := f.manager(t, dir)
		defer second.Close()
		second.Resume(t.Context())
		time.Sleep(time.Minute)
		v, err := second.Kept().Of("t1")
		if err != nil || v.ID != id || v.State.Status != Exited {
			t.Fatalf("%v %s, %v", v.ID, v.State.Status, err)
		}
		attend(t, second, id).is(t, true, 5, "")
	})
}

// Whose a container is stands in its record, not in labels, and ends with it.
func TestKeptIndex(t *testing.T) {
	world(t, func(t *testing.T, _ *fakeEngine, m *Manager) {
		keep(t, m, "t1", func(*Create) {})
		keep(t, m, "forged", func(c *Create) { c.Owner = nil })
		if _, err := m.Kept().Of("forged"); !errdefs.IsNotFound(err) {
			t.Errorf("a label made it a task's: %v", err)
		}
		if n := len(m.Kept().List()); n != 1 {
			t.Errorf("%d containers are kept, want 1", n)
		}
		if err := m.Remove(t.Context(), "t1", Remove{Force: true}); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Kept().Of("t1"); !errdefs.IsNotFound(err) || len(m.Kept().List()) != 0 {
			t.Errorf("removed: %v", err)
		}
	})
}

// A container that is let go is an ordinary one, also for the next engine: it has
// its restart policy and its files.
func TestRelease(t *testing.T) {
	dir, files := t.TempDir(), t.TempDir()
	secret := filepath.Join(files, "0")
	if err := errors.Join(os.WriteFile(secret, []byte("hush"), 0o600), os.Chmod(secret, 0o440)); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		f := newFakeEngine()
		m := f.manager(t, dir)
		id := keep(t, m, "t1", func(c *Create) {
			c.HostConfig.Mounts = []mount.Mount{{Type: mount.TypeBind, Source: secret, Target: "/run/secrets/key", ReadOnly: true}, {Type: mount.TypeBind, Source: "/etc", Target: "/e"}}
		})
		for range 2 {
			if err := m.Kept().Release(t.Context(), "t1", files); err != nil {
				t.Fatal(err)
			}
		}
		m.Close()
		m = f.manager(t, dir)
		defer m.Close()
		v, err := m.Get(string(id))
		if err != nil || v.Owner != nil || len(m.Kept().List()) != 0 || v.State.Status != Running {
			t.Fatalf("%+v %s, %v", v.Owner, v.State.Status, err)
		}
		if l := v.Config.Labels; len(l) != 1 || l["com.docker.compose.project"] != "shop" || v.HostConfig.RestartPolicy.Name != "unless-stopped" {
			t.Errorf("labels %v, policy %v", l, v.HostConfig.RestartPolicy)
		}
		for _, p := range v.Mounts {
			if p.Destination != "/run/secrets/key" {
				continue
			}
			info, err := os.Stat(p.Source)
			b, _ := os.ReadFile(p.Source)
			if err != nil || string(b) != "hush" || info.Mode().Perm() != 0o440 || p.Source == secret || p.Source != v.HostConfig.Mounts[0].Source {
				t.Errorf("its file: %v, %q, %v in %s", info, b, err, p.Source)
			}
		}
	})
}

// A stop, or a removal, asks before it does anything, and not when it is refused anyhow.
func TestAskedBefore(t *testing.T) {
	world(t, func(t *testing.T, _ *fakeEngine, m *Manager) {
		id := keep(t, m, "t1", func(*Create) {})
		asked := 0
		before := func(_ context.Context, rec *Record) error {
			if asked++; rec.Owner.Task != "t1" {
				t.Errorf("asked of %+v", rec.Owner)
			}
			return errdefs.ErrUnavailable
		}
		if err := m.Remove(t.Context(), "t1", Remove{Before: before}); !errdefs.IsConflict(err) || asked != 0 {
			t.Errorf("removal of what runs: %v, asked %d times", err, asked)
		}
		for _, err := range []error{m.Stop(t.Context(), "t1", Stop{Before: before}), m.Remove(t.Context(), "t1", Remove{Force: true, Before: before})} {
			if !errdefs.IsUnavailable(err) {
				t.Errorf("refused: %v", err)
			}
		}
		if s := status(t, m, id); s.Status != Running || asked != 2 {
			t.Errorf("it is %s, asked %d times", s.Status, asked)
		}
	})
}

// Who joins a stop waits for it, as long as it was given, and sends nothing.
func TestJoinStop(t *testing.T) {
	world(t, func(t *testing.T, f *fakeEngine, m *Manager) {
		id := keep(t, m, "t1", func(*Create) {})
		f.tasks[string(id)].ignore = syscall.SIGTERM
		minute, one := 60, 1
		begun := time.Now()
		ended := make(chan error, 2)
		go func() { ended <- m.Stop(t.Context(), "t1", Stop{Timeout: &minute}) }()
		synctest.Wait()
		go func() { ended <- m.Stop(t.Context(), "t1", Stop{Timeout: &one, Join: true}) }()
		first, second := <-ended, <-ended
		if took := time.Since(begun); took != time.Minute {
			t.Errorf("it was killed after %s", took)
		}
		if first != nil && !errors.Is(first, ErrNotModified) || second != nil && !errors.Is(second, ErrNotModified) {
			t.Errorf("%v, %v", first, second)
		}
		kills := 0
		for _, a := range f.actions() {
			if a == "kill" {
				kills++
			}
		}
		if kills != 2 { // TERM and KILL
			t.Errorf("%d signals: %v", kills, f.actions())
		}
	})
}

// A successor has the anonymous volumes of the container before it, and the last one
// takes them along.
func TestTakesOverVolumes(t *testing.T) {
	world(t, func(t *testing.T, f *fakeEngine, m *Manager) {
		volumes := map[string]struct{}{"/data": {}}
		first := keep(t, m, "t1", func(c *Create) { c.Config.Volumes = volumes })
		v, err := m.Get(string(first))
		if err != nil || len(v.Anonymous()) != 1 {
			t.Fatalf("%v, %v", v.Anonymous(), err)
		}
		name := v.Anonymous()["/data"]
		second := keep(t, m, "t2", func(c *Create) {
			c.Config.Volumes = map[string]struct{}{"/data": {}, "/more": {}}
			c.TakesOver = map[string]string{"/data": name, "/more": strings.Repeat("0", 64), "/other": name}
		})
		if v, err = m.Get(string(second)); err != nil || len(v.Anonymous()) != 2 || v.Anonymous()["/data"] != name || v.Anonymous()["/more"] == strings.Repeat("0", 64) {
			t.Fatalf("%v, want %s; %v", v.Anonymous(), name, err)
		}
		for i, left := range []int{2, 0} {
			if err := m.Remove(t.Context(), []string{"t1", "t2"}[i], Remove{Force: true, Volumes: true}); err != nil {
				t.Fatal(err)
			}
			if synctest.Wait(); len(f.volumes) != left {
				t.Errorf("volumes left: %v, want %d", f.volumes, left)
			}
		}
	})
}

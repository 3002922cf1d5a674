package executor

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
)

// hooked is a task with hooks, made, in the store as being started.
func (r *rig) hooked() *controller {
	c := r.task("t1", func(t *cluster.Task) {
		t.Slot, t.Spec.Secrets, t.Spec.Configs, t.Spec.Host.Mounts, t.Networks = 1, nil, nil, nil, nil
		t.Spec.PostStart = []cluster.Hook{{Command: []string{"warm"}}, {Command: []string{"tell"}}}
		t.Spec.PreStop = []cluster.Hook{{Command: []string{"drain"}}, {Command: []string{"leave"}}}
		t.Status.State = cluster.TaskStarting
	})
	if _, err := r.s.Commit(r.t.Context(), store.Create(c.t)); err != nil {
		r.t.Fatal(err)
	}
	if err := c.Prepare(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	r.e.asked = nil
	return c
}

// become changes what the store has of the task.
func (r *rig) become(f func(*cluster.Task)) {
	r.t.Helper()
	t, err := store.Find[*cluster.Task](r.s.View(), "t1")
	if err == nil {
		t = store.Copy(t)
		f(t)
		_, err = r.s.Commit(r.t.Context(), store.Update(t))
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

func running(t *cluster.Task) { t.Status.State = cluster.TaskRunning }

// Hooks come after the start and before the stop, and what they leave of the grace is
// the program's.
func TestHooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := begin(t)
		c := r.hooked()
		if _, err := c.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.did("start shop-web-1", "exec warm in shop-web-1 within 0s", "exec tell in shop-web-1 within 0s")
		r.become(running)
		r.e.took = time.Second / 2
		if err := c.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.did("exec drain in shop-web-1 within 3s", "exec leave in shop-web-1 within 2.5s", "stop shop-web-1 in 2s")
		// It does not run: there is nothing to be done in it.
		if err := c.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.did("stop shop-web-1 in 3s")
	})
}

// A hook that fails after the start is the failure of it: the container is ended.
func TestHookFailsAfterStart(t *testing.T) {
	r := begin(t)
	c := r.hooked()
	r.e.codes = map[string]int{"warm": 3}
	if _, err := c.Start(t.Context()); err == nil || err.Error() != "post_start hook exited with status 3: said" {
		t.Errorf("the start: %v", err)
	}
	r.did("start shop-web-1", "exec warm in shop-web-1 within 0s", "stop shop-web-1 in 3s")
}

// One before the stop that fails, or takes too long, is left, and the stop comes.
func TestHookFailsBeforeStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := begin(t)
		c := r.hooked()
		r.e.codes = map[string]int{"drain": 1}
		stop := func(want ...string) {
			t.Helper()
			if _, err := c.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			r.e.asked = nil
			if err := c.Shutdown(t.Context()); err != nil {
				t.Fatal(err)
			}
			r.did(want...)
		}
		r.become(running)
		stop("exec drain in shop-web-1 within 3s", "stop shop-web-1 in 3s")
		r.e.codes = nil
		c.t.Spec.PostStart, r.e.took = nil, time.Hour
		stop("exec drain in shop-web-1 within 3s", "stop shop-web-1 in 1s")
		// An engine that ends amid one stops nothing.
		if _, err := c.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		r.e.asked = nil
		if err := c.Shutdown(ctx); err == nil {
			t.Error("it was ended")
		}
		r.did("exec drain in shop-web-1 within 3s")
		// What a client stops, and what a task that has ended left, is stopped plainly; of what has
		// ended the secrets go, too.
		r.become(func(t *cluster.Task) { t.Halted = true })
		stop("stop shop-web-1 in 3s")
		r.become(func(t *cluster.Task) { t.Halted, t.Status.State = false, cluster.TaskFailed })
		stop("stop shop-web-1 in 3s", "no files")
	})
}

// An engine that was killed amid hooks begins anew: with the container, so that each
// hook runs once for each start.
func TestHooksCutOff(t *testing.T) {
	r := begin(t)
	c := r.hooked()
	ctx, cancel := context.WithCancel(t.Context())
	r.e.took = time.Hour
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := c.Start(ctx); err == nil {
		t.Fatal("it was started by an engine that has ended")
	}
	r.e.asked, r.e.took = nil, 0
	if _, err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.did("stop shop-web-1 in 3s", "start shop-web-1", "exec warm in shop-web-1 within 0s", "exec tell in shop-web-1 within 0s")
	// A client has started it again, maybe: that is no half start.
	r.become(running)
	if _, err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.did("start shop-web-1", "exec warm in shop-web-1 within 0s", "exec tell in shop-web-1 within 0s")
}

// What a hook says is told of, but no book of it.
func TestHookOutput(t *testing.T) {
	r := begin(t)
	c := r.hooked()
	long := strings.Repeat("é", 4096)
	if err := c.hook(t.Context(), r.e.list[0].ID, "pre_stop", cluster.Hook{Command: []string{long}}, 0); err == nil || len(err.Error()) > 2*told {
		t.Errorf("it said %v", err)
	}
}

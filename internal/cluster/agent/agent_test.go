package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/mem"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
)

// machine is a node that is made up: containers by the ids of their tasks.
type machine struct {
	mu  sync.Mutex
	has map[string]*box
	did []string
}

// box is a container that is made up.
type box struct {
	running bool
	healthy chan struct{} // closed once it is
	end     chan int      // its exit codes
	ill     chan error
}

func (m *machine) note(id, what string) {
	m.did = append(m.did, id+" "+what)
}

func (m *machine) Known(context.Context) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	for id := range m.has {
		out = append(out, id)
	}
	return out, nil
}

func (m *machine) Controller(t *cluster.Task) cluster.Controller { return &control{m, t} }

type control struct {
	m *machine
	t *cluster.Task
}

func (c *control) box() *box {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	return c.m.has[c.t.ID]
}

func (c *control) Prepare(ctx context.Context) error {
	c.m.mu.Lock()
	c.m.note(c.t.ID, "prepare")
	c.m.mu.Unlock()
	switch c.t.Spec.Container.Image {
	case "missing":
		return errors.New("No such image: missing")
	case "slow":
		select {
		case <-time.After(time.Hour):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	if c.m.has[c.t.ID] == nil {
		c.m.has[c.t.ID] = &box{healthy: make(chan struct{}), end: make(chan int, 1), ill: make(chan error, 1)}
	}
	return nil
}

func (c *control) Start(context.Context) (cluster.ContainerStatus, error) {
	if c.t.Spec.Container.Image == "broken" {
		return cluster.ContainerStatus{}, errors.New("exec format error")
	}
	b := c.box()
	if b == nil {
		return cluster.ContainerStatus{}, errdefs.ErrNotFound
	}
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	c.m.note(c.t.ID, "start")
	if !b.running {
		b.end = make(chan int, 1) // how the run before ended is nothing to this one
	}
	b.running = true
	return cluster.ContainerStatus{ID: "c-" + c.t.ID}, nil
}

func (c *control) Wait(ctx context.Context, healthy func()) (int, error) {
	b := c.box()
	if b == nil {
		return 0, errdefs.ErrNotFound
	}
	c.m.mu.Lock()
	well, end := b.healthy, b.end
	c.m.mu.Unlock()
	for {
		select {
		case <-well:
			well = nil
			healthy()
		case code := <-end:
			c.m.mu.Lock()
			b.running = false
			c.m.mu.Unlock()
			return code, nil
		case err := <-b.ill:
			return 0, err
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

func (c *control) Shutdown(context.Context) error {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	if b := c.m.has[c.t.ID]; b != nil {
		if b.running { // else there is nothing to do
			c.m.note(c.t.ID, "shutdown")
		}
		b.running = false
		return nil
	}
	return errdefs.ErrNotFound
}

func (c *control) Runs(context.Context) (bool, error) {
	b := c.box()
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	return b != nil && b.running, nil
}

func (c *control) Release(context.Context) error {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	c.m.note(c.t.ID, "release")
	delete(c.m.has, c.t.ID)
	return nil
}

func (c *control) Remove(context.Context) error {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	c.m.note(c.t.ID, "remove")
	delete(c.m.has, c.t.ID)
	return nil
}

// rig is an agent on a machine.
type rig struct {
	t    *testing.T
	s    *mem.Store
	m    *machine
	stop func()
}

// agents runs a test with an agent, in a time of its own.
func agents(t *testing.T, f func(r *rig)) {
	synctest.Test(t, func(t *testing.T) {
		r := &rig{t: t, s: mem.New(store.NewState()), m: &machine{has: map[string]*box{}}}
		r.begin()
		f(r)
		r.stop()
		if err := r.s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// begin starts an agent, as an engine that comes up does.
func (r *rig) begin() {
	ctx, cancel := context.WithCancel(r.t.Context())
	ended := make(chan error)
	go func() { ended <- New("n1", r.s, r.m, slog.New(slog.DiscardHandler)).Run(ctx) }()
	r.stop = func() {
		cancel()
		if err := <-ended; err != nil {
			r.t.Error(err)
		}
	}
	synctest.Wait()
}

// task makes a task that is assigned to the node.
func (r *rig) task(id, image string) {
	r.t.Helper()
	t := &cluster.Task{
		Meta: cluster.Meta{ID: id}, Node: "n1", Desired: cluster.TaskRunning, Status: cluster.TaskStatus{State: cluster.TaskAssigned},
		Spec: cluster.TaskSpec{Container: &container.Config{Image: image}},
	}
	if _, err := r.s.Commit(r.t.Context(), store.Create(t)); err != nil {
		r.t.Fatal(err)
	}
	synctest.Wait()
}

// change changes a task, as loops do.
func (r *rig) change(id string, f func(*cluster.Task)) {
	r.t.Helper()
	t := store.Copy(r.get(id))
	f(t)
	if _, err := r.s.Commit(r.t.Context(), store.Update(t)); err != nil {
		r.t.Fatal(err)
	}
	synctest.Wait()
}

func (r *rig) get(id string) *cluster.Task {
	r.t.Helper()
	t, err := store.Find[*cluster.Task](r.s.View(), id)
	if err != nil {
		r.t.Fatal(err)
	}
	return t
}

// want compares what the store says of a task and what was done with its container.
func (r *rig) want(id, status, did string) {
	r.t.Helper()
	t := r.get(id)
	got := string(t.Status.State)
	if t.Status.Healthy {
		got += " healthy"
	}
	if t.Status.Err != "" {
		got += ": " + t.Status.Err
	}
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	var done []string
	for _, line := range r.m.did {
		if what, ok := strings.CutPrefix(line, id+" "); ok {
			done = append(done, what)
		}
	}
	if got != status || strings.Join(done, " ") != did {
		r.t.Errorf("%s is %s after %v; want %s after %s", id, got, done, status, did)
	}
}

// A task goes its way; each end of a container is told for what it is.
func TestLives(t *testing.T) {
	agents(t, func(r *rig) {
		for _, id := range []string{"ends", "fails", "ill", "told"} {
			r.task(id, "good")
			r.want(id, "running", "prepare start")
			close(r.m.has[id].healthy)
			synctest.Wait()
			r.want(id, "running healthy", "prepare start")
		}
		r.m.has["ends"].end <- 0
		r.m.has["fails"].end <- 3
		r.m.has["ill"].ill <- errors.New("unhealthy container")
		synctest.Wait()
		r.want("ends", "complete", "prepare start")
		r.want("fails", "failed: task: non-zero exit (3)", "prepare start")
		r.want("ill", "failed: unhealthy container", "prepare start shutdown")
		if r.get("ill").Status.HealthyAt.IsZero() {
			t.Error("that it was healthy is forgotten")
		}
		r.change("told", func(t *cluster.Task) { t.Desired = cluster.TaskShutdown })
		r.want("told", "shutdown", "prepare start shutdown")
		r.task("rejected", "missing")
		r.want("rejected", "rejected: No such image: missing", "prepare")
		r.task("broken", "broken")
		r.want("broken", "failed: exec format error", "prepare")
		r.task("slow", "slow")
		r.want("slow", "preparing", "prepare")
		r.change("slow", func(t *cluster.Task) { t.Desired = cluster.TaskRemove })
		r.want("slow", "shutdown", "prepare remove")
		if !r.get("slow").Status.Gone {
			t.Error("nobody is told that nothing is left of it")
		}
	})
}

// One that is to be ready waits for its turn, and one with a delay for its time.
func TestTurns(t *testing.T) {
	agents(t, func(r *rig) {
		task := &cluster.Task{
			Meta: cluster.Meta{ID: "x"}, Node: "n1", Desired: cluster.TaskReady, Status: cluster.TaskStatus{State: cluster.TaskAssigned},
			Spec: cluster.TaskSpec{Container: &container.Config{}}, NotBefore: time.Now().Add(time.Minute),
		}
		if _, err := r.s.Commit(t.Context(), store.Create(task)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Second)
		r.want("x", "ready", "prepare")
		r.change("x", func(t *cluster.Task) { t.Desired = cluster.TaskRunning })
		r.want("x", "ready", "prepare")
		time.Sleep(31 * time.Second)
		synctest.Wait()
		r.want("x", "running", "prepare start")
		time.Sleep(time.Hour)
		r.want("x", "running", "prepare start")
	})
}

// The container of one that shares with another's is not made before that is there.
func TestApart(t *testing.T) {
	agents(t, func(r *rig) {
		for id, what := range map[string]func(*cluster.Task){
			"released": func(t *cluster.Task) { t.Released = true }, "joined": func(t *cluster.Task) { t.Joined = true }, "told": func(t *cluster.Task) { t.Desired = cluster.TaskShutdown },
		} {
			task := &cluster.Task{
				Meta: cluster.Meta{ID: id}, Node: "n1", Desired: cluster.TaskRunning, Status: cluster.TaskStatus{State: cluster.TaskAssigned},
				Spec: cluster.TaskSpec{Container: &container.Config{}, Needs: []cluster.Need{{Service: "vpn", Condition: cluster.Started, Shared: true}}},
			}
			if _, err := r.s.Commit(t.Context(), store.Create(task)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Hour)
			r.want(id, "accepted", "")
			r.change(id, what)
		}
		r.want("released", "running", "prepare start")
		r.want("joined", "ready", "prepare")
		r.want("told", "shutdown", "")
	})
}

// A task that goes from the store takes its container along, also while no agent
// looks; one that runs is taken up again.
func TestAgentAnew(t *testing.T) {
	agents(t, func(r *rig) {
		for i := range 4 {
			r.task(fmt.Sprint("t", i), "good")
		}
		remove := func(id string) {
			if _, err := r.s.Commit(t.Context(), store.Delete(r.get(id))); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		remove("t0")
		r.stop()
		remove("t1")
		r.change("t2", func(t *cluster.Task) { t.Desired = cluster.TaskShutdown })
		r.begin()
		known, _ := r.m.Known(t.Context())
		slices.Sort(known)
		if !slices.Equal(known, []string{"t2", "t3"}) {
			t.Errorf("containers of %v are left", known)
		}
		r.want("t2", "shutdown", "prepare start shutdown")
		r.m.has["t3"].end <- 0
		synctest.Wait()
		r.want("t3", "complete", "prepare start")
	})
}

// What ended while nobody looked is told before anything rests on it.
func TestOpen(t *testing.T) {
	agents(t, func(r *rig) {
		for _, id := range []string{"runs", "ended", "removed", "halted", "told"} {
			r.up(id)
		}
		r.stop()
		r.change("told", func(t *cluster.Task) { t.Desired = cluster.TaskShutdown })
		r.change("halted", func(t *cluster.Task) { t.Halted = true })
		for _, id := range []string{"ended", "halted", "told"} {
			r.m.has[id].running = false
			r.m.has[id].healthy = make(chan struct{})
			r.m.has[id].end <- 255
		}
		delete(r.m.has, "removed")
		if err := New("n1", r.s, r.m, slog.New(slog.DiscardHandler)).Open(r.t.Context()); err != nil {
			t.Fatal(err)
		}
		r.want("runs", "running healthy", "prepare start")
		r.want("ended", "failed: task: non-zero exit (255)", "prepare start")
		r.want("removed", "failed: not found", "prepare start")
		r.want("halted", "running healthy", "prepare start")
		r.want("told", "shutdown", "prepare start")
		r.begin()
	})
}

// cut is a store that cannot be written while nobody is at the other end of it.
type cut struct {
	*mem.Store
	off *atomic.Bool
}

func (c cut) Commit(ctx context.Context, changes ...store.Change) (uint64, error) {
	if c.off.Load() {
		return 0, errdefs.ErrUnavailable
	}
	return c.Store.Commit(ctx, changes...)
}

// A node that is cut off keeps what runs, and says later what became of it, as it was:
// what has ended is not well for a moment first, and nothing is started twice.
func TestCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var off atomic.Bool
		s := mem.New(store.NewState())
		r := &rig{t: t, s: s, m: &machine{has: map[string]*box{}}}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		a := New("n1", cut{s, &off}, r.m, slog.New(slog.DiscardHandler))
		go func() { ended <- a.Run(ctx) }()
		for _, id := range []string{"well", "dies", "stays", "told"} {
			r.task(id, "good")
		}
		w, err := s.Watch(s.View().Revision())
		if err != nil {
			t.Fatal(err)
		}
		off.Store(true)
		close(r.m.has["well"].healthy)
		close(r.m.has["dies"].healthy)
		synctest.Wait()
		r.m.has["dies"].end <- 3
		time.Sleep(10 * time.Second)
		synctest.Wait()
		for _, id := range []string{"well", "dies", "stays", "told"} {
			r.want(id, "running", "prepare start")
		}
		r.m.has["dies"].end <- 3 // as who asks again is told, too
		if err := New("n1", cut{s, &off}, r.m, slog.New(slog.DiscardHandler)).Open(t.Context()); err != nil {
			t.Errorf("an engine that comes up while it is cut off: %v", err)
		}
		r.change("told", func(t *cluster.Task) { t.Desired = cluster.TaskShutdown })
		off.Store(false)
		time.Sleep(2 * patience)
		synctest.Wait()
		r.want("well", "running healthy", "prepare start")
		r.want("dies", "failed: task: non-zero exit (3)", "prepare start")
		r.want("stays", "running", "prepare start")
		r.want("told", "shutdown", "prepare start shutdown")
		list, err := w.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range list {
			for _, e := range c.Events {
				if n, ok := e.New.(*cluster.Task); ok && n.ID == "dies" && n.Status.Healthy {
					t.Error("it was well for a moment when it had long ended")
				}
			}
		}
		cancel()
		if err := errors.Join(<-ended, s.Close()); err != nil {
			t.Error(err)
		}
	})
}

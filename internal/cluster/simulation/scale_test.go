package simulation

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/loop"
	"escale.dev/escale/internal/cluster/store/mem"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
)

// The loops, as they run, on many machines that are made up: everything that is asked gets
// placed and runs. It prints what that costs (docs/scale.md): $ESCALE_SCALE_NODES and
// $ESCALE_SCALE_TASKS say how many, $ESCALE_SCALE_REPLICAS how many tasks a service has.
func TestScale(t *testing.T) {
	nodes, tasks := envInt("ESCALE_SCALE_NODES", 50), envInt("ESCALE_SCALE_TASKS", 1000)
	perService := uint64(min(envInt("ESCALE_SCALE_REPLICAS", 100), tasks))
	c := newCrowd(t, nodes)
	before := usage(t)
	services := tasks / int(perService)
	for i := range services {
		c.commit(store.Create(&cluster.Service{Meta: cluster.Meta{Name: fmt.Sprint("s", i)}, Spec: scaleSpec(perService), Numbers: 1}))
	}
	c.until("all tasks run", func() bool { return c.up() >= tasks })
	took, cpu := usage(t).since(before)
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	t.Logf("%d nodes, %d tasks: all run after %.1f s, %.0f tasks a second, %.1f s of CPU, %.0f MB of heap, %d commits",
		nodes, tasks, took.Seconds(), float64(tasks)/took.Seconds(), cpu.Seconds(), float64(m.HeapAlloc)/1e6, c.s.View().Revision())

	per := map[string]int{}
	for _, task := range store.List[*cluster.Task](c.s.View()) {
		per[task.Node]++
	}
	if len(per) != min(nodes, tasks) || per[""] != 0 {
		t.Errorf("%d nodes have tasks, %d tasks have none", len(per), per[""])
	}
	for node, n := range per {
		if fair := tasks / nodes; n < fair-1 || n > fair+1 {
			t.Errorf("%s has %d tasks, %d would be fair", node, n, fair)
		}
	}
	changes := c.measure(30, tasks, services)
	t.Logf("one replica more, until it runs: median %.2f ms, worst %.2f ms, %.2f ms of CPU each", ms(changes.median), ms(changes.worst), ms(changes.cpu))
	c.roll(t)
}

// crowd is a cluster whose nodes do at once what they are told.
type crowd struct {
	t   *testing.T
	s   *mem.Store
	ctx context.Context
	mu  sync.Mutex
	running,
	numbered map[string]bool // tasks; those of a second spec
	change chan struct{}
}

func newCrowd(t *testing.T, nodes int) *crowd {
	ctx, cancel := context.WithCancel(t.Context())
	c := &crowd{t: t, s: mem.New(store.NewState()), ctx: ctx, running: map[string]bool{}, numbered: map[string]bool{}, change: make(chan struct{}, 1)}
	var list []store.Change
	for i := range nodes {
		n := &cluster.Node{Meta: cluster.Meta{Name: fmt.Sprint("n", i)}, Status: cluster.NodeStatus{Ready: true, Resources: cluster.Resources{NanoCPUs: 16e9, Memory: 64 << 30}}}
		if list = append(list, store.Create(n)); len(list) == store.MaxChanges || i == nodes-1 {
			c.commit(list...)
			list = nil
		}
	}
	var parts sync.WaitGroup
	w, err := c.s.Watch(c.s.View().Revision(), cluster.KindTask)
	if err != nil {
		t.Fatal(err)
	}
	parts.Go(func() { c.act(w) })
	parts.Go(func() {
		if err := loop.Run(ctx, c.s, slog.New(slog.DiscardHandler), all()...); err != nil && ctx.Err() == nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		parts.Wait()
		_ = c.s.Close()
	})
	return c
}

func (c *crowd) commit(changes ...store.Change) {
	c.t.Helper()
	if _, err := c.s.Commit(c.ctx, changes...); err != nil {
		c.t.Fatal(err)
	}
}

// act is what all nodes do: a task that was given to one is made, then runs and is healthy;
// one that is to end ends. As a manager does with what nodes report, many go into one commit.
func (c *crowd) act(w *store.Watch) {
	var todo []string
	queued := map[string]bool{}
	for {
		commits, err := w.Next(c.ctx)
		if err != nil {
			if c.ctx.Err() == nil {
				c.t.Error(err)
			}
			return
		}
		for _, commit := range commits {
			for _, e := range commit.Events {
				if id := c.note(e); id != "" && !queued[id] {
					queued[id] = true
					todo = append(todo, id)
				}
			}
		}
		for len(todo) > 0 {
			n := min(len(todo), store.MaxChanges)
			c.advance(todo[:n])
			for _, id := range todo[:n] {
				delete(queued, id)
			}
			todo = todo[n:]
		}
	}
}

// note remembers what an event says, and gives the id of the task when its node has to act.
func (c *crowd) note(e store.Event) string {
	task, ok := e.New.(*cluster.Task)
	c.mu.Lock()
	defer c.mu.Unlock()
	if !ok {
		delete(c.running, e.Old.Base().ID)
		delete(c.numbered, e.Old.Base().ID)
		return ""
	}
	delete(c.running, task.ID)
	delete(c.numbered, task.ID)
	if task.Status.State == cluster.TaskRunning && !task.Desired.Stops() {
		c.running[task.ID] = true
		if task.SpecNumber > 1 {
			c.numbered[task.ID] = true
		}
		select {
		case c.change <- struct{}{}:
		default:
		}
	}
	if step(task) == nil {
		return ""
	}
	return task.ID
}

// step is a task one state further, nil when there is nothing to do for its node.
func step(task *cluster.Task) *cluster.Task {
	next := task.Status
	switch {
	case task.Node == "" || task.Waits():
		return nil
	case task.Status.State.Ended():
		if task.Desired != cluster.TaskRemove || task.Status.Gone {
			return nil
		}
		next.Gone = true
	case task.Desired.Stops():
		next.State, next.Healthy = cluster.TaskShutdown, false
	case task.Status.State.Before(cluster.TaskReady):
		next.State = cluster.TaskReady
	case task.Status.State == cluster.TaskReady && !task.Held():
		next.State, next.Healthy, next.RunningAt, next.HealthyAt = cluster.TaskRunning, true, time.Now(), time.Now()
	default:
		return nil
	}
	next.At = time.Now()
	task = store.Copy(task)
	task.Status = next
	return task
}

// advance takes tasks one state further.
func (c *crowd) advance(ids []string) {
	for {
		v := c.s.View()
		var changes []store.Change
		for _, id := range ids {
			if task, err := store.Find[*cluster.Task](v, id); err == nil {
				if task = step(task); task != nil {
					changes = append(changes, store.Update(task))
				}
			}
		}
		_, err := c.s.Commit(c.ctx, changes...)
		if err == nil || c.ctx.Err() != nil {
			return
		}
		if !errdefs.IsConflict(err) && !errdefs.IsNotFound(err) {
			c.t.Error(err)
			return
		}
	}
}

// up is how many tasks run.
func (c *crowd) up() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.running)
}

func (c *crowd) until(what string, done func() bool) {
	c.t.Helper()
	for late := time.After(10 * time.Minute); !done(); {
		select {
		case <-c.change:
		case <-late:
			c.t.Fatalf("%s: not so after ten minutes, %d run", what, c.up())
		}
	}
}

// figures are what changes cost.
type figures struct{ median, worst, cpu time.Duration }

// measure asks one service after another for one replica more and waits until it runs.
func (c *crowd) measure(times, tasks, services int) (f figures) {
	c.t.Helper()
	begin := usage(c.t)
	var took []time.Duration
	for i := range times {
		at, want := time.Now(), tasks+i+1
		c.scale(fmt.Sprint("s", i%services), 1)
		c.until("one replica more", func() bool { return c.up() >= want })
		took = append(took, time.Since(at))
	}
	_, cpu := usage(c.t).since(begin)
	slices.Sort(took)
	return figures{took[len(took)/2], took[len(took)-1], cpu / time.Duration(times)}
}

func (c *crowd) scale(name string, more uint64) {
	c.t.Helper()
	c.edit(name, func(s *cluster.Service) { s.Spec.Mode.Replicated.Replicas += more })
}

func (c *crowd) edit(name string, f func(*cluster.Service)) {
	c.t.Helper()
	for {
		o, err := store.Named[*cluster.Service](c.s.View(), name)
		if err != nil {
			c.t.Fatal(err)
		}
		o = store.Copy(o)
		f(o)
		if _, err = c.s.Commit(c.ctx, store.Update(o)); err == nil {
			return
		} else if !errdefs.IsConflict(err) {
			c.t.Fatal(err)
		}
	}
}

// roll gives one service a new spec, all of its tasks at once.
func (c *crowd) roll(t *testing.T) {
	t.Helper()
	o, err := store.Named[*cluster.Service](c.s.View(), "s0")
	if err != nil {
		t.Fatal(err)
	}
	want := int(o.Spec.Mode.Replicated.Replicas)
	begin := usage(t)
	c.edit("s0", func(s *cluster.Service) {
		before := store.Copy(s).Spec
		s.Spec.Task.Force++
		s.Numbers++
		s.Spec.Number, s.Previous = s.Numbers, &before
		s.Spec.Update = &cluster.Rollout{Monitor: time.Millisecond}
	})
	c.until("the new spec runs", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.numbered) == want
	})
	took, cpu := usage(t).since(begin)
	t.Logf("a service of %d replicas changed, all at once: %.0f ms, %.0f ms of CPU", want, ms(took), ms(cpu))
}

func scaleSpec(replicas uint64) cluster.ServiceSpec {
	s := spec(good, 1, replicas)
	s.Task.Container.Env = []string{"A=1", "B=2"}
	s.Task.Host = &container.HostConfig{}
	s.Task.Reserved = cluster.Resources{NanoCPUs: 1e8, Memory: 64 << 20}
	return s
}

func envInt(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil && n > 0 {
		return n
	}
	return otherwise
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// used is what this process has had at a time.
type used struct {
	at  time.Time
	cpu time.Duration
}

func usage(t *testing.T) used {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return used{time.Now(), time.Duration(u.Utime.Nano() + u.Stime.Nano())}
}

func (u used) since(before used) (took, cpu time.Duration) {
	return u.at.Sub(before.at), u.cpu - before.cpu
}

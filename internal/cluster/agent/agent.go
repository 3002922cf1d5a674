// Package agent is what a node does for the orchestrator: it takes each of the node's
// tasks through its life, one state at a time, and says what becomes of it. What a
// task's container is, is the executor's to know.
package agent

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
)

// Agent takes care of a node's tasks.
type Agent struct {
	node string
	s    store.Store
	x    cluster.Executor
	log  *slog.Logger

	mu    sync.Mutex
	tasks map[string]*life
}

// New makes an Agent; nothing happens before Run.
func New(node string, s store.Store, x cluster.Executor, log *slog.Logger) *Agent {
	return &Agent{node: node, s: s, x: x, log: log, tasks: map[string]*life{}}
}

// Open writes what ended while nobody looked, before Run and before the loops begin:
// what needs others would be started beside those that only seem to be well.
func (a *Agent) Open(ctx context.Context) error {
	for _, t := range store.List[*cluster.Task](a.s.View(), store.OnNode(a.node)) {
		if t.Status.State != cluster.TaskRunning || t.Desired == cluster.TaskOrphaned || t.Halted || t.Status.Message == haltedMessage {
			continue
		}
		c := a.x.Controller(t)
		runs, err := c.Runs(ctx)
		if err != nil {
			return fmt.Errorf("task %s: %w", t.ID, err)
		}
		if runs {
			continue
		}
		var e ended
		if e.code, e.err = c.Wait(ctx, func() {}); ctx.Err() != nil {
			return ctx.Err()
		}
		if _, err := a.report(ctx, t.ID, func(t *cluster.Task) {
			if t.Desired.Stops() { // an engine was killed while it ended it
				t.Status.State, t.Status.Message, t.Status.Healthy = cluster.TaskShutdown, "shutdown", false
				return
			}
			t.Status.State, t.Status.Message = e.means()
			e.note(&t.Status)
		}); err != nil && !errdefs.IsUnavailable(err) { // cut off from it: Run tells when that is over
			return err
		}
	}
	return nil
}

// Run takes care of the tasks until ctx ends, and blocks. What runs then goes on.
func (a *Agent) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var lives sync.WaitGroup
	defer lives.Wait()
	defer cancel()
	for {
		v := a.s.View()
		w, err := a.s.Watch(v.Revision(), cluster.KindTask)
		if errdefs.IsOutOfRange(err) {
			continue // between the two lines above much was written
		}
		if err != nil {
			return err
		}
		if err := a.all(ctx, &lives, v); err != nil {
			return err
		}
		for {
			commits, err := w.Next(ctx)
			if errdefs.IsOutOfRange(err) {
				a.log.Warn("the agent was slower than the changes: it looks at all tasks anew")
				break
			}
			if err != nil {
				if ctx.Err() != nil {
					return nil
				}
				return err
			}
			for _, c := range commits {
				for _, e := range c.Events {
					a.note(ctx, &lives, e)
				}
			}
		}
	}
}

// all looks at the tasks of a view, and removes the containers of tasks that are not
// in it.
func (a *Agent) all(ctx context.Context, lives *sync.WaitGroup, v store.View) error {
	seen := map[string]bool{}
	for _, t := range store.List[*cluster.Task](v, store.OnNode(a.node)) {
		seen[t.ID] = true
		a.tell(ctx, lives, t)
	}
	known, err := a.x.Known(ctx)
	if err != nil {
		return fmt.Errorf("containers of tasks: %w", err)
	}
	a.mu.Lock()
	for id := range a.tasks {
		known = append(known, id)
	}
	a.mu.Unlock()
	for _, id := range known {
		if !seen[id] {
			a.log.Warn("a container of a task that is no more goes, too", "task", id)
			a.gone(ctx, lives, &cluster.Task{Meta: cluster.Meta{ID: id}, Node: a.node})
		}
	}
	return nil
}

func (a *Agent) note(ctx context.Context, lives *sync.WaitGroup, e store.Event) {
	if e.New == nil {
		if t, ok := e.Old.(*cluster.Task); ok && t.Node == a.node {
			a.gone(ctx, lives, t)
		}
		return
	}
	if t, ok := e.New.(*cluster.Task); ok && t.Node == a.node && t.Status.State != cluster.TaskNew && t.Status.State != cluster.TaskPending {
		a.tell(ctx, lives, t)
	}
}

// tell gives a task's life the newest of it, and begins it when it is new.
func (a *Agent) tell(ctx context.Context, lives *sync.WaitGroup, t *cluster.Task) {
	a.set(ctx, lives, t, false)
}

// gone ends the life of a task that is not in the store any more.
func (a *Agent) gone(ctx context.Context, lives *sync.WaitGroup, t *cluster.Task) {
	a.set(ctx, lives, t, true)
}

func (a *Agent) set(ctx context.Context, lives *sync.WaitGroup, t *cluster.Task, gone bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if l := a.tasks[t.ID]; l != nil {
		l.set(t, gone)
		return
	}
	l := &life{a: a, c: a.x.Controller(t), news: make(chan struct{}, 1)}
	l.set(t, gone) // before it begins: its first step looks at the task
	a.tasks[t.ID] = l
	lives.Go(func() { l.run(ctx) })
}

// forget drops a life that is over.
func (a *Agent) forget(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.tasks, id)
}

// report writes what became of a task and gives it as it is then. What somebody else
// has written of it meanwhile stays. NotFound when it is not there any more.
func (a *Agent) report(ctx context.Context, id string, f func(t *cluster.Task)) (*cluster.Task, error) {
	for {
		t, err := store.Find[*cluster.Task](a.s.View(), id)
		if err != nil {
			return nil, err
		}
		was := t.Status.State
		t = store.Copy(t)
		f(t)
		if t.Status.State != was {
			if !was.May(t.Status.State) {
				return nil, fmt.Errorf("task %s: from %s to %s: %w", id, was, t.Status.State, errdefs.ErrFailedPrecondition)
			}
			t.Status.At = time.Now().UTC()
		}
		if _, err = a.s.Commit(ctx, store.Update(t)); !errdefs.IsConflict(err) {
			return t, err
		}
	}
}

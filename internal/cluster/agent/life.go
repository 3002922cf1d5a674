package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/sys/errtext"
	"github.com/containerd/errdefs"
)

// life is one task's on this node. Its goroutine takes one step after the other; each
// rests on what the store said last.
type life struct {
	a    *Agent
	c    cluster.Controller
	news chan struct{} // the task has changed

	mu      sync.Mutex
	task    *cluster.Task
	gone    bool               // it is not in the store any more
	amid    context.CancelFunc // of the step under way; nil: it is not to be cut short
	waiting <-chan ended       // of a container that runs
	unwait  context.CancelFunc
	halted  bool   // its container was ended as a client wishes
	rested  bool   // its container has been looked at since it ended
	over    *ended // how its container has, from when that is known until it runs anew
}

// ended is how a container has.
type ended struct {
	code int
	err  error
}

// set takes over the newest of the task. A step that is of no use any more is cut short.
func (l *life) set(t *cluster.Task, gone bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gone || l.task != nil && !gone && t.Revision < l.task.Revision {
		return // that is known, and more
	}
	l.task, l.gone = t, gone
	if (gone || t.Desired.Stops()) && l.amid != nil {
		l.amid()
	}
	select {
	case l.news <- struct{}{}:
	default:
	}
}

func (l *life) now() (*cluster.Task, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.task, l.gone
}

// patience is how long a life waits before it tries again what could not be done.
const patience = time.Second

// run takes steps until the task is gone.
func (l *life) run(ctx context.Context) {
	defer l.stopWaiting()
	for ctx.Err() == nil {
		t, gone := l.now()
		if gone {
			if l.remove(ctx) {
				l.a.forget(t.ID)
				return
			}
			continue
		}
		l.step(ctx, t)
	}
}

// sleep waits for news, a time, or a container's end; it gives the last.
func (l *life) sleep(ctx context.Context, until time.Time, end <-chan ended) *ended {
	var at <-chan time.Time
	if !until.IsZero() {
		timer := time.NewTimer(time.Until(until))
		defer timer.Stop()
		at = timer.C
	}
	select {
	case e := <-end:
		return &e
	case <-l.news:
	case <-at:
	case <-ctx.Done():
	}
	return nil
}

// cut is a context that ends also when the task is to be ended.
func (l *life) cut(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gone || l.task.Desired.Stops() {
		cancel()
	}
	l.amid = cancel
	return ctx, func() {
		l.mu.Lock()
		l.amid = nil
		l.mu.Unlock()
		cancel()
	}
}

// step takes the task one state further, or waits until there is something to do.
func (l *life) step(ctx context.Context, t *cluster.Task) {
	state := t.Status.State
	switch {
	case state.Ended() && t.Desired == cluster.TaskRemove && !t.Status.Gone:
		l.vanish(ctx)
	case state.Ended():
		l.rest(ctx)
	case t.Desired == cluster.TaskOrphaned:
		l.release(ctx)
	case t.Desired.Stops():
		l.shutdown(ctx)
	case state == cluster.TaskAssigned:
		l.to(ctx, cluster.TaskAccepted, "accepted", nil)
	case state == cluster.TaskAccepted && t.Apart():
		l.sleep(ctx, time.Time{}, nil)
	case state == cluster.TaskAccepted:
		l.to(ctx, cluster.TaskPreparing, "preparing", nil)
	case state == cluster.TaskPreparing:
		l.prepare(ctx)
	case state == cluster.TaskReady && t.Held():
		l.sleep(ctx, time.Time{}, nil)
	case state == cluster.TaskReady && time.Now().Before(t.NotBefore):
		l.sleep(ctx, t.NotBefore, nil)
	case state == cluster.TaskReady:
		l.to(ctx, cluster.TaskStarting, "starting", nil)
	case state == cluster.TaskStarting && t.Halted:
		l.to(ctx, cluster.TaskRunning, "", func(s *cluster.TaskStatus) { s.RunningAt = time.Now().UTC() })
	case state == cluster.TaskStarting:
		l.start(ctx, false)
	case state == cluster.TaskRunning && t.Halted:
		l.halt(ctx)
	case state == cluster.TaskRunning && (l.halted || t.Status.Message == haltedMessage):
		l.halted = false
		l.start(ctx, true) // a client had stopped it
	case state == cluster.TaskRunning:
		l.attend(ctx, t)
	default:
		l.a.log.Error("a task is in a state that no node knows", "task", t.ID, "state", state)
		l.sleep(ctx, time.Time{}, nil)
	}
}

// to reports a state; the next step knows of it.
func (l *life) to(ctx context.Context, s cluster.TaskState, message string, f func(*cluster.TaskStatus)) {
	t, _ := l.now()
	written, err := l.a.report(ctx, t.ID, func(t *cluster.Task) {
		st := &t.Status
		st.State, st.Message, st.Err = s, message, ""
		if f != nil {
			f(st)
		}
	})
	switch {
	case err == nil:
		l.set(written, false)
	case ctx.Err() != nil, errdefs.IsNotFound(err): // the store tells that it has gone
		l.sleep(ctx, time.Time{}, nil)
	case errdefs.IsUnavailable(err): // who keeps the store says so
		l.sleep(ctx, time.Now().Add(patience), nil)
	default:
		l.a.log.Error("what became of a task cannot be written: trying again", "task", t.ID, "state", s, "error", err)
		l.sleep(ctx, time.Now().Add(patience), nil)
	}
}

func (l *life) prepare(ctx context.Context) {
	step, done := l.cut(ctx)
	err := l.c.Prepare(step)
	cut := step.Err() != nil
	done()
	switch {
	case cut: // by what the next step sees
	case err != nil:
		l.to(ctx, cluster.TaskRejected, "preparing", func(s *cluster.TaskStatus) { s.Err = errtext.Of(err) })
	default:
		l.to(ctx, cluster.TaskReady, "prepared", nil)
	}
}

// start starts the container. What somebody has removed of it or of what it needs is made
// again: all of it is looked for first when again says so.
func (l *life) start(ctx context.Context, again bool) {
	step, done := l.cut(ctx)
	l.over = nil
	var c cluster.ContainerStatus
	var err error
	if !again {
		c, err = l.c.Start(step)
	}
	if again || errdefs.IsNotFound(err) {
		if err = l.c.Prepare(step); err == nil {
			c, err = l.c.Start(step)
		}
	}
	cut := step.Err() != nil
	done()
	switch {
	case cut:
	case err != nil && l.stopped():
	case err != nil:
		l.to(ctx, cluster.TaskFailed, "starting", func(s *cluster.TaskStatus) { s.Err = errtext.Of(err) })
	default:
		l.to(ctx, cluster.TaskRunning, "started", func(s *cluster.TaskStatus) { s.Container, s.RunningAt = &c, time.Now().UTC() })
	}
}

// undone tells whether something could not be done, that is to be tried again once this
// has waited and returned. What is not there is done.
func (l *life) undone(ctx context.Context, err error, what string) bool {
	if err != nil && !errdefs.IsNotFound(err) && ctx.Err() == nil {
		t, _ := l.now()
		l.a.log.Error(what+": trying again", "task", t.ID, "error", err)
		l.sleep(ctx, time.Now().Add(patience), nil)
		return true
	}
	return ctx.Err() != nil
}

// shutdown ends what there is of the container; one that ended by itself meanwhile
// has still done what was wanted.
func (l *life) shutdown(ctx context.Context) {
	l.stopWaiting()
	if !l.undone(ctx, l.c.Shutdown(ctx), "a task cannot be ended") {
		l.to(ctx, cluster.TaskShutdown, "shutdown", func(s *cluster.TaskStatus) { s.Healthy = false })
	}
}

// attend waits for the end of a container that runs. What cannot be written of it at once
// is written later, and then as it was.
func (l *life) attend(ctx context.Context, t *cluster.Task) {
	if l.over == nil {
		if l.waiting == nil {
			l.wait(ctx, t.ID)
		}
		if l.over = l.sleep(ctx, time.Time{}, l.waiting); l.over == nil || ctx.Err() != nil {
			return
		}
		l.stopWaiting()
	}
	if l.stopped() {
		return
	}
	if l.over.err != nil {
		// It may run still, and must not beside the one that takes its place.
		if err := l.c.Shutdown(ctx); err != nil && !errdefs.IsNotFound(err) {
			l.over.err = errors.Join(l.over.err, err)
		}
	}
	state, message := l.over.means()
	l.to(ctx, state, message, l.over.note)
}

// wait begins to wait for the end of a container.
func (l *life) wait(ctx context.Context, id string) {
	waiting, cancel := context.WithCancel(ctx)
	end := make(chan ended, 1)
	l.waiting, l.unwait = end, cancel
	go func() {
		code, err := l.c.Wait(waiting, func() {
			if l.healthy(waiting, id) {
				go func() { // what else happens to the container is not kept waiting
					for l.healthy(waiting, id) {
					}
				}()
			}
		})
		end <- ended{code, err}
	}()
}

// healthy reports that a task's container is; again says that it could not be written yet,
// and that this has waited.
func (l *life) healthy(ctx context.Context, id string) (again bool) {
	_, err := l.a.report(ctx, id, isHealthy)
	switch {
	case err == nil || ctx.Err() != nil || errdefs.IsNotFound(err):
		return false
	case !errdefs.IsUnavailable(err):
		l.a.log.Error("the health of a task cannot be written", "task", id, "error", err)
		return false
	}
	select {
	case <-time.After(patience):
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// means is what the end of a container makes of its task.
func (e *ended) means() (cluster.TaskState, string) {
	if e.code != 0 || e.err != nil {
		return cluster.TaskFailed, "started"
	}
	return cluster.TaskComplete, "finished"
}

// note writes how a container has ended.
func (e *ended) note(s *cluster.TaskStatus) {
	s.Healthy = false
	if s.Container != nil {
		s.Container.ExitCode = e.code
	}
	switch {
	case e.err != nil:
		s.Err = errtext.Of(e.err)
	case e.code != 0:
		s.Err = fmt.Sprintf("task: non-zero exit (%d)", e.code)
	}
}

// isHealthy notes that a task's container is, unless it ends or has ended.
func isHealthy(t *cluster.Task) {
	s := &t.Status
	s.Healthy = s.State == cluster.TaskRunning && !t.Halted
	if s.Healthy && s.HealthyAt.IsZero() {
		s.HealthyAt = time.Now().UTC()
	}
}

func (l *life) stopWaiting() {
	if l.unwait != nil {
		l.unwait()
	}
	l.waiting, l.unwait = nil, nil
}

package agent

import (
	"context"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
)

// haltedMessage is what a task says that a client has stopped, as long as it is so. It
// is how a later engine knows that the container is to be started again.
const haltedMessage = "stopped by a client"

// stopped looks whether a client has stopped the task, also when nobody has told so yet.
func (l *life) stopped() bool {
	t, _ := l.now()
	t, err := store.Find[*cluster.Task](l.a.s.View(), t.ID)
	if err != nil || !t.Halted {
		return false
	}
	l.set(t, false)
	return true
}

// halt sees to it that the container of a task that a client has stopped does not run,
// and leaves it so. Usually the client's request ends it, and this waits for that.
func (l *life) halt(ctx context.Context) {
	l.stopWaiting()
	if !l.halted {
		if !l.stopped() {
			return // it is wanted again by now
		}
		if err := l.c.Shutdown(ctx); err != nil && !errdefs.IsNotFound(err) && ctx.Err() == nil {
			t, _ := l.now()
			l.a.log.Error("a task that a client has stopped cannot be ended: trying again", "task", t.ID, "error", err)
			l.sleep(ctx, time.Now().Add(patience), nil)
			return
		}
		l.halted = ctx.Err() == nil
	}
	if t, _ := l.now(); l.halted && (t.Status.Message != haltedMessage || t.Status.Healthy) {
		l.to(ctx, cluster.TaskRunning, haltedMessage, func(s *cluster.TaskStatus) { s.Healthy = false })
		return
	}
	l.sleep(ctx, time.Time{}, nil)
}

// resume brings a task up again that a client had stopped, with all that somebody has
// removed meanwhile.
func (l *life) resume(ctx context.Context) {
	l.halted = false
	step, done := l.cut(ctx)
	var c cluster.ContainerStatus
	err := l.c.Prepare(step)
	if err == nil {
		c, err = l.c.Start(step)
	}
	cut := step.Err() != nil
	done()
	switch {
	case cut:
	case err != nil && l.stopped():
	case err != nil:
		l.to(ctx, cluster.TaskFailed, "starting", func(s *cluster.TaskStatus) { s.Err = err.Error() })
	default:
		l.to(ctx, cluster.TaskRunning, "started", func(s *cluster.TaskStatus) { s.Container, s.RunningAt = &c, time.Now().UTC() })
	}
}

// rest waits until a task that has ended is gone. Before it was written that it has, a
// client could start its container again, whose place is another's now.
func (l *life) rest(ctx context.Context, t *cluster.Task) {
	l.stopWaiting()
	if !l.rested {
		if err := l.c.Shutdown(ctx); err != nil && !errdefs.IsNotFound(err) && ctx.Err() == nil {
			l.a.log.Error("the container of a task that has ended runs and cannot be ended: trying again", "task", t.ID, "error", err)
			l.sleep(ctx, time.Now().Add(patience), nil)
			return
		}
		l.rested = true
	}
	l.sleep(ctx, time.Time{}, nil)
}

// release lets the container go.
func (l *life) release(ctx context.Context) {
	l.stopWaiting()
	if err := l.c.Release(ctx); err != nil && !errdefs.IsNotFound(err) && ctx.Err() == nil {
		t, _ := l.now()
		l.a.log.Error("the container of a task cannot be let go: trying again", "task", t.ID, "error", err)
		l.sleep(ctx, time.Now().Add(patience), nil)
		return
	}
	if ctx.Err() == nil {
		l.to(ctx, cluster.TaskOrphaned, "let go", func(s *cluster.TaskStatus) { s.Healthy = false })
	}
}

// vanish removes what is left of a task that is to be removed, and says so.
func (l *life) vanish(ctx context.Context) {
	l.stopWaiting()
	if !l.remove(ctx) || ctx.Err() != nil {
		return
	}
	t, _ := l.now()
	l.to(ctx, t.Status.State, "removed", func(s *cluster.TaskStatus) { s.Gone, s.Err = true, t.Status.Err })
}

// remove removes the container, or waits until it is time to try again.
func (l *life) remove(ctx context.Context) bool {
	err := l.c.Remove(ctx)
	if err == nil || errdefs.IsNotFound(err) {
		return true
	}
	t, _ := l.now()
	l.a.log.Error("the container of a task that has gone cannot be removed: trying again", "task", t.ID, "error", err)
	l.sleep(ctx, time.Now().Add(patience), nil)
	return false
}

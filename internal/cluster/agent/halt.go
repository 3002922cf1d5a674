package agent

import (
	"context"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
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
		if l.undone(ctx, l.c.Shutdown(ctx), "a task that a client has stopped cannot be ended") {
			return
		}
		l.halted = true
	}
	if t, _ := l.now(); l.halted && (t.Status.Message != haltedMessage || t.Status.Healthy) {
		l.to(ctx, cluster.TaskRunning, haltedMessage, func(s *cluster.TaskStatus) { s.Healthy = false })
		return
	}
	l.sleep(ctx, time.Time{}, nil)
}

// rest waits until a task that has ended is gone. Before it was written that it has, a
// client could start its container again, whose place is another's now.
func (l *life) rest(ctx context.Context) {
	l.stopWaiting()
	if !l.rested {
		if l.undone(ctx, l.c.Shutdown(ctx), "the container of a task that has ended runs and cannot be ended") {
			return
		}
		l.rested = true
	}
	l.sleep(ctx, time.Time{}, nil)
}

// release lets the container go.
func (l *life) release(ctx context.Context) {
	l.stopWaiting()
	if !l.undone(ctx, l.c.Release(ctx), "the container of a task cannot be let go") {
		l.to(ctx, cluster.TaskOrphaned, "let go", func(s *cluster.TaskStatus) { s.Healthy = false })
	}
}

// vanish removes what is left of a task that is to be removed, and says so.
func (l *life) vanish(ctx context.Context) {
	l.stopWaiting()
	if !l.remove(ctx) {
		return
	}
	t, _ := l.now()
	l.to(ctx, t.Status.State, "removed", func(s *cluster.TaskStatus) { s.Gone, s.Err = true, t.Status.Err })
}

// remove removes the container, or waits until it is time to try again.
func (l *life) remove(ctx context.Context) bool {
	return !l.undone(ctx, l.c.Remove(ctx), "the container of a task that has gone cannot be removed")
}

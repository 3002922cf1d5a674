// Package restart is the loop that replaces tasks that have ended though they should
// not have, as their restart policies say: after a delay, so often in a window. A
// service whose policy gives no delay gets one that doubles from 100 ms to a minute
// while its tasks end within ten seconds, as containers' restarts do.
package restart

import (
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/loop"
)

// Delays of a policy that gives none.
const (
	firstDelay = 100 * time.Millisecond
	lastDelay  = time.Minute
	quick      = 10 * time.Second // a task that ended before was no success
)

// Loop is the loop.
type Loop struct{}

var _ loop.Loop = Loop{}

// Name implements loop.Loop.
func (Loop) Name() string { return "restart" }

// Kinds implements loop.Loop.
func (Loop) Kinds() []cluster.Kind { return []cluster.Kind{cluster.KindTask} }

// Keys implements loop.Loop: the owners of tasks that have ended.
func (Loop) Keys(_ store.View, e store.Event) []string {
	if t, ok := e.New.(*cluster.Task); ok && failed(t) {
		return []string{t.Owner}
	}
	return nil
}

// All implements loop.Loop.
func (Loop) All(v store.View) []string {
	var out []string
	for _, s := range store.List[*cluster.Service](v) {
		out = append(out, s.ID)
	}
	return out
}

// failed tells whether a task has ended though it should not have.
func failed(t *cluster.Task) bool { return t.Status.State.Ended() && !t.Desired.Stops() }

// Decide implements loop.Loop.
func (Loop) Decide(v store.View, key string, now time.Time) (d loop.Decision) {
	service, err := store.Find[*cluster.Service](v, key)
	if err != nil || service.Spec.Mode.Replicated == nil && !service.Spec.Mode.Global {
		return d // gone, or of tasks that are to end
	}
	for _, slot := range cluster.Slots(store.List[*cluster.Task](v, store.Owner(key))) {
		if len(d.Changes) >= store.MaxChanges-1 {
			return d
		}
		t := slot.Current()
		if !failed(t) {
			continue
		}
		ended := store.Copy(t)
		ended.Desired = cluster.TaskShutdown // it is dealt with
		d.Changes = append(d.Changes, store.Update(ended))
		if !again(t, slot, now) {
			continue
		}
		next := t.Successor(t.Spec, t.SpecNumber)
		next.Desired, next.Halted = t.Desired, t.Halted
		next.NotBefore = now.Add(delay(t, slot))
		d.Changes = append(d.Changes, store.Create(next))
	}
	return d
}

// again tells whether the policy wants one more task after t.
func again(t *cluster.Task, slot cluster.Slot, now time.Time) bool {
	p := t.Spec.Restart
	switch p.Condition {
	case cluster.RestartNone:
		return false
	case cluster.RestartOnFailure:
		if t.Status.State == cluster.TaskComplete {
			return false
		}
	}
	if p.Attempts == 0 {
		return true
	}
	done := uint64(0)
	for i, old := range slot.Tasks {
		if i+1 == len(slot.Tasks) || old.SpecNumber != t.SpecNumber {
			break // the first of its kind was no restart
		}
		if p.Window == 0 || now.Sub(old.CreatedAt) <= p.Window {
			done++
		}
	}
	return done < p.Attempts
}

// delay is how long the place stays empty after t.
func delay(t *cluster.Task, slot cluster.Slot) time.Duration {
	if d := t.Spec.Restart.Delay; d > 0 {
		return d
	}
	wait := firstDelay
	for _, old := range slot.Tasks {
		if !old.Status.State.Ended() || old.Status.At.Sub(begun(old)) >= quick {
			break
		}
		wait = min(2*wait, lastDelay)
	}
	return wait / 2
}

// begun is when a task could begin.
func begun(t *cluster.Task) time.Time {
	if t.NotBefore.After(t.CreatedAt) {
		return t.NotBefore
	}
	return t.CreatedAt
}

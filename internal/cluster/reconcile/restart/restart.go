// Package restart is the loop that replaces tasks that have ended though they should
// not have, as their restart policies say: after a delay, so often in a window
// (cluster.Task.Again).
package restart

import (
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/loop"
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
func (Loop) All(v store.View) []string { return loop.Services(v) }

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
		if t.SpecNumber == service.Spec.Number {
			// What it waits for, how it is pulled and restarted may have changed meanwhile.
			t = store.Copy(t)
			t.Spec = service.Spec.Task
		}
		if next := t.Again(now); next != nil {
			d.Changes = append(d.Changes, store.Create(next))
		}
	}
	return d
}

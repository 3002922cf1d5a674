// Package reaper is the loop that removes what is over: tasks that are to be removed
// once nothing of them runs, and the older of those that have ended, of which each
// place keeps a few to look at. Of an app's place that is the last failure: who knows
// Compose expects one container of it, and sees in the app's history what else there was.
package reaper

import (
	"cmp"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/loop"
)

// History is how many tasks that have ended a place keeps, if nobody says otherwise.
const History = 5

// lastFailure is the same of an app's place.
const lastFailure = 1

// Loop is the loop.
type Loop struct {
	Keep int // tasks that have ended, of each place; 0: History
}

var _ loop.Loop = Loop{}

// Name implements loop.Loop.
func (Loop) Name() string { return "reaper" }

// Kinds implements loop.Loop.
func (Loop) Kinds() []cluster.Kind { return []cluster.Kind{cluster.KindTask} }

// Keys implements loop.Loop: the owners of tasks that are over.
func (Loop) Keys(_ store.View, e store.Event) []string {
	if t, ok := e.New.(*cluster.Task); ok && (t.Status.State.Ended() || t.Desired == cluster.TaskRemove) {
		return []string{t.Owner}
	}
	return nil
}

// All implements loop.Loop.
func (Loop) All(v store.View) []string {
	var out []string
	for _, t := range store.List[*cluster.Task](v) {
		out = append(out, t.Owner)
	}
	return out
}

// Decide implements loop.Loop.
func (l Loop) Decide(v store.View, key string, _ time.Time) (d loop.Decision) {
	tasks := store.List[*cluster.Task](v, store.Owner(key))
	for _, t := range tasks {
		// Its container goes first: until then it holds volumes and names. One that no
		// node has got yet has none.
		if t.Desired == cluster.TaskRemove && (t.Status.Gone || t.Node == "") {
			d.Changes = append(d.Changes, store.Delete(t))
		}
	}
	for _, slot := range cluster.Slots(tasks) {
		over := 0
		for _, t := range slot.Tasks[1:] {
			if !t.Status.State.Ended() || !t.Desired.Ended() {
				continue
			}
			keep := cmp.Or(l.Keep, History)
			if t.App != "" {
				keep = lastFailure
			}
			if over++; over > keep || t.App != "" && t.Status.State == cluster.TaskShutdown {
				t = store.Copy(t)
				t.Desired = cluster.TaskRemove
				d.Changes = append(d.Changes, store.Update(t))
			}
		}
	}
	return d
}

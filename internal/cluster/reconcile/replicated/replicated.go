// Package replicated is the loop that gives replicated services their places: a first
// task in each that has none, and removal of those that are too many. What becomes
// of a place later is others' to decide: restart, update.
package replicated

import (
	"slices"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/loop"
)

// Loop is the loop.
type Loop struct{}

var _ loop.Loop = Loop{}

// Name implements loop.Loop.
func (Loop) Name() string { return "replicated" }

// Kinds implements loop.Loop.
func (Loop) Kinds() []cluster.Kind { return []cluster.Kind{cluster.KindService, cluster.KindTask} }

// Keys implements loop.Loop: services; of tasks only their end in the store counts.
func (Loop) Keys(_ store.View, e store.Event) []string {
	switch {
	case e.Kind() == cluster.KindTask && e.New == nil:
		return []string{e.Old.Base().Owner}
	case e.Kind() == cluster.KindTask:
		return nil
	case e.New == nil:
		return []string{e.Old.Base().ID}
	}
	return []string{e.New.Base().ID}
}

// All implements loop.Loop: the services, and the owners of tasks, which may have gone.
func (Loop) All(v store.View) []string {
	var out []string
	for _, s := range store.List[*cluster.Service](v) {
		out = append(out, s.ID)
	}
	for _, t := range store.List[*cluster.Task](v) {
		out = append(out, t.Owner)
	}
	return out
}

// Decide implements loop.Loop.
func (Loop) Decide(v store.View, key string, _ time.Time) (d loop.Decision) {
	tasks := store.List[*cluster.Task](v, store.Owner(key))
	service, err := store.Find[*cluster.Service](v, key)
	if err != nil {
		// The service has gone, whatever it was. Tasks that are let go are its app's to delete.
		remove(&d, slices.DeleteFunc(tasks, func(t *cluster.Task) bool { return t.Desired == cluster.TaskOrphaned }))
		return d
	}
	mode := service.Spec.Mode.Replicated
	if mode == nil {
		return d // its places are another loop's
	}
	has := map[uint64]bool{}
	for _, slot := range cluster.Slots(tasks) {
		if slot.Number > mode.Replicas {
			remove(&d, slot.Tasks)
		}
		has[slot.Number] = true
	}
	var made []store.Change
	for n := uint64(1); n <= mode.Replicas && len(made) < store.MaxChanges; n++ {
		if !has[n] {
			made = append(made, store.Create(service.First(n, "")))
		}
	}
	if len(made) > 0 {
		// Of a service that was changed or removed meanwhile no task is made.
		d.Changes = append(d.Changes, append([]store.Change{store.Unchanged(service)}, made...)...)
	}
	return d
}

// remove wants tasks gone.
func remove(d *loop.Decision, tasks []*cluster.Task) {
	for _, t := range tasks {
		if t.Desired != cluster.TaskRemove {
			t = store.Copy(t)
			t.Desired = cluster.TaskRemove
			d.Changes = append(d.Changes, store.Update(t))
		}
	}
}

// Package global is the loop that gives global services a place on each node that
// will have them. What becomes of a place later is others' to decide: restart, update.
package global

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
func (Loop) Name() string { return "global" }

// Kinds implements loop.Loop.
func (Loop) Kinds() []cluster.Kind {
	return []cluster.Kind{cluster.KindService, cluster.KindNode, cluster.KindTask}
}

// Keys implements loop.Loop: services; all of them when a node changes.
func (l Loop) Keys(v store.View, e store.Event) []string {
	switch {
	case e.Kind() == cluster.KindNode:
		return l.All(v)
	case e.New == nil && e.Kind() == cluster.KindTask:
		return []string{e.Old.Base().Owner}
	case e.New == nil || e.Kind() == cluster.KindTask:
		return nil
	}
	return []string{e.New.Base().ID}
}

// All implements loop.Loop.
func (Loop) All(v store.View) []string {
	var out []string
	for _, s := range store.List[*cluster.Service](v) {
		if s.Spec.Mode.Global {
			out = append(out, s.ID)
		}
	}
	return out
}

// Decide implements loop.Loop.
func (Loop) Decide(v store.View, key string, _ time.Time) (d loop.Decision) {
	service, err := store.Find[*cluster.Service](v, key)
	if err != nil || !service.Spec.Mode.Global {
		return d
	}
	constraints, err := cluster.ParseConstraints(service.Spec.Task.Placement.Constraints)
	if err != nil {
		return d // whoever wrote it was told
	}
	has := map[string][]*cluster.Task{}
	for _, slot := range cluster.Slots(store.List[*cluster.Task](v, store.Owner(key))) {
		has[slot.Node] = slot.Tasks
	}
	var made []store.Change
	for _, n := range store.List[*cluster.Node](v) {
		keeps, gets := will(service, n, constraints)
		switch tasks := has[n.ID]; {
		case gets && len(tasks) == 0 && len(made) < store.MaxChanges-1:
			made = append(made, store.Create(service.First(0, n.ID)))
			fallthrough
		case keeps:
			delete(has, n.ID)
		}
	}
	for _, tasks := range has {
		for _, t := range tasks {
			t = store.Copy(t)
			t.Desired = cluster.TaskRemove
			d.Changes = append(d.Changes, store.Update(t))
		}
	}
	if len(made) > 0 {
		d.Changes = append(d.Changes, store.Unchanged(service))
		d.Changes = append(d.Changes, made...)
	}
	return d
}

// will tells whether a node keeps its place of the service, and whether it gets one.
func will(s *cluster.Service, n *cluster.Node, constraints []cluster.Constraint) (keeps, gets bool) {
	p := s.Spec.Task.Placement.Platforms
	if n.Spec.Availability == cluster.Drain || slices.ContainsFunc(constraints, func(c cluster.Constraint) bool { return !c.Holds(n) }) ||
		len(p) > 0 && !slices.ContainsFunc(p, n.Status.Platform.Suits) {
		return false, false
	}
	return true, n.Status.Ready && n.Spec.Availability != cluster.Paused
}

// Package job is the loop of services whose tasks are to end: so many in all, so many
// at once, or one on each node. Each spec of such a service is one run of it; tasks of
// an earlier run go. Tasks that fail are made anew as their restart policies say.
package job

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
func (Loop) Name() string { return "job" }

// Kinds implements loop.Loop.
func (Loop) Kinds() []cluster.Kind {
	return []cluster.Kind{cluster.KindService, cluster.KindNode, cluster.KindTask}
}

// Keys implements loop.Loop.
func (l Loop) Keys(v store.View, e store.Event) []string {
	switch o := e.New.(type) {
	case *cluster.Service:
		return []string{o.ID}
	case *cluster.Task:
		return []string{o.Owner}
	case *cluster.Node:
		return l.All(v)
	}
	return nil
}

// All implements loop.Loop.
func (Loop) All(v store.View) []string {
	var out []string
	for _, s := range store.List[*cluster.Service](v) {
		if s.Spec.Mode.Job != nil || s.Spec.Mode.GlobalJob {
			out = append(out, s.ID)
		}
	}
	return out
}

// Decide implements loop.Loop.
func (Loop) Decide(v store.View, key string, now time.Time) (d loop.Decision) {
	s, err := store.Find[*cluster.Service](v, key)
	if err != nil || s.Spec.Mode.Job == nil && !s.Spec.Mode.GlobalJob {
		return d
	}
	run := map[place]cluster.Slot{}
	for _, slot := range cluster.Slots(store.List[*cluster.Task](v, store.Owner(key))) {
		if slot.Current().SpecNumber == s.Spec.Number {
			run[place{slot.Number, slot.Node}] = slot
			continue
		}
		for _, t := range slot.Tasks { // of an earlier run
			if len(d.Changes) == store.MaxChanges {
				return d
			}
			t = store.Copy(t)
			t.Desired = cluster.TaskRemove
			d.Changes = append(d.Changes, store.Update(t))
		}
	}
	if len(d.Changes) > 0 || s.Spec.Mode.Schedule != "" && s.Status.Run != s.Spec.Number {
		return d // first that, or: it is not due
	}
	places, atOnce := places(v, s)
	for _, slot := range run {
		if !slot.Current().Status.State.Ended() {
			atOnce--
		}
	}
	for _, p := range places {
		if atOnce <= 0 || len(d.Changes) >= store.MaxChanges-2 {
			break
		}
		slot, begun := run[p]
		switch {
		case !begun:
			t := s.First(p.number, p.node)
			t.Desired = cluster.TaskComplete
			d.Changes = append(d.Changes, store.Create(t))
			atOnce--
		case failed(slot):
			if next := slot.Current().Again(now); next != nil {
				d.Changes = append(d.Changes, store.Create(next))
				atOnce--
			}
		}
	}
	if len(d.Changes) > 0 {
		d.Changes = append(d.Changes, store.Unchanged(s))
	}
	return d
}

// place is where a task of a job is: its number or its node.
type place struct {
	number uint64
	node   string
}

// places are those of a job, and how many of them may be at work at once.
func places(v store.View, s *cluster.Service) (out []place, atOnce int) {
	j := s.Spec.Mode.Job
	if j != nil {
		for n := range j.Total {
			out = append(out, place{number: n + 1})
		}
		if j.Concurrent > 0 {
			return out, int(j.Concurrent)
		}
		return out, len(out)
	}
	constraints, err := cluster.ParseConstraints(s.Spec.Task.Placement.Constraints)
	if err != nil {
		return nil, 0 // whoever wrote it was told
	}
	for _, n := range store.List[*cluster.Node](v) {
		if n.Status.Ready && (n.Spec.Availability == cluster.Active || n.Spec.Availability == "") &&
			!slices.ContainsFunc(constraints, func(c cluster.Constraint) bool { return !c.Holds(n) }) {
			out = append(out, place{node: n.ID})
		}
	}
	return out, len(out)
}

// failed tells whether the task of a place has.
func failed(slot cluster.Slot) bool {
	state := slot.Current().Status.State
	return state == cluster.TaskFailed || state == cluster.TaskRejected
}

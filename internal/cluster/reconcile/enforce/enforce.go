// Package enforce is the loop that takes tasks from nodes on which they may not be any
// more: the node is drained or down, or no longer as the task's constraints want it. Each
// gets a successor that the scheduler finds a place for, or that waits until there is one.
package enforce

import (
	"maps"
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
func (Loop) Name() string { return "enforce" }

// Kinds implements loop.Loop.
func (Loop) Kinds() []cluster.Kind { return []cluster.Kind{cluster.KindNode, cluster.KindTask} }

// Keys implements loop.Loop: the services of a node's tasks, and that of a task that has
// just got its node, which may have changed meanwhile.
func (Loop) Keys(v store.View, e store.Event) (out []string) {
	old, was := e.Old.(*cluster.Node)
	switch o := e.New.(type) {
	case *cluster.Node:
		if !was || !same(old, o) {
			return owners(v, o.ID)
		}
	case nil:
		if was { // it was removed, maybe while it was well
			return owners(v, old.ID)
		}
	case *cluster.Task:
		if o.Status.State == cluster.TaskAssigned && unfit(v, o) != fits {
			return []string{o.Owner}
		}
	}
	return nil
}

// owners are the services of a node's tasks.
func owners(v store.View, node string) (out []string) {
	for _, t := range store.List[*cluster.Task](v, store.OnNode(node)) {
		if !slices.Contains(out, t.Owner) {
			out = append(out, t.Owner)
		}
	}
	return out
}

// same tells whether nothing of a node has changed that could move tasks: how busy it is
// has no part in that.
func same(a, b *cluster.Node) bool {
	return a.Name == b.Name && a.Spec.Manager == b.Spec.Manager && a.Spec.Availability == b.Spec.Availability && maps.Equal(a.Spec.Labels, b.Spec.Labels) &&
		a.Status.Ready == b.Status.Ready && a.Status.Addr == b.Status.Addr && a.Status.Platform == b.Status.Platform && maps.Equal(a.Status.EngineLabels, b.Status.EngineLabels)
}

// All implements loop.Loop.
func (Loop) All(v store.View) []string { return loop.Services(v) }

// Decide implements loop.Loop.
func (Loop) Decide(v store.View, key string, _ time.Time) (d loop.Decision) {
	s, err := store.Find[*cluster.Service](v, key)
	if err != nil {
		return d // its tasks go anyway
	}
	for _, slot := range cluster.Slots(store.List[*cluster.Task](v, store.Owner(key))) {
		if len(d.Changes) >= store.MaxChanges-2 {
			return d
		}
		t := slot.Current()
		if !t.Live() || t.Node == "" {
			continue
		}
		if why := unfit(v, t); why != fits {
			d.Changes = append(d.Changes, move(v, s, t, why)...)
		}
	}
	return d
}

// reason is why a task may not be where it is.
type reason int

const (
	fits reason = iota
	moves
	down // nothing is heard of the node: nobody waits for an end of the task there
)

// unfit tells why a task may not be on its node.
func unfit(v store.View, t *cluster.Task) reason {
	n, err := store.Find[*cluster.Node](v, t.Node)
	if err != nil || !n.Status.Ready {
		return down
	}
	if n.Spec.Availability == cluster.Drain || !suits(t, n) {
		return moves
	}
	return fits
}

func suits(t *cluster.Task, n *cluster.Node) bool {
	constraints, err := cluster.ParseConstraints(t.Spec.Placement.Constraints)
	return err != nil || !slices.ContainsFunc(constraints, func(c cluster.Constraint) bool { return !c.Holds(n) })
}

// move ends a task and makes the one that takes its place elsewhere.
func move(v store.View, s *cluster.Service, t *cluster.Task, why reason) []store.Change {
	ended := store.Copy(t)
	ended.Desired = cluster.TaskShutdown
	switch {
	case s.Spec.Mode.Global, s.Spec.Mode.GlobalJob && why == down:
		return nil // the place is the node's: another loop sees to it; or it is there again when the node is
	case s.Spec.Mode.GlobalJob:
		ended.Desired = cluster.TaskRemove // it is done anew when the node may have it
		return []store.Change{store.Update(ended)}
	case t.Spec.Restart.Condition == cluster.RestartNone:
		return []store.Change{store.Update(ended)}
	}
	next := t.Successor(t.Spec, t.SpecNumber)
	next.Desired, next.Halted, next.Restarts, next.Released = t.Desired, t.Halted, t.Restarts, t.Released && !t.Shares()
	switch {
	case why == down && next.Fixed() && t.Desired == cluster.TaskRunning && t.SpecNumber == s.Spec.Number: // not while the old one could have its volumes
		next.Desired = cluster.TaskReady
	case why == down || t.Desired != cluster.TaskRunning || t.SpecNumber != s.Spec.Number: // it can begin at once
	case s.Spec.Update != nil && s.Spec.Update.StartFirst && !next.Fixed() && elsewhere(v, t):
		// The old one is told to end once the new one is up: the update loop does that.
		return []store.Change{store.Unchanged(t), store.Create(next)}
	default:
		next.Desired = cluster.TaskReady // that loop lets it start when the old one has ended
	}
	return []store.Change{store.Update(ended), store.Create(next)}
}

// elsewhere tells whether another node could take the task.
func elsewhere(v store.View, t *cluster.Task) bool {
	return slices.ContainsFunc(store.List[*cluster.Node](v), func(n *cluster.Node) bool {
		return n.ID != t.Node && n.Status.Ready && (n.Spec.Availability == cluster.Active || n.Spec.Availability == "") && suits(t, n)
	})
}

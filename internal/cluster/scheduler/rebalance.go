package scheduler

import (
	"cmp"
	"reflect"
	"slices"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/loop"
)

// Rebalance is the loop that moves tasks to nodes that have come, or come back: one of a
// service at a time, and only from a node that has at least two more of it, so that each
// move makes the service more even and there is an end to it. Of services spread over
// labels the same holds for their values first. It moves nothing while a service changes,
// nor jobs, nor what has volumes on its node; and Spread has to be how nodes are chosen.
type Rebalance struct{}

var _ loop.Loop = Rebalance{}

const (
	// calm is for how long a node has to be there, and a service to be as it is, before
	// something is moved.
	calm = 30 * time.Second
	// burnt is for how long nothing is moved to a node on which a task of the service failed.
	burnt = 10 * time.Minute
)

// Name implements loop.Loop.
func (Rebalance) Name() string { return "rebalance" }

// Kinds implements loop.Loop.
func (Rebalance) Kinds() []cluster.Kind {
	return []cluster.Kind{cluster.KindService, cluster.KindTask, cluster.KindNode}
}

// Keys implements loop.Loop: all services when a node could have become one for them, and
// that of a task that is up now, or has ended.
func (l Rebalance) Keys(v store.View, e store.Event) []string {
	switch o := e.New.(type) {
	case *cluster.Node:
		if old, _ := e.Old.(*cluster.Node); active(o) && (old == nil || !active(old) || !same(old, o)) {
			return l.All(v)
		}
	case *cluster.Service:
		return []string{o.ID}
	case *cluster.Task:
		if old, _ := e.Old.(*cluster.Task); up(o) && (old == nil || !up(old)) || o.Status.State.Ended() {
			return []string{o.Owner}
		}
	case nil:
		if e.Kind() == cluster.KindTask {
			return []string{e.Old.(*cluster.Task).Owner}
		}
		if e.Kind() == cluster.KindNode {
			return l.All(v) // the values of labels are others without it
		}
	}
	return nil
}

func up(t *cluster.Task) bool { return t.Status.State == cluster.TaskRunning && t.Status.Healthy }

func active(n *cluster.Node) bool {
	return n.Status.Ready && (n.Spec.Availability == cluster.Active || n.Spec.Availability == "")
}

// same tells whether nothing of a node has changed that filters or labels look at.
func same(a, b *cluster.Node) bool {
	x, y := store.Copy(a), store.Copy(b)
	for _, n := range []*cluster.Node{x, y} {
		n.Meta = cluster.Meta{Name: n.Name}
		n.Status.Used, n.Status.Message, n.Status.Manager = cluster.Resources{}, "", nil
	}
	return reflect.DeepEqual(x, y)
}

// All implements loop.Loop.
func (Rebalance) All(v store.View) (out []string) {
	for _, s := range store.List[*cluster.Service](v) {
		if m := s.Spec.Mode.Replicated; m != nil && m.Replicas > 1 {
			out = append(out, s.ID)
		}
	}
	return out
}

// Decide implements loop.Loop.
func (Rebalance) Decide(v store.View, key string, now time.Time) (d loop.Decision) {
	s, err := store.Find[*cluster.Service](v, key)
	if err != nil || !movable(s) {
		return d
	}
	tasks := store.List[*cluster.Task](v, store.Owner(key))
	mine, since := steady(s, tasks)
	if mine == nil {
		return d // it is told when that has changed
	}
	if at := since.Add(calm); at.After(now) {
		d.Again = at
		return d
	}
	from, to, again := uneven(v, s, mine, tasks, now)
	if to == nil {
		d.Again = again
		return d
	}
	t := latest(mine, from.Node.ID)
	next := t.Successor(t.Spec, t.SpecNumber)
	next.Toward, next.Restarts, next.Released = to.Node.ID, t.Restarts, t.Released
	d.Changes = []store.Change{store.Unchanged(s)}
	if s.Spec.Update != nil && s.Spec.Update.StartFirst {
		// The loop for updates ends the old one once the new one is up.
		d.Changes = append(d.Changes, store.Unchanged(t), store.Create(next))
		return d
	}
	ended := store.Copy(t)
	ended.Desired, next.Desired = cluster.TaskShutdown, cluster.TaskReady
	d.Changes = append(d.Changes, store.Update(ended), store.Create(next))
	return d
}

// movable tells whether tasks of a service are moved at all.
func movable(s *cluster.Service) bool {
	m, off := s.Spec.Mode.Replicated, s.Spec.Labels[cluster.LabelRebalance] == "off"
	if c := s.Spec.Task.Container; c != nil && c.Labels[cluster.LabelRebalance] == "off" {
		off = true
	}
	r := s.Status.Rollout
	return m != nil && m.Replicas > 1 && !off && s.Spec.Task.Restart.Condition != cluster.RestartNone &&
		(r == nil || !r.State.UnderWay()) && len(s.Spec.Task.LocalVolumes()) == 0
}

// steady are the tasks of a service that is as it is to be, one a place, and since when it
// is so; nil: it is not.
func steady(s *cluster.Service, tasks []*cluster.Task) (out []*cluster.Task, since time.Time) {
	slots := cluster.Slots(tasks)
	if uint64(len(slots)) != s.Spec.Mode.Replicated.Replicas {
		return nil, since
	}
	for _, slot := range slots {
		t := slot.Current()
		if !up(t) || t.Desired != cluster.TaskRunning || t.Halted || t.SpecNumber != s.Spec.Number || len(slot.Old()) > 0 {
			return nil, since
		}
		for _, at := range []time.Time{t.Status.At, t.Status.HealthyAt} {
			if at.After(since) {
				since = at
			}
		}
		out = append(out, t)
	}
	return out, since
}

// uneven are the nodes that have too much and too little of a service; again is when to look
// for that anew though nothing has happened.
func uneven(v store.View, s *cluster.Service, mine, tasks []*cluster.Task, now time.Time) (from, to *Room, again time.Time) {
	has, most := map[string]int{}, 0
	for _, t := range mine {
		has[t.Node]++
		most = max(most, has[t.Node])
	}
	spreading := len(s.Spec.Task.Placement.Spread) > 0
	if most < 2 && !spreading {
		return nil, nil, again
	}
	sample := mine[0].Successor(mine[0].Spec, mine[0].SpecNumber)
	checks, err := filters(v, sample)
	if err != nil {
		return nil, nil, again
	}
	bad := map[string]time.Time{}
	for _, t := range tasks {
		if at := t.Status.At.Add(burnt); failed(t) && at.After(now) && at.After(bad[t.Node]) {
			bad[t.Node] = at
		}
	}
	var givers, takers []*Room
	nodes := rooms(v)
	spread(sample, nodes)
	for _, r := range nodes {
		if has[r.Node.ID] > 0 {
			givers = append(givers, r)
		}
		if slices.ContainsFunc(checks, func(f filter) bool { return !f.fits(r) }) {
			continue
		}
		wait := r.Node.Status.Since.Add(calm)
		if at := bad[r.Node.ID]; at.After(wait) {
			wait = at
		}
		if wait.After(now) {
			again = loop.Soonest(again, wait)
			continue
		}
		takers = append(takers, r)
	}
	order := func(a, b *Room) int { return cmp.Or(Spread(sample, a, b), cmp.Compare(a.Node.ID, b.Node.ID)) }
	slices.SortFunc(givers, func(a, b *Room) int { return order(b, a) })
	slices.SortFunc(takers, order)
	for _, from := range givers {
		for _, to := range takers {
			if better(sample, from, to) {
				return from, to, again
			}
			if !spreading {
				return nil, nil, again // those that follow are less apart
			}
		}
	}
	return nil, nil, again
}

// better tells whether a service is more even once a task of it has gone from one node to
// the other: by the first label in whose value they differ, or else by the nodes.
func better(t *cluster.Task, from, to *Room) bool {
	for i, label := range t.Spec.Placement.Spread {
		c := cluster.Constraint{Attribute: cluster.AttributeOf(label)}
		if c.Of(from.Node) != c.Of(to.Node) {
			return from.Near[i]-to.Near[i] > 1
		}
	}
	return from.Services[t.Owner]-to.Services[t.Owner] > 1
}

// latest is the task of a node that has begun last: the least is lost with it.
func latest(tasks []*cluster.Task, node string) (out *cluster.Task) {
	for _, t := range tasks {
		if t.Node == node && (out == nil || cmp.Or(t.Status.RunningAt.Compare(out.Status.RunningAt), cmp.Compare(t.ID, out.ID)) > 0) {
			out = t
		}
	}
	return out
}

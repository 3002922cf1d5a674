// Package scheduler is the loop that gives tasks their nodes: filters say which nodes
// will do, and why the others will not; a score picks one of them.
package scheduler

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/loop"
)

// Loop is the loop.
type Loop struct {
	Score Score // nil: Spread
}

var _ loop.Loop = Loop{}

// all is the loop's one key: where a task goes depends on all that are there.
const all = "all"

// Name implements loop.Loop.
func (Loop) Name() string { return "scheduler" }

// Kinds implements loop.Loop.
func (Loop) Kinds() []cluster.Kind { return []cluster.Kind{cluster.KindTask, cluster.KindNode} }

// Keys implements loop.Loop.
func (Loop) Keys(_ store.View, e store.Event) []string {
	if t, ok := e.New.(*cluster.Task); ok && !waits(t) && !t.Status.State.Ended() {
		return nil // it has its node and takes no room from others but what it took
	}
	return []string{all}
}

// All implements loop.Loop.
func (Loop) All(store.View) []string { return []string{all} }

// waits tells whether a task needs a node, or an end because it has none and is not
// to have one any more.
func waits(t *cluster.Task) bool {
	return t.Status.State == cluster.TaskNew || t.Status.State == cluster.TaskPending
}

// Decide implements loop.Loop.
func (l Loop) Decide(v store.View, _ string, now time.Time) (d loop.Decision) {
	tasks := store.List[*cluster.Task](v)
	var waiting []*cluster.Task
	room := map[string]*Room{}
	for _, n := range store.List[*cluster.Node](v) {
		room[n.ID] = &Room{Node: n, Services: map[string]int{}}
	}
	for _, t := range tasks {
		switch r := room[t.Node]; {
		case waits(t):
			waiting = append(waiting, t)
		case r != nil && !t.Status.State.Ended():
			r.take(t)
		}
	}
	if len(waiting) == 0 {
		return d
	}
	nodes := make([]*Room, 0, len(room))
	for _, r := range room {
		nodes = append(nodes, r)
	}
	slices.SortFunc(nodes, func(a, b *Room) int { return cmp.Compare(a.Node.ID, b.Node.ID) })
	// Those that were asked for first come first.
	slices.SortFunc(waiting, func(a, b *cluster.Task) int { return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID)) })
	for _, t := range waiting {
		if len(d.Changes) == store.MaxChanges {
			break
		}
		if c := l.place(t, nodes, now); c != nil {
			d.Changes = append(d.Changes, store.Update(c))
		}
	}
	return d
}

// place gives a task its node, or says why it has none; nil when that is said already.
func (l Loop) place(t *cluster.Task, nodes []*Room, now time.Time) *cluster.Task {
	if t.Desired.Stops() {
		t = store.Copy(t)
		t.Status = cluster.TaskStatus{State: cluster.TaskShutdown, At: now, Message: "shutdown before it had a node"}
		return t
	}
	to, why := l.choose(t, nodes)
	state, message := cluster.TaskPending, why
	if to != nil {
		state, message = cluster.TaskAssigned, "scheduler assigned task to node"
	}
	if t.Status.State == state && t.Status.Err == why {
		return nil
	}
	t = store.Copy(t)
	t.Status = cluster.TaskStatus{State: state, At: now, Message: message, Err: why}
	if to != nil {
		t.Node = to.Node.ID
		to.take(t)
	} else {
		t.Status.Message = "pending task scheduling"
	}
	return t
}

// choose picks a node for a task, or says why none will do.
func (l Loop) choose(t *cluster.Task, nodes []*Room) (*Room, string) {
	checks, err := filters(t)
	if err != nil {
		return nil, err.Error()
	}
	refused := make([]int, len(checks))
	var fit []*Room
next:
	for _, n := range nodes {
		if t.Node != "" && n.Node.ID != t.Node {
			continue // it is for that one
		}
		for i, f := range checks {
			if !f.fits(n) {
				refused[i]++
				continue next
			}
		}
		fit = append(fit, n)
	}
	if len(fit) == 0 {
		return nil, explain(checks, refused)
	}
	score := l.Score
	if score == nil {
		score = Spread
	}
	spread(t, nodes)
	return slices.MinFunc(fit, func(a, b *Room) int { return cmp.Or(score(t, a, b), cmp.Compare(a.Node.ID, b.Node.ID)) }), ""
}

// explain says why no node will do, in Docker's words.
func explain(checks []filter, refused []int) string {
	var why []string
	for i, f := range checks {
		if n := refused[i]; n > 0 {
			why = append(why, fmt.Sprintf("%s on %d node%s", f.why, n, map[bool]string{true: "s"}[n > 1]))
		}
	}
	if len(why) == 0 {
		return "no suitable node"
	}
	return "no suitable node (" + strings.Join(why, "; ") + ")"
}

// Room is a node with what is on it.
type Room struct {
	Node     *cluster.Node
	Tasks    int
	Services map[string]int // tasks, by service
	Reserved cluster.Resources
	// Near are, for the task that is being placed, the tasks of its service on nodes
	// with the same value of each label that it is spread over.
	Near []int
}

// spread counts them on all nodes.
func spread(t *cluster.Task, nodes []*Room) {
	for _, n := range nodes {
		n.Near = n.Near[:0]
	}
	for _, label := range t.Spec.Placement.Spread {
		c := cluster.Constraint{Attribute: cluster.AttributeOf(label)}
		count := map[string]int{}
		for _, n := range nodes {
			count[c.Of(n.Node)] += n.Services[t.Owner]
		}
		for _, n := range nodes {
			n.Near = append(n.Near, count[c.Of(n.Node)])
		}
	}
}

// take puts a task on the node.
func (r *Room) take(t *cluster.Task) {
	r.Tasks++
	r.Services[t.Owner]++
	r.Reserved.NanoCPUs += t.Spec.Reserved.NanoCPUs
	r.Reserved.Memory += t.Spec.Reserved.Memory
	for name, n := range t.Spec.Reserved.Generic {
		if r.Reserved.Generic == nil {
			r.Reserved.Generic = map[string]int64{}
		}
		r.Reserved.Generic[name] += n
	}
}

// Score orders two nodes that will do for a task, the better one first.
type Score func(t *cluster.Task, a, b *Room) int

// Spread prefers nodes with few tasks: of the same service on nodes with the same
// labels, where it is spread over those; of the same service; and in all.
func Spread(t *cluster.Task, a, b *Room) int {
	return cmp.Or(slices.Compare(a.Near, b.Near), cmp.Compare(a.Services[t.Owner], b.Services[t.Owner]), cmp.Compare(a.Tasks, b.Tasks))
}

// Pack prefers nodes on which little is left, so that others stay free.
func Pack(_ *cluster.Task, a, b *Room) int {
	return cmp.Or(cmp.Compare(a.free(), b.free()), -cmp.Compare(a.Tasks, b.Tasks))
}

// free is the part of the node that nobody has reserved, from 0 to 2.
func (r *Room) free() float64 {
	part := func(all, taken int64) float64 {
		if all <= 0 {
			return 1
		}
		return float64(all-taken) / float64(all)
	}
	return part(r.Node.Status.Resources.NanoCPUs, r.Reserved.NanoCPUs) + part(r.Node.Status.Resources.Memory, r.Reserved.Memory)
}

// Usage prefers nodes whose processors and memory are used least, whoever uses them; of
// nodes that say nothing of that, those of which least is reserved.
func Usage(t *cluster.Task, a, b *Room) int {
	return cmp.Or(cmp.Compare(a.used(), b.used()), -cmp.Compare(a.free(), b.free()), Spread(t, a, b))
}

// used is the part of the node that is in use, from 0 to 2, in steps of a twentieth: less
// is no reason to put one task here rather than there.
func (r *Room) used() float64 {
	part := func(all, used int64) float64 {
		if all <= 0 {
			return 0
		}
		return math.Round(20*float64(used)/float64(all)) / 20
	}
	has, used := r.Node.Status.Resources, r.Node.Status.Used
	return part(has.NanoCPUs, used.NanoCPUs) + part(has.Memory, used.Memory)
}

// Scores are the ways to choose between nodes, by name.
func Scores() map[string]Score {
	return map[string]Score{"spread": Spread, "binpack": Pack, "usage": Usage}
}

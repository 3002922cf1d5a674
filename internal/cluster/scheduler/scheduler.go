// Package scheduler is the loop that gives tasks their nodes: filters say which nodes
// will do, and why the others will not; a score picks one of them.
package scheduler

import (
	"cmp"
	"container/heap"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/address"
	"escale.dev/escale/internal/cluster/store/loop"
	"escale.dev/escale/internal/sys/errtext"
)

// Loop is the loop.
type Loop struct {
	Score Score // nil: Spread
	// Heard tells of a node that is said to be ready whether it has spoken to this leader, too, or
	// has had time enough; nil: all have. Others come first, and where no other will do a task waits
	// for it, not for long: either it speaks, or it is down.
	Heard func(node string) bool
}

// unheard is how long a task waits before it is looked again whether its node has spoken.
const unheard = 100 * time.Millisecond

var _ loop.Loop = Loop{}

// all is the loop's one key: where a task goes depends on all that are there.
const all = "all"

// Name implements loop.Loop.
func (Loop) Name() string { return "scheduler" }

// Kinds implements loop.Loop.
func (Loop) Kinds() []cluster.Kind {
	return []cluster.Kind{cluster.KindTask, cluster.KindNode, cluster.KindNetwork, cluster.KindMove, cluster.KindVolume}
}

// Keys implements loop.Loop.
func (Loop) Keys(_ store.View, e store.Event) []string {
	if t, ok := e.New.(*cluster.Task); ok && !t.Waits() && !t.Status.State.Ended() {
		return nil // it has its node and takes no room from others but what it took
	}
	if vol, ok := e.Old.(*cluster.Volume); e.Kind() == cluster.KindVolume && (!ok || e.New != nil || !vol.Status.Owed) {
		return nil // none that has kept tasks from its node has gone
	}
	if e.Kind() == cluster.KindNetwork && e.New != nil {
		return nil // who got an address there is told of as a task
	}
	return []string{all}
}

// All implements loop.Loop.
func (Loop) All(store.View) []string { return []string{all} }

// Decide implements loop.Loop. What it costs grows with the nodes and with the tasks that
// wait, not with those that have their place.
func (l Loop) Decide(v store.View, _ string, now time.Time) (d loop.Decision) {
	r := round{v: v, score: l.Score, now: now}
	if r.score == nil {
		r.score = Spread
	}
	for t := range v.Waiting() {
		if len(d.Changes) == store.MaxChanges {
			break
		}
		if !t.Desired.Stops() && len(address.Missing(v, t)) > 0 {
			continue // addresses come before nodes
		}
		if r.nodes == nil {
			r.nodes, r.moves = rooms(v), len(moves(v)) > 0
			for _, n := range r.nodes {
				n.silent = l.Heard != nil && n.Node.Status.Ready && !l.Heard(n.Node.ID)
			}
		}
		if c := r.place(t); c != nil {
			d.Changes = append(d.Changes, store.Update(c))
		}
	}
	if r.waits {
		d.Again = now.Add(unheard)
	}
	return d
}

// rooms are the nodes, in order of their ids, with what is on them.
func rooms(v store.View) []*Room {
	out := []*Room{}
	for _, n := range store.List[*cluster.Node](v) {
		load := v.NodeLoad(n.ID)
		out = append(out, &Room{Node: n, Tasks: load.Tasks, Services: load.Services, Reserved: load.Reserved, Ports: load.Ports})
	}
	return out
}

// round gives tasks their nodes, one after the other, each seeing where the ones before went.
type round struct {
	v     store.View
	score Score
	now   time.Time
	nodes []*Room // by id
	like  *cluster.Task
	found choice                   // what was found for that task, and holds for all that are made alike
	homes map[volume]*cluster.Node // of volumes that came to be somewhere with a task of this round
	waits bool                     // a task waits for a node to speak
	moves bool                     // volumes are being moved
}

// choice are the nodes that will do for a task.
type choice struct {
	checks  []filter
	refused []int // nodes, by the check they failed
	fit     queue
	wrong   string // with what was asked
}

// place gives a task its node, or says why it has none; nil when that is said already.
func (r *round) place(t *cluster.Task) *cluster.Task {
	if t.Desired.Stops() {
		t = store.Copy(t)
		t.Status = cluster.TaskStatus{State: cluster.TaskShutdown, At: r.now, Message: "shutdown before it had a node"}
		return t
	}
	to, why := r.choose(t)
	if to == nil && why == "" {
		r.waits = true
		return nil
	}
	state, message := cluster.TaskPending, why
	if to != nil {
		state, message = cluster.TaskAssigned, "scheduler assigned task to node"
	}
	if t.Status.State == state && t.Status.Err == why {
		return nil
	}
	t = store.Copy(t)
	t.Status = cluster.TaskStatus{State: state, At: r.now, Message: message, Err: why}
	if to != nil {
		t.Node, t.Claimed = to.Node.ID, to.claim(r.v, t.Spec.Reserved.Generic)
		r.settle(t, to.Node)
	} else {
		t.Status.Message = "pending task scheduling"
	}
	return t
}

// choose picks a node for a task and puts it there, or says why none will do; "": one that would
// is still to be heard of.
func (r *round) choose(t *cluster.Task) (*Room, string) {
	if r.moves && templated(t) || !alike(r.like, t) {
		r.like, r.found = t, r.look(t)
	}
	c := &r.found
	if c.wrong != "" {
		return nil, c.wrong
	}
	if c.fit.Len() == 0 {
		return nil, explain(c.checks, c.refused)
	}
	best := r.best(t, c)
	to := c.fit.rooms[best]
	if to.silent {
		return nil, ""
	}
	to.take(t)
	if i := slices.IndexFunc(c.checks, func(f filter) bool { return !f.fits(to) }); i >= 0 { // it is full now
		c.refused[i]++
		heap.Remove(&c.fit, best)
	} else {
		heap.Fix(&c.fit, best)
	}
	return to, ""
}

// templated tells whether names of a task's volumes differ from those of others that are made alike.
func templated(t *cluster.Task) bool {
	return slices.ContainsFunc(t.Spec.LocalVolumes(), func(name string) bool { return strings.Contains(name, "{{") })
}

// best is which of the nodes that were found is the best for a task.
func (r *round) best(t *cluster.Task, c *choice) int {
	fit := c.fit.rooms
	if i := slices.IndexFunc(fit, func(n *Room) bool { return t.Toward != "" && n.Node.ID == t.Toward }); i >= 0 {
		return i
	}
	if len(t.Spec.Placement.Spread) > 0 { // a task counts for all nodes with the same labels
		spread(t, r.nodes)
		heap.Init(&c.fit)
	}
	shunned := shun(r.v, t)
	if len(fit) == 1 || fit[0].Node.ID != shunned {
		return 0
	}
	if len(fit) == 2 || c.fit.Less(1, 2) { // the best but for the first is one of the two below it
		return 1
	}
	return 2
}

// queue holds nodes, the best for tasks like one first; a heap.
type queue struct {
	rooms []*Room
	like  *cluster.Task
	score Score
}

func (q *queue) Len() int      { return len(q.rooms) }
func (q *queue) Swap(i, j int) { q.rooms[i], q.rooms[j] = q.rooms[j], q.rooms[i] }
func (q *queue) Less(i, j int) bool {
	a, b := q.rooms[i], q.rooms[j]
	if a.silent != b.silent {
		return b.silent
	}
	return cmp.Or(q.score(q.like, a, b), cmp.Compare(a.Node.ID, b.Node.ID)) < 0
}

// Push implements heap.Interface; nodes come by heap.Init alone.
func (q *queue) Push(n any) { q.rooms = append(q.rooms, n.(*Room)) }

// Pop implements heap.Interface.
func (q *queue) Pop() any {
	last := len(q.rooms) - 1
	n := q.rooms[last]
	q.rooms = q.rooms[:last]
	return n
}

// shunned is how often in a row tasks of a place fail before another node is tried.
const shunned = 3

// shun is the node on which the last task in the place of t has failed, one of several in a
// row; "": they do not.
func shun(v store.View, t *cluster.Task) (node string) {
	if t.Failures < shunned || t.Slot == 0 {
		return ""
	}
	var last time.Time
	for _, o := range store.List[*cluster.Task](v, store.Owner(t.Owner)) {
		if o.Slot == t.Slot && failed(o) && o.Status.At.After(last) {
			node, last = o.Node, o.Status.At
		}
	}
	return node
}

// failed tells whether a task has ended badly.
func failed(t *cluster.Task) bool {
	return t.Status.State == cluster.TaskFailed || t.Status.State == cluster.TaskRejected
}

// alike tells whether what was found for one task holds for the other: replicas of one spec.
func alike(a, b *cluster.Task) bool {
	return a != nil && a.Owner == b.Owner && a.SpecNumber == b.SpecNumber && a.Slot != 0 && b.Slot != 0 && a.Node == b.Node && a.Spec.Force == b.Spec.Force &&
		reflect.DeepEqual(a.Spec.Placement, b.Spec.Placement) && a.Spec.Reserved.Equal(b.Spec.Reserved) && slices.Equal(a.Ports, b.Ports) &&
		reflect.DeepEqual(a.Bound(), b.Bound()) && (a.App == "" || len(a.Spec.LocalVolumes()) == 0) // else the first may hold the others
}

// look finds the nodes that will do for a task.
func (r *round) look(t *cluster.Task) choice {
	checks, err := filters(r.v, t)
	if err != nil {
		return choice{wrong: errtext.Of(err)}
	}
	checks = append(r.settled(t), checks...)
	c := choice{checks: checks, refused: make([]int, len(checks)), fit: queue{like: t, score: r.score}}
next:
	for _, n := range r.nodes {
		if t.Node != "" && n.Node.ID != t.Node {
			continue // it is for that one
		}
		for i, f := range checks {
			if !f.fits(n) {
				c.refused[i]++
				continue next
			}
		}
		c.fit.rooms = append(c.fit.rooms, n)
	}
	spread(t, r.nodes)
	heap.Init(&c.fit)
	return c
}

// explain says why no node will do, in Docker's words.
func explain(checks []filter, refused []int) string {
	var why []string
	hint := ""
	for i, f := range checks {
		hint = cmp.Or(hint, f.hint)
		if n := refused[i]; f.whole { // true of the node that is left, too
			why = append(why, f.why)
		} else if n > 0 {
			why = append(why, fmt.Sprintf("%s on %d node%s", f.why, n, map[bool]string{true: "s"}[n > 1]))
		}
	}
	if len(why) == 0 {
		return "no suitable node"
	}
	return "no suitable node (" + strings.Join(why, "; ") + ")" + hint
}

// Room is a node with what is on it.
type Room struct {
	Node     *cluster.Node
	Tasks    int
	Services map[string]int // tasks, by service; shared with the store until it is touched
	Reserved cluster.Resources
	Ports    []cluster.Port  // that tasks have on the node alone; shared as Services is
	own      bool            // Services is
	silent   bool            // it has not spoken to this leader yet
	claimed  map[string]bool // resources that have names, by kind and name; nil: nobody has asked
	// Near are, for the task that is being placed, the tasks of its service on nodes
	// with the same value of each label that it is spread over.
	Near []int
}

// spread counts them on all nodes.
func spread(t *cluster.Task, nodes []*Room) {
	if len(t.Spec.Placement.Spread) == 0 {
		return
	}
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
	if !r.own {
		r.Services, r.own = maps.Clone(r.Services), true
		if r.Services == nil {
			r.Services = map[string]int{}
		}
	}
	r.Tasks++
	r.Services[t.Owner]++
	r.Reserved = r.Reserved.Plus(t.Spec.Reserved, 1)
	if len(t.Ports) > 0 {
		r.Ports = slices.Concat(r.Ports, t.Ports)
	}
}

// claim gives a task as many of the node's resources as it reserves, where they have names.
func (r *Room) claim(v store.View, want map[string]int64) (out map[string][]string) {
	for kind, n := range want {
		names := r.Node.Status.Named[kind]
		if len(names) > 0 && r.claimed == nil {
			r.claimed = map[string]bool{}
			for _, t := range store.List[*cluster.Task](v, store.OnNode(r.Node.ID)) {
				for kind, list := range t.Claimed {
					for _, name := range list {
						r.claimed[kind+"="+name] = r.claimed[kind+"="+name] || !t.Status.State.Ended()
					}
				}
			}
		}
		for _, name := range names {
			if at := kind + "=" + name; int64(len(out[kind])) < n && !r.claimed[at] {
				if out == nil {
					out = map[string][]string{}
				}
				r.claimed[at], out[kind] = true, append(out[kind], name)
			}
		}
	}
	return out
}

// Score orders two nodes that will do for a task, the better one first.
type Score func(t *cluster.Task, a, b *Room) int

// Spread prefers nodes with few tasks: of the same service on nodes with the same
// labels, where it is spread over those; of the same service; and in all.
func Spread(t *cluster.Task, a, b *Room) int {
	return cmp.Or(near(t, a, b), cmp.Compare(a.Services[t.Owner], b.Services[t.Owner]), cmp.Compare(a.Tasks, b.Tasks))
}

func near(t *cluster.Task, a, b *Room) int {
	if len(t.Spec.Placement.Spread) == 0 {
		return 0 // what stands there is of another task
	}
	return slices.Compare(a.Near, b.Near)
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

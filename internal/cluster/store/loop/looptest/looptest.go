// Package looptest lets tests look at what one loop decides, step by step, over a store
// in memory and with a clock that only the test moves. It drives the loop as its runner
// does, by what changes and by the times that it asked for, and fails when there was
// something to decide of which neither told.
package looptest

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/loop"
	"escale.dev/escale/internal/cluster/store/mem"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
)

// Bench is a loop at work on a store.
type Bench struct {
	*testing.T
	Store store.Store
	Now   time.Time

	loop   loop.Loop
	seen   uint64               // revision up to which it was told of changes
	queue  []string             // what they concern
	timers map[string]time.Time // when it asked to look again
}

// New makes a Bench with an empty store. It is closed with the test.
func New(t *testing.T, l loop.Loop) *Bench {
	b := &Bench{T: t, Now: time.Unix(1e9, 0).UTC(), loop: l, timers: map[string]time.Time{}}
	state := store.NewState()
	state.Now(func() time.Time { return b.Now })
	b.Store = mem.New(state)
	t.Cleanup(func() { _ = b.Store.Close() })
	return b
}

// Commit writes what somebody else has changed.
func (b *Bench) Commit(changes ...store.Change) {
	b.Helper()
	if _, err := b.Store.Commit(b.Context(), changes...); err != nil {
		b.Fatal(err)
	}
}

// Service makes a service of an image "a" and number 1.
func (b *Bench) Service(name string, mode cluster.Mode, f ...func(*cluster.ServiceSpec)) *cluster.Service {
	b.Helper()
	s := &cluster.Service{Meta: cluster.Meta{Name: name}, Numbers: 1, Spec: cluster.ServiceSpec{
		Mode: mode, Number: 1, Task: cluster.TaskSpec{Container: &container.Config{Image: "a"}},
	}}
	for _, f := range f {
		f(&s.Spec)
	}
	b.Commit(store.Create(s))
	return b.Get(name)
}

// Replicated is the mode of so many tasks.
func Replicated(n uint64) cluster.Mode {
	return cluster.Mode{Replicated: &cluster.Replicated{Replicas: n}}
}

// Get is a service as it is now.
func (b *Bench) Get(name string) *cluster.Service {
	b.Helper()
	s, err := store.Named[*cluster.Service](b.Store.View(), name)
	if err != nil {
		b.Fatal(err)
	}
	return store.Copy(s)
}

// Change changes a service.
func (b *Bench) Change(name string, f func(*cluster.Service)) {
	b.Helper()
	s := b.Get(name)
	f(s)
	b.Commit(store.Update(s))
}

// Roll asks for other containers of a service, as its next number.
func (b *Bench) Roll(name string, f ...func(*cluster.ServiceSpec)) {
	b.Helper()
	b.Change(name, func(s *cluster.Service) {
		before := store.Copy(s).Spec
		s.Numbers++
		s.Spec.Number, s.Previous = s.Numbers, &before
		s.Spec.Task.Force++
		for _, f := range f {
			f(&s.Spec)
		}
	})
}

// Node makes a node that is ready.
func (b *Bench) Node(name string, f ...func(*cluster.Node)) *cluster.Node {
	b.Helper()
	n := &cluster.Node{Meta: cluster.Meta{ID: name, Name: name}, Status: cluster.NodeStatus{Ready: true}}
	for _, f := range f {
		f(n)
	}
	b.Commit(store.Create(n))
	return n
}

// ChangeNode changes a node.
func (b *Bench) ChangeNode(name string, f func(*cluster.Node)) {
	b.Helper()
	n, err := store.Find[*cluster.Node](b.Store.View(), name)
	if err != nil {
		b.Fatal(err)
	}
	n = store.Copy(n)
	f(n)
	b.Commit(store.Update(n))
}

// DeleteNode takes a node away.
func (b *Bench) DeleteNode(name string) {
	b.Helper()
	n, err := store.Find[*cluster.Node](b.Store.View(), name)
	if err != nil {
		b.Fatal(err)
	}
	b.Commit(store.Delete(n))
}

// Task makes the first task of a place, in a state; a running one is healthy, and one
// that has ended well or with a failure is still wanted.
func (b *Bench) Task(service string, slot uint64, state cluster.TaskState, f ...func(*cluster.Task)) {
	b.Helper()
	t := b.Get(service).First(slot, "")
	t.Status = status(t.Status, state, b.Now)
	for _, f := range f {
		f(t)
	}
	b.Commit(store.Create(t))
}

func status(s cluster.TaskStatus, state cluster.TaskState, now time.Time) cluster.TaskStatus {
	s.State, s.At, s.Healthy = state, now, state == cluster.TaskRunning
	if state == cluster.TaskRunning {
		s.RunningAt, s.HealthyAt = now, now
	}
	return s
}

// name is how a task is written: its name, and which one of its place it is.
func name(t *cluster.Task) string { return fmt.Sprintf("%s#%d", t.Name, t.Number) }

// Find is the task that is written so.
func (b *Bench) Find(task string) *cluster.Task {
	b.Helper()
	for _, t := range store.List[*cluster.Task](b.Store.View()) {
		if name(t) == task {
			return store.Copy(t)
		}
	}
	b.Fatalf("there is no task %s", task)
	return nil
}

// Becomes says of a task that it is in a state now, as its node does.
func (b *Bench) Becomes(task string, state cluster.TaskState, f ...func(*cluster.Task)) {
	b.Helper()
	t := b.Find(task)
	t.Status = status(t.Status, state, b.Now)
	for _, f := range f {
		f(t)
	}
	b.Commit(store.Update(t))
}

// Deleted takes a task out of the store.
func (b *Bench) Deleted(task string) {
	b.Helper()
	b.Commit(store.Delete(b.Find(task)))
}

// DeleteService takes a service out of the store.
func (b *Bench) DeleteService(name string) {
	b.Helper()
	b.Commit(store.Delete(b.Get(name)))
}

// Update replaces a task by one of its service's next number, as a rollout does.
func (b *Bench) Update(task string) {
	b.Helper()
	t := b.Find(task)
	b.Commit(store.Create(t.Successor(t.Spec, t.SpecNumber+1)))
}

// Pass lets time pass.
func (b *Bench) Pass(d time.Duration) { b.Now = b.Now.Add(d) }

// Steps checks what the loop decides, one look after the other. A look is written as
// what it makes, changes and takes away, in order, "web.1#1 made, web.2#1: wants
// shutdown"; "" is nothing.
func (b *Bench) Steps(want ...string) {
	b.Helper()
	for i, w := range want {
		if got := b.Look(); got != w {
			b.Errorf("look %d: %q, want %q", i+1, got, w)
		}
	}
}

// Rest checks that there is nothing to do until some time has passed; 0 is for ever.
func (b *Bench) Rest(until time.Duration) {
	b.Helper()
	b.Steps("")
	var next time.Time
	for _, t := range b.timers {
		next = loop.Soonest(next, t)
	}
	switch {
	case until == 0 && !next.IsZero():
		b.Errorf("it wants to look again after %s", next.Sub(b.Now))
	case until > 0 && !next.Equal(b.Now.Add(until)):
		b.Errorf("it wants to look again after %s, want %s", next.Sub(b.Now), until)
	}
}

// Look lets the loop decide on all that it was told of, once, and writes what it did.
func (b *Bench) Look() string {
	b.Helper()
	b.note()
	for k, at := range b.timers {
		if !at.After(b.Now) {
			delete(b.timers, k)
			b.queue = append(b.queue, k)
		}
	}
	keys := b.queue
	b.queue = nil
	slices.Sort(keys)
	var out []string
	for _, k := range slices.Compact(keys) {
		d := b.loop.Decide(b.Store.View(), k, b.Now)
		delete(b.timers, k)
		if !d.Again.IsZero() {
			b.timers[k] = d.Again
		}
		d.Changes = d.Changes[:min(len(d.Changes), store.MaxChanges)]
		for _, c := range d.Changes {
			if s := b.describe(c); s != "" {
				out = append(out, s)
			}
		}
		if len(d.Changes) > 0 {
			b.Commit(d.Changes...)
			b.queue = append(b.queue, k)
		}
	}
	b.note()
	b.untold()
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// note tells the loop of what has changed.
func (b *Bench) note() {
	b.Helper()
	v := b.Store.View()
	if v.Revision() == b.seen {
		return
	}
	w, err := b.Store.Watch(b.seen)
	if err != nil {
		b.Fatal(err)
	}
	b.seen = v.Revision()
	list, err := w.Next(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	for _, c := range list {
		for _, e := range c.Events {
			if slices.Contains(b.loop.Kinds(), e.Kind()) {
				b.queue = append(b.queue, b.loop.Keys(v, e)...)
			}
		}
	}
}

// untold looks for what there is to decide without the loop's having been told.
func (b *Bench) untold() {
	b.Helper()
	for _, k := range b.loop.All(b.Store.View()) {
		if slices.Contains(b.queue, k) {
			continue
		}
		if d := b.loop.Decide(b.Store.View(), k, b.Now); len(d.Changes) > 0 {
			b.Errorf("nothing told the loop that it has to %s", b.describe(d.Changes[0]))
		}
	}
}

// Guarded checks that what the loop wants now is refused when somebody changes a
// service first.
func (b *Bench) Guarded(service string) {
	b.Helper()
	d := b.loop.Decide(b.Store.View(), b.Get(service).ID, b.Now)
	b.Change(service, func(s *cluster.Service) { s.Spec.Task.Fresh++ })
	if _, err := b.Store.Commit(b.Context(), d.Changes...); !errdefs.IsConflict(err) {
		b.Errorf("written over a service that had changed: %v", err)
	}
}

// describe writes one change.
func (b *Bench) describe(c store.Change) string {
	b.Helper()
	switch o := c.Object.(type) {
	case *cluster.Task:
		switch c.Op {
		case store.OpCreate:
			return fmt.Sprintf("%s#%d made%s", o.Name, o.Number, b.differs(&cluster.Task{Desired: cluster.TaskRunning, SpecNumber: 1}, o))
		case store.OpDelete:
			return name(o) + " deleted"
		case store.OpUpdate:
			old, err := store.Find[*cluster.Task](b.Store.View(), o.ID)
			if err != nil {
				b.Fatal(err)
			}
			return name(o) + ":" + b.differs(old, o)
		}
	case *cluster.Service:
		if c.Op != store.OpUpdate {
			return ""
		}
		r := cmp.Or(o.Status.Rollout, &cluster.RolloutStatus{})
		return strings.TrimSpace(fmt.Sprintf("%s: number %d %s %s", o.Name, o.Spec.Number, r.State, r.Message))
	}
	return ""
}

// differs writes what of a task is another than it was.
func (b *Bench) differs(old, t *cluster.Task) (out string) {
	if t.Desired != old.Desired {
		out += " wants " + string(t.Desired)
	}
	if t.SpecNumber != old.SpecNumber {
		out += fmt.Sprintf(" of %d", t.SpecNumber)
	}
	if !t.NotBefore.Equal(old.NotBefore) {
		out += fmt.Sprintf(" after %s", t.NotBefore.Sub(b.Now))
	}
	if t.Joined && !old.Joined {
		out += " joined"
	}
	if t.Released && !old.Released {
		out += " released"
	}
	if t.Halted != old.Halted {
		out += fmt.Sprintf(" halted=%t", t.Halted)
	}
	if t.Status.Message != old.Status.Message {
		out += fmt.Sprintf(" says %q", t.Status.Message)
	}
	return out
}

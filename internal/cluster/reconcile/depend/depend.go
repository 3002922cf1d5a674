// Package depend is the loop that lets tasks start once what they need is there: at
// the first start of an app as at any later one, and after the machine came up.
package depend

import (
	"fmt"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/loop"
	"github.com/containerd/errdefs"
)

// Loop is the loop.
type Loop struct{}

var _ loop.Loop = Loop{}

// Name implements loop.Loop.
func (Loop) Name() string { return "depend" }

// Kinds implements loop.Loop.
func (Loop) Kinds() []cluster.Kind { return []cluster.Kind{cluster.KindService, cluster.KindTask} }

// Keys implements loop.Loop: a task that waits; when a service or a task of one has
// changed, all that wait for that service.
func (l Loop) Keys(v store.View, e store.Event) []string {
	o := e.New
	if o == nil {
		o = e.Old
	}
	name := o.Base().Name
	var out []string
	if t, ok := o.(*cluster.Task); ok {
		if e.New != nil && t.Needy() {
			out = append(out, t.ID)
		}
		s, err := store.Find[*cluster.Service](v, t.Owner)
		if err != nil {
			return out // it goes, and says so itself
		}
		name = s.Name
	}
	for _, t := range store.List[*cluster.Task](v, store.Needing(name)) {
		out = append(out, t.ID)
	}
	return out
}

// All implements loop.Loop.
func (Loop) All(v store.View) []string {
	var out []string
	for _, t := range store.List[*cluster.Task](v) {
		if t.Needy() {
			out = append(out, t.ID)
		}
	}
	return out
}

// Decide implements loop.Loop.
func (Loop) Decide(v store.View, key string, _ time.Time) (d loop.Decision) {
	t, err := store.Find[*cluster.Task](v, key)
	if err != nil || !t.Needy() {
		return d
	}
	why := ""
	for _, n := range t.Spec.Needs {
		if why = missing(v, n); why != "" {
			break
		}
	}
	waits := t.Status.State == cluster.TaskReady || t.Status.State == cluster.TaskAccepted && t.Apart()
	c := store.Copy(t)
	switch {
	case why == "":
		c.Released = true
		if c.Status.State == cluster.TaskReady {
			c.Status.Message = "prepared"
		}
	case t.Apart() && t.Halted && joinable(v, t):
		c.Joined = true
	case waits && t.Status.Message != why:
		c.Status.Message = why // while it is made ready, its node says what it does
	default:
		return d
	}
	d.Changes = append(d.Changes, store.Update(c))
	return d
}

// joinable tells of a task that is only to be made whether that can be done: the containers
// with which it shares are made, though they need not run.
func joinable(v store.View, t *cluster.Task) bool {
	for _, n := range t.Spec.Needs {
		s, err := store.Named[*cluster.Service](v, n.Service)
		if !n.Shared || err != nil {
			continue
		}
		slots := cluster.Slots(store.List[*cluster.Task](v, store.Owner(s.ID)))
		if all(s, slots, "made", func(t *cluster.Task) bool {
			return !t.Status.State.Before(cluster.TaskReady) && !cluster.TaskComplete.Before(t.Status.State) && fits(s, t, n)
		}) != "" {
			return false
		}
	}
	return true
}

// missing says what is not so yet; "" when the need is met.
func missing(v store.View, n cluster.Need) string {
	s, err := store.Named[*cluster.Service](v, n.Service)
	if errdefs.IsNotFound(err) {
		if n.Optional {
			return ""
		}
		return fmt.Sprintf("waits for service %s, which is not there", n.Service)
	}
	slots := cluster.Slots(store.List[*cluster.Task](v, store.Owner(s.ID)))
	switch n.Condition {
	case cluster.Completed:
		return completed(s, slots, n)
	case cluster.Healthy:
		return all(s, slots, "healthy", func(t *cluster.Task) bool {
			return t.Status.State == cluster.TaskRunning && t.Status.Healthy && fits(s, t, n)
		})
	}
	return all(s, slots, "started", func(t *cluster.Task) bool {
		return (t.Status.State == cluster.TaskRunning || t.Status.State == cluster.TaskComplete) && fits(s, t, n)
	})
}

// fits tells whether a task is one that the need is for: who is restarted with what it
// needs, or shares something of it, has no use for a task that is about to be exchanged.
func fits(s *cluster.Service, t *cluster.Task, n cluster.Need) bool {
	return !n.Restart && !n.Shared || t.SpecNumber == s.Spec.Number
}

// all asks the same of the task in each place of a service.
func all(s *cluster.Service, slots []cluster.Slot, what string, is func(*cluster.Task) bool) string {
	want := 1
	if m := s.Spec.Mode.Replicated; m != nil {
		want = int(m.Replicas)
	}
	n := 0
	for _, slot := range slots {
		for _, t := range slot.Tasks { // in a place in transit the old one will do
			if is(t) {
				n++
				break
			}
		}
	}
	if n >= want {
		return ""
	}
	return fmt.Sprintf("waits for service %s: %d of %d %s", s.Name, n, want, what)
}

// completed asks for one good end of each of a service's places.
func completed(s *cluster.Service, slots []cluster.Slot, n cluster.Need) string {
	if len(slots) == 0 {
		return fmt.Sprintf("waits for service %s to complete", s.Name)
	}
	for _, slot := range slots {
		t := slot.Current()
		switch {
		case n.Shared && !fits(s, t, n):
			return fmt.Sprintf("waits for service %s to complete", s.Name)
		case t.Status.State == cluster.TaskComplete:
		case t.Status.State.Ended() && n.Optional:
		case t.Status.State.Ended() && t.Status.Container != nil:
			return fmt.Sprintf("service %q didn't complete successfully: exit %d", s.Name, t.Status.Container.ExitCode)
		case t.Status.State.Ended():
			return fmt.Sprintf("service %q didn't complete successfully: %s", s.Name, t.Status.Err)
		default:
			return fmt.Sprintf("waits for service %s to complete", s.Name)
		}
	}
	return ""
}

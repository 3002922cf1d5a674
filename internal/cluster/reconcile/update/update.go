// Package update is the loop that exchanges the tasks of a service for tasks of its
// present spec, so many at a time and in the order its Rollout says, and that pauses,
// goes on or goes back when too many of the new ones fail.
//
// A place in transit has two tasks. With stop first, the new one is made ready
// (Desired is Ready) while the old one ends, and started then; with start first, the
// old one is told to end once the new one runs and is healthy. Places in transit are
// brought to their end whatever becomes of the rollout.
package update

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/loop"
)

// monitor is how long a new task is watched when its Rollout does not say.
const monitor = 5 * time.Second

// Loop is the loop.
type Loop struct{}

var _ loop.Loop = Loop{}

// Name implements loop.Loop.
func (Loop) Name() string { return "update" }

// Kinds implements loop.Loop.
func (Loop) Kinds() []cluster.Kind { return []cluster.Kind{cluster.KindService, cluster.KindTask} }

// Keys implements loop.Loop: services, and the owners of tasks, with those that share with them.
func (Loop) Keys(v store.View, e store.Event) []string {
	switch o := e.New.(type) {
	case *cluster.Service:
		return append(sharers(v, o), o.ID)
	case *cluster.Task:
		if s, err := store.Find[*cluster.Service](v, o.Owner); err == nil && e.Old == nil {
			return append(sharers(v, s), o.Owner) // its place may have a task of the present spec now
		}
		return []string{o.Owner}
	case nil: // what is gone needs no update; but a task that went with its node makes room
		if old, ok := e.Old.(*cluster.Task); ok && !old.Status.State.Ended() {
			return []string{old.Owner}
		}
	}
	return nil
}

// All implements loop.Loop.
func (Loop) All(v store.View) []string { return loop.Services(v) }

// Decide implements loop.Loop.
func (Loop) Decide(v store.View, key string, now time.Time) loop.Decision {
	service, err := store.Find[*cluster.Service](v, key)
	if err != nil || service.Spec.Mode.Replicated == nil && !service.Spec.Mode.Global {
		return loop.Decision{} // gone, or its tasks are not exchanged: each is of the spec it was made for
	}
	d := &decision{service: service, now: now, rollout: service.Spec.Update}
	r := service.Status.Rollout
	if r != nil && r.State == cluster.RollingBack {
		d.rollout = service.Spec.Rollback
	}
	d.rollout = cmp.Or(d.rollout, &cluster.Rollout{Parallelism: 1})
	for _, slot := range cluster.Slots(store.List[*cluster.Task](v, store.Owner(key))) {
		if m := service.Spec.Mode.Replicated; m != nil && slot.Number > m.Replicas {
			continue // it goes anyway
		}
		d.slots++
		if slot.Current().SpecNumber == service.Spec.Number {
			d.transit(slot)
		} else {
			d.stale = append(d.stale, slot)
		}
	}
	switch {
	case len(d.stale) > 0 && (r == nil || r.Number != service.Spec.Number):
		d.set(cluster.Updating, "update in progress")
	case r == nil || r.Number != service.Spec.Number || !r.State.UnderWay():
	case d.tooMany():
		d.fail(r)
	case len(d.stale) > 0 && provider(v, service) != "":
		if why := "waits for service " + provider(v, service); r.State == cluster.Updating && r.Message != why {
			d.set(cluster.Updating, why)
		}
	case len(d.stale) > 0 && strings.HasPrefix(r.Message, "waits for service "):
		d.set(cluster.Updating, "update in progress")
	case len(d.stale) > 0:
		d.exchange()
	case d.busy == 0 && !d.settled.After(now):
		d.complete(r)
	default:
		d.again(d.settled)
	}
	return d.Decision
}

// decision is one under way.
type decision struct {
	loop.Decision
	service *cluster.Service
	rollout *cluster.Rollout
	now     time.Time

	slots   int
	stale   []cluster.Slot // of another spec
	busy    int            // places in transit
	failed  int            // places in which a new task has failed
	settled time.Time      // when the last of the new tasks has been watched for long enough
	message string
	reason  string // the same for users of apps
}

func (d *decision) again(t time.Time) {
	if t.After(d.now) {
		d.Again = loop.Soonest(d.Again, t)
	}
}

// want sets what a task is to become.
func (d *decision) want(t *cluster.Task, s cluster.TaskState) {
	if t.Desired == s {
		return
	}
	t = store.Copy(t)
	t.Desired = s
	d.Changes = append(d.Changes, store.Update(t))
}

// transit looks at a place that has its new task.
func (d *decision) transit(slot cluster.Slot) {
	t := slot.Current()
	if f := failure(slot, d.service, cmp.Or(d.rollout.Monitor, monitor)); f != nil {
		d.failed++
		d.reason = f.ContainerName() + ": " + cmp.Or(f.Status.Err, f.Status.Message, string(f.Status.State))
		d.message = fmt.Sprintf("task %s: %s", f.ID, cmp.Or(f.Status.Err, f.Status.Message, string(f.Status.State)))
	}
	up := t.Status.State == cluster.TaskRunning && t.Status.Healthy
	old := slot.Old()
	switch {
	case len(old) == 0 && t.Desired == cluster.TaskReady:
		d.want(t, cluster.TaskRunning)
		d.busy++
	case len(old) > 0 && t.Desired == cluster.TaskRunning && up: // start first
		for _, o := range old {
			d.want(o, cluster.TaskShutdown)
		}
		d.busy++
	case len(old) > 0 && t.Desired == cluster.TaskReady: // stop first
		for _, o := range old {
			d.want(o, cluster.TaskShutdown) // by now it has been told, unless somebody was killed in between
		}
		d.busy++
	case up:
		since := later(t.Status.At, t.Status.HealthyAt)
		if next := since.Add(d.rollout.Delay); next.After(d.now) {
			d.busy++
			d.again(next)
		}
		if end := since.Add(cmp.Or(d.rollout.Monitor, monitor)); end.After(d.settled) {
			d.settled = end
		}
	case t.Live(), t.Status.State.Ended() && !t.Desired.Stops():
		d.busy++ // on its way, or about to be replaced
	}
}

// failure is a new task that failed while it was watched: before it was healthy, however
// long that took, or soon after. What failed before the rollout began, of a spec that it
// goes back to, was no failure of its.
func failure(slot cluster.Slot, s *cluster.Service, monitor time.Duration) *cluster.Task {
	var since time.Time
	if r := s.Status.Rollout; r != nil && r.Number == s.Spec.Number {
		since = r.StartedAt
	}
	for _, t := range slot.Tasks {
		if t.SpecNumber != s.Spec.Number || t.Desired == cluster.TaskRemove || t.Status.At.Before(since) {
			continue
		}
		healthy := t.Status.HealthyAt
		switch t.Status.State {
		case cluster.TaskRejected:
			return t
		case cluster.TaskFailed:
			if healthy.IsZero() || t.Status.At.Sub(healthy) <= monitor {
				return t
			}
		}
	}
	return nil
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// tooMany tells whether more of the new tasks have failed than may.
func (d *decision) tooMany() bool {
	if d.rollout.OnFailure == cluster.FailureContinue || d.slots == 0 {
		return false
	}
	return float64(d.failed)/float64(d.slots) > d.rollout.MaxFailureRatio
}

// exchange puts new tasks into some of the places that have old ones: those first
// whose task does not run anyway.
func (d *decision) exchange() {
	free, startFirst := len(d.stale), d.rollout.StartFirst
	if d.remade() { // none of the new ones can be there before all of the old ones have left
		startFirst = false
	} else if p := int(min(d.rollout.Parallelism, uint64(len(d.stale)+d.busy))); p > 0 {
		free = p - d.busy
	}
	slices.SortStableFunc(d.stale, func(a, b cluster.Slot) int { return rank(a) - rank(b) })
	guarded := false
	for i := 0; i < min(free, len(d.stale)) && len(d.Changes) < store.MaxChanges-3; i++ {
		slot := d.stale[i]
		t := slot.Current()
		if back := slices.IndexFunc(slot.Old(), func(o *cluster.Task) bool { return o.SpecNumber == d.service.Spec.Number && o.Live() }); back >= 0 {
			d.want(t, cluster.TaskRemove) // what is wanted has never been taken away
			continue
		}
		if !guarded {
			guarded = true
			d.Changes = append(d.Changes, store.Unchanged(d.service))
		}
		next := t.Successor(d.service.Spec.Task, d.service.Spec.Number)
		next.Networks, next.Labels, next.Ports = d.service.Spec.Networks, d.service.Spec.Labels, d.service.Spec.HostPorts()
		if !startFirst && !t.Status.State.Ended() {
			next.Desired = cluster.TaskReady
			d.want(t, cluster.TaskShutdown)
		} else if t.Status.State.Ended() {
			d.want(t, cluster.TaskShutdown) // nobody shall restart it now
		}
		d.Changes = append(d.Changes, store.Create(next))
	}
}

// remade tells whether tasks are on a network that the new ones have made anew.
func (d *decision) remade() bool {
	made := map[string]uint64{}
	for _, a := range d.service.Spec.Networks {
		made[a.Network] = a.Made
	}
	return slices.ContainsFunc(d.stale, func(s cluster.Slot) bool {
		return slices.ContainsFunc(s.Current().Networks, func(a cluster.Attachment) bool {
			now, there := made[a.Network]
			return there && now != a.Made
		})
	})
}

// rank orders places: those whose task does not run come first.
func rank(s cluster.Slot) int {
	if s.Current().Status.State == cluster.TaskRunning {
		return 1
	}
	return 0
}

// set writes what the rollout is.
func (d *decision) set(state cluster.RolloutState, message string) {
	s := store.Copy(d.service)
	r := &cluster.RolloutStatus{State: state, Number: s.Spec.Number, StartedAt: d.now, Message: message}
	if old := d.service.Status.Rollout; old != nil && old.Number == s.Spec.Number {
		r.StartedAt, r.Reason = old.StartedAt, old.Reason
	}
	if d.reason != "" {
		r.Reason = d.reason
	}
	if !state.UnderWay() {
		r.EndedAt = d.now
	}
	s.Status.Rollout = r
	d.Changes = append(d.Changes, store.Update(s))
}

func (d *decision) complete(r *cluster.RolloutStatus) {
	if r.State == cluster.RollingBack {
		d.set(cluster.RollbackCompleted, "rollback completed")
		return
	}
	d.set(cluster.UpdateCompleted, "update completed")
}

// fail pauses, or goes back to the spec before.
func (d *decision) fail(r *cluster.RolloutStatus) {
	switch {
	case r.State == cluster.RollingBack:
		d.set(cluster.RollbackPaused, "rollback paused due to failure or early termination of "+d.message)
	case d.rollout.OnFailure == cluster.FailureRollback && d.service.Previous != nil:
		s := store.Copy(d.service)
		given := s.Spec
		s.Status.Wanted, s.Spec, s.Previous = &given, *s.Previous, nil
		s.Status.Rollout = &cluster.RolloutStatus{
			State: cluster.RollingBack, Number: s.Spec.Number, StartedAt: d.now,
			Message: "update rolled back due to failure or early termination of " + d.message, Reason: d.reason,
		}
		d.Changes = append(d.Changes, store.Update(s))
	default:
		d.set(cluster.UpdatePaused, "update paused due to failure or early termination of "+d.message)
	}
}

// Package cron is the loop that makes the runs of services that have a schedule: when
// one is due it takes a new number, which is a run for the loop of jobs. A run that is
// due while the last one works is left out, as are all but the last of those that were
// due while nobody looked.
package cron

import (
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/loop"
)

// Loop is the loop.
type Loop struct {
	In *time.Location // that schedules are in; nil: the host's
}

var _ loop.Loop = Loop{}

// Name implements loop.Loop.
func (Loop) Name() string { return "cron" }

// Kinds implements loop.Loop.
func (Loop) Kinds() []cluster.Kind { return []cluster.Kind{cluster.KindService} }

// Keys implements loop.Loop.
func (Loop) Keys(_ store.View, e store.Event) []string {
	if e.New == nil {
		return nil
	}
	return []string{e.New.Base().ID}
}

// All implements loop.Loop.
func (Loop) All(v store.View) []string {
	var out []string
	for _, s := range store.List[*cluster.Service](v) {
		if s.Spec.Mode.Schedule != "" {
			out = append(out, s.ID)
		}
	}
	return out
}

// Decide implements loop.Loop.
func (l Loop) Decide(v store.View, key string, now time.Time) (d loop.Decision) {
	s, err := store.Find[*cluster.Service](v, key)
	if err != nil || s.Spec.Mode.Schedule == "" {
		return d
	}
	sched, err := cluster.ParseSchedule(s.Spec.Mode.Schedule)
	if err != nil {
		return d // whoever wrote it was told
	}
	in := l.In
	if in == nil {
		in = time.Local
	}
	next := sched.Next(now.In(in))
	if next.IsZero() {
		return d // never, as on the 30th of February
	}
	due := s.Status.Due
	if due.After(now) && !due.After(next) {
		d.Again = due
		return d
	}
	s = store.Copy(s)
	if !due.IsZero() && !due.After(now) && !busy(v, s) {
		s.Numbers++
		s.Spec.Number, s.Status.Run = s.Numbers, s.Numbers
	}
	s.Status.Due = next
	d.Changes = append(d.Changes, store.Update(s))
	return d
}

// busy tells whether the last run works still.
func busy(v store.View, s *cluster.Service) bool {
	for _, t := range store.List[*cluster.Task](v, store.Owner(s.ID)) {
		if t.Desired != cluster.TaskRemove && !t.Status.State.Ended() {
			return true
		}
	}
	return false
}

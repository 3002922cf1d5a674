// Package retire is the loop that removes secrets and configs that others have replaced,
// once no service has them, or could go back to them, and no task that lives.
package retire

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
func (Loop) Name() string { return "retire" }

// Kinds implements loop.Loop.
func (Loop) Kinds() []cluster.Kind {
	return []cluster.Kind{cluster.KindService, cluster.KindTask, cluster.KindSecret, cluster.KindConfig}
}

// Keys implements loop.Loop: what somebody has ceased to use, if it was replaced.
func (Loop) Keys(v store.View, e store.Event) (out []string) {
	var before, now []string
	switch o := e.New.(type) {
	case *cluster.Secret:
		now = []string{o.ID}
	case *cluster.Config:
		now = []string{o.ID}
	}
	if s, ok := e.Old.(*cluster.Service); ok && s != nil {
		before = ofService(s)
	}
	if t, ok := e.Old.(*cluster.Task); ok && t != nil {
		before = ofTask(t)
	}
	if s, ok := e.New.(*cluster.Service); ok && s != nil {
		before = without(before, ofService(s))
	}
	if t, ok := e.New.(*cluster.Task); ok && t != nil {
		before = without(before, ofTask(t))
	}
	for _, id := range append(before, now...) {
		if replaced(v, id) != nil {
			out = append(out, id)
		}
	}
	return out
}

func without(list, others []string) []string {
	return slices.DeleteFunc(list, func(id string) bool { return slices.Contains(others, id) })
}

// All implements loop.Loop.
func (Loop) All(v store.View) (out []string) {
	for _, o := range store.List[*cluster.Secret](v) {
		if o.Replaced() {
			out = append(out, o.ID)
		}
	}
	for _, o := range store.List[*cluster.Config](v) {
		if o.Replaced() {
			out = append(out, o.ID)
		}
	}
	return out
}

// Decide implements loop.Loop.
func (Loop) Decide(v store.View, key string, _ time.Time) (d loop.Decision) {
	o := replaced(v, key)
	if o == nil {
		return d
	}
	for _, s := range store.List[*cluster.Service](v) {
		if slices.Contains(ofService(s), key) {
			return d
		}
	}
	for _, t := range store.List[*cluster.Task](v) {
		if slices.Contains(ofTask(t), key) {
			return d
		}
	}
	// Nobody begins to use it now: only who has it already may ask for it.
	d.Changes = []store.Change{store.Delete(o)}
	return d
}

// replaced is a secret or config that was replaced; nil: none of that id was.
func replaced(v store.View, id string) cluster.Object {
	if o, err := store.Find[*cluster.Secret](v, id); err == nil && o.Replaced() {
		return o
	}
	if o, err := store.Find[*cluster.Config](v, id); err == nil && o.Replaced() {
		return o
	}
	return nil
}

// ofService are the secrets and configs of a service, also of the specs that it could go to.
func ofService(s *cluster.Service) []string {
	out := ids(&s.Spec.Task)
	for _, other := range []*cluster.ServiceSpec{s.Previous, s.Status.Wanted} {
		if other != nil {
			out = append(out, ids(&other.Task)...)
		}
	}
	return out
}

// ofTask are those of a task that has not ended.
func ofTask(t *cluster.Task) []string {
	if t.Status.State.Ended() {
		return nil
	}
	return ids(&t.Spec)
}

func ids(t *cluster.TaskSpec) (out []string) {
	for _, list := range [][]cluster.FileRef{t.Secrets, t.Configs} {
		for _, r := range list {
			if r.ID != "" {
				out = append(out, r.ID)
			}
		}
	}
	return out
}

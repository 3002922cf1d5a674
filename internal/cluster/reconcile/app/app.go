// Package app is the loop that makes of an app's spec the objects it consists of, and
// takes away those that are not in it any more: services first and what they used
// after them. An app that was removed goes last of all.
package app

import (
	"reflect"
	"slices"
	"strings"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/loop"
)

// Loop is the loop.
type Loop struct{}

var _ loop.Loop = Loop{}

// Name implements loop.Loop.
func (Loop) Name() string { return "app" }

// Kinds implements loop.Loop.
func (Loop) Kinds() []cluster.Kind { return cluster.Kinds() }

// Keys implements loop.Loop: apps, and the owners of what is theirs; of tasks, the app
// of their service.
func (Loop) Keys(v store.View, e store.Event) []string {
	o := e.New
	if o == nil {
		o = e.Old
	}
	switch e.Kind() {
	case cluster.KindApp:
		return []string{o.Base().ID}
	case cluster.KindTask:
		if s, err := store.Find[*cluster.Service](v, o.Base().Owner); err == nil {
			return []string{s.Owner}
		}
		return Loop{}.All(v) // the last of a service that has gone
	}
	return []string{o.Base().Owner}
}

// All implements loop.Loop.
func (Loop) All(v store.View) []string {
	var out []string
	for _, a := range store.List[*cluster.App](v) {
		out = append(out, a.ID)
	}
	return out
}

// Decide implements loop.Loop.
func (Loop) Decide(v store.View, key string, _ time.Time) loop.Decision {
	a, err := store.Find[*cluster.App](v, key)
	if err != nil {
		return loop.Decision{}
	}
	d := &decision{v: v, app: a}
	if a.Spec.Removed {
		d.remove()
		return d.Decision
	}
	d.objects()
	d.services()
	if len(d.Changes) > 0 {
		// What is written rests on this spec of the app and no other.
		d.Changes = append([]store.Change{store.Unchanged(a)}, d.Changes...)
		return d.Decision
	}
	if status := d.status(); status != a.Status {
		a = store.Copy(a)
		a.Status = status
		d.Changes = append(d.Changes, store.Update(a))
	}
	return d.Decision
}

// decision is one under way.
type decision struct {
	loop.Decision
	v   store.View
	app *cluster.App
}

// Full is the name that a part of an app has among all of its kind.
func Full(app, part string) string { return app + "_" + part }

// part is the name that something of the app's has in it.
func (d *decision) part(o cluster.Object) string {
	name, _ := strings.CutPrefix(o.Base().Name, d.app.Name+"_")
	return name
}

func (d *decision) meta(part string) cluster.Meta {
	return cluster.Meta{Name: Full(d.app.Name, part), Owner: d.app.ID}
}

// objects makes the networks, volumes, secrets and configs; those that are not wanted
// any more go once no service of the app is in transit.
func (d *decision) objects() {
	sync(d, d.app.Spec.Networks, func(m cluster.Meta, s cluster.NetworkSpec) cluster.Object { return &cluster.Network{Meta: m, Spec: s} },
		func(o *cluster.Network) *cluster.NetworkSpec { return &o.Spec })
	sync(d, d.app.Spec.Volumes, func(m cluster.Meta, s cluster.VolumeSpec) cluster.Object { return &cluster.Volume{Meta: m, Spec: s} },
		func(o *cluster.Volume) *cluster.VolumeSpec { return &o.Spec })
	sync(d, d.app.Spec.Secrets, func(m cluster.Meta, s cluster.SecretSpec) cluster.Object { return &cluster.Secret{Meta: m, Spec: s} },
		func(o *cluster.Secret) *cluster.SecretSpec { return &o.Spec })
	sync(d, d.app.Spec.Configs, func(m cluster.Meta, s cluster.ConfigSpec) cluster.Object { return &cluster.Config{Meta: m, Spec: s} },
		func(o *cluster.Config) *cluster.ConfigSpec { return &o.Spec })
}

// sync makes the app's objects of a kind what is wanted. Volumes that are not wanted
// stay: their data is nobody's to throw away unasked.
func sync[T cluster.Object, S any](d *decision, want map[string]S, make func(cluster.Meta, S) cluster.Object, spec func(T) *S) {
	has := map[string]bool{}
	for _, o := range store.List[T](d.v, store.Owner(d.app.ID)) {
		part := d.part(o)
		has[part] = true
		w, ok := want[part]
		switch {
		case ok && !reflect.DeepEqual(*spec(o), w):
			c := store.Copy(o)
			*spec(c) = w
			d.Changes = append(d.Changes, store.Update(c))
		case !ok && o.Kind() != cluster.KindVolume && d.settled():
			d.Changes = append(d.Changes, store.Delete(o))
		}
	}
	for _, part := range sorted(want) {
		if !has[part] {
			d.Changes = append(d.Changes, store.Create(make(d.meta(part), want[part])))
		}
	}
}

func sorted[S any](m map[string]S) []string {
	out := make([]string, 0, len(m))
	for name := range m {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// services makes the services what is wanted.
func (d *decision) services() {
	has := map[string]bool{}
	for _, s := range store.List[*cluster.Service](d.v, store.Owner(d.app.ID)) {
		part := d.part(s)
		has[part] = true
		want, ok := d.app.Spec.Services[part]
		if !ok {
			d.Changes = append(d.Changes, store.Delete(s))
			continue
		}
		if c := Change(s, want); c != nil {
			d.Changes = append(d.Changes, store.Update(c))
		}
	}
	for _, part := range sorted(d.app.Spec.Services) {
		if !has[part] {
			s := &cluster.Service{Meta: d.meta(part), Spec: d.app.Spec.Services[part], Numbers: 1}
			s.Spec.Number, s.Labels = 1, s.Spec.Labels
			d.Changes = append(d.Changes, store.Create(s))
		}
	}
}

// Change is the service with another spec; nil when it has that already. A spec whose
// tasks differ gets a number of its own, and the one before is kept to go back to. One
// that a rollout has given up is not tried again until another is asked for.
func Change(s *cluster.Service, want cluster.ServiceSpec) *cluster.Service {
	is := s.Spec
	if s.Status.Wanted != nil {
		is = *s.Status.Wanted // what was asked last, and was gone back from
	}
	want.Number = is.Number
	if reflect.DeepEqual(is, want) {
		return nil
	}
	c := store.Copy(s)
	c.Labels, c.Status.Wanted = want.Labels, nil
	if !reflect.DeepEqual(s.Spec.Task, want.Task) || !reflect.DeepEqual(s.Spec.Networks, want.Networks) {
		c.Numbers++
		want.Number = c.Numbers
		before := store.Copy(s).Spec
		c.Previous = &before
	} else {
		want.Number = s.Spec.Number
	}
	c.Spec = want
	return c
}

// settled tells whether the tasks of the app are those of its present services.
func (d *decision) settled() bool {
	for _, s := range store.List[*cluster.Service](d.v, store.Owner(d.app.ID)) {
		want, ok := d.app.Spec.Services[d.part(s)]
		if !ok || Change(s, want) != nil || s.Status.Rollout != nil && s.Status.Rollout.State.UnderWay() {
			return false
		}
		for _, t := range store.List[*cluster.Task](d.v, store.Owner(s.ID)) {
			if t.SpecNumber != s.Spec.Number && !t.Status.State.Ended() {
				return false
			}
		}
	}
	return !d.leftovers()
}

// leftovers tells whether tasks are left of services that have gone: theirs could be
// the app's.
func (d *decision) leftovers() bool {
	for _, t := range store.List[*cluster.Task](d.v) {
		if _, err := store.Find[*cluster.Service](d.v, t.Owner); err != nil {
			return true
		}
	}
	return false
}

// status says how far the app is.
func (d *decision) status() cluster.AppStatus {
	out := cluster.AppStatus{Number: d.app.Spec.Number, Phase: cluster.AppSteady}
	for _, s := range store.List[*cluster.Service](d.v, store.Owner(d.app.ID)) {
		r := s.Status.Rollout
		switch {
		case r != nil && r.Number == s.Spec.Number && (r.State == cluster.UpdatePaused || r.State == cluster.RollbackPaused):
			return cluster.AppStatus{Number: out.Number, Phase: cluster.AppFailed, Message: d.part(s) + ": " + r.Message}
		case r != nil && r.State == cluster.RollbackCompleted && s.Status.Wanted != nil:
			out.Phase, out.Message = cluster.AppReverted, d.part(s)+": "+r.Message
		case !up(s, cluster.Slots(store.List[*cluster.Task](d.v, store.Owner(s.ID)))) && out.Phase == cluster.AppSteady:
			out.Phase = cluster.AppChanging
		}
	}
	return out
}

// up tells whether a service is as it is to be: its replicas healthy, its job done.
func up(s *cluster.Service, slots []cluster.Slot) bool {
	n, want := 0, len(slots)
	switch m := s.Spec.Mode; {
	case m.Schedule != "":
		return true
	case m.Replicated != nil:
		want = int(m.Replicated.Replicas)
	case m.Job != nil:
		want = int(m.Job.Total)
	}
	for _, slot := range slots {
		t := slot.Current()
		ended := t.Status.State == cluster.TaskComplete || t.Status.State.Ended() && t.Desired.Stops() // and is left so
		if t.SpecNumber == s.Spec.Number && (ended || t.Status.State == cluster.TaskRunning && t.Status.Healthy) {
			n++
		}
	}
	return n == want
}

// remove takes the app away: its services, then what they used, then itself.
func (d *decision) remove() {
	services := store.List[*cluster.Service](d.v, store.Owner(d.app.ID))
	for _, s := range services {
		d.Changes = append(d.Changes, store.Delete(s))
	}
	if len(services) > 0 || d.leftovers() {
		return
	}
	rest(d, store.List[*cluster.Network](d.v, store.Owner(d.app.ID)))
	rest(d, store.List[*cluster.Secret](d.v, store.Owner(d.app.ID)))
	rest(d, store.List[*cluster.Config](d.v, store.Owner(d.app.ID)))
	rest(d, store.List[*cluster.Volume](d.v, store.Owner(d.app.ID)))
	if len(d.Changes) == 0 {
		d.Changes = append(d.Changes, store.Delete(d.app))
	}
}

func rest[T cluster.Object](d *decision, list []T) {
	for _, o := range list {
		d.Changes = append(d.Changes, store.Delete(o))
	}
}

// Package app is the loop that makes of an app's spec the objects it consists of, and
// takes away those that are not in it any more: services first and what they used
// after them. An app that was removed goes last of all.
package app

import (
	"fmt"
	"maps"
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
		return []string{o.(*cluster.Task).App}
	case cluster.KindNode:
		if was, ok := e.Old.(*cluster.Node); ok && e.New != nil && was.Status.Ready && !e.New.(*cluster.Node).Status.Ready {
			return going(v)
		}
		return nil
	}
	if e.Old != nil && e.Old.Base().Owner != o.Base().Owner { // a volume that is let go of
		return []string{e.Old.Base().Owner, o.Base().Owner}
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
func (Loop) Decide(v store.View, key string, now time.Time) loop.Decision {
	a, err := store.Find[*cluster.App](v, key)
	if err != nil {
		return loop.Decision{}
	}
	d := &decision{v: v, app: a, now: now}
	switch {
	case a.Spec.Released:
		d.release()
		return d.Decision
	case a.Spec.Removed:
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
	now time.Time
}

// part is the name that something of the app's has in it.
func (d *decision) part(o cluster.Object) string {
	name, _ := strings.CutPrefix(o.Base().Name, d.app.Name+"_")
	return name
}

func (d *decision) meta(part string) cluster.Meta {
	return cluster.Meta{Name: cluster.Full(d.app.Name, part), Owner: d.app.ID}
}

// objects makes the networks, volumes, secrets and configs; those that are not wanted
// any more go once no service of the app is in transit.
func (d *decision) objects() {
	sync(d, d.app.Spec.Networks, func(m cluster.Meta, s cluster.NetworkSpec) cluster.Object { return &cluster.Network{Meta: m, Spec: s} },
		func(o *cluster.Network) *cluster.NetworkSpec { return &o.Spec })
	sync(d, d.app.Spec.Volumes, func(m cluster.Meta, s cluster.VolumeSpec) cluster.Object { return &cluster.Volume{Meta: m, Spec: s} },
		func(o *cluster.Volume) *cluster.VolumeSpec { return &o.Spec })
	d.locate()
	sync(d, own(d.app.Spec.Secrets, func(s cluster.SecretSpec) bool { return s.External }), func(m cluster.Meta, s cluster.SecretSpec) cluster.Object { return &cluster.Secret{Meta: m, Spec: s} },
		func(o *cluster.Secret) *cluster.SecretSpec { return &o.Spec })
	sync(d, own(d.app.Spec.Configs, func(s cluster.ConfigSpec) bool { return s.External }), func(m cluster.Meta, s cluster.ConfigSpec) cluster.Object { return &cluster.Config{Meta: m, Spec: s} },
		func(o *cluster.Config) *cluster.ConfigSpec { return &o.Spec })
}

// own are those that are not the swarm's.
func own[S any](all map[string]S, external func(S) bool) map[string]S {
	out := maps.Clone(all)
	maps.DeleteFunc(out, func(_ string, s S) bool { return external(s) })
	return out
}

// sync makes the app's objects of a kind what is wanted. Volumes that are not wanted
// stay: their data is nobody's to throw away unasked.
func sync[T cluster.Object, S any](d *decision, want map[string]S, make func(cluster.Meta, S) cluster.Object, spec func(T) *S) {
	has, list := map[string]bool{}, store.List[T](d.v, store.Owner(d.app.ID))
	for _, o := range list {
		has[d.part(o)] = true
	}
	for _, o := range list {
		part := d.part(o)
		w, ok := want[part]
		switch {
		case ok && !reflect.DeepEqual(*spec(o), w):
			c := store.Copy(o)
			*spec(c) = w
			if d.anew(o, c) {
				continue
			}
			d.leave(o, c, has)
			d.Changes = append(d.Changes, store.Update(c))
		case !ok && o.Kind() != cluster.KindVolume && d.settled():
			d.drop(o)
		}
	}
	for _, part := range sorted(want) {
		if o := make(d.meta(part), want[part]); !has[part] && !d.adopt(o) {
			d.Changes = append(d.Changes, store.Create(o))
		}
	}
}

// drop takes an object away. What it stands for in the engine goes first, if it is the
// app's: whoever has the engine removes the object, too.
func (d *decision) drop(o cluster.Object) {
	switch o := o.(type) {
	case *cluster.Network:
		if o.Spec.Removed {
			return
		}
		if !o.Spec.External {
			c := store.Copy(o)
			c.Spec.Removed = true
			d.Changes = append(d.Changes, store.Update(c))
			return
		}
	case *cluster.Volume:
		if o.Spec.Removed {
			return
		}
		if !o.Spec.External && d.app.Spec.Volumed {
			c := store.Copy(o)
			c.Spec.Removed = true
			d.Changes = append(d.Changes, store.Update(c))
			return
		}
		if d.leaveBehind(o) {
			return
		}
	}
	d.Changes = append(d.Changes, store.Delete(o))
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
		if c := s.Change(want); c != nil {
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

// settled tells whether the tasks of the app are those of its present services.
func (d *decision) settled() bool {
	for _, s := range store.List[*cluster.Service](d.v, store.Owner(d.app.ID)) {
		want, ok := d.app.Spec.Services[d.part(s)]
		if !ok || s.Change(want) != nil || s.Status.Rollout != nil && s.Status.Rollout.State.UnderWay() {
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

// leftovers tells whether tasks of the app are left whose services have gone.
func (d *decision) leftovers() bool {
	for _, t := range d.tasks() {
		if _, err := store.Find[*cluster.Service](d.v, t.Owner); err != nil {
			return true
		}
	}
	return false
}

// tasks are the app's.
func (d *decision) tasks() []*cluster.Task {
	return store.List[*cluster.Task](d.v, store.OfApp(d.app.ID))
}

// status says how far the app is.
func (d *decision) status() cluster.AppStatus {
	out := cluster.AppStatus{Number: d.app.Spec.Number, Phase: cluster.AppSteady}
	halted := 0
	for _, s := range store.List[*cluster.Service](d.v, store.Owner(d.app.ID)) {
		r := s.Status.Rollout
		slots := cluster.Slots(store.List[*cluster.Task](d.v, store.Owner(s.ID)))
		up, want, stopped := s.Up(slots)
		halted += stopped
		switch {
		case r != nil && r.Number == s.Spec.Number && (r.State == cluster.UpdatePaused || r.State == cluster.RollbackPaused):
			return cluster.AppStatus{Number: out.Number, Phase: cluster.AppFailed, Message: d.part(s) + ": " + told(r)}
		case up != want && failing(s, slots) != "" && !d.leans(s):
			return cluster.AppStatus{Number: out.Number, Phase: cluster.AppFailed, Message: d.part(s) + ": " + failing(s, slots)}
		case up != want && d.unmet(s, slots) != "":
			return cluster.AppStatus{Number: out.Number, Phase: cluster.AppFailed, Message: d.part(s) + ": " + d.unmet(s, slots)}
		case r != nil && r.State == cluster.RollbackCompleted && s.Status.Wanted != nil:
			out.Phase, out.Message = cluster.AppReverted, d.part(s)+": "+told(r)
		case (up != want || r != nil && r.State.UnderWay()) && out.Phase == cluster.AppSteady:
			out.Phase = cluster.AppChanging
		}
	}
	if halted > 0 && out.Message == "" {
		out.Message = fmt.Sprintf("%d stopped by a client", halted)
	}
	return out
}

// told is what became of a rollout, and why.
func told(r *cluster.RolloutStatus) string {
	if r.Reason == "" {
		return r.Message
	}
	return r.Message + " (" + r.Reason + ")"
}

// hopeless is after how many bad ends in a row a place is told of as failed. It is tried
// further, and the app is as it is to be once it succeeds.
const hopeless = 3

// failing says what is wrong with a place of a service in which nothing comes up; "" is
// nothing. What is still of another spec is about to be exchanged, and tells nothing of
// this one.
func failing(s *cluster.Service, slots []cluster.Slot) string {
	for _, slot := range slots {
		t := slot.Current()
		if t.SpecNumber != s.Spec.Number {
			continue
		}
		bad := t.Failures
		switch state := t.Status.State; {
		case state == cluster.TaskFailed, state == cluster.TaskRejected:
			bad++
		case state == cluster.TaskRunning && t.Status.Healthy:
			bad = 0
		}
		for _, t := range slot.Tasks {
			if bad >= hopeless && t.Status.Err != "" && t.SpecNumber == s.Spec.Number {
				return t.Status.Err
			}
		}
	}
	return ""
}

// leans tells whether a service shares with containers of one that does not stand, or not for
// long yet: what fails there may fail for that, which then is what is told.
func (d *decision) leans(s *cluster.Service) bool {
	for _, n := range s.Spec.Task.Needs {
		p, err := store.Named[*cluster.Service](d.v, n.Service)
		if !n.Shared || err != nil {
			continue
		}
		slots := cluster.Slots(store.List[*cluster.Task](d.v, store.Owner(p.ID)))
		if up, want, _ := p.Up(slots); up != want || slices.ContainsFunc(slots, func(slot cluster.Slot) bool { return slot.Current().Shaky(d.now) }) {
			return true
		}
	}
	return false
}

// remove takes the app away: its services, then what they used, then itself.
func (d *decision) remove() {
	services := store.List[*cluster.Service](d.v, store.Owner(d.app.ID))
	for _, s := range d.unneeded(services) {
		d.Changes = append(d.Changes, store.Delete(s))
	}
	for _, t := range d.tasks() {
		if d.abandoned(t) {
			d.Changes = append(d.Changes, store.Delete(t))
		}
	}
	if len(services) > 0 || len(d.tasks()) > 0 {
		return
	}
	if d.rest(d.drop) == 0 {
		d.Changes = append(d.Changes, store.Delete(d.app))
	}
}

// unneeded are the services that nothing else of the app needs any more: what needs
// others ends before they do. Those that need each other end together.
func (d *decision) unneeded(services []*cluster.Service) (out []*cluster.Service) {
	needed, ending := map[string]bool{}, false
	note := func(by string, needs []cluster.Need) {
		for _, n := range needs {
			needed[n.Service] = needed[n.Service] || n.Service != by
		}
	}
	for _, s := range services {
		note(s.Name, s.Spec.Task.Needs)
	}
	for _, t := range d.tasks() {
		if _, err := store.Find[*cluster.Service](d.v, t.Owner); err != nil {
			ending = true
			note("", t.Spec.Needs)
		}
	}
	for _, s := range services {
		if !needed[s.Name] {
			out = append(out, s)
		}
	}
	if len(out) == 0 && !ending {
		return services
	}
	return out
}

// release lets go of the app: its containers first, whose node does so, then of what
// they use, and then itself.
func (d *decision) release() {
	tasks := d.tasks()
	for _, t := range tasks {
		if t.Desired == cluster.TaskOrphaned && t.Status.State.Ended() {
			d.Changes = append(d.Changes, store.Delete(t))
			continue
		}
		if t.Desired != cluster.TaskOrphaned {
			t = store.Copy(t)
			t.Desired = cluster.TaskOrphaned
			d.Changes = append(d.Changes, store.Update(t))
		}
	}
	for _, s := range store.List[*cluster.Service](d.v, store.Owner(d.app.ID)) {
		d.Changes = append(d.Changes, store.Delete(s))
	}
	if len(tasks) == 0 && d.rest(func(o cluster.Object) { d.Changes = append(d.Changes, store.Delete(o)) }) == 0 && len(d.Changes) == 0 {
		d.Changes = append(d.Changes, store.Delete(d.app))
	}
}

// rest does something to all that the app has beside services, and counts it.
func (d *decision) rest(do func(cluster.Object)) (n int) {
	n += each(store.List[*cluster.Network](d.v, store.Owner(d.app.ID)), do)
	n += each(store.List[*cluster.Secret](d.v, store.Owner(d.app.ID)), do)
	n += each(store.List[*cluster.Config](d.v, store.Owner(d.app.ID)), do)
	return n + each(store.List[*cluster.Volume](d.v, store.Owner(d.app.ID)), do)
}

func each[T cluster.Object](list []T, do func(cluster.Object)) int {
	for _, o := range list {
		do(o)
	}
	return len(list)
}

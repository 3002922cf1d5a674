package dispatch

import (
	"encoding/json"
	"slices"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
)

// index knows of every object whom it concerns. Who uses it holds the Dispatcher's lock.
type index struct {
	view   store.View
	places map[Ref]place
	about  map[string]map[Ref]struct{} // by topic, of those that somebody could have in common
	forms  map[Ref]*forms              // of this view, as far as they were asked for
}

// forms are what is sent of an object.
type forms struct {
	o             cluster.Object
	raw, stripped json.RawMessage
	print         uint64 // of raw
	small         uint64 // of stripped
}

func newIndex(v store.View) *index {
	x := &index{places: map[Ref]place{}, about: map[string]map[Ref]struct{}{}}
	x.see(v)
	for _, r := range refs(v) {
		x.set(r)
	}
	return x
}

// refs are all objects of a view.
func refs(v store.View) []Ref {
	var out []Ref
	add := func(o cluster.Object) { out = append(out, Ref{o.Kind(), o.Base().ID}) }
	each[*cluster.Cluster](v, add)
	each[*cluster.Node](v, add)
	each[*cluster.App](v, add)
	each[*cluster.Network](v, add)
	each[*cluster.Volume](v, add)
	each[*cluster.Secret](v, add)
	each[*cluster.Config](v, add)
	each[*cluster.Service](v, add)
	each[*cluster.Task](v, add)
	return out
}

func each[T cluster.Object](v store.View, f func(cluster.Object)) {
	for _, o := range store.List[T](v) {
		f(o)
	}
}

// see goes on to another view.
func (x *index) see(v store.View) { x.view, x.forms = v, map[Ref]*forms{} }

// form is what could be sent of an object, nil when there is none.
func (x *index) form(r Ref) *forms {
	if f, ok := x.forms[r]; ok {
		return f
	}
	var f *forms
	if o, raw := store.Raw(x.view, r.Kind, r.ID); o != nil {
		f = &forms{o: o, raw: raw}
	}
	x.forms[r] = f
	return f
}

// whole is an object as it was written.
func (f *forms) whole() Object {
	if f.print == 0 {
		f.print = printOf(f.raw)
	}
	return Object{f.o.Kind(), f.print, f.raw}
}

// part is an object as others see it.
func (f *forms) part() Object {
	if f.stripped == nil {
		f.stripped = strip(f.o, f.raw)
		f.small = printOf(f.stripped)
	}
	return Object{f.o.Kind(), f.small, f.stripped}
}

// set looks at an object anew and gives the topics of those whom the change concerns.
func (x *index) set(r Ref) []string {
	was, there := x.places[r]
	var is place
	f := x.form(r)
	if f != nil {
		is = placeOf(x.view, f.o, f.raw)
	}
	if there {
		x.take(r, was)
	}
	if f == nil {
		delete(x.places, r)
	} else {
		x.places[r] = is
		for _, topic := range is.topics() {
			if x.about[topic] == nil {
				x.about[topic] = map[Ref]struct{}{}
			}
			x.about[topic][r] = struct{}{}
		}
	}
	if there && f != nil && was.print == is.print && was.own == is.own && slices.Equal(was.shared, is.shared) {
		if is.own == "" {
			return nil // nothing of it that anybody gets has changed
		}
		return []string{is.own}
	}
	out := append(was.topics(), is.topics()...)
	slices.Sort(out)
	return slices.Compact(out)
}

func (x *index) take(r Ref, p place) {
	for _, topic := range p.topics() {
		delete(x.about[topic], r)
		if len(x.about[topic]) == 0 {
			delete(x.about, topic)
		}
	}
}

// topics are all of a place's.
func (p place) topics() []string {
	if p.own == "" {
		return slices.Clone(p.shared)
	}
	return append([]string{p.own}, p.shared...)
}

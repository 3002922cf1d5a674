package scheduler

import (
	"cmp"
	"fmt"
	"slices"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/address"
)

// filter refuses nodes, and says why in a few words that are followed by "on n nodes",
// unless they are whole, and true whenever there is none for it.
type filter struct {
	why   string
	fits  func(*Room) bool
	whole bool
	hint  string // what can be done about it
}

// filters are those that a task asks for.
func filters(v store.View, t *cluster.Task) ([]filter, error) {
	constraints, err := cluster.ParseConstraints(t.Spec.Placement.Constraints)
	if err != nil {
		return nil, err
	}
	var out []filter
	if at, why, volume := home(v, t); at != nil {
		f := only(at, why)
		if volume != "" {
			f.hint = fmt.Sprintf(`: "escale volume move %s NODE" takes it along`, volume)
		}
		out = append(out, f)
	} else {
		out = companions(v, t)
	}
	for _, m := range moves(v) {
		if f := away(v, m, t); f.fits != nil {
			out = append(out, f)
		}
	}
	out = append(out, indebted(v, t)...)
	add := func(why string, fits func(*Room) bool) { out = append(out, filter{why: why, fits: fits}) }
	add("node not available", func(r *Room) bool { return r.Node.Status.Ready && available(r.Node, t) })
	if want := t.Spec.Reserved; want.NanoCPUs > 0 || want.Memory > 0 || len(want.Generic) > 0 {
		add("insufficient resources", func(r *Room) bool { return r.holds(want) })
	}
	if len(constraints) > 0 {
		add("scheduling constraints not satisfied", func(r *Room) bool {
			return !slices.ContainsFunc(constraints, func(c cluster.Constraint) bool { return !c.Holds(r.Node) })
		})
	}
	if list := t.Spec.Placement.Platforms; len(list) > 0 {
		add("unsupported platform", func(r *Room) bool {
			return slices.ContainsFunc(list, func(p cluster.Platform) bool { return r.Node.Status.Platform.Suits(p) })
		})
	}
	if slices.ContainsFunc(t.Ports, func(p cluster.Port) bool { return p.Published != 0 }) {
		add("host-mode port already in use", func(r *Room) bool { return cluster.Fit(t.Ports, r.Ports) })
	}
	if n := sealed(v, t); n != nil {
		add(fmt.Sprintf("no IPsec for encrypted network %s", n.Spec.Name), func(r *Room) bool { return r.Node.Status.Encrypts })
	}
	if most := t.Spec.Placement.MaxPerNode; most > 0 {
		add("max replicas per node limit exceed", func(r *Room) bool { return uint64(r.Services[t.Owner]) < most })
	}
	return out, nil
}

// sealed is an encrypted network that a task is to be on; nil: there is none.
func sealed(v store.View, t *cluster.Task) *cluster.Network {
	s, err := store.Find[*cluster.Service](v, t.Owner)
	if err != nil {
		s = nil
	}
	for _, n := range address.Wanted(v, s, t.Networks) {
		if n.Encrypted() {
			return n
		}
	}
	return nil
}

// moves are those that keep volumes from tasks.
func moves(v store.View) (out []*cluster.Move) {
	for _, m := range store.List[*cluster.Move](v) {
		if m.Holds() {
			out = append(out, m)
		}
	}
	return out
}

// away keeps a task that would have a volume that is being moved from where it is had: from
// all nodes if it goes along, else from the two. Without fits it keeps it from none.
func away(v store.View, m *cluster.Move, t *cluster.Task) filter {
	from, err := store.Find[*cluster.Node](v, m.Spec.From)
	if err != nil {
		return filter{}
	}
	names := t.VolumesOn(from)
	i := slices.IndexFunc(names, func(name string) bool { return slices.Contains(m.Spec.Volumes, name) })
	if i < 0 {
		return filter{}
	}
	to := cmp.Or(nameOf(v, m.Spec.To), m.Spec.To)
	why := fmt.Sprintf("volume %q is being moved from node %s to node %s", names[i], cmp.Or(from.Name, from.ID), to)
	if h := t.Bound(); h != nil && (h.Node == m.Spec.From || h.Node == m.Spec.To) {
		return filter{why: why, fits: func(*Room) bool { return false }, whole: true}
	}
	return filter{why: why, fits: func(r *Room) bool { return r.Node.ID != m.Spec.From && r.Node.ID != m.Spec.To }}
}

// indebted keep a task from nodes that are to remove a volume of before that has the name of one of
// its own.
func indebted(v store.View, t *cluster.Task) (out []filter) {
	for _, vol := range store.List[*cluster.Volume](v) {
		if !vol.Status.Owed {
			continue
		}
		n, err := store.Find[*cluster.Node](v, vol.Status.Node)
		if err == nil && slices.Contains(t.VolumesOn(n), vol.Spec.Name) {
			out = append(out, filter{why: fmt.Sprintf("the volume %q of before is to be removed", vol.Spec.Name), fits: func(r *Room) bool { return r.Node.ID != n.ID }})
		}
	}
	return out
}

func nameOf(v store.View, node string) string {
	n, err := store.Find[*cluster.Node](v, node)
	if err != nil {
		return ""
	}
	return n.Name
}

// available tells whether a node may get a task. One that is paused keeps its place of
// a global service.
func available(n *cluster.Node, t *cluster.Task) bool {
	switch n.Spec.Availability {
	case cluster.Active, "":
		return true
	case cluster.Paused:
		return t.Slot == 0 && t.Node == n.ID && t.Number > 1
	}
	return false
}

// holds tells whether so much is free.
func (r *Room) holds(want cluster.Resources) bool {
	has := r.Node.Status.Resources
	if want.NanoCPUs > 0 && has.NanoCPUs-r.Reserved.NanoCPUs < want.NanoCPUs || want.Memory > 0 && has.Memory-r.Reserved.Memory < want.Memory {
		return false
	}
	for name, n := range want.Generic {
		if has.Generic[name]-r.Reserved.Generic[name] < n {
			return false
		}
	}
	return true
}

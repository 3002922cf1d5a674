package scheduler

import (
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
}

// filters are those that a task asks for.
func filters(v store.View, t *cluster.Task) ([]filter, error) {
	constraints, err := cluster.ParseConstraints(t.Spec.Placement.Constraints)
	if err != nil {
		return nil, err
	}
	var out []filter
	if at, why := home(v, t); at != nil {
		out = append(out, only(at, why))
	} else {
		out = companions(v, t)
	}
	add := func(why string, fits func(*Room) bool) { out = append(out, filter{why, fits, false}) }
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
		add("host-mode port already in use", func(r *Room) bool {
			return !slices.ContainsFunc(t.Ports, func(p cluster.Port) bool { return slices.ContainsFunc(r.Ports, p.Excludes) })
		})
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

package scheduler

import (
	"slices"

	"escale.dev/escale/internal/cluster"
)

// filter refuses nodes, and says why in a few words that are followed by "on n nodes".
type filter struct {
	why  string
	fits func(*Room) bool
}

// filters are those that a task asks for.
func filters(t *cluster.Task) ([]filter, error) {
	constraints, err := cluster.ParseConstraints(t.Spec.Placement.Constraints)
	if err != nil {
		return nil, err
	}
	out := []filter{
		{"node not available", func(r *Room) bool { return r.Node.Status.Ready && available(r.Node, t) }},
	}
	if want := t.Spec.Reserved; want.NanoCPUs > 0 || want.Memory > 0 || len(want.Generic) > 0 {
		out = append(out, filter{"insufficient resources", func(r *Room) bool { return r.holds(want) }})
	}
	if len(constraints) > 0 {
		out = append(out, filter{"scheduling constraints not satisfied", func(r *Room) bool {
			return !slices.ContainsFunc(constraints, func(c cluster.Constraint) bool { return !c.Holds(r.Node) })
		}})
	}
	if list := t.Spec.Placement.Platforms; len(list) > 0 {
		out = append(out, filter{"unsupported platform", func(r *Room) bool {
			return slices.ContainsFunc(list, func(p cluster.Platform) bool { return r.Node.Status.Platform.Suits(p) })
		}})
	}
	if slices.ContainsFunc(t.Ports, func(p cluster.Port) bool { return p.Published != 0 }) {
		out = append(out, filter{"host-mode port already in use", func(r *Room) bool {
			return !slices.ContainsFunc(t.Ports, func(p cluster.Port) bool { return slices.ContainsFunc(r.Ports, p.Excludes) })
		}})
	}
	if most := t.Spec.Placement.MaxPerNode; most > 0 {
		out = append(out, filter{"max replicas per node limit exceed", func(r *Room) bool { return uint64(r.Services[t.Owner]) < most }})
	}
	return out, nil
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

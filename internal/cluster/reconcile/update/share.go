package update

import (
	"slices"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
)

// sharers are the services whose containers share namespaces or volumes of a service's.
func sharers(v store.View, s *cluster.Service) (out []string) {
	if s.Owner == "" {
		return nil // only apps have such
	}
	for _, other := range store.List[*cluster.Service](v, store.Owner(s.Owner)) {
		if slices.ContainsFunc(other.Spec.Task.Needs, func(n cluster.Need) bool { return n.Shared && n.Service == s.Name }) {
			out = append(out, other.ID)
		}
	}
	return out
}

// provider is a service with whose containers a service's share, and that is being exchanged
// itself, or whose exchange was given up amid; "" without one. What shares with a container
// that is about to go would have to be exchanged once more.
func provider(v store.View, s *cluster.Service) string {
	for _, n := range s.Spec.Task.Needs {
		if !n.Shared {
			continue
		}
		p, err := store.Named[*cluster.Service](v, n.Service)
		if err != nil || p.Spec.Mode.Replicated == nil && !p.Spec.Mode.Global {
			continue // the tasks say what they wait for
		}
		if r := p.Status.Rollout; r != nil && r.Number == p.Spec.Number && (r.State.UnderWay() || r.State == cluster.UpdatePaused || r.State == cluster.RollbackPaused) {
			return p.Name
		}
		for _, slot := range cluster.Slots(store.List[*cluster.Task](v, store.Owner(p.ID))) {
			if slot.Current().SpecNumber != p.Spec.Number && (p.Spec.Mode.Replicated == nil || slot.Number <= p.Spec.Mode.Replicated.Replicas) {
				return p.Name
			}
		}
	}
	return ""
}

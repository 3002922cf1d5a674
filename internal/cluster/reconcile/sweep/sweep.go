// Package sweep is the loop that removes, in a cluster, the objects of networks and volumes
// that are to go: the nodes remove what they have of them (package supply), and get a while for
// it. On a host that is alone there is nobody to wait for, and supply removes the object.
package sweep

import (
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/loop"
)

// How long nodes have. What spans them they find out about also when the object is gone;
// what is theirs alone, but from it.
const (
	Spanning = 300 * time.Millisecond
	Local    = 5 * time.Second
)

// Loop is the loop.
type Loop struct{}

var _ loop.Loop = Loop{}

// Name implements loop.Loop.
func (Loop) Name() string { return "sweep" }

// Kinds implements loop.Loop.
func (Loop) Kinds() []cluster.Kind {
	return []cluster.Kind{cluster.KindNetwork, cluster.KindVolume, cluster.KindCluster}
}

// Keys implements loop.Loop: what is to go.
func (l Loop) Keys(v store.View, e store.Event) []string {
	switch o := e.New.(type) {
	case *cluster.Network:
		if o.Spec.Removed {
			return []string{o.ID}
		}
	case *cluster.Volume:
		if o.Spec.Removed {
			return []string{o.ID}
		}
	case *cluster.Cluster:
		if e.Old == nil {
			return l.All(v)
		}
	}
	return nil
}

// All implements loop.Loop.
func (Loop) All(v store.View) (out []string) {
	for _, n := range store.List[*cluster.Network](v) {
		if n.Spec.Removed {
			out = append(out, n.ID)
		}
	}
	for _, vol := range store.List[*cluster.Volume](v) {
		if vol.Spec.Removed {
			out = append(out, vol.ID)
		}
	}
	return out
}

// Decide implements loop.Loop.
func (Loop) Decide(v store.View, key string, now time.Time) (d loop.Decision) {
	if _, err := store.Named[*cluster.Cluster](v, cluster.DefaultCluster); err != nil {
		return d
	}
	var o cluster.Object
	wait := Local
	if n, err := store.Find[*cluster.Network](v, key); err == nil && n.Spec.Removed {
		o = n
		if n.Overlay() {
			wait = Spanning
		}
	} else if vol, err := store.Find[*cluster.Volume](v, key); err == nil && vol.Spec.Removed {
		o = vol
	}
	if o == nil {
		return d
	}
	if at := o.Base().UpdatedAt.Add(wait); now.Before(at) {
		d.Again = at
		return d
	}
	d.Changes = []store.Change{store.Delete(o)}
	return d
}

// Package sweep is the loop that removes, in a cluster, the objects of networks and volumes
// that are to go: the nodes remove what they have of them (package supply), and get a while for
// it. A volume whose node is away is owed: its object stays, under another name and nobody's, until
// that node is back and has had its time, or is a node no more. On a host that is alone there is nobody to wait for, and supply removes the object.
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
	Owed     = time.Minute // and who comes back ends containers first
)

// Loop is the loop.
type Loop struct{}

var _ loop.Loop = Loop{}

// Name implements loop.Loop.
func (Loop) Name() string { return "sweep" }

// Kinds implements loop.Loop.
func (Loop) Kinds() []cluster.Kind {
	return []cluster.Kind{cluster.KindNetwork, cluster.KindVolume, cluster.KindCluster, cluster.KindNode}
}

// Keys implements loop.Loop: what is to go.
func (l Loop) Keys(v store.View, e store.Event) []string {
	if was, ok := e.Old.(*cluster.Node); ok {
		if is, ok := e.New.(*cluster.Node); !ok || is.Status.Ready != was.Status.Ready {
			return owed(v, was.ID)
		}
		return nil
	}
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

// owed are the volumes that are to go on a node.
func owed(v store.View, node string) (out []string) {
	for _, vol := range store.List[*cluster.Volume](v) {
		if vol.Spec.Removed && vol.Status.Node == node {
			out = append(out, vol.ID)
		}
	}
	return out
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
		n, err := store.Find[*cluster.Node](v, vol.Status.Node)
		away := err == nil && !n.Status.Ready
		switch {
		case away && !vol.Status.Owed && !vol.Spec.External && cluster.LocalDriver(vol.Spec.Driver, vol.Spec.Options):
			vol = store.Copy(vol)
			vol.Status.Owed, vol.Owner, vol.Name = true, "", vol.Name+"@"+vol.ID
			d.Changes = []store.Change{store.Update(vol)}
			return d
		case away && vol.Status.Owed:
			return d // the node's return is looked at
		case err == nil && vol.Status.Owed:
			wait = max(Owed, n.Status.Since.Add(Owed).Sub(vol.UpdatedAt))
		}
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

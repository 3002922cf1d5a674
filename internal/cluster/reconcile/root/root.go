// Package root is the loop that ends an exchange of the root certificate: once every node
// has a certificate of the new root, the old one is trusted no more. A node that is down
// keeps it from that until it comes back or is removed.
package root

import (
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/loop"
)

// Loop is the loop.
type Loop struct{}

var _ loop.Loop = Loop{}

// Name implements loop.Loop.
func (Loop) Name() string { return "root" }

// Kinds implements loop.Loop.
func (Loop) Kinds() []cluster.Kind { return []cluster.Kind{cluster.KindCluster, cluster.KindNode} }

// Keys implements loop.Loop: the cluster, when it has changed or a node has another
// certificate.
func (l Loop) Keys(v store.View, e store.Event) []string {
	was, old := e.Old.(*cluster.Node)
	is, now := e.New.(*cluster.Node)
	if old && now && was.Status.CertIssuer == is.Status.CertIssuer {
		return nil
	}
	return l.All(v)
}

// All implements loop.Loop.
func (Loop) All(v store.View) []string {
	var out []string
	for _, c := range store.List[*cluster.Cluster](v) {
		if c.Status.RootRotation != nil {
			out = append(out, c.ID)
		}
	}
	return out
}

// Decide implements loop.Loop.
func (Loop) Decide(v store.View, key string, _ time.Time) (d loop.Decision) {
	c, err := store.Find[*cluster.Cluster](v, key)
	if err != nil || c.Status.RootRotation == nil {
		return d
	}
	for _, n := range store.List[*cluster.Node](v) {
		if n.Status.CertIssuer != c.Status.RootRotation.Issuer {
			return d
		}
	}
	c = store.Copy(c)
	c.Status.RootCA, c.Status.Key, c.Status.RootRotation = c.Status.RootRotation.Cert, c.Status.RootRotation.Key, nil
	d.Changes = []store.Change{store.Update(c)}
	return d
}

package node

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/ca"
	"escale.dev/escale/internal/cluster/dispatch"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/address"
	"github.com/containerd/errdefs"
)

// Members is the Cluster that a store keeps.
type Members struct {
	Store store.Store
	// Unseal reads the key of the root as it is kept; nil: it is kept as it is.
	Unseal func([]byte) ([]byte, error)
	// Seat makes place for a manager; nil: this one cannot.
	Seat func(ctx context.Context, node, addr, store string) (Seat, error)
}

var _ Cluster = (*Members)(nil)

func (m *Members) object() (*cluster.Cluster, error) {
	return store.Named[*cluster.Cluster](m.Store.View(), cluster.DefaultCluster)
}

func (m *Members) unseal(key []byte) ([]byte, error) {
	if m.Unseal == nil || len(key) == 0 {
		return key, nil
	}
	return m.Unseal(key)
}

// Authority implements Cluster.
func (m *Members) Authority() (*ca.Authority, error) {
	c, err := m.object()
	if err != nil {
		return nil, err
	}
	key, err := m.unseal(c.Status.Key)
	if err != nil {
		return nil, err
	}
	root, err := ca.LoadRoot(c.Status.RootCA, key)
	if err != nil {
		return nil, err
	}
	r := c.Status.RootRotation
	if r == nil {
		return ca.NewAuthority(root, nil)
	}
	if key, err = m.unseal(r.Key); err != nil {
		return nil, err
	}
	return ca.NewAuthority(root, &ca.Rotation{Cert: r.Cert, Key: key, Cross: r.Cross})
}

// Expiry implements Cluster.
func (m *Members) Expiry() time.Duration {
	c, err := m.object()
	if err != nil || c.Spec.CAConfig.NodeCertExpiry == 0 {
		return ca.DefaultExpiry
	}
	return c.Spec.CAConfig.NodeCertExpiry
}

// Secrets implements Cluster.
func (m *Members) Secrets() (worker, manager string) {
	c, err := m.object()
	if err != nil {
		return "", "" // that nobody has
	}
	return c.Status.WorkerSecret, c.Status.ManagerSecret
}

// Role implements Cluster.
func (m *Members) Role(node string) (ca.Role, error) {
	n, err := store.Find[*cluster.Node](m.Store.View(), node)
	if err != nil {
		return "", err
	}
	return roleOf(n), nil
}

// roleOf is what a node's certificate is to say. One that is demoted stays a manager until it
// keeps the store no more: without the certificate the others would not hear it, while
// its vote still counted.
func roleOf(n *cluster.Node) ca.Role {
	if n.Spec.Manager || n.Status.Manager != nil {
		return ca.Manager
	}
	return ca.Worker
}

// Admit implements Cluster.
func (m *Members) Admit(ctx context.Context, role ca.Role, availability string) (string, error) {
	if availability == "" {
		availability = string(cluster.Active)
	}
	n := &cluster.Node{
		Meta:   cluster.Meta{ID: cluster.NewID()},
		Spec:   cluster.NodeSpec{Manager: role == ca.Manager, Availability: cluster.Availability(availability)},
		Status: cluster.NodeStatus{Since: time.Now().UTC()},
	}
	_, err := m.Store.Commit(ctx, store.Create(n))
	return n.ID, err
}

// Managers implements Cluster.
func (m *Members) Managers() []dispatch.Manager {
	var out []dispatch.Manager
	for _, n := range store.List[*cluster.Node](m.Store.View()) {
		if s := n.Status.Manager; n.Spec.Manager && s != nil && s.Addr != "" {
			out = append(out, dispatch.Manager{Node: n.ID, Addr: s.Addr, Leader: s.Leader})
		}
	}
	return out
}

// Barred implements Cluster.
func (m *Members) Barred() []string {
	c, err := m.object()
	if err != nil {
		return nil
	}
	return c.BarredNodes(time.Now())
}

// Enlist implements Cluster.
func (m *Members) Enlist(ctx context.Context, node, addr, store string) (Seat, error) {
	if m.Seat == nil {
		return Seat{}, fmt.Errorf("this manager's store takes no others: %w", errdefs.ErrUnavailable)
	}
	return m.Seat(ctx, node, addr, store)
}

// Attach implements Cluster.
func (m *Members) Attach(ctx context.Context, g address.Guest) (netip.Prefix, error) {
	return address.Attach(ctx, m.Store, g)
}

// Detach implements Cluster.
func (m *Members) Detach(ctx context.Context, node string, gone func(string) bool) error {
	return address.Detach(ctx, m.Store, node, gone)
}

// Changed implements Cluster. Unavailable once the store is closed.
func (m *Members) Changed(ctx context.Context) (<-chan struct{}, error) {
	w, err := m.Store.Watch(m.Store.View().Revision(), cluster.KindCluster, cluster.KindNode)
	out := make(chan struct{})
	if errdefs.IsOutOfRange(err) {
		close(out) // something has changed already
		return out, nil
	}
	if err != nil {
		return nil, fmt.Errorf("members: %w", err)
	}
	go func() {
		defer close(out)
		_, _ = w.Next(ctx)
	}()
	return out, nil
}

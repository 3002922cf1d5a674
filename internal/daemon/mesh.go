package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/mesh"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/network/lb"
	"escale.dev/escale/internal/network/overlay"
	"github.com/containerd/errdefs"
)

// meshEngine is the engine as the mesh has it.
type meshEngine struct {
	node     string
	s        store.Store
	networks *network.Manager
	overlay  *overlay.Driver
	under    overlay.Underlay
}

var _ mesh.Engine = (*meshEngine)(nil)

// Set implements mesh.Engine.
func (e *meshEngine) Set(ctx context.Context, n mesh.Network) error {
	if err := e.underlay(); err != nil {
		return err
	}
	if _, err := e.networks.Inspect(n.ID); err != nil {
		return err
	}
	peers := make([]overlay.Peer, len(n.Peers))
	for i, p := range n.Peers {
		peers[i] = overlay.Peer{Addr: p.Addr, MAC: p.MAC, VTEP: p.Node}
	}
	services := network.Services{Names: n.Names}
	for _, s := range n.Services {
		services.Balanced = append(services.Balanced, lb.Service{VIP: s.VIP, Backends: s.Backends})
	}
	return errors.Join(e.overlay.SetPeers(ctx, n.ID, peers), e.networks.SetServices(ctx, n.ID, services))
}

// underlay lets the driver know by which address this node is reached, once that has changed.
func (e *meshEngine) underlay() error {
	v := e.s.View()
	u := overlay.Underlay{}
	if n, err := store.Find[*cluster.Node](v, e.node); err == nil {
		u.Local, _ = netip.ParseAddr(cmp.Or(n.Status.DataPathAddr, n.Status.Addr)) // else there is nobody to reach
	}
	if c, err := store.Named[*cluster.Cluster](v, cluster.DefaultCluster); err == nil {
		u.Port = c.Status.DataPathPort
	}
	if u == e.under {
		return nil
	}
	if err := e.overlay.SetUnderlay(u); err != nil {
		return err
	}
	e.under = u
	return nil
}

// Have implements mesh.Engine.
func (e *meshEngine) Have() (out []string) {
	for _, i := range e.networks.List() {
		if i.Driver == e.overlay.Type() {
			out = append(out, i.ID)
		}
	}
	return out
}

// Drop implements mesh.Engine.
func (e *meshEngine) Drop(ctx context.Context, id string) error {
	err := e.networks.Remove(ctx, id)
	if errdefs.IsPermissionDenied(err) { // Docker's kind for one that has endpoints
		return fmt.Errorf("%w: %w", err, errdefs.ErrConflict)
	}
	return err
}

package daemon

import (
	"context"
	"errors"
	"fmt"

	"escale.dev/escale/internal/cluster/mesh"
	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/network/lb"
	"escale.dev/escale/internal/network/overlay"
	"github.com/containerd/errdefs"
)

// meshEngine is the engine as the mesh has it.
type meshEngine struct {
	networks *network.Manager
	overlay  *overlay.Driver
}

var _ mesh.Engine = (*meshEngine)(nil)

// Set implements mesh.Engine.
func (e *meshEngine) Set(ctx context.Context, n mesh.Network) error {
	e.overlay.SetUnderlay(overlay.Underlay{Local: n.Local, Port: n.Port})
	if _, err := e.networks.Find(n.ID); err != nil {
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

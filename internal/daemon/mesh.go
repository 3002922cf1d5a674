package daemon

import (
	"context"
	"errors"
	"fmt"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/mesh"
	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/network/lb"
	"escale.dev/escale/internal/network/overlay"
	"escale.dev/escale/internal/network/overlay/esp"
	"github.com/containerd/errdefs"
)

// meshEngine is the engine as the mesh has it.
type meshEngine struct {
	networks *network.Manager
	overlay  *overlay.Driver
	span     func(ctx context.Context, id string) error // makes a network of the cluster's here
}

var _ mesh.Engine = (*meshEngine)(nil)

// Set implements mesh.Engine.
func (e *meshEngine) Set(ctx context.Context, n mesh.Network) error {
	e.overlay.SetUnderlay(overlay.Underlay{Local: n.Local, Port: n.Port})
	here, err := e.have(ctx, n)
	if err != nil {
		return err
	}
	if len(n.Ports) > 0 && !n.Ingress { // the network has gone, and its tasks go on
		if !here.Ingress {
			return nil
		}
		return e.networks.SetIngress(ctx, published(n))
	}
	peers := make([]overlay.Peer, len(n.Peers))
	for i, p := range n.Peers {
		peers[i] = overlay.Peer{Addr: p.Addr, MAC: p.MAC, VTEP: p.Node}
	}
	services := network.Services{Names: n.Names}
	for _, s := range n.Services {
		services.Balanced = append(services.Balanced, lb.Service{VIP: s.VIP, Backends: s.Backends})
	}
	if err := e.overlay.SetKeys(ctx, n.ID, espKeys(n.Keys)); err != nil {
		return err
	}
	err = errors.Join(e.overlay.SetPeers(ctx, n.ID, peers), e.networks.SetServices(ctx, n.ID, services))
	if n.Ingress {
		err = errors.Join(err, e.networks.SetIngress(ctx, published(n)))
	}
	return err
}

// espKeys are the keys of a network as its driver has them.
func espKeys(k cluster.NetworkKeys) esp.Keys {
	one := func(k cluster.NetworkKey) esp.Key { return esp.Key{ID: k.ID, Secret: k.Secret} }
	return esp.Keys{Previous: one(k.Previous), Current: one(k.Current), Next: one(k.Next)}
}

// have makes the network of published ports here once there are any; others are made when a
// container wants them. NotFound when it is not here.
func (e *meshEngine) have(ctx context.Context, n mesh.Network) (network.Info, error) {
	here, err := e.networks.Find(n.ID)
	if !errdefs.IsNotFound(err) || !n.Ingress || !n.Placed || len(n.Ports) == 0 {
		return here, err
	}
	if err := e.span(ctx, n.ID); err != nil {
		return here, err
	}
	return e.networks.Find(n.ID)
}

// published are the ports that this node answers, as every node does.
func published(n mesh.Network) network.Ingress {
	in := network.Ingress{Network: n.ID}
	for _, p := range n.Ports {
		out := network.IngressPort{Proto: p.Proto, Port: p.Port, To: p.Target, Group: p.Service}
		for _, t := range p.Tasks {
			out.Backends = append(out.Backends, network.Backend{Addr: t.Addr, Far: t.Far, Rests: t.Rests})
		}
		in.Ports = append(in.Ports, out)
	}
	return in
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

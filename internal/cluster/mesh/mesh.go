// Package mesh tells a node's engine what there is on the cluster's networks that it is on:
// which addresses are on other nodes, which names there are, and who serves the address of a
// service. It watches what the store shows of the cluster and tells what has changed.
package mesh

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/address"
	"github.com/containerd/errdefs"
)

// Peer is an address on another node.
type Peer struct {
	Addr netip.Addr
	MAC  net.HardwareAddr
	Node netip.Addr // where packets for it go
}

// Service is the address of a service, and those who serve it: the tasks that run and are
// well, and are not to end.
type Service struct {
	VIP      netip.Addr
	Backends []netip.Addr
}

// Network is what there is on a network, but for this node's own containers.
type Network struct {
	ID       string
	Local    netip.Addr // of this node, as the others reach it; the zero Addr: that is not known
	Port     uint16     // UDP, by which nodes reach each other; 0: the usual one
	Peers    []Peer
	Names    map[string][]netip.Addr
	Services []Service
	// Keys are those of an encrypted network; without a current one they are not known.
	Keys cluster.NetworkKeys
	// Ingress says that it is that of published ports: an engine that has not got it makes it
	// once it is Placed, which is to say that this node has an address there.
	Ingress, Placed bool
	Ports           []Port
}

// Engine has the networks. Its methods block; NotFound when it does not have that one.
type Engine interface {
	// Set says all that there is on a network.
	Set(ctx context.Context, n Network) error
	// Have are the ids of the cluster's networks that it has.
	Have() []string
	// Drop removes a network that is not the cluster's any more. Idempotent. Conflict as long
	// as somebody is on it.
	Drop(ctx context.Context, id string) error
}

// Mesh tells an engine of the cluster's networks.
type Mesh struct {
	node string
	s    store.Store
	e    Engine
	log  *slog.Logger
	told map[string]Network
}

// New makes a Mesh of a node; nothing happens before Run.
func New(node string, s store.Store, e Engine, log *slog.Logger) *Mesh {
	return &Mesh{node: node, s: s, e: e, log: log, told: map[string]Network{}}
}

// patience is how long the mesh waits before it tries again what could not be done.
const patience = time.Second

// Run tells the engine until ctx ends, and blocks.
func (m *Mesh) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		v := m.s.View()
		w, err := m.s.Watch(v.Revision(), cluster.KindCluster, cluster.KindTask, cluster.KindService, cluster.KindNetwork, cluster.KindNode, cluster.KindSecret)
		if errdefs.IsOutOfRange(err) {
			continue // between the two lines above much was written
		}
		if err != nil {
			return err
		}
		todo := map[string]bool{}
		for _, n := range store.List[*cluster.Network](v) {
			todo[n.ID] = n.Overlay()
		}
		for _, id := range m.e.Have() {
			todo[id] = true
		}
		if err := m.follow(ctx, w, todo); !errdefs.IsOutOfRange(err) {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		m.log.Warn("the mesh was slower than the changes: it looks at all networks anew")
	}
	return nil
}

// follow looks at networks as changes come, until the watch fails.
func (m *Mesh) follow(ctx context.Context, w *store.Watch, todo map[string]bool) error {
	for {
		v := m.s.View()
		for id, look := range todo {
			if !look || m.look(ctx, v, id) {
				delete(todo, id)
			}
		}
		wait, cancel := ctx, context.CancelFunc(func() {})
		if len(todo) > 0 {
			wait, cancel = context.WithTimeout(ctx, patience)
		}
		commits, err := w.Next(wait)
		again := wait.Err() != nil && ctx.Err() == nil
		cancel()
		if err != nil && !again {
			return err
		}
		for _, c := range commits {
			for _, e := range c.Events {
				for _, id := range m.concerns(v, e) {
					todo[id] = true
				}
			}
		}
	}
}

// concerns are the networks that a change is about.
func (m *Mesh) concerns(v store.View, e store.Event) (out []string) {
	for _, o := range []cluster.Object{e.Old, e.New} {
		switch o := o.(type) {
		case *cluster.Network:
			if o != nil && o.Overlay() {
				out = append(out, o.ID)
			}
		case *cluster.Service:
			for _, a := range o.Status.VIPs {
				out = append(out, a.Network)
			}
			if in := address.Ingress(v); in != nil && slices.ContainsFunc(slices.Concat(o.Spec.Ports, o.Status.Ports), address.Meshed) {
				out = append(out, in.ID)
			}
			for _, t := range store.List[*cluster.Task](v, store.Owner(o.ID)) { // it has no address of its own
				for _, a := range t.Addresses {
					out = append(out, a.Network)
				}
			}
		case *cluster.Task:
			for _, a := range o.Addresses {
				out = append(out, a.Network)
			}
		case *cluster.Node:
			if in := address.Ingress(v); in != nil && e.Old != nil && e.New != nil && e.Old.(*cluster.Node).Status.Ready != e.New.(*cluster.Node).Status.Ready {
				out = append(out, in.ID)
			}
			if e.Old == nil || e.New == nil || vtep(e.Old.(*cluster.Node)) != vtep(e.New.(*cluster.Node)) {
				out = append(out, overlays(v)...)
			}
		case *cluster.Secret:
			if o != nil && o.Internal() {
				out = append(out, o.Spec.Network)
			}
		case *cluster.Cluster:
			if e.Old == nil || e.New == nil || e.Old.(*cluster.Cluster).Status.DataPathPort != e.New.(*cluster.Cluster).Status.DataPathPort {
				out = append(out, overlays(v)...)
			}
		}
	}
	return out
}

func overlays(v store.View) (out []string) {
	for _, n := range store.List[*cluster.Network](v) {
		if n.Overlay() {
			out = append(out, n.ID)
		}
	}
	return out
}

// look tells the engine of one network if something has changed; false: again later.
func (m *Mesh) look(ctx context.Context, v store.View, id string) bool {
	n := Of(v, m.node, id)
	if _, err := store.Find[*cluster.Network](v, id); err != nil && len(n.Ports) == 0 {
		delete(m.told, id)
		if err := m.e.Drop(ctx, id); err != nil && !errdefs.IsNotFound(err) {
			if ctx.Err() == nil && !errdefs.IsConflict(err) {
				m.log.Error("a network that is not the cluster's any more cannot be removed: trying again", "network", id, "error", err)
			}
			return false
		}
		return true
	}
	if old, ok := m.told[id]; ok && reflect.DeepEqual(old, n) {
		return true
	}
	switch err := m.e.Set(ctx, n); {
	case err == nil:
		m.told[id] = n
	case errdefs.IsNotFound(err):
		delete(m.told, id) // it is not here; whoever makes it has it told by a later change
	default:
		if ctx.Err() == nil {
			m.log.Error("an engine cannot be told what there is on a network: trying again", "network", id, "error", err)
		}
		return false
	}
	return true
}

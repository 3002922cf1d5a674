package mesh

import (
	"cmp"
	"net/netip"
	"slices"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/address"
	"github.com/moby/moby/api/types/network"
)

// Port is one that every node answers, on behalf of a service.
type Port struct {
	Service string // id
	Proto   network.IPProtocol
	Port    uint16 // of nodes
	Target  uint16 // of tasks
	Tasks   []Backend
}

// Backend is a task of a service, by its address on the network of published ports.
type Backend struct {
	Addr  netip.Addr
	Far   bool // on another node
	Rests bool // nothing new is to go to it; it has not ended
}

// ports are those that nodes answer by the network of published ports. When a host has left its
// cluster with its apps, their tasks are on it though the network is no more.
func (b *builder) ports(network string) (out []Port) {
	tasks := map[string][]Backend{}
	for _, t := range store.List[*cluster.Task](b.v, store.On(network)) {
		if t.Status.State.Ended() || t.Node == "" || !b.alive(t.Node) {
			continue
		}
		for _, a := range t.Addresses {
			if a.Network == network {
				tasks[t.Owner] = append(tasks[t.Owner], Backend{Addr: a.Addr.Addr(), Far: t.Node != b.node, Rests: !serves(t)})
			}
		}
	}
	n := address.Ingress(b.v)
	there := n != nil && n.ID == network
	if there && n.Spec.Removed {
		return nil
	}
	for _, s := range store.List[*cluster.Service](b.v) {
		list, ports := tasks[s.ID], s.Status.Ports
		if !there { // what was settled has gone with the network
			ports = s.Spec.Ports
		}
		if s.Spec.Endpoint == cluster.EndpointDNSRR || !there && len(list) == 0 {
			continue
		}
		slices.SortFunc(list, func(a, b Backend) int { return a.Addr.Compare(b.Addr) })
		for _, p := range ports {
			if address.Meshed(p) && !p.Open() {
				out = append(out, Port{Service: s.ID, Proto: p.Proto, Port: p.Published, Target: p.Target, Tasks: list})
			}
		}
	}
	slices.SortFunc(out, func(a, b Port) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Service, b.Service), cmp.Compare(a.Target, b.Target))
	})
	return slices.CompactFunc(out, func(a, b Port) bool { return a.Port == b.Port && a.Proto == b.Proto })
}

// alive tells whether a node is not known to be lost: of one that is, nobody can say what its
// tasks do.
func (b *builder) alive(node string) bool {
	n, err := store.Find[*cluster.Node](b.v, node)
	return err != nil || n.Status.Ready || node == b.node
}

package mesh

import (
	"cmp"
	"net"
	"net/netip"
	"slices"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/address"
)

// serves tells whether new connections are to go to a task. One that is to end is out before
// its container gets its signal: both happen as its end is written.
func serves(t *cluster.Task) bool {
	return t.Status.State == cluster.TaskRunning && t.Status.Healthy && !t.Halted && !t.Desired.Stops()
}

// vtep is where packets for a node go; the zero Addr: that is not known.
func vtep(n *cluster.Node) netip.Addr {
	text := cmp.Or(n.Status.DataPathAddr, n.Status.Addr)
	if host, _, err := net.SplitHostPort(text); err == nil {
		text = host
	}
	a, _ := netip.ParseAddr(text)
	return a.Unmap()
}

// Of is what a view tells a node of a network.
func Of(v store.View, node, id string) Network {
	b := builder{v: v, node: node, n: Network{ID: id, Names: map[string][]netip.Addr{}}, nodes: map[string]netip.Addr{}, serving: map[string][]netip.Addr{}}
	b.n.Local = b.at(node)
	if c, err := store.Named[*cluster.Cluster](v, cluster.DefaultCluster); err == nil {
		b.n.Port = c.Status.DataPathPort
	}
	for _, t := range store.List[*cluster.Task](v, store.On(id)) {
		b.task(t)
	}
	n, err := store.Find[*cluster.Network](v, id)
	if err == nil {
		for _, a := range n.Status.Attached {
			b.peers(a.Node, a.Addrs)
			b.n.Placed = b.n.Placed || a.Node == node && a.Container == ""
		}
		b.services(n)
		b.n.Ingress = n.Ingress()
		if s, err := store.Named[*cluster.Secret](v, cluster.KeysOf(id)); err == nil && n.Encrypted() {
			b.n.Keys, _ = cluster.ReadNetworkKeys(s.Spec.Data) // what cannot be read is not known
		}
	}
	if err != nil || n.Ingress() {
		b.n.Ports = b.ports(id)
	}
	slices.SortFunc(b.n.Peers, func(a, b Peer) int { return a.Addr.Compare(b.Addr) })
	slices.SortFunc(b.n.Services, func(a, b Service) int { return a.VIP.Compare(b.VIP) })
	return b.n
}

type builder struct {
	v       store.View
	node    string
	n       Network
	nodes   map[string]netip.Addr   // by id, those that were asked for
	serving map[string][]netip.Addr // by service
}

// at is where packets for a node go. Of thousands of nodes a network concerns a few.
func (b *builder) at(node string) netip.Addr {
	a, known := b.nodes[node]
	if !known {
		if n, err := store.Find[*cluster.Node](b.v, node); err == nil {
			a = vtep(n)
		}
		b.nodes[node] = a
	}
	return a
}

// task notes where a task is and whether it serves.
func (b *builder) task(t *cluster.Task) {
	if t.Status.State.Ended() || t.Node == "" {
		return
	}
	var mine []netip.Prefix
	for _, a := range t.Addresses {
		if a.Network == b.n.ID {
			mine = append(mine, a.Addr)
		}
	}
	b.peers(t.Node, mine)
	if !serves(t) {
		return
	}
	for _, p := range mine {
		b.serving[t.Owner] = append(b.serving[t.Owner], p.Addr())
		if t.Node != b.node { // this node's own containers have their names already
			b.n.Names[t.ContainerName()] = append(b.n.Names[t.ContainerName()], p.Addr())
		}
	}
}

// peers notes addresses of a node.
func (b *builder) peers(node string, addrs []netip.Prefix) {
	if node == b.node {
		return
	}
	at := b.at(node)
	if !at.IsValid() || len(addrs) == 0 {
		return
	}
	mac := cluster.MAC(addrs[0].Addr()) // of IPv4, where there is one: it comes first
	for _, p := range addrs {
		b.n.Peers = append(b.n.Peers, Peer{Addr: p.Addr(), MAC: mac, Node: at})
	}
}

// services notes the addresses and names of services that have tasks, or an address, on the
// network.
func (b *builder) services(n *cluster.Network) {
	ids := map[string]bool{}
	for id := range b.serving {
		ids[id] = true
	}
	for _, s := range store.List[*cluster.Service](b.v, store.On(n.ID)) {
		ids[s.ID] = true
	}
	for id := range ids {
		s, err := store.Find[*cluster.Service](b.v, id)
		if err != nil {
			continue
		}
		serving := b.serving[id]
		slices.SortFunc(serving, netip.Addr.Compare)
		var vips []netip.Addr
		for _, a := range s.Status.VIPs {
			if a.Network == n.ID {
				vips = append(vips, a.Addr.Addr())
				b.n.Services = append(b.n.Services, Service{VIP: a.Addr.Addr(), Backends: family(serving, a.Addr.Addr())})
			}
		}
		if n.Ingress() {
			continue // it is for published ports: nobody is found by name there
		}
		at := serving
		if len(vips) > 0 {
			at = vips
		}
		for _, name := range append([]string{s.Name}, b.aliases(s, n)...) {
			b.name(name, at)
		}
		b.name("tasks."+s.Name, serving)
	}
}

func (b *builder) name(name string, addrs []netip.Addr) {
	if len(addrs) == 0 {
		return
	}
	all := append(slices.Clone(b.n.Names[name]), addrs...)
	slices.SortFunc(all, netip.Addr.Compare)
	b.n.Names[name] = slices.Compact(all)
}

// aliases are the further names of a service on a network.
func (b *builder) aliases(s *cluster.Service, n *cluster.Network) []string {
	for _, a := range s.Spec.Networks {
		if o := address.Overlay(b.v, a.Network); o != nil && o.ID == n.ID && a.Settings != nil {
			return slices.DeleteFunc(slices.Clone(a.Settings.Aliases), func(name string) bool { return name == s.Name })
		}
	}
	return nil
}

// family are the addresses that are of the same family as one.
func family(list []netip.Addr, as netip.Addr) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(list), func(a netip.Addr) bool { return a.Is4() != as.Is4() })
}

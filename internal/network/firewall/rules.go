// Package firewall is what an engine has in nftables: address translation for
// published ports, masquerading of what leaves, and the guards around both.
//
// An engine has one table, "escale-<instance>", of the family ip. Its rules
// depend on the networks only; a published port is one element of a map, so that
// a container costs the same among ten as among a thousand. Tables of others are
// left alone, but for the tagged rules of foreign.go.
package firewall

import (
	"net/netip"

	"escale.dev/escale/internal/sys/nft"
)

// Network is a bridge whose containers reach the outside through this host.
type Network struct {
	Bridge   string
	V4, V6   Family // the zero Family: the network has no addresses of it
	ICC      bool   // containers may reach each other
	Internal bool   // nothing goes in or out but to the bridge's own subnets
}

// Family is one address family of a network.
type Family struct {
	Subnet     netip.Prefix
	Mode       Mode
	Masquerade bool       // what leaves bears the host's address; with mode NAT and NATUnprotected only
	Source     netip.Addr // what leaves bears this address of the host; the zero Addr: that of the link by which it leaves
}

// Mode is how packets come to a network's containers from outside, and with
// which addresses theirs leave: Docker's gateway_mode_ipv4 and gateway_mode_ipv6.
type Mode uint8

// The modes.
const (
	NAT            Mode = iota // published ports are translated; nothing else comes in
	NATUnprotected             // the same, and whatever is routed to the containers' own addresses comes in
	Routed                     // no translation: ports that are published are open at the container's address
	Isolated                   // the host has no address on the bridge
)

// Port is a published port: what comes to Host is sent on to To.
type Port struct {
	Proto uint8          // IPPROTO_TCP, IPPROTO_UDP, IPPROTO_SCTP
	Host  netip.AddrPort // the address is unspecified for all of the host's of that family
	To    netip.AddrPort
	// Group is empty for a port that is one endpoint's alone; endpoints that name
	// one group share Host, and connections are spread over them.
	Group string
}

// The maps of the table. A binding to one address of the host comes before one
// to all of them.
var (
	hostPorts = nft.Map{Name: "host_ports", Key: []nft.Type{nft.Addr, nft.Proto, nft.Port}, Value: []nft.Type{nft.Addr, nft.Port}}
	ports     = nft.Map{Name: "ports", Key: []nft.Type{nft.Proto, nft.Port}, Value: []nft.Type{nft.Addr, nft.Port}}
)

// loopback is 127.0.0.0/8.
var loopback = netip.PrefixFrom(netip.AddrFrom4([4]byte{127}), 8)

// TableName is the name of an instance's table.
func TableName(instance string) string { return "escale-" + instance }

// Rules is the table of an instance with these networks.
func Rules(instance string, networks []Network) nft.Table {
	return nft.Table{
		Name: TableName(instance),
		Maps: []nft.Map{hostPorts, ports},
		Chains: []nft.Chain{
			{Name: "guard", Base: &nft.Base{Type: "filter", Hook: "prerouting", Priority: -300}, Rules: guard(networks)},
			{Name: "prerouting", Base: &nft.Base{Type: "nat", Hook: "prerouting", Priority: -100}, Rules: local()},
			{Name: "output", Base: &nft.Base{Type: "nat", Hook: "output", Priority: -100}, Rules: local()},
			{Name: "publish", Rules: []nft.Rule{{nft.Translate(hostPorts)}, {nft.Translate(ports)}}},
			{Name: "forward", Base: &nft.Base{Type: "filter", Hook: "forward", Priority: 0}, Rules: forward(networks)},
			{Name: "postrouting", Base: &nft.Base{Type: "nat", Hook: "postrouting", Priority: 100}, Rules: postrouting(networks)},
		},
	}
}

// local sends what is meant for this host through the published ports.
func local() []nft.Rule { return []nft.Rule{{nft.ToLocal(), nft.Jump("publish")}} }

// guard drops what cannot be honest. Loopback addresses are refused by the
// kernel's routing, but translation comes before routing, and the bridges accept
// them so that 127.0.0.1 works from the host (route_localnet).
func guard(networks []Network) []nft.Rule {
	rules := []nft.Rule{{nft.NotIIf("lo"), nft.To(loopback), nft.Drop()}}
	for _, n := range networks {
		rules = append(rules, nft.Rule{nft.IIf(n.Bridge), nft.NotFrom(n.V4.Subnet), nft.Drop()})
	}
	return rules
}

// forward lets into a bridge only answers, published ports and, if so
// configured, its own containers. What leaves a bridge is decided by the rules
// of where it goes.
func forward(networks []Network) []nft.Rule {
	var rules []nft.Rule
	for _, n := range networks {
		rules = append(rules, nft.Rule{nft.OIf(n.Bridge), nft.Established(), nft.Accept()})
		if n.ICC {
			rules = append(rules, nft.Rule{nft.IIf(n.Bridge), nft.OIf(n.Bridge), nft.Accept()})
		}
		rules = append(rules,
			nft.Rule{nft.OIf(n.Bridge), nft.Translated(), nft.Accept()},
			nft.Rule{nft.OIf(n.Bridge), nft.Drop()})
	}
	return rules
}

// postrouting gives packets an address to which the answer finds back: the
// bridge's for the host's loopback and for containers that reach a published
// port on their own bridge (the answer would otherwise go directly from port to
// port of the bridge and never be translated back), the host's for what leaves.
func postrouting(networks []Network) []nft.Rule {
	var rules []nft.Rule
	for _, n := range networks {
		rules = append(rules,
			nft.Rule{nft.OIf(n.Bridge), nft.From(loopback), nft.Masquerade()},
			nft.Rule{nft.OIf(n.Bridge), nft.From(n.V4.Subnet), nft.Translated(), nft.Masquerade()})
		if n.V4.Masquerade {
			rules = append(rules, nft.Rule{nft.NotOIf(n.Bridge), nft.From(n.V4.Subnet), nft.Masquerade()})
		}
	}
	return rules
}

// place is where a port stands in the table.
func (p Port) place() (mapName string, e nft.Element) {
	e.Value = nft.Bytes(p.To.Addr(), p.To.Port())
	if p.Host.Addr().IsUnspecified() {
		e.Key = nft.Bytes(p.Proto, p.Host.Port())
		return ports.Name, e
	}
	e.Key = nft.Bytes(p.Host.Addr(), p.Proto, p.Host.Port())
	return hostPorts.Name, e
}

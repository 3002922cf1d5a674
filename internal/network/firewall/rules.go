// Package firewall is what an engine has in nftables: address translation for
// published ports, masquerading of what leaves, and the guards around both.
//
// An engine has one table, "escale-<instance>", of the family inet. Its chains
// depend on the networks; a published port is one element of a map, so that a
// container costs the same among ten as among a thousand, and a packet meets the
// chains of its own networks only. The chain "user" is the administrator's: it is
// made and never changed. Tables of others are left alone, but for the tagged
// rules of foreign.go.
package firewall

import (
	"net/netip"

	"escale.dev/escale/internal/sys/nft"
	"golang.org/x/sys/unix"
)

// Network is a bridge whose containers reach the outside through this host.
type Network struct {
	Bridge   string
	V4, V6   Family // the zero Family: the network has no addresses of it
	ICC      bool   // containers may reach each other
	Internal bool   // nothing goes in or out but to the bridge's own subnets
	// Trusted are links of the host; what comes in by them reaches published ports at the
	// containers' own addresses.
	Trusted []string
}

// Family is one address family of a network.
type Family struct {
	Subnet     netip.Prefix
	Host       netip.Addr // the host's address on the bridge, which no container may claim; the zero Addr: none
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
	Isolated                   // the host has no address on the bridge: nothing goes in or out
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

// publication is what of the table belongs to one address family: where packets
// to the host go. A binding to one address of the host comes before one to all of
// them, and a port of one container before one that several share.
type publication struct {
	hostPorts, ports   nft.Map // to the address and port of a container
	hostGroups, groups nft.Map // to the chain that spreads connections
	open               nft.Map // ports that are open at the container's own address
	only               nft.Stmt
}

func publicationOf(suffix string, addr nft.Type, only nft.Stmt) publication {
	long, short := []nft.Type{addr, nft.Proto, nft.Port}, []nft.Type{nft.Proto, nft.Port}
	to, verdict := []nft.Type{addr, nft.Port}, []nft.Type{nft.Verdict}
	return publication{
		hostPorts:  nft.Map{Name: "host_ports" + suffix, Key: long, Value: to},
		ports:      nft.Map{Name: "ports" + suffix, Key: short, Value: to},
		hostGroups: nft.Map{Name: "host_groups" + suffix, Key: long, Value: verdict},
		groups:     nft.Map{Name: "groups" + suffix, Key: short, Value: verdict},
		open:       nft.Map{Name: "open" + suffix, Key: long},
		only:       only,
	}
}

// The publications, and the maps from a bridge to the chain of what comes from it
// or goes to it.
var (
	published4 = publicationOf("", nft.Addr4, nft.Only4())
	published6 = publicationOf("6", nft.Addr6, nft.Only6())

	byLink = func(name string) nft.Map {
		return nft.Map{Name: name, Key: []nft.Type{nft.Link}, Value: []nft.Type{nft.Verdict}}
	}
	bridges = nft.Map{Name: "bridges", Key: []nft.Type{nft.Link}}
)

func publicationFor(a netip.Addr) publication {
	if a.Is4() {
		return published4
	}
	return published6
}

var (
	loopback4 = netip.MustParsePrefix("127.0.0.0/8")
	loopback6 = netip.MustParsePrefix("::1/128")
	// What an IPv6 host says before and beside the addresses that it was given.
	linkLocal6 = netip.MustParsePrefix("fe80::/10")
	nowhere6   = netip.MustParsePrefix("::/128")
)

// UserChain begins the names of chains and sets of the table that are the
// administrator's: they are never changed. The one that bears just this name is
// asked first about all that is forwarded.
const UserChain = "user"

// TableName is the name of an instance's tables.
func TableName(instance string) string { return "escale-" + instance }

// Rules is the table of an instance with these networks, without groups.
func Rules(instance string, networks []Network) nft.Table {
	return rules(instance, networks, nil, Mesh{}, nil)
}

func rules(instance string, networks []Network, shared groups, mesh Mesh, sealed []Sealed) nft.Table {
	b := builder{guards: byLink("guards"), in: byLink("in"), out: byLink("out"), back: byLink("back"), leave: byLink("leave"), bridges: bridges}
	for _, n := range networks {
		b.network(n)
	}
	p4, p6 := published4, published6
	shared = mesh.places(shared)
	shared.define(&p4, &p6)
	t := nft.Table{Family: nft.Inet, Name: TableName(instance), Kept: UserChain}
	for _, p := range []publication{p4, p6} {
		t.Maps = append(t.Maps, p.hostPorts, p.ports, p.hostGroups, p.groups, p.open)
	}
	t.Maps = append(t.Maps, b.bridges, b.guards, b.out, b.in, b.back, b.leave)
	t.Chains = []nft.Chain{
		{Name: UserChain},
		{Name: "guard", Base: &nft.Base{Type: "filter", Hook: "prerouting", Priority: -300}, Rules: []nft.Rule{
			// The kernel's routing refuses loopback addresses, but translation comes
			// before routing, and the bridges accept them so that 127.0.0.1 works
			// from the host (route_localnet).
			{nft.NotIIf("lo"), nft.To(loopback4), nft.Drop()},
			{nft.IIfVerdict(b.guards)},
		}},
		{Name: "prerouting", Base: &nft.Base{Type: "nat", Hook: "prerouting", Priority: -100}, Rules: local()},
		{Name: "output", Base: &nft.Base{Type: "nat", Hook: "output", Priority: -100}, Rules: local()},
		{Name: "publish", Rules: publish(p4, p6)},
		{Name: "forward", Base: &nft.Base{Type: "filter", Hook: "forward", Priority: 0}, Rules: []nft.Rule{
			{nft.Jump(UserChain)}, {nft.IIfVerdict(b.out)}, {nft.OIfVerdict(b.in)},
		}},
		{Name: "postrouting", Base: &nft.Base{Type: "nat", Hook: "postrouting", Priority: 100}, Rules: []nft.Rule{
			{nft.OIfVerdict(b.back)}, {nft.IIfVerdict(b.leave)},
		}},
	}
	t.Chains = append(append(t.Chains, b.chains...), shared.chains()...)
	mesh.enter(&t)
	guardSealed(&t, sealed)
	return t
}

// local sends what is meant for this host through the published ports.
func local() []nft.Rule { return []nft.Rule{{nft.ToLocal(), nft.Jump("publish")}} }

// publish looks up where a packet to the host goes. A source ::1 cannot leave
// the loopback link, unlike 127.0.0.1: what goes to it is forwarded by a program.
func publish(families ...publication) []nft.Rule {
	rules := []nft.Rule{{nft.To(loopback6), nft.Return()}}
	for _, p := range families {
		rules = append(rules,
			nft.Rule{nft.Translate(p.hostPorts)},
			nft.Rule{nft.ToVerdict(p.hostGroups)},
			nft.Rule{p.only, nft.Translate(p.ports)},
			nft.Rule{p.only, nft.ToVerdict(p.groups)})
	}
	return rules
}

// builder gathers the chains of networks and the maps that lead to them.
type builder struct {
	bridges, guards, out, in, back, leave nft.Map
	chains                                []nft.Chain
}

// chain adds a chain of a bridge and leads to it; one without rules is left out.
func (b *builder) chain(m *nft.Map, bridge string, rules []nft.Rule) {
	if len(rules) == 0 {
		return
	}
	name := m.Name + "-" + bridge
	m.Fixed = append(m.Fixed, nft.Element{Key: nft.Bytes(bridge), Value: "jump " + name})
	b.chains = append(b.chains, nft.Chain{Name: name, Rules: rules})
}

func (b *builder) network(n Network) {
	b.bridges.Fixed = append(b.bridges.Fixed, nft.Element{Key: nft.Bytes(n.Bridge)})
	b.chain(&b.guards, n.Bridge, n.guard())
	b.chain(&b.out, n.Bridge, n.out())
	b.chain(&b.in, n.Bridge, n.in())
	b.chain(&b.back, n.Bridge, n.back())
	b.chain(&b.leave, n.Bridge, n.leave())
}

// side is one family of a network with what its statements need.
type side struct {
	Family
	publication
	icmp uint8
}

// sides are the families that the network has.
func (n Network) sides() []side {
	var out []side
	if n.V4.Subnet.IsValid() {
		out = append(out, side{n.V4, published4, unix.IPPROTO_ICMP})
	}
	if n.V6.Subnet.IsValid() {
		out = append(out, side{n.V6, published6, unix.IPPROTO_ICMPV6})
	}
	return out
}

// guard drops what cannot be honest: sources that the network does not have.
func (n Network) guard() []nft.Rule {
	rule4, rule6 := nft.Rule{nft.Only4(), nft.Drop()}, nft.Rule{nft.Only6(), nft.Drop()}
	if n.V4.Subnet.IsValid() {
		rule4 = nft.Rule{nft.NotFrom(n.V4.Subnet), nft.Drop()}
	}
	if n.V6.Subnet.IsValid() {
		rule6 = nft.Rule{nft.NotFrom(n.V6.Subnet), nft.NotFrom(linkLocal6), nft.NotFrom(nowhere6), nft.Drop()}
	}
	return []nft.Rule{rule4, rule6}
}

// out keeps in what a network's containers may not send outside.
func (n Network) out() []nft.Rule {
	if n.Internal {
		return []nft.Rule{{nft.NotOIf(n.Bridge), nft.Drop()}}
	}
	var rules []nft.Rule
	for _, s := range n.sides() {
		if s.Mode == Isolated {
			rules = append(rules, nft.Rule{nft.NotOIf(n.Bridge), s.only, nft.Drop()})
		}
	}
	return rules
}

// in lets into a bridge only answers, published ports and, if so configured, its
// own containers. What leaves a bridge is decided by the rules of where it goes.
func (n Network) in() []nft.Rule {
	var rules []nft.Rule
	if !n.Internal {
		rules = append(rules, nft.Rule{nft.Established(), nft.Accept()})
	}
	if n.ICC {
		rules = append(rules, nft.Rule{nft.IIf(n.Bridge), nft.Accept()})
	}
	if !n.Internal {
		for _, s := range n.sides() {
			if s.Mode == Isolated {
				rules = append(rules, nft.Rule{s.only, nft.Drop()})
			}
		}
		rules = append(rules, nft.Rule{nft.Translated(), nft.Accept()})
		for _, s := range n.sides() {
			switch s.Mode {
			case NAT:
				for _, link := range n.Trusted {
					rules = append(rules, nft.Rule{nft.IIf(link), nft.ToOneOf(s.open), nft.Accept()})
				}
			case NATUnprotected:
				rules = append(rules, nft.Rule{s.only, nft.IIfNotIn(bridges), nft.Accept()})
			case Routed:
				rules = append(rules,
					nft.Rule{nft.ToOneOf(s.open), nft.Accept()},
					nft.Rule{nft.Protocol(s.icmp), nft.Accept()})
			}
		}
	}
	return append(rules, nft.Rule{nft.Drop()})
}

// back gives packets to containers an address to which the answer finds back: the
// bridge's for the host's loopback and for containers that reach a published port
// on their own bridge (the answer would otherwise go directly from port to port
// of the bridge and never be translated back).
func (n Network) back() []nft.Rule {
	if n.Internal {
		return nil
	}
	var rules []nft.Rule
	for _, s := range n.sides() {
		if s.Mode != NAT && s.Mode != NATUnprotected {
			continue
		}
		if s.Subnet.Addr().Is4() {
			rules = append(rules, nft.Rule{nft.From(loopback4), nft.Masquerade()})
		}
		rules = append(rules, nft.Rule{nft.From(s.Subnet), nft.Translated(), nft.Masquerade()})
	}
	return rules
}

// leave gives what leaves the address of the host.
func (n Network) leave() []nft.Rule {
	if n.Internal {
		return nil
	}
	var rules []nft.Rule
	for _, s := range n.sides() {
		if !s.Masquerade || s.Mode != NAT && s.Mode != NATUnprotected {
			continue
		}
		as := nft.Masquerade()
		if s.Source.IsValid() {
			as = nft.Source(s.Source)
		}
		rules = append(rules, nft.Rule{nft.NotOIf(n.Bridge), nft.From(s.Subnet), as})
	}
	return rules
}

// routed tells whether a is the address of a container that is reached by it.
func routed(networks []Network, a netip.Addr) bool {
	for _, n := range networks {
		for _, s := range n.sides() {
			if s.Mode == Routed && s.Subnet.Contains(a) {
				return true
			}
		}
	}
	return false
}

// open is the element that lets trusted links reach a port at the container's own
// address; false where no link is trusted, or the port stands there anyway.
func (p Port) open(networks []Network) (mapName string, e nft.Element, ok bool) {
	for _, n := range networks {
		for _, s := range n.sides() {
			if len(n.Trusted) > 0 && s.Mode == NAT && s.Subnet.Contains(p.To.Addr()) {
				e.Key = nft.Bytes(p.To.Addr(), p.Proto, p.To.Port())
				return s.publication.open.Name, e, true
			}
		}
	}
	return "", e, false
}

// place is where a port of its own stands in the table.
func (p Port) place(networks []Network) (mapName string, e nft.Element) {
	if routed(networks, p.To.Addr()) {
		e.Key = nft.Bytes(p.To.Addr(), p.Proto, p.To.Port())
		return publicationFor(p.To.Addr()).open.Name, e
	}
	m := publicationFor(p.Host.Addr())
	e.Value = nft.Bytes(p.To.Addr(), p.To.Port())
	if p.Host.Addr().IsUnspecified() {
		e.Key = nft.Bytes(p.Proto, p.Host.Port())
		return m.ports.Name, e
	}
	e.Key = nft.Bytes(p.Host.Addr(), p.Proto, p.Host.Port())
	return m.hostPorts.Name, e
}

package network

import (
	"context"
	"net"
	"net/netip"

	"escale.dev/escale/internal/network/inside"
	"escale.dev/escale/internal/network/port"
	"escale.dev/escale/internal/sys/netns"
)

// Driver makes networks of one kind and connects namespaces to them. Every
// driver of the engine's own passes the suite in network/networktest. Methods may be called from
// several goroutines; those that change the kernel block until it is done.
type Driver interface {
	// Type is the driver's name as Docker has it: "bridge", "null".
	Type() string

	// Check tells what is wrong with the options of a network that is to be made,
	// in Docker's words. Nothing is touched.
	Check(spec Spec) error

	// Create makes a network, or takes up and repairs the one that an earlier
	// engine left. Idempotent. The Info is without containers; its subnets are those
	// of the Spec, or what the driver has chosen where that has none. On an error
	// nothing is left behind that was not there before.
	Create(ctx context.Context, spec Spec) (Info, error)

	// Delete removes a network and whatever of it is left in the kernel; it must
	// have no endpoints. Idempotent.
	Delete(ctx context.Context, id string) error

	// Join connects the namespace. On an error nothing is left behind. NotFound
	// when there is no such network.
	Join(ctx context.Context, id string, ns *netns.Handle, j Join) (Endpoint, error)

	// Leave undoes Join by what the endpoint says, also when the namespace has
	// gone or the engine has been started anew. Idempotent.
	Leave(ctx context.Context, ep Endpoint) error

	// Restore takes up the endpoints that live, by the id of their network, and
	// repairs them; whatever else the driver finds of this instance in the kernel
	// it removes. It is called after Create and before the first Join.
	Restore(ctx context.Context, live map[string][]Live) error

	// Close lets go of what the driver holds open; networks and endpoints stay.
	Close() error
}

// Publisher is a Driver whose endpoints can have ports published on the host.
type Publisher interface {
	// Publish makes the published ports of an endpoint (Endpoint.Ports) work,
	// all of them or none.
	Publish(ctx context.Context, ep Endpoint) error

	// Unpublish undoes Publish for some endpoints in one step. Idempotent, quick.
	Unpublish(ctx context.Context, eps []Endpoint) error

	// Rotate takes an endpoint that is published and shares its ports out of rotation
	// if it is Resting, else puts it back. Idempotent, quick.
	Rotate(ctx context.Context, ep Endpoint) error
}

// Spreader is a Driver that spreads what comes to ports of the host over places of which some
// are on other hosts.
type Spreader interface {
	// Spread makes these the ports that are spread so, in one step; without any there are
	// none. Far are the addresses that are on other hosts. What has gone astray by then the
	// kernel is told to forget, as well as can be. Idempotent, quick.
	Spread(ctx context.Context, ports []port.Mapping, far []netip.Addr, s Stray) error
}

// Stray is what the kernel remembers of ports that are spread and that is not so any more.
type Stray struct {
	Datagrams map[uint16][]netip.Addr // ports of the host, and who gets what comes to them now
	Ended     []netip.Addr            // those who are no more
	Ports     map[uint16]bool         // by which connections came to them
}

// None tells that nothing has.
func (s Stray) None() bool { return len(s.Datagrams) == 0 && len(s.Ended) == 0 }

// Watcher is a Driver that looks after its networks while the engine runs.
type Watcher interface {
	// Watch blocks until ctx ends. It calls ready once it would see a change.
	Watch(ctx context.Context, ready func()) error
}

// Batcher is a Driver that can make and delete many networks in fewer steps than
// one by one.
type Batcher interface {
	// Batch puts off what can wait of the Create and Delete calls that do makes,
	// and does it once at the end. Not for use by several goroutines at once.
	Batch(do func() error) error
}

// Sharer is a Driver whose networks may lie in the host's own subnets.
type Sharer interface {
	Shares(spec Spec) bool
}

// Gatewayless is a Driver that needs no gateway for some networks: no address is
// taken for one unless the user names it.
type Gatewayless interface {
	NoGateway(spec Spec, v6 bool) bool
}

// Director is a Driver of whose networks some need no gateway for what leaves:
// the default route goes straight onto the link.
type Director interface {
	Direct(spec Spec) bool
}

// Mender is a Driver that makes the links of containers anew that somebody deletes.
type Mender interface {
	// Mends tells the driver how to ask whose a link on the host is: an endpoint of a
	// container that runs. It is called before Watch.
	Mends(whose func(hostLink string) (Live, bool))
}

// Sweeper is a Driver whose endpoints leave nothing on the host by which one could
// be found that was half made or half removed in the namespace of a container that
// lives on.
type Sweeper interface {
	// Sweeps tells whether there may be any.
	Sweeps() bool
	// Sweep removes those of a namespace that are not among the endpoints that live
	// (by id).
	Sweep(ns *netns.Handle, live map[string]bool) error
}

// Guest is a Driver whose endpoints are another's, too: they are given to both to restore,
// to the guest first.
type Guest interface {
	Host() Driver
}

// Spec is a network as it is asked for.
type Spec struct {
	Name       string
	ID         string // 64 hexadecimal digits
	Options    map[string]string
	IPv4, IPv6 bool
	Internal   bool
	Subnets    []Subnet       // of IPv4 first; none of a family that is on: the driver chooses
	Avoid      []netip.Prefix // of other networks: not to be chosen
}

// Subnet is the first subnet of a family; the zero Subnet: none.
func (s *Spec) Subnet(v6 bool) Subnet {
	i := Info{IPAM: IPAM{Subnets: s.Subnets}}
	return i.Subnet(v6)
}

// Join says how a namespace is to be connected.
type Join struct {
	ContainerID string
	EndpointID  string       // 64 hexadecimal digits
	Interface   string       // name of the link inside, "eth0"; empty: the driver of another maker chooses it
	IP, IP6     netip.Prefix // the addresses; the zero Prefix: none of that family
	Gateway     netip.Addr   // where the default route goes; the zero Addr: none
	Gateway6    netip.Addr
	MAC         net.HardwareAddr // empty: the driver's choice
	LinkLocal   []netip.Addr     // further addresses
	Sysctls     []string         // as in Endpoint
	Published   bool             // the endpoint will have published ports

	// For drivers of other makers.
	Path    string            // handle of the namespace
	Taken   map[string]bool   // names of links that the container has or will have
	Options map[string]string // of the endpoint, as asked
	Wants   Wants
}

// Live is an endpoint of a container that lived through a restart of the engine.
type Live struct {
	ContainerID string
	Path        string     // handle of the namespace; nothing may be there any more
	Gateway     netip.Addr // as in Join
	Gateway6    netip.Addr
	Endpoint    Endpoint
}

// Inside is the link inside as it was when the endpoint was made.
func (l Live) Inside() inside.Link {
	ep := l.Endpoint
	in := inside.Link{Name: ep.Interface, Gateway: l.Gateway, Gateway6: l.Gateway6, Sysctls: ep.Sysctls}
	if a, err := netip.ParseAddr(ep.IP); err == nil {
		in.IP = netip.PrefixFrom(a, ep.PrefixLen)
	}
	if a, err := netip.ParseAddr(ep.IP6); err == nil {
		in.IP6 = netip.PrefixFrom(a, ep.PrefixLen6)
	}
	for _, s := range ep.LinkLocal {
		if a, err := netip.ParseAddr(s); err == nil {
			in.LinkLocal = append(in.LinkLocal, a)
		}
	}
	return in
}

// Join is what the endpoint was made from.
func (l Live) Join() (Join, error) {
	ep, in := l.Endpoint, l.Inside()
	mac, err := net.ParseMAC(ep.MAC)
	if err != nil {
		return Join{}, err
	}
	return Join{
		ContainerID: l.ContainerID, EndpointID: ep.EndpointID, Interface: ep.Interface, IP: in.IP, IP6: in.IP6,
		Gateway: l.Gateway, Gateway6: l.Gateway6, MAC: mac, LinkLocal: in.LinkLocal, Sysctls: ep.Sysctls,
	}, nil
}

// Inside is the link inside as the join wants it.
func (j Join) Inside() inside.Link {
	return inside.Link{
		Name: j.Interface, IP: j.IP, IP6: j.IP6, Gateway: j.Gateway, Gateway6: j.Gateway6, LinkLocal: j.LinkLocal, Sysctls: j.Sysctls,
	}
}

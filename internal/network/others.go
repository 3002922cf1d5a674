package network

import (
	"context"
	"net"
	"net/netip"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"
)

// Others are drivers of networks and of addresses that are programs of other
// makers. Such a program may be away, hang or answer nonsense: each method blocks for
// a bounded time, and what one cannot be told is told it later.
type Others interface {
	// Driver finds the driver of a network that is to be made; its Type may be longer than
	// the name. NotFound when there is none.
	Driver(ctx context.Context, name string) (Driver, error)
	// Known is the driver of a network that was made. Nobody is asked.
	Known(name string) Driver
	// Addresses gives out those of an IPAM driver; its full name comes with it. With
	// known it is that of a network that was made, and nobody is asked. NotFound.
	Addresses(ctx context.Context, name string, known bool) (Addresses, string, error)
	// Settle compares what the programs were told by an engine before this one with what
	// there is: by their id the networks and which of these drivers has made them, empty
	// for others, and endpoints by the id of their network. It ends the rest and repairs
	// what is missing. It does not block.
	Settle(networks map[string]string, live map[string][]Live)
	// Uses tells whether a network has a driver of this name.
	Uses(name string) bool
}

// Addresses is an IPAM driver of another maker.
type Addresses interface {
	// Pools requests a pool for each subnet of ask, and the addresses in it that
	// are not for containers. On an error nothing stays requested.
	Pools(ctx context.Context, ask PoolRequest) ([]Subnet, error)
	// Take requests an address for an endpoint. Errors as of ipam.Pool.
	Take(ctx context.Context, ask *AddressRequest) (netip.Prefix, error)
	// GiveBack ends what an endpoint has. Idempotent.
	GiveBack(ctx context.Context, endpoint string)
	// Drop ends what a network has. Idempotent.
	Drop(ctx context.Context, id string)
}

// PoolRequest asks for the subnets of a network.
type PoolRequest struct {
	Network string // id
	Options map[string]string
	// Subnets are those that are wanted; one of a family whose Prefix is that of no
	// address (0.0.0.0/0, ::/0) is left to the driver.
	Subnets []Subnet
	// NoGateway tells for which families no gateway is wanted unless it is named.
	NoGateway func(v6 bool) bool
}

// AddressRequest asks for the address of an endpoint.
type AddressRequest struct {
	Network, Endpoint, Container string           // ids
	Subnet                       netip.Prefix     // the pool's
	Want                         netip.Addr       // the zero Addr: any
	MAC                          net.HardwareAddr // is set if it is empty and the driver wants one
}

// Outside is a Driver that decides itself where what leaves its networks goes.
type Outside interface {
	// Opens tells the driver by which endpoint a container is reached from outside, and
	// that it is so no more. Idempotent.
	Opens(ctx context.Context, ep Endpoint, on bool) error
}

// Wants are published ports as they were asked for.
type Wants struct {
	Bindings network.PortMap
	Exposed  network.PortSet
}

// foreign tells whether a driver is another maker's.
func foreign(d Driver) bool { _, ok := d.(Outside); return ok }

// driver finds a driver of a network that is to be made.
func (b *base) driver(ctx context.Context, name string) (Driver, error) {
	if d, ok := b.drivers[name]; ok {
		return d, nil
	}
	if b.cfg.Others == nil || name == "" {
		return nil, missingPlugin(name)
	}
	return b.cfg.Others.Driver(ctx, name)
}

// addresses finds the IPAM driver of a network; nil: the engine's own.
func (b *base) addresses(ctx context.Context, name string, known bool) (Addresses, string, error) {
	if name == "" || name == defaultIPAM || name == nullIPAM {
		return nil, name, nil
	}
	if b.cfg.Others == nil {
		return nil, "", missingPlugin(name)
	}
	return b.cfg.Others.Addresses(ctx, name, known)
}

// Spanning are the networks that a cluster has beyond this host. Its methods block.
type Spanning interface {
	// Addresses are given out by the cluster.
	Addresses
	// Find finds a network that a container is to be on, by its name or id. NotFound.
	Find(ctx context.Context, ref string) (Spanned, error)
}

// Spanned is a network of the cluster's.
type Spanned struct {
	ID, Name, Driver     string
	Created              time.Time
	IPv4, IPv6           bool
	Internal, Attachable bool
	Ingress              bool // published ports lead to containers by it
	Subnets              []Subnet
	Options, Labels      map[string]string
}

// spanning tells whether the cluster keeps the networks of a driver.
func spanning(driver string) bool { return driver == "overlay" }

// Span makes a network of the cluster's on this host, unless it is there. Kinds: Conflict when
// the name is another network's, Unavailable when its driver is not there, and the driver's.
func (m maker) Span(ctx context.Context, s Spanned) error {
	d, ok := m.drivers[s.Driver]
	if !ok || m.cfg.Spanning == nil {
		return worded(errdefs.ErrUnavailable, "network %s: no driver %q of networks that span nodes", s.Name, s.Driver)
	}
	m.spanning.Lock() // several containers of one service want it at once
	defer m.spanning.Unlock()
	if a, err := m.networks.find(s.ID); err == nil {
		return m.whole(ctx, a)
	}
	if err := m.networks.claim(s.Name); err != nil {
		return err
	}
	defer m.networks.unclaim(s.Name)
	r := &record{
		Format: recordFormat, ID: s.ID, Name: s.Name, Driver: s.Driver, Created: s.Created, EnableIPv4: s.IPv4, EnableIPv6: s.IPv6,
		Internal: s.Internal, Attachable: s.Attachable, Ingress: s.Ingress, Scope: "swarm", IPAM: IPAM{Driver: defaultIPAM, Subnets: s.Subnets},
		Options: s.Options, Labels: s.Labels,
	}
	for i := range r.IPAM.Subnets {
		r.IPAM.Subnets[i].Asked = true
	}
	if err := d.Check(r.spec()); err != nil {
		return err
	}
	return m.make(ctx, makers{driver: d, addresses: m.cfg.Spanning}, r)
}

// spanAll makes those networks of the cluster's that a request is for.
func (m maker) spanAll(ctx context.Context, req Request) error {
	if m.cfg.Spanning == nil {
		return nil
	}
	for ref := range req.Networks {
		if _, err := m.networks.find(canonical(ref)); !errdefs.IsNotFound(err) {
			continue
		}
		s, err := m.cfg.Spanning.Find(ctx, ref)
		if errdefs.IsNotFound(err) {
			continue // the plan tells of it
		}
		if err == nil {
			err = m.Span(ctx, s)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Package address tells which addresses on overlay networks tasks need, and gives out free
// ones. Whoever takes one writes the network, too, in the same commit: two who take at once
// have both changed it, and the second is refused.
package address

import (
	"fmt"
	"net/netip"
	"slices"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/network/ipam"
	"github.com/containerd/errdefs"
)

// Overlay finds the overlay network that an attachment means, by its id or name; nil: it is
// none.
func Overlay(v store.View, ref string) *cluster.Network {
	n, err := store.Find[*cluster.Network](v, ref)
	if err != nil {
		n, err = store.Named[*cluster.Network](v, ref)
	}
	if err != nil { // an app has names of its own for networks
		for _, o := range store.List[*cluster.Network](v) {
			if o.Spec.Name == ref && o.Overlay() {
				return o
			}
		}
		return nil
	}
	if !n.Overlay() {
		return nil
	}
	return n
}

// Ingress is the network of published ports; nil: there is none.
func Ingress(v store.View) *cluster.Network {
	if list := store.List[*cluster.Network](v, store.OfIngress()); len(list) > 0 {
		return list[0]
	}
	return nil
}

// Meshed tells whether a port is published on every node.
func Meshed(p cluster.Port) bool { return !p.Host && p.Address == "" }

// Wanted are the overlay networks that a service's tasks are on: those it names, and that of
// published ports.
func Wanted(v store.View, s *cluster.Service, networks []cluster.Attachment) (out []*cluster.Network) {
	for _, a := range networks {
		if n := Overlay(v, a.Network); n != nil && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	if s != nil && s.Spec.Endpoint != cluster.EndpointDNSRR && slices.ContainsFunc(s.Spec.Ports, Meshed) {
		if n := Ingress(v); n != nil && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

// Missing are the overlay networks on which a task has no address yet. It is to get its node
// when there are none.
func Missing(v store.View, t *cluster.Task) (out []*cluster.Network) {
	s, err := store.Find[*cluster.Service](v, t.Owner)
	if err != nil {
		s = nil
	}
	for _, n := range Wanted(v, s, t.Networks) {
		if !slices.ContainsFunc(t.Addresses, func(a cluster.TaskAddress) bool { return a.Network == n.ID }) {
			out = append(out, n)
		}
	}
	return out
}

// Book gives out addresses of one network, for one commit.
type Book struct {
	v     store.View
	n     *cluster.Network // a copy
	taken map[netip.Addr]bool
}

// Open makes a Book of a network as it is in a view.
func Open(v store.View, n *cluster.Network) *Book {
	return &Book{v: v, n: store.Copy(n), taken: map[netip.Addr]bool{}}
}

// Network is the network as it is to be written.
func (b *Book) Network() *cluster.Network { return b.n }

// Take gives out an address of each family that the network has: the one that is wanted, if one
// is. Unavailable when there is no free one; the kinds of Want for one that cannot be had.
func (b *Book) Take(want ...netip.Addr) (out []netip.Prefix, err error) {
	for _, v6 := range []bool{false, true} {
		have := false
		var got netip.Prefix
		if i := slices.IndexFunc(want, func(a netip.Addr) bool { return a.IsValid() && a.Is6() == v6 }); i >= 0 {
			if got, err = b.Want(want[i]); err != nil {
				b.putBack(out)
				return nil, err
			}
		}
		for i := range b.n.Status.Subnets {
			s := &b.n.Status.Subnets[i]
			if s.Prefix.Addr().Is6() != v6 || got.IsValid() {
				continue
			}
			have = true
			if a, ok := b.next(s); ok {
				got = netip.PrefixFrom(a, s.Prefix.Bits())
			}
		}
		switch {
		case got.IsValid():
			out = append(out, got)
		case have:
			b.putBack(out)
			return nil, Exhausted(b.n, v6)
		}
	}
	return out, nil
}

func (b *Book) putBack(list []netip.Prefix) {
	for _, p := range list {
		delete(b.taken, p.Addr())
	}
}

// TakeOf gives out an address of one subnet. Unavailable when there is no free one.
func (b *Book) TakeOf(subnet netip.Prefix) (netip.Prefix, error) {
	for i := range b.n.Status.Subnets {
		s := &b.n.Status.Subnets[i]
		if s.Prefix != subnet {
			continue
		}
		if a, ok := b.next(s); ok {
			return netip.PrefixFrom(a, s.Prefix.Bits()), nil
		}
	}
	return netip.Prefix{}, Exhausted(b.n, subnet.Addr().Is6())
}

// Exhausted says that a network has no free address, as the engine says it of its own.
func Exhausted(n *cluster.Network, v6 bool) error {
	family := "IPv4"
	if v6 {
		family = "IPv6"
	}
	return errdefs.ErrUnavailable.WithMessage(fmt.Sprintf("no available %s addresses on this network's address pools: %s (%s)", family, n.Spec.Name, n.ID))
}

// Want takes one address that somebody asks for by name. InvalidArgument when it is of no
// subnet of the network, Conflict when it is not free.
func (b *Book) Want(a netip.Addr) (netip.Prefix, error) {
	for i := range b.n.Status.Subnets {
		s := &b.n.Status.Subnets[i]
		switch {
		case !s.Prefix.Contains(a):
		case !b.free(s, a):
			return netip.Prefix{}, errdefs.ErrConflict.WithMessage("Address already in use")
		default:
			b.taken[a] = true
			return netip.PrefixFrom(a, s.Prefix.Bits()), nil
		}
	}
	return netip.Prefix{}, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("no configured subnet or ip-range contain the IP address %s", a))
}

// next gives out the first free address after the one that was given out last: one that
// somebody had a moment ago comes last of all.
func (b *Book) next(s *cluster.Subnet) (netip.Addr, bool) {
	in := s.Prefix.Masked()
	if s.Range.IsValid() {
		in = s.Range.Masked()
	}
	start := s.Last
	if !in.Contains(start) {
		start = ipam.Last(in) // so that the first comes next
	}
	for a := start; ; {
		if a = a.Next(); !in.Contains(a) {
			a = in.Addr()
		}
		if b.free(s, a) {
			b.taken[a], s.Last = true, a
			return a, true
		}
		if a == start {
			return a, false
		}
	}
}

func (b *Book) free(s *cluster.Subnet, a netip.Addr) bool {
	p := s.Prefix.Masked()
	switch {
	case a == s.Gateway, b.taken[a], slices.Contains(s.Aux, a):
		return false
	case p.Bits() < a.BitLen()-1 && (a == p.Addr() || a.Is4() && a == ipam.Last(p)):
		return false
	}
	return !b.v.Taken(b.n.ID, a)
}

package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"escale.dev/escale/internal/network/ipam"
	"github.com/containerd/errdefs"
)

// Auxiliary addresses of these names are where the default route of containers
// goes, while the network's gateway remains the host's address.
const (
	auxGateway4 = "DefaultGatewayIPv4"
	auxGateway6 = "DefaultGatewayIPv6"
)

// pool gives out the addresses of one subnet.
type pool struct {
	*ipam.Pool
	gateway netip.Addr
}

// newPool makes the pool of a subnet, whose auxiliary addresses are others'.
func newPool(s Subnet) (*pool, error) {
	p, err := ipam.New(s.Prefix, s.Range, s.Gateway)
	if err != nil {
		return nil, err
	}
	for name, a := range s.Aux {
		if a == s.Gateway && (name == auxGateway4 || name == auxGateway6) {
			continue // it names the gateway
		}
		if err := p.Reserve(a); err != nil {
			return nil, worded(kindOf(err), "failed to allocate secondary ip address (%s:%s): %s", name, a, err)
		}
	}
	out := &pool{Pool: p, gateway: s.Gateway}
	for _, name := range []string{auxGateway4, auxGateway6} {
		if gw, ok := s.Aux[name]; ok {
			out.gateway = gw
		}
	}
	return out, nil
}

func newPools(subnets []Subnet) ([]*pool, error) {
	var out []*pool
	for _, s := range subnets {
		p, err := newPool(s)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

func (p *pool) is6() bool { return p.Subnet().Addr().Is6() }

// place is an address on a network, and the way out from there.
type place struct {
	prefix  netip.Prefix // the address with the length of its subnet's prefix
	gateway netip.Addr
}

// take takes an address of a family for a join, the one that is wanted if one is; the
// zero place when the network has none of that family. An IPAM driver may set the
// join's MAC. It blocks only for those of other makers.
func (a *attached) take(ctx context.Context, j *Join, v6 bool, want netip.Addr) (place, error) {
	family, have := "IPv4", false
	if v6 {
		family = "IPv6"
	}
	for _, p := range a.pools {
		if p.is6() != v6 {
			continue
		}
		have = true
		at, err := a.takeOf(ctx, p, j, want)
		switch {
		case err == nil:
			return place{at, p.gateway}, nil
		case errors.Is(err, ipam.ErrOutOfRange), errors.Is(err, ipam.ErrExhausted): // the next pool may have it
		default:
			return place{}, err
		}
	}
	switch {
	case have && want.IsValid():
		return place{}, ipam.ErrOutOfRange
	case have:
		return place{}, worded(errdefs.ErrUnavailable, "no available %s addresses on this network's address pools: %s (%s)", family, a.info.Name, a.info.ID)
	case want.IsValid():
		return place{}, worded(errdefs.ErrInvalidArgument, "user specified IP address is supported only when connecting to networks with user configured subnets")
	}
	return place{}, nil
}

// takeOf takes an address of one pool.
func (a *attached) takeOf(ctx context.Context, p *pool, j *Join, want netip.Addr) (at netip.Prefix, err error) {
	if a.addresses != nil {
		if want.IsValid() && !p.Subnet().Contains(want) {
			return at, ipam.ErrOutOfRange
		}
		ask := AddressRequest{Network: a.info.ID, Endpoint: j.EndpointID, Container: j.ContainerID, Subnet: p.Subnet(), Want: want, MAC: j.MAC}
		at, err = a.addresses.Take(ctx, &ask)
		j.MAC = ask.MAC
		return at, err
	}
	ip := want
	if want.IsValid() {
		err = p.Take(want)
	} else {
		ip, err = p.Next()
	}
	return netip.PrefixFrom(ip, p.Subnet().Bits()), err
}

// release gives the addresses of an endpoint back.
func (a *attached) release(ctx context.Context, ep Endpoint) {
	if a.addresses != nil {
		a.addresses.GiveBack(ctx, ep.EndpointID)
		return
	}
	for _, s := range []string{ep.IP, ep.IP6} {
		ip, err := netip.ParseAddr(s)
		if err != nil {
			continue
		}
		for _, p := range a.pools {
			p.Release(ip)
		}
	}
}

// adopt takes the addresses of an endpoint that lives again.
func (a *attached) adopt(ep Endpoint) error {
	if a.addresses != nil {
		return nil // see Others.Settle
	}
	var errs []error
	for _, s := range []string{ep.IP, ep.IP6} {
		ip, err := netip.ParseAddr(s)
		if err != nil {
			continue
		}
		taken := ipam.ErrOutOfRange
		for _, p := range a.pools {
			if p.Subnet().Contains(ip) {
				taken = p.Take(ip)
			}
		}
		if taken != nil {
			errs = append(errs, fmt.Errorf("address %s: %w", ip, taken))
		}
	}
	return errors.Join(errs...)
}

package network

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/containerd/errdefs"
)

// ReadSubnets reads the subnets that a client asks for of a network that the cluster will
// make. InvalidArgument, in Docker's words.
func ReadSubnets(c Create) ([]Subnet, error) {
	if c.IPAM == nil {
		return nil, nil
	}
	return readSubnets(c.IPAM.Config, c.EnableIPv6 != nil && *c.EnableIPv6)
}

// readSubnets reads the subnets a client asks for, and tells all that is wrong
// with them at once, in Docker's words. Subnets of IPv6 are not looked at unless
// the network has it.
func readSubnets(list []CreateSubnet, v6 bool) ([]Subnet, error) {
	var wrong []string
	var out []Subnet
	for _, c := range list {
		s, errs := readSubnet(c, v6)
		wrong = append(wrong, errs...)
		if s.Prefix.IsValid() && (v6 || s.Prefix.Addr().Is4()) {
			out = append(out, s)
		}
	}
	if len(wrong) > 0 {
		return nil, worded(errdefs.ErrInvalidArgument, "invalid network config:\n%s", listed(wrong))
	}
	slices.SortStableFunc(out, func(a, b Subnet) int { return a.Prefix.Addr().BitLen() - b.Prefix.Addr().BitLen() })
	return out, nil
}

func family(a netip.Addr) string {
	if a.Is6() {
		return "IPv6"
	}
	return "IPv4"
}

func readSubnet(c CreateSubnet, v6 bool) (s Subnet, wrong []string) {
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	p, err := netip.ParsePrefix(c.Subnet)
	if err != nil {
		say("invalid subnet %s: invalid CIDR block notation", c.Subnet)
		return s, wrong
	}
	s = Subnet{Prefix: p, Asked: true}
	if !v6 && p.Addr().Is6() {
		return s, nil
	}
	if p != p.Masked() {
		say("invalid subnet %s: it should be %s", p, p.Masked())
	}
	if c.IPRange != "" {
		r, err := netip.ParsePrefix(c.IPRange)
		switch {
		case err != nil:
			say("invalid ip-range %s: invalid CIDR block notation", c.IPRange)
		case r.Addr().BitLen() != p.Addr().BitLen():
			say("invalid ip-range %s: parent subnet is an %s block", c.IPRange, family(p.Addr()))
		default:
			if r.Bits() < p.Bits() {
				say("invalid ip-range %s: CIDR block is bigger than its parent subnet %s", c.IPRange, p)
			}
			if r != r.Masked() {
				say("invalid ip-range %s: it should be %s", r, r.Masked())
			}
			if !p.Overlaps(r) {
				say("invalid ip-range %s: parent subnet %s doesn't contain ip-range", c.IPRange, p)
			}
		}
		s.Range = r
	}
	inside := func(what, address string) netip.Addr {
		a, err := netip.ParseAddr(address)
		switch {
		case err != nil:
			say("invalid %s: invalid address", what)
		case a.BitLen() != p.Addr().BitLen():
			say("invalid %s: parent subnet is an %s block", what, family(p.Addr()))
		case !p.Contains(a):
			say("invalid %s: parent subnet %s doesn't contain this address", what, p)
		}
		return a
	}
	if c.Gateway != "" {
		s.Gateway = inside("gateway "+c.Gateway, c.Gateway)
	}
	for name, aux := range c.Aux {
		if aux == "" {
			continue
		}
		if s.Aux == nil {
			s.Aux = map[string]netip.Addr{}
		}
		s.Aux[name] = inside("auxiliary address "+name, aux)
	}
	return s, wrong
}

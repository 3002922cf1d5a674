package ipam

import (
	"crypto/sha256"
	"fmt"
	"net/netip"

	"github.com/containerd/errdefs"
)

// Range is a stretch of addresses that is cut into subnets.
type Range struct {
	Base netip.Prefix
	Size int // bits of each subnet's prefix
}

// Default are the ranges that Docker cuts subnets of IPv4 from.
func Default() []Range {
	var out []Range
	for _, s := range []string{"172.17.0.0/16", "172.18.0.0/16", "172.19.0.0/16", "172.20.0.0/14", "172.24.0.0/14", "172.28.0.0/14"} {
		out = append(out, Range{Base: netip.MustParsePrefix(s), Size: 16})
	}
	return append(out, Range{Base: netip.MustParsePrefix("192.168.0.0/16"), Size: 20})
}

// Local is the range that subnets of IPv6 come from: 40 bits of a digest of seed
// make it the host's own (RFC 4193), as with Docker.
func Local(seed string) Range {
	sum := sha256.Sum256([]byte(seed))
	raw := [16]byte{0xfd}
	copy(raw[1:6], sum[:])
	return Range{Base: netip.PrefixFrom(netip.AddrFrom16(raw), 48), Size: 64}
}

// Validate tells whether the range can be cut; InvalidArgument if not.
func (r Range) Validate() error {
	if !r.Base.IsValid() || r.Size < r.Base.Bits() || !fits(netip.PrefixFrom(r.Base.Addr(), r.Size)) || r.Base.Addr().Is4() && r.Size > 30 {
		return fmt.Errorf("invalid address pool base=%s,size=%d: %w", r.Base, r.Size, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Choose gives the first subnet of the ranges that overlaps none of used.
func Choose(ranges []Range, used []netip.Prefix) (netip.Prefix, error) {
	for _, r := range ranges {
		if err := r.Validate(); err != nil {
			return netip.Prefix{}, err
		}
		base := r.Base.Masked()
		for a := base.Addr(); a.IsValid() && base.Contains(a); {
			subnet := netip.PrefixFrom(a, r.Size)
			in, taken := Overlap(subnet, used)
			if !taken {
				return subnet, nil
			}
			end := Last(subnet)
			if in.Bits() < r.Size { // go on behind all of it at once
				end = Last(in)
			}
			a = end.Next()
		}
	}
	return netip.Prefix{}, errdefs.ErrInvalidArgument.WithMessage("all predefined address pools have been fully subnetted")
}

// Overlap finds one of the prefixes that has addresses of the subnet.
func Overlap(subnet netip.Prefix, used []netip.Prefix) (netip.Prefix, bool) {
	for _, u := range used {
		if subnet.Overlaps(u) {
			return u, true
		}
	}
	return netip.Prefix{}, false
}

// Package ipam gives out addresses of both families: to networks a subnet that
// nothing on the host uses, to containers an address of their network's subnet. It
// keeps everything in memory; after a restart the addresses of what lives are
// taken again with Take.
package ipam

import (
	"fmt"
	"net/netip"
	"sync"

	"github.com/containerd/errdefs"
)

// Errors that callers tell apart. Their words are Docker's, but for the parts
// that only the caller knows.
var (
	ErrExhausted  = errdefs.ErrUnavailable.WithMessage("no available addresses on this pool")
	ErrTaken      = errdefs.ErrPermissionDenied.WithMessage("Address already in use")
	ErrOutOfRange = errdefs.ErrInvalidArgument.WithMessage("requested address is out of range")
	ErrOverlap    = errdefs.ErrPermissionDenied.WithMessage("invalid pool request: Pool overlaps with other one on this address space")
)

// Pool gives out the addresses of one subnet. An address that was given back is
// not given out again before all others were: what still knows it (neighbour
// entries, connections being tracked, clients) does not meet a stranger there.
type Pool struct {
	subnet netip.Prefix
	within netip.Prefix        // where Next looks
	never  map[netip.Addr]bool // never given out
	size   uint64              // how many addresses are within, at most 2^63

	mu    sync.Mutex
	next  netip.Addr                     // where the search begins
	taken map[netip.Addr]bool            // without those that are never given out
	kept  map[netip.Addr]map[string]bool // for whom: Next leaves them to who asks for them
}

// New makes the pool of a subnet. Its first address is never given out, nor are
// the last one of IPv4 and the gateway's, which may be the zero Addr. Next gives
// only addresses of within, unless that is the zero Prefix. InvalidArgument when
// it has no room for a container.
func New(subnet, within netip.Prefix, gateway netip.Addr) (*Pool, error) {
	if !fits(subnet) {
		return nil, fmt.Errorf("subnet %q: IPv4 with a prefix of 8 to 31 bits or IPv6 with one of 8 to 126 bits wanted: %w", subnet, errdefs.ErrInvalidArgument)
	}
	subnet = subnet.Masked()
	if !within.IsValid() {
		within = subnet
	}
	within = within.Masked()
	if within.Bits() < subnet.Bits() || !subnet.Contains(within.Addr()) {
		return nil, fmt.Errorf("range %s is not in subnet %s: %w", within, subnet, errdefs.ErrInvalidArgument)
	}
	p := &Pool{subnet: subnet, within: within, next: within.Addr(), never: map[netip.Addr]bool{}, taken: map[netip.Addr]bool{}, kept: map[netip.Addr]map[string]bool{}}
	if bits := subnet.Addr().BitLen() - subnet.Bits(); bits > 1 { // the two of a /31 are both hosts
		p.never[subnet.Addr()] = true
		if subnet.Addr().Is4() {
			p.never[Last(subnet)] = true
		}
	}
	if gateway.IsValid() {
		if !subnet.Contains(gateway) || p.never[gateway] {
			return nil, fmt.Errorf("gateway %s is no host of subnet %s: %w", gateway, subnet, errdefs.ErrInvalidArgument)
		}
		p.never[gateway] = true
	}
	p.size = uint64(1) << min(63, within.Addr().BitLen()-within.Bits())
	return p, nil
}

func fits(subnet netip.Prefix) bool {
	most := 126
	if subnet.IsValid() && subnet.Addr().Is4() {
		most = 31
	}
	return subnet.IsValid() && subnet.Bits() >= 8 && subnet.Bits() <= most
}

// Last is the last address of a prefix: of IPv4, the broadcast address.
func Last(p netip.Prefix) netip.Addr {
	raw := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(raw)*8; i++ {
		raw[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(raw)
	return a
}

// Subnet is the subnet of the pool.
func (p *Pool) Subnet() netip.Prefix { return p.subnet }

// First is the first address that a container could have, for a gateway; the
// zero Addr when there is none.
func (p *Pool) First() netip.Addr {
	p.mu.Lock()
	defer p.mu.Unlock()
	for a := p.within.Addr(); p.within.Contains(a); a = a.Next() {
		if !p.never[a] && !p.taken[a] {
			return a
		}
	}
	return netip.Addr{}
}

// Reserve takes an address out for good, as that of a gateway; ErrTaken when it is
// not free.
func (p *Pool) Reserve(a netip.Addr) error {
	if err := p.Take(a); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.taken, a)
	p.never[a] = true
	return nil
}

// Next gives out an address; ErrExhausted when all are taken or kept.
func (p *Pool) Next() (netip.Addr, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for a, tried := p.next, uint64(0); tried < p.size; tried++ {
		after := a.Next()
		if !p.within.Contains(after) {
			after = p.within.Addr()
		}
		if !p.never[a] && !p.taken[a] && len(p.kept[a]) == 0 {
			p.taken[a], p.next = true, after
			return a, nil
		}
		a = after
	}
	return netip.Addr{}, ErrExhausted
}

// Take reserves one address, kept or not. ErrTaken when it is taken already or is
// never given out; InvalidArgument when it is of another subnet.
func (p *Pool) Take(a netip.Addr) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.subnet.Contains(a) {
		return ErrOutOfRange
	}
	if p.never[a] || p.taken[a] {
		return ErrTaken
	}
	p.taken[a] = true
	return nil
}

// Release gives an address back. What is not taken, of another subnet or never
// given out is left alone.
func (p *Pool) Release(a netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.taken, a)
}

// Keep leaves an address to who asks for it by Take: Next does not give it out while
// it is kept for anybody. Idempotent.
func (p *Pool) Keep(a netip.Addr, who string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.kept[a] == nil {
		p.kept[a] = map[string]bool{}
	}
	p.kept[a][who] = true
}

// Unkeep undoes Keep. Idempotent.
func (p *Pool) Unkeep(a netip.Addr, who string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if delete(p.kept[a], who); len(p.kept[a]) == 0 {
		delete(p.kept, a)
	}
}

// Used is how many addresses are given out.
func (p *Pool) Used() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.taken)
}

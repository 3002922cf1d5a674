// Package ipam gives out IPv4 addresses: to networks a subnet that nothing on
// the host uses, to containers an address of their network's subnet. It keeps
// everything in memory; after a restart the addresses of what lives are taken
// again with Take.
package ipam

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"sync"

	"github.com/containerd/errdefs"
)

// Errors that callers tell apart. Their words are Docker's, but for the parts
// that only the caller knows.
var (
	ErrExhausted = errors.New("no available addresses on this pool")
	//lint:ignore ST1005 Docker's words
	ErrTaken = fmt.Errorf("Address already in use: %w", errdefs.ErrAlreadyExists)
)

// Pool gives out the addresses of one subnet. An address that was given back is
// not given out again before all others were: what still knows it (neighbour
// entries, connections being tracked, clients) does not meet a stranger there.
type Pool struct {
	subnet netip.Prefix
	base   uint32          // the subnet's first address
	size   uint32          // how many addresses it has, less one
	never  map[uint32]bool // offsets that are never given out

	mu    sync.Mutex
	next  uint32            // offset at which the search begins
	used  int               // addresses taken, without those that are never given out
	taken map[uint32]uint64 // bits of taken offsets, by offset/64
}

// New makes the pool of a subnet. Its first and last address are never given
// out, nor is the gateway's. InvalidArgument when it has no room for a container.
func New(subnet netip.Prefix, gateway netip.Addr) (*Pool, error) {
	if !subnet.IsValid() || !subnet.Addr().Is4() || subnet.Bits() < 8 || subnet.Bits() > 30 {
		return nil, fmt.Errorf("subnet %q: IPv4 with a prefix of 8 to 30 bits wanted: %w", subnet, errdefs.ErrInvalidArgument)
	}
	subnet = subnet.Masked()
	p := &Pool{subnet: subnet, base: number(subnet.Addr()), size: 1<<(32-subnet.Bits()) - 1, taken: map[uint32]uint64{}, never: map[uint32]bool{}, next: 1}
	reserve := []uint32{0, p.size}
	if gateway.IsValid() {
		if !subnet.Contains(gateway) {
			return nil, fmt.Errorf("gateway %s is not in subnet %s: %w", gateway, subnet, errdefs.ErrInvalidArgument)
		}
		reserve = append(reserve, number(gateway)-p.base)
	}
	for _, o := range reserve {
		p.set(o)
		p.never[o] = true
	}
	return p, nil
}

func number(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

func (p *Pool) addr(offset uint32) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, p.base+offset)))
}

func (p *Pool) set(o uint32)      { p.taken[o/64] |= 1 << (o % 64) }
func (p *Pool) has(o uint32) bool { return p.taken[o/64]&(1<<(o%64)) != 0 }

// Subnet is the subnet of the pool.
func (p *Pool) Subnet() netip.Prefix { return p.subnet }

// Next gives out an address; ErrExhausted when all are taken.
func (p *Pool) Next() (netip.Addr, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	o, ok := p.free(p.next, p.size)
	if !ok {
		o, ok = p.free(0, p.next)
	}
	if !ok {
		return netip.Addr{}, ErrExhausted
	}
	p.set(o)
	p.used++
	p.next = o + 1
	return p.addr(o), nil
}

// free is the first offset that is not taken from first up to, not including, end.
func (p *Pool) free(first, end uint32) (uint32, bool) {
	for o := first; o < end; {
		word := p.taken[o/64] | (1<<(o%64) - 1) // what lies before o does not count
		if word != ^uint64(0) {
			o = o/64*64 + uint32(bits.TrailingZeros64(^word))
			return o, o < end
		}
		o = (o/64 + 1) * 64
	}
	return 0, false
}

// Take reserves one address. ErrTaken when it is taken already or is never given
// out; InvalidArgument when it is of another subnet.
func (p *Pool) Take(a netip.Addr) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.subnet.Contains(a) {
		return fmt.Errorf("invalid address %s: It does not belong to any of this network's subnets: %w", a, errdefs.ErrInvalidArgument)
	}
	o := number(a) - p.base
	if p.has(o) {
		return ErrTaken
	}
	p.set(o)
	p.used++
	return nil
}

// Release gives an address back. What is not taken, of another subnet or never
// given out is left alone.
func (p *Pool) Release(a netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.subnet.Contains(a) {
		return
	}
	o := number(a) - p.base
	if p.never[o] || !p.has(o) {
		return
	}
	p.used--
	if p.taken[o/64] &^= 1 << (o % 64); p.taken[o/64] == 0 {
		delete(p.taken, o/64)
	}
}

// Used is how many addresses are given out.
func (p *Pool) Used() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.used
}

// Range is a stretch of addresses that is cut into subnets.
type Range struct {
	Base netip.Prefix
	Size int // bits of each subnet's prefix
}

// Default are the ranges that Docker cuts subnets from.
func Default() []Range {
	var out []Range
	for _, s := range []string{"172.17.0.0/16", "172.18.0.0/16", "172.19.0.0/16", "172.20.0.0/14", "172.24.0.0/14", "172.28.0.0/14"} {
		out = append(out, Range{Base: netip.MustParsePrefix(s), Size: 16})
	}
	return append(out, Range{Base: netip.MustParsePrefix("192.168.0.0/16"), Size: 20})
}

// Validate tells whether the range can be cut; InvalidArgument if not.
func (r Range) Validate() error {
	if !r.Base.IsValid() || !r.Base.Addr().Is4() || r.Size < r.Base.Bits() || r.Size < 8 || r.Size > 30 {
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
		base, step := number(r.Base.Masked().Addr()), uint64(1)<<(32-r.Size)
		for o := uint64(0); o < 1<<(32-r.Base.Bits()); o += step {
			a := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, base+uint32(o))))
			subnet := netip.PrefixFrom(a, r.Size)
			if !overlaps(subnet, used) {
				return subnet, nil
			}
		}
	}
	return netip.Prefix{}, fmt.Errorf("all predefined address pools have been fully subnetted: %w", errdefs.ErrResourceExhausted)
}

func overlaps(subnet netip.Prefix, used []netip.Prefix) bool {
	for _, u := range used {
		if subnet.Overlaps(u) {
			return true
		}
	}
	return false
}

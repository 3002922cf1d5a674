package port

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"
	"golang.org/x/sys/unix"
)

// Allocator knows the host ports that this engine's containers have.
type Allocator struct {
	mu    sync.Mutex
	taken map[place][]*claim
	next  map[network.IPProtocol]uint16 // where the search for any free port goes on
	local func() (first, last uint16)
}

// place is a port of the host, whatever the address.
type place struct {
	proto network.IPProtocol
	port  uint16
}

// claim is a port that is taken at one address.
type claim struct {
	addr  netip.Addr
	group string
	to    uint16                  // port of the container
	users map[netip.AddrPort]bool // where it leads: more than one place in a group
	file  *os.File                // a copy of its socket for those of the group that come later
}

// NewAllocator makes an Allocator in which every port is free.
func NewAllocator() *Allocator {
	return &Allocator{taken: map[place][]*claim{}, next: map[network.IPProtocol]uint16{}, local: localRange}
}

// localRange is the range from which the kernel gives ports to clients; Docker
// takes its own from there too.
func localRange() (first, last uint16) {
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err == nil {
		if n, err := fmt.Sscan(string(b), &first, &last); n == 2 && err == nil && first > 0 && first <= last {
			return first, last
		}
	}
	return 49153, 65535
}

// Hold finds a host port for each spec and binds it at all its addresses, for a
// container with the addresses to. The files are the bound sockets, which the
// caller owns: a port is held for as long as a copy of its socket is open anywhere.
// With a group, a port that another container of this group has for the same
// container port is shared; of a range each has one of its own, and its mapping no
// group. On an error nothing is held. The error has Docker's words.
func (a *Allocator) Hold(specs []Spec, to To, group string) (mappings []Mapping, files []*os.File, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range specs {
		m, held, err := a.hold(s, to, group)
		mappings, files = append(mappings, m...), append(files, held...)
		if err != nil {
			closeAll(files)
			a.free(mappings)
			return nil, nil, err
		}
	}
	return mappings, files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// hold takes one port, the first that is free of those that would do, at all the
// addresses that lead to the container.
func (a *Allocator) hold(s Spec, to To, group string) ([]Mapping, []*os.File, error) {
	hosts, err := to.reach(s)
	if err != nil {
		return nil, nil, err
	}
	if s.First != s.Last {
		group = ""
	}
	var open, bound []Mapping
	for _, h := range hosts {
		m := Mapping{Proto: s.Container.Proto(), Host: netip.AddrPortFrom(h, 0), To: netip.AddrPortFrom(to.of(h), s.Container.Num()), Group: group}
		if to.routed(h) {
			open = append(open, m)
		} else {
			bound = append(bound, m)
		}
	}
	if len(bound) == 0 {
		return open, nil, nil
	}
	bound, files, err := a.search(s, bound)
	if err != nil {
		return nil, nil, err
	}
	return append(bound, open...), files, nil
}

// search tries the host ports that would do.
func (a *Allocator) search(s Spec, at []Mapping) ([]Mapping, []*os.File, error) {
	first, last, start := s.First, s.Last, s.First
	proto := s.Container.Proto()
	if s.First == 0 {
		first, last = a.local()
		start = max(first, min(last, a.next[proto]))
	}
	if p, ok := a.groupPort(at[0]); ok && p >= first && p <= last {
		if got, files, err := a.try(at, p); err == nil {
			return got, files, nil
		}
	}
	count := int(last) - int(first) + 1
	for i := range count {
		p := first + uint16((int(start)-int(first)+i)%count)
		got, files, err := a.try(at, p)
		var taken *takenError
		if count > 1 && (errors.As(err, &taken) || errors.Is(err, unix.EADDRINUSE)) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		if s.First == 0 {
			a.next[proto] = p + 1 // past the end, 0 even, the search begins at the front
			if p == last {
				a.next[proto] = first
			}
		}
		return got, files, nil
	}
	return nil, nil, errors.New("all ports are allocated")
}

// takenError says that a container of this engine has the port.
type takenError struct{ host netip.AddrPort }

func (e *takenError) Error() string {
	return fmt.Sprintf("Bind for %s:%d failed: port is already allocated", e.host.Addr(), e.host.Port())
}

// try takes port p at all the places of at, or none.
func (a *Allocator) try(at []Mapping, p uint16) (got []Mapping, files []*os.File, err error) {
	for _, m := range at {
		m.Host = netip.AddrPortFrom(m.Host.Addr(), p)
		f, err := a.take(m)
		if err != nil {
			closeAll(files)
			a.free(got)
			return nil, nil, err
		}
		got, files = append(got, m), append(files, f)
	}
	return got, files, nil
}

// take takes one port at one address. The socket is the caller's.
func (a *Allocator) take(m Mapping) (*os.File, error) {
	k := place{m.Proto, m.Host.Port()}
	for _, c := range a.taken[k] {
		if c.shares(m) && c.file != nil {
			f, err := duplicate(c.file)
			if err == nil {
				c.users[m.To] = true
			}
			return f, err
		}
		if c.conflicts(m) {
			return nil, &takenError{m.Host}
		}
	}
	f, err := bind(m.Proto, m.Host)
	if err != nil {
		if errors.Is(err, errdefs.ErrNotImplemented) {
			return nil, err
		}
		return nil, fmt.Errorf("failed to bind host port for %s:%s/%s: %w", m.Host, m.To, m.Proto, err)
	}
	c := claimOf(m)
	if m.Group != "" {
		if c.file, err = duplicate(f); err != nil {
			f.Close()
			return nil, err
		}
	}
	a.taken[k] = append(a.taken[k], c)
	return f, nil
}

func claimOf(m Mapping) *claim {
	return &claim{addr: m.Host.Addr(), group: m.Group, to: m.To.Port(), users: map[netip.AddrPort]bool{m.To: true}}
}

// shares tells whether m is another container's place in the same group.
func (c *claim) shares(m Mapping) bool {
	return c.group != "" && c.group == m.Group && c.addr == m.Host.Addr() && c.to == m.To.Port()
}

// conflicts tells whether both want the port at one address, or at all of a family.
func (c *claim) conflicts(m Mapping) bool {
	a := m.Host.Addr()
	return c.addr == a || c.addr.Is4() == a.Is4() && (c.addr.IsUnspecified() || a.IsUnspecified())
}

// groupPort is the port that the group of m has already.
func (a *Allocator) groupPort(m Mapping) (uint16, bool) {
	if m.Group == "" {
		return 0, false
	}
	best, ok := uint16(0), false
	for k, claims := range a.taken {
		for _, c := range claims {
			if k.proto == m.Proto && c.shares(m) && (!ok || k.port < best) {
				best, ok = k.port, true
			}
		}
	}
	return best, ok
}

// Adopt marks ports as taken whose sockets are already held elsewhere, or that the
// same container takes to another of its addresses. Of the files, which are the
// caller's, it keeps copies of what groups need.
func (a *Allocator) Adopt(mappings []Mapping, files []*os.File) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, m := range mappings {
		if m.Host.Port() == 0 {
			continue
		}
		k := place{m.Proto, m.Host.Port()}
		var c *claim
		for _, old := range a.taken[k] {
			if old.addr == m.Host.Addr() {
				c = old
			}
		}
		if c == nil {
			c = claimOf(m)
			a.taken[k] = append(a.taken[k], c)
		}
		c.users[m.To] = true
		if f := Find(files, m); m.Group != "" && c.file == nil && f != nil {
			if d, err := duplicate(f); err == nil {
				c.file = d
			}
		}
	}
}

// Free makes ports free again that lead where these mappings say. The sockets are
// the caller's to close. Idempotent.
func (a *Allocator) Free(mappings []Mapping) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.free(mappings)
}

func (a *Allocator) free(mappings []Mapping) {
	for _, m := range mappings {
		k := place{m.Proto, m.Host.Port()}
		for i, c := range a.taken[k] {
			if c.addr != m.Host.Addr() || !c.users[m.To] {
				continue
			}
			if delete(c.users, m.To); len(c.users) == 0 {
				if c.file != nil {
					c.file.Close()
				}
				a.taken[k] = append(a.taken[k][:i:i], a.taken[k][i+1:]...)
			}
			break
		}
		if len(a.taken[k]) == 0 {
			delete(a.taken, k)
		}
	}
}

// Len is how many ports are taken.
func (a *Allocator) Len() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := 0
	for _, claims := range a.taken {
		n += len(claims)
	}
	return n
}

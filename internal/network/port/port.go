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
	taken map[place][]netip.Addr
	next  map[network.IPProtocol]uint16 // where the search for any free port goes on
	local func() (first, last uint16)
}

// place is a port of the host, whatever the address.
type place struct {
	proto network.IPProtocol
	port  uint16
}

// NewAllocator makes an Allocator in which every port is free.
func NewAllocator() *Allocator {
	return &Allocator{taken: map[place][]netip.Addr{}, next: map[network.IPProtocol]uint16{}, local: localRange}
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

// Hold finds a host port for each spec and binds it, for a container with the
// address to. The files are the bound sockets, which the caller owns: a port is
// held for as long as a copy of its socket is open anywhere. On an error nothing
// is held. The error has Docker's words.
func (a *Allocator) Hold(specs []Spec, to netip.Addr) (mappings []Mapping, files []*os.File, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range specs {
		m, held, err := a.hold(s, netip.AddrPortFrom(to, s.Container.Num()))
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			a.free(mappings)
			return nil, nil, err
		}
		a.take(m)
		mappings, files = append(mappings, m), append(files, held...)
	}
	return mappings, files, nil
}

// hold binds one port, the first that is free of those that would do.
func (a *Allocator) hold(s Spec, to netip.AddrPort) (Mapping, []*os.File, error) {
	m := Mapping{Proto: s.Container.Proto(), To: to}
	first, last, start := s.First, s.Last, s.First
	if s.First == 0 {
		first, last = a.local()
		start = max(first, min(last, a.next[m.Proto]))
	}
	count := int(last) - int(first) + 1
	for i := range count {
		p := first + uint16((int(start)-int(first)+i)%count)
		m.Host = netip.AddrPortFrom(s.HostIP, p)
		if a.conflict(m) {
			if count == 1 {
				//lint:ignore ST1005 Docker's words
				return m, nil, fmt.Errorf("Bind for %s failed: port is already allocated", m.Host)
			}
			continue
		}
		files, err := bind(m.Proto, m.Host)
		if errors.Is(err, unix.EADDRINUSE) && count > 1 {
			continue
		}
		if err != nil {
			if errors.Is(err, errdefs.ErrNotImplemented) {
				return m, nil, err
			}
			return m, nil, fmt.Errorf("failed to bind host port for %s:%s/%s: %w", m.Host, to, m.Proto, err)
		}
		if s.First == 0 {
			a.next[m.Proto] = p + 1 // past the end, 0 even, the search begins at the front
			if p == last {
				a.next[m.Proto] = first
			}
		}
		return m, files, nil
	}
	return m, nil, errors.New("all ports are allocated")
}

// conflict tells whether a container has the port already, at this address or
// at all of them.
func (a *Allocator) conflict(m Mapping) bool {
	for _, ip := range a.taken[place{m.Proto, m.Host.Port()}] {
		if ip == m.Host.Addr() || ip.IsUnspecified() || m.Host.Addr().IsUnspecified() {
			return true
		}
	}
	return false
}

func (a *Allocator) take(m Mapping) {
	k := place{m.Proto, m.Host.Port()}
	a.taken[k] = append(a.taken[k], m.Host.Addr())
}

// Adopt marks ports as taken whose sockets are already held elsewhere.
func (a *Allocator) Adopt(mappings []Mapping) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.free(mappings) // so that adopting twice counts once
	for _, m := range mappings {
		a.take(m)
	}
}

// Free makes ports free again. The sockets are the caller's to close. Idempotent.
func (a *Allocator) Free(mappings []Mapping) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.free(mappings)
}

func (a *Allocator) free(mappings []Mapping) {
	for _, m := range mappings {
		k := place{m.Proto, m.Host.Port()}
		for i, ip := range a.taken[k] {
			if ip == m.Host.Addr() {
				a.taken[k] = append(a.taken[k][:i:i], a.taken[k][i+1:]...)
				break
			}
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
	for _, ips := range a.taken {
		n += len(ips)
	}
	return n
}

// number is the protocol's number in the IP header.
func number(proto network.IPProtocol) uint8 {
	switch proto {
	case network.UDP:
		return unix.IPPROTO_UDP
	case network.SCTP:
		return unix.IPPROTO_SCTP
	default:
		return unix.IPPROTO_TCP
	}
}

// Number is the mapping's protocol as it stands in the IP header.
func (m Mapping) Number() uint8 { return number(m.Proto) }

// bind holds a port with sockets. A port on all addresses is held for IPv6 too
// where that is possible, so that a name that resolves to ::1 does not end at a
// stranger.
func bind(proto network.IPProtocol, host netip.AddrPort) ([]*os.File, error) {
	f, err := socket(unix.AF_INET, proto, &unix.SockaddrInet4{Port: int(host.Port()), Addr: host.Addr().As4()})
	if err != nil {
		return nil, err
	}
	files := []*os.File{f}
	if host.Addr().IsUnspecified() {
		if f6, err := socket(unix.AF_INET6, proto, &unix.SockaddrInet6{Port: int(host.Port())}); err == nil {
			files = append(files, f6)
		}
	}
	return files, nil
}

// socket makes a socket bound to addr that nobody reads: packets reach it only
// where translation does not, and what it queues is bounded.
func socket(family int, proto network.IPProtocol, addr unix.Sockaddr) (*os.File, error) {
	kind := unix.SOCK_STREAM
	if proto == network.UDP {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, int(number(proto)))
	if errors.Is(err, unix.EPROTONOSUPPORT) && proto == network.SCTP {
		return nil, fmt.Errorf("sctp is not supported by the kernel of this host: %w", errdefs.ErrNotImplemented)
	}
	if err != nil {
		return nil, err
	}
	if family == unix.AF_INET6 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err == nil && proto == network.UDP {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 0) // the kernel's least, some 2 kB
	}
	if err == nil {
		err = unix.Bind(fd, addr)
	}
	if errors.Is(err, unix.EADDRINUSE) && proto == network.TCP {
		err = bindPastClosed(fd, addr)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "published "+string(proto)+" port"), nil
}

// bindPastClosed binds a TCP socket to a port on which only connections in
// TIME_WAIT are left, as after a server on the host that was just stopped. That
// needs SO_REUSEADDR, which by itself would let others bind the port too. To
// listen makes the kernel check the port again, and for good; giving that up and
// taking the option back leaves a closed socket with the port for itself.
func bindPastClosed(fd int, addr unix.Sockaddr) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return err
	}
	if err := unix.Bind(fd, addr); err != nil {
		return err
	}
	if err := unix.Listen(fd, 0); err != nil {
		return err
	}
	if err := unix.Shutdown(fd, unix.SHUT_RD); err != nil {
		return err
	}
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 0)
}

package port

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"
	"golang.org/x/sys/unix"
)

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

// bind holds a port with a socket that nobody reads: packets reach it only where
// translation does not, and what it queues is bounded. A forwarder may listen on it.
func bind(proto network.IPProtocol, host netip.AddrPort) (*os.File, error) {
	family, addr := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: int(host.Port()), Addr: [4]byte{}})
	if host.Addr().Is4() {
		addr.(*unix.SockaddrInet4).Addr = host.Addr().As4()
	} else {
		family, addr = unix.AF_INET6, &unix.SockaddrInet6{Port: int(host.Port()), Addr: host.Addr().As16()}
	}
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

// duplicate gives another file of the same socket.
func duplicate(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	if e := raw.Control(func(from uintptr) { fd, err = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 0) }); e != nil {
		return nil, e
	}
	if err != nil {
		return nil, fmt.Errorf("socket of a published port: %w", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// Find gives the one of these files that holds the mapping's port; nil: none.
func Find(files []*os.File, m Mapping) *os.File {
	for _, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			continue
		}
		holds := false
		if err := raw.Control(func(fd uintptr) { holds = isAt(int(fd), m) }); err == nil && holds {
			return f
		}
	}
	return nil
}

// isAt tells whether a socket is bound where the mapping says.
func isAt(fd int, m Mapping) bool {
	proto, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil || proto != int(m.Number()) {
		return false
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return false
	}
	switch a := name.(type) {
	case *unix.SockaddrInet4:
		return m.Host == netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return m.Host == netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	default:
		return false
	}
}

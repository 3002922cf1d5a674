package port

import (
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"
)

// To is where published ports lead: the addresses of a container on a network.
type To struct {
	V4, V6 netip.Addr // the zero Addr: none of that family
	// Routed4 and Routed6 say that the container is reached by its own address:
	// nothing is bound on the host, and the port is open there.
	Routed4, Routed6 bool
	// Forwarded says that the engine may pass on what comes to an IPv6 address of the
	// host for a container that has none.
	Forwarded bool
	// At are the addresses of the host for ports that name none; empty: Everywhere.
	At []netip.Addr
}

// of is the address to which a port at this address of the host leads; the zero
// Addr: there is none.
func (t To) of(host netip.Addr) netip.Addr {
	switch {
	case host.Is4():
		return t.V4
	case t.V6.IsValid():
		return t.V6
	default:
		return t.V4
	}
}

func (t To) routed(host netip.Addr) bool { return host.Is4() && t.Routed4 || host.Is6() && t.Routed6 }

// reach picks those of the spec's addresses that can lead to the container. What
// a client named and cannot be had is an error.
func (t To) reach(s Spec) ([]netip.Addr, error) {
	hosts := t.At
	if len(hosts) == 0 {
		hosts = Everywhere()
	}
	if s.Host.IsValid() {
		return []netip.Addr{s.Host}, t.refuse(s.Host, s)
	}
	var out []netip.Addr
	for _, h := range hosts {
		if t.refuse(h, s) == nil {
			out = append(out, h)
		}
	}
	return out, nil
}

// refuse tells why a port at this address of the host cannot lead to the
// container; nil when it can.
func (t To) refuse(host netip.Addr, s Spec) error {
	switch {
	case host.Is4() && !t.V4.IsValid():
		return fmt.Errorf("port %s: an IPv4 address of the host (%s) cannot lead to a container that has only IPv6: %w", s.Container, host, errdefs.ErrInvalidArgument)
	case host.Is4() || t.Routed6 && t.V6.IsValid():
		return nil
	case !t.V6.IsValid() && !t.Forwarded:
		//lint:ignore ST1005 Docker's words
		return fmt.Errorf("Cannot map from IPv6 to an IPv4-only container because the userland proxy is disabled: %w", errdefs.ErrInvalidArgument)
	case !t.V6.IsValid() && s.Container.Proto() == network.SCTP:
		return fmt.Errorf("port %s: sctp at an IPv6 address of the host (%s) needs a container with IPv6: %w", s.Container, host, errdefs.ErrInvalidArgument)
	case !s.Host.IsValid() && !listens6():
		return fmt.Errorf("this host has no IPv6: %w", errdefs.ErrFailedPrecondition)
	default:
		return nil
	}
}

// listens6 tells whether programs on this host can listen on IPv6 addresses.
var listens6 = sync.OnceValue(func() bool {
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		return false
	}
	l.Close()
	return true
})

// Forwarded tells whether a program has to pass on what comes to the host's
// address of this mapping and was not translated: translation changes no addresses
// of one family into those of the other, and the kernel sends nothing from ::1
// through another link.
func (m Mapping) Forwarded() bool {
	return m.Host.Port() != 0 && m.Host.Addr().Is6() && m.Proto != network.SCTP
}

// Translated tells whether the kernel translates what comes to the mapping.
func (m Mapping) Translated() bool {
	return m.Host.Addr().Is4() == m.To.Addr().Is4() && !(m.Host.Addr().Is6() && m.Host.Addr().IsLoopback())
}

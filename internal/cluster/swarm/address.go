package swarm

import (
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// port is where managers are called, if nobody says otherwise.
const port = "2377"

// host tells the addresses of this machine.
type host func() ([]Interface, error)

// listen reads where to listen: an address or interface with a port, or without.
func (h host) listen(asked string) (addr, at string, err error) {
	if asked == "" {
		asked = "0.0.0.0:" + port
	}
	addr, at, err = net.SplitHostPort(asked)
	if err != nil {
		addr, at = strings.Trim(asked, "[]"), port
	}
	if n, err := strconv.ParseUint(at, 10, 16); err != nil || n == 0 {
		return "", "", say(errdefs.ErrInvalidArgument, "listen address must be an IP address or network interface (with optional port number)")
	}
	if addr == "" {
		addr = "0.0.0.0"
	}
	if _, err := netip.ParseAddr(addr); err == nil {
		return addr, at, nil
	}
	a, there, err := h.ofInterface(addr)
	if err != nil {
		return "", "", err
	}
	if !there {
		return "", "", say(errdefs.ErrInvalidArgument, "listen address must be an IP address or network interface (with optional port number)")
	}
	return a.String(), at, nil
}

// advertise is the address that the other nodes are told: the one that is asked, or
// where the node listens, or the only one that the host has.
func (h host) advertise(asked, listenHost, listenPort string) (netip.AddrPort, error) {
	at := listenPort
	if asked != "" {
		name, p, err := net.SplitHostPort(asked)
		if err != nil {
			name, p = strings.Trim(asked, "[]"), at
		}
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return netip.AddrPort{}, errBadAdvertise
		}
		a, err := h.addr(name, errBadAdvertise)
		if err == nil && a.IsUnspecified() {
			err = say(errdefs.ErrInvalidArgument, "advertise address must be a non-zero IP address or network interface (with optional port number)")
		}
		return netip.AddrPortFrom(a, uint16(n)), err
	}
	n, err := strconv.ParseUint(at, 10, 16)
	if err != nil {
		return netip.AddrPort{}, errBadAdvertise
	}
	if a, err := netip.ParseAddr(listenHost); err == nil && !a.IsUnspecified() {
		return netip.AddrPortFrom(a, uint16(n)), nil
	}
	a, err := h.only()
	return netip.AddrPortFrom(a, uint16(n)), err
}

var errBadAdvertise = say(errdefs.ErrInvalidArgument, "advertise address must be a non-zero IP address or network interface (with optional port number)")

// addr is an address, or that of an interface.
func (h host) addr(name string, bad error) (netip.Addr, error) {
	if a, err := netip.ParseAddr(name); err == nil {
		return a.Unmap(), nil
	}
	a, there, err := h.ofInterface(name)
	if err == nil && !there {
		err = bad
	}
	return a, err
}

// ofInterface is the only address of an interface, the only IPv4 one first.
func (h host) ofInterface(name string) (a netip.Addr, there bool, err error) {
	list, err := h()
	if err != nil {
		return a, false, err
	}
	for _, i := range list {
		if i.Name != name {
			continue
		}
		a, err := pick(i.Addrs, func(x, y netip.Addr) error {
			return say(errdefs.ErrInvalidArgument, "interface %s has more than one IPv%s address (%s and %s)", name, map[bool]string{true: "4", false: "6"}[x.Is4()], x, y)
		})
		if err == nil && !a.IsValid() {
			err = say(errdefs.ErrInvalidArgument, "interface %s has no usable IPv4 or IPv6 address", name)
		}
		return a, true, err
	}
	return a, false, nil
}

// pick is the only IPv4 address of a list, else the only IPv6 one.
func pick(list []netip.Addr, several func(a, b netip.Addr) error) (netip.Addr, error) {
	for _, four := range []bool{true, false} {
		var found netip.Addr
		for _, a := range list {
			if a = a.Unmap(); a.Is4() != four || a.IsLinkLocalUnicast() && !four {
				continue
			}
			if found.IsValid() {
				return netip.Addr{}, several(found, a)
			}
			found = a
		}
		if found.IsValid() {
			return found, nil
		}
	}
	return netip.Addr{}, nil
}

// only is the host's address when it has but one, the interfaces of containers apart. Bridges
// and dummies may be those of another engine, or what a host has its address on: they count
// when nothing else has one.
func (h host) only() (netip.Addr, error) {
	list, err := h()
	if err != nil {
		return netip.Addr{}, err
	}
	list = slices.DeleteFunc(slices.Clone(list), func(i Interface) bool {
		return i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 || begins(i.Name, "veth", "escale", "vxlan", "virbr")
	})
	plain := slices.DeleteFunc(slices.Clone(list), func(i Interface) bool { return begins(i.Name, "docker", "br-", "dummy") })
	found, err := among(plain)
	if err == nil && !found.IsValid() {
		found, err = among(list)
	}
	if err == nil && !found.IsValid() {
		err = say(errdefs.ErrInvalidArgument, "could not find the system's IP address - specify one with --advertise-addr")
	}
	return found, err
}

// among is the only address of some interfaces; invalid: they have none.
func among(list []Interface) (found netip.Addr, err error) {
	var at string
	for _, i := range list {
		a, err := pick(i.Addrs, func(x, y netip.Addr) error {
			return say(errdefs.ErrInvalidArgument, "could not choose an IP address to advertise since this system has multiple addresses on interface %s (%s and %s) - specify one with --advertise-addr", i.Name, x, y)
		})
		switch {
		case err != nil:
			return netip.Addr{}, err
		case !a.IsValid():
		case found.IsValid():
			return netip.Addr{}, say(errdefs.ErrInvalidArgument, "could not choose an IP address to advertise since this system has multiple addresses on different interfaces (%s on %s and %s on %s) - specify one with --advertise-addr", found, at, a, i.Name)
		default:
			found, at = a, i.Name
		}
	}
	return found, nil
}

func begins(name string, with ...string) bool {
	return slices.ContainsFunc(with, func(w string) bool { return strings.HasPrefix(name, w) })
}

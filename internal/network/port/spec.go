// Package port publishes container ports on the host: it reads what a client
// asked, finds free host ports, and holds each with a bound socket, so that
// neither another program nor another container can take it.
package port

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"
)

// Spec asks for one container port on the host.
type Spec struct {
	Container network.Port
	// Host is the address of the host: 0.0.0.0 and [::] stand for all of a family,
	// the zero Addr for the addresses at which ports are published where nobody says
	// otherwise, which all get the same port.
	Host  netip.Addr
	First uint16 // the host port, or a range of them; 0 for any free one
	Last  uint16
}

// Mapping is a published port.
type Mapping struct {
	Proto network.IPProtocol
	// Host has an unspecified address for all of the host's of that family, and port
	// 0 when nothing on the host leads to the container, whose own address is open.
	Host  netip.AddrPort
	To    netip.AddrPort
	Group string // containers that name the same share Host; "": it is one's alone
}

// Everywhere are the addresses at which a port is published when nobody says
// otherwise: all.
func Everywhere() []netip.Addr { return []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} }

// Specs reads what a client asked: its bindings and, with publishAll, the exposed
// ports that have none. The result is in order of container port, so that equal
// requests get equal answers. InvalidArgument when something is not a port.
func Specs(bindings network.PortMap, exposed network.PortSet, publishAll bool) ([]Spec, error) {
	var out []Spec
	for p, list := range bindings {
		if !valid(p) {
			return nil, fmt.Errorf("invalid port specification: %q: %w", p, errdefs.ErrInvalidArgument)
		}
		if publishAll && len(list) == 0 {
			list = []network.PortBinding{{}}
		}
		for _, b := range list {
			s, err := read(p, b)
			if err != nil {
				return nil, err
			}
			out = append(out, s)
		}
	}
	if publishAll {
		for p := range exposed {
			if !valid(p) {
				return nil, fmt.Errorf("invalid port specification: %q: %w", p, errdefs.ErrInvalidArgument)
			}
			if _, ok := bindings[p]; !ok {
				out = append(out, Spec{Container: p})
			}
		}
	}
	// Bindings that leave a choice come last, so that they do not take what
	// another one names.
	slices.SortStableFunc(out, func(a, b Spec) int {
		return cmp.Or(cmp.Compare(a.freedom(), b.freedom()), cmp.Compare(a.Container.Num(), b.Container.Num()),
			cmp.Compare(a.Container.Proto(), b.Container.Proto()), cmp.Compare(a.First, b.First), a.Host.Compare(b.Host))
	})
	return out, nil
}

// freedom orders by how many ports would do.
func (s Spec) freedom() int {
	if s.First == 0 {
		return 1 << 16
	}
	return int(s.Last - s.First)
}

func valid(p network.Port) bool {
	return p.IsValid() && p.Num() != 0 && slices.Contains([]network.IPProtocol{network.TCP, network.UDP, network.SCTP}, p.Proto())
}

func read(p network.Port, b network.PortBinding) (Spec, error) {
	s := Spec{Container: p, Host: b.HostIP}
	if b.HostIP.IsValid() {
		s.Host = b.HostIP.Unmap().WithZone("")
	}
	if b.HostPort == "" {
		return s, nil
	}
	first, last, isRange := strings.Cut(b.HostPort, "-")
	if !isRange {
		last = first
	}
	lo, err1 := strconv.ParseUint(first, 10, 16)
	hi, err2 := strconv.ParseUint(last, 10, 16)
	if err1 != nil || err2 != nil || hi < lo || (lo == 0 && hi != 0) {
		return s, fmt.Errorf("invalid port specification: %q: %w", b.HostPort, errdefs.ErrInvalidArgument)
	}
	s.First, s.Last = uint16(lo), uint16(hi)
	return s, nil
}

// PortMap tells of published ports as Docker does: exposed ports that are not
// published are there, without bindings.
func PortMap(mappings []Mapping, exposed network.PortSet) network.PortMap {
	out := network.PortMap{}
	for p := range exposed {
		out[p] = nil
	}
	for _, m := range mappings {
		p, ok := network.PortFrom(m.To.Port(), m.Proto)
		if ok {
			b := network.PortBinding{HostIP: m.Host.Addr()}
			if m.Host.Port() != 0 {
				b.HostPort = strconv.Itoa(int(m.Host.Port()))
			}
			out[p] = append(out[p], b)
		}
	}
	return out
}

// Mappings is the reverse of PortMap for a container with these addresses, in
// order of container port. InvalidArgument when the map is none that PortMap made.
func Mappings(to To, ports network.PortMap, group string) ([]Mapping, error) {
	specs, err := Specs(ports, nil, false)
	if err != nil {
		return nil, err
	}
	var out []Mapping
	for _, s := range specs {
		if s.First != s.Last || !s.Host.IsValid() {
			return nil, fmt.Errorf("port %s has no host port: %w", s.Container, errdefs.ErrInvalidArgument)
		}
		host := s.Host
		addr := to.of(host)
		if !addr.IsValid() {
			return nil, fmt.Errorf("port %s is published at %s for a container without an address: %w", s.Container, host, errdefs.ErrInvalidArgument)
		}
		out = append(out, Mapping{Proto: s.Container.Proto(), Host: netip.AddrPortFrom(host, s.First), To: netip.AddrPortFrom(addr, s.Container.Num()), Group: group})
	}
	return out, nil
}

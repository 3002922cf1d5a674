package plugin

import (
	"context"
	"net"
	"net/netip"

	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/plugin"
	"escale.dev/escale/internal/sys/netns"
	"github.com/vishvananda/netlink"
)

func prefixNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// repair gives an endpoint that lives what it has lost.
func (s *Store) repair(ctx context.Context, l network.Live) error {
	net := s.entry(l.Endpoint.NetworkID)
	if net == nil {
		return nil // it is gone
	}
	if err := net.lock(ctx); err != nil {
		return err
	}
	of := net.note
	net.unlock()
	if of.IPAM != "" {
		if err := s.retake(ctx, of.IPAM, l); err != nil {
			return err
		}
	}
	if of.Driver == "" {
		return nil
	}
	return s.rejoin(ctx, of.Driver, l)
}

// retake asks again for the addresses of an endpoint that the plugin was told the end of.
func (s *Store) retake(ctx context.Context, name string, l network.Live) error {
	ep := l.Endpoint
	had := map[string]bool{}
	if e := s.entry(ep.EndpointID); e != nil {
		if err := e.lock(ctx); err != nil {
			return err
		}
		if err := s.endGoing(ctx, e); err != nil {
			e.unlock()
			return err
		}
		for _, a := range e.note.Addresses {
			if p, err := netip.ParsePrefix(a.Address); err == nil {
				had[p.Addr().String()] = true
			}
		}
		e.unlock()
		if _, over := s.marked(e); over {
			return nil
		}
	}
	for _, text := range []string{ep.IP, ep.IP6} {
		at, err := netip.ParseAddr(text)
		if err != nil || had[text] {
			continue
		}
		pool, err := s.poolOf(ctx, ep.NetworkID, at)
		if err != nil {
			return err
		}
		ask := network.AddressRequest{Network: ep.NetworkID, Endpoint: ep.EndpointID, Container: l.ContainerID, Subnet: pool, Want: at}
		ask.MAC, _ = net.ParseMAC(ep.MAC)
		if _, err := (addresses{s, name}).take(ctx, &ask); err != nil {
			return err
		}
	}
	return nil
}

// rejoin has the plugin make an endpoint anew whose link is gone, or of which it was
// told the end.
func (s *Store) rejoin(ctx context.Context, name string, l network.Live) error {
	ep := l.Endpoint
	if !netns.Bound(l.Path) {
		return nil // the manager has told of it
	}
	e, err := s.open(ctx, ep.EndpointID, ep.NetworkID, l.ContainerID)
	if err != nil {
		return err
	}
	defer func() { e.unlock() }()
	if left, _ := s.marked(e); left {
		return nil
	}
	if e.note.Driver != "" && e.note.Joined && !e.note.Ending {
		if there, err := e.note.has(); there || err != nil {
			return err
		}
	}
	s.cfg.Logger.Warn("the link of a running container is made anew by its plugin", "container", l.ContainerID, "network", ep.Network)
	if e.note.Driver != "" {
		if err := s.endDriver(ctx, e); err != nil {
			return err
		}
		e.unlock()
		if e, err = s.open(ctx, ep.EndpointID, ep.NetworkID, l.ContainerID); err != nil {
			return err
		}
	}
	c, err := s.find(ctx, name, plugin.NetworkDriver, true)
	if err != nil {
		return err
	}
	ns, err := netns.Open(l.Path)
	if err != nil {
		return err
	}
	defer ns.Close()
	j, err := l.Join()
	if err != nil {
		return err
	}
	j.Path = l.Path
	made, err := s.attach(ctx, c, e, ns, j)
	if err != nil {
		return err
	}
	return leadOut(ns, l, made.Interface)
}

// leadOut gives a link that was made anew the default routes that the old one had.
func leadOut(ns *netns.Handle, l network.Live, link string) error {
	if link == "" {
		return nil
	}
	return ns.Do(func() error {
		at, err := netlink.LinkByName(link)
		if err != nil {
			return err
		}
		for _, gw := range []netip.Addr{l.Gateway, l.Gateway6} {
			if !gw.IsValid() {
				continue
			}
			zero := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
			if gw.Is6() {
				zero = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
			}
			if err := netlink.RouteReplace(&netlink.Route{LinkIndex: at.Attrs().Index, Dst: prefixNet(zero), Gw: gw.AsSlice()}); err != nil {
				return err
			}
		}
		return nil
	})
}

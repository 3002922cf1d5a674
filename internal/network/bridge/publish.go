package bridge

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/network/firewall"
	"escale.dev/escale/internal/network/port"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// mappings are the published ports of an endpoint.
func mappings(ep network.Endpoint) ([]port.Mapping, error) {
	if len(ep.Ports) == 0 {
		return nil, nil
	}
	ip, err := netip.ParseAddr(ep.IP)
	if err != nil {
		return nil, fmt.Errorf("endpoint %s: %w", ep.EndpointID, err)
	}
	list, err := port.Mappings(ip, ep.Ports)
	if err != nil {
		return nil, fmt.Errorf("endpoint %s: %w", ep.EndpointID, err)
	}
	return list, nil
}

func rulesOf(list []port.Mapping) []firewall.Port {
	out := make([]firewall.Port, len(list))
	for i, m := range list {
		out[i] = firewall.Port{Proto: m.Number(), Host: m.Host, To: m.To}
	}
	return out
}

// Publish implements network.Publisher.
func (d *Driver) Publish(_ context.Context, ep network.Endpoint) error {
	list, err := mappings(ep)
	if err != nil || len(list) == 0 {
		return err
	}
	if err := d.fw.Add(rulesOf(list)...); err != nil {
		return err
	}
	d.forgetFlows(list, false)
	return nil
}

// Unpublish implements network.Publisher. Connections that are under way end
// with the container; of UDP, which knows no end, the kernel is told to forget.
func (d *Driver) Unpublish(_ context.Context, eps []network.Endpoint) error {
	var all []port.Mapping
	for _, ep := range eps {
		list, err := mappings(ep)
		if err != nil { // nothing can have been published by it
			d.log.Warn("published ports of a bad record", "error", err)
		}
		all = append(all, list...)
	}
	if len(all) == 0 {
		return nil
	}
	if err := d.fw.Remove(rulesOf(all)...); err != nil {
		return err
	}
	d.forgetFlows(all, true)
	return nil
}

// forgetFlows deletes the kernel's memory of UDP flows to published ports, by
// which packets would go on to where they went before: translated ones when the
// port is taken back, untranslated ones when it is published. Best effort.
func (d *Driver) forgetFlows(list []port.Mapping, translated bool) {
	list = slices.DeleteFunc(slices.Clone(list), func(m port.Mapping) bool { return m.Number() != unix.IPPROTO_UDP })
	if len(list) == 0 {
		return
	}
	f := flows{list: list, translated: translated}
	if !translated {
		f.local = localAddresses()
	}
	if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, f); err != nil {
		d.log.Debug("UDP flows to published ports are remembered", "error", err)
	}
}

// flows matches the tracked connections to published ports.
type flows struct {
	list       []port.Mapping
	translated bool
	local      map[netip.Addr]bool
}

var _ netlink.CustomConntrackFilter = flows{}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f flows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	to, _ := netip.AddrFromSlice(flow.Forward.DstIP)
	from, _ := netip.AddrFromSlice(flow.Reverse.SrcIP)
	to, from = to.Unmap(), from.Unmap()
	for _, m := range f.list {
		if flow.Forward.Protocol != m.Number() || flow.Forward.DstPort != m.Host.Port() {
			continue
		}
		switch {
		case f.translated && from == m.To.Addr():
			return true
		case !f.translated && to == from && (to == m.Host.Addr() || m.Host.Addr().IsUnspecified() && f.local[to]):
			return true
		}
	}
	return false
}

// localAddresses are the host's addresses.
func localAddresses() map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	list, err := net.InterfaceAddrs()
	if err != nil {
		return out
	}
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out[p.Addr().Unmap()] = true
		}
	}
	return out
}

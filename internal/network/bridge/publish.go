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

// rulesOf are the ports that the firewall translates or opens for an endpoint;
// none of those that it shares while it rests.
func rulesOf(ep network.Endpoint, list []port.Mapping) []firewall.Port {
	var out []firewall.Port
	for _, m := range list {
		if m.Translated() && !(ep.Resting && m.Group != "") {
			out = append(out, firewall.Port{Proto: m.Number(), Host: m.Host, To: m.To, Group: m.Group})
		}
	}
	return out
}

// Publish implements network.Publisher.
func (d *Driver) Publish(_ context.Context, ep network.Endpoint) error {
	list, err := ep.Mappings()
	if err != nil {
		return fmt.Errorf("endpoint %s: %w", ep.EndpointID, err)
	}
	if err := d.fw.Add(rulesOf(ep, list)...); err != nil {
		return err
	}
	d.forgetFlows(list, false)
	return nil
}

// Unpublish implements network.Publisher. Connections that are under way end
// with the container; of UDP, which knows no end, the kernel is told to forget.
func (d *Driver) Unpublish(_ context.Context, eps []network.Endpoint) error {
	var rules []firewall.Port
	var all []port.Mapping
	for _, ep := range eps {
		list, err := ep.Mappings()
		if err != nil { // nothing can have been published by it
			d.log.Warn("published ports of a bad record", "error", err)
		}
		ep.Resting = false // it may have been in rotation
		rules, all = append(rules, rulesOf(ep, list)...), append(all, list...)
	}
	if len(all) == 0 {
		return nil
	}
	if err := d.fw.Remove(rules...); err != nil {
		return err
	}
	d.forgetFlows(all, true)
	return nil
}

// Rotate implements network.Publisher. TCP connections that are under way stay
// where they are; datagrams go by the new rotation at once.
func (d *Driver) Rotate(_ context.Context, ep network.Endpoint) error {
	list, err := ep.Mappings()
	if err != nil {
		return fmt.Errorf("endpoint %s: %w", ep.EndpointID, err)
	}
	list = slices.DeleteFunc(list, func(m port.Mapping) bool { return m.Group == "" })
	change := d.fw.Add
	if ep.Resting {
		change = d.fw.Remove
	}
	ep.Resting = false
	if err := change(rulesOf(ep, list)...); err != nil {
		return err
	}
	d.forgetFlows(list, true)
	return nil
}

// forgetFlows deletes the kernel's memory of UDP flows to published ports, by
// which packets would go on to where they went before: translated ones when the
// port is taken back, untranslated ones when it is published. Best effort.
func (d house) forgetFlows(list []port.Mapping, translated bool) {
	list = slices.DeleteFunc(slices.Clone(list), func(m port.Mapping) bool { return m.Number() != unix.IPPROTO_UDP })
	if len(list) == 0 {
		return
	}
	f := flows{list: list, translated: translated}
	if !translated || slices.ContainsFunc(list, func(m port.Mapping) bool { return m.Group != "" }) {
		f.local = localAddresses()
	}
	for family, has := range map[netlink.InetFamily]func(netip.Addr) bool{unix.AF_INET: netip.Addr.Is4, unix.AF_INET6: netip.Addr.Is6} {
		if !slices.ContainsFunc(list, func(m port.Mapping) bool { return has(m.Host.Addr()) }) {
			continue
		}
		if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, f); err != nil {
			d.log.Debug("UDP flows to published ports are remembered", "error", err)
		}
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
		here := to == m.Host.Addr() || m.Host.Addr().IsUnspecified() && f.local[to]
		switch {
		case f.translated && (from == m.To.Addr() || m.Group != "" && from != to && here):
			return true
		case !f.translated && to == from && here:
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

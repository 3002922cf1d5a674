package bridge

import (
	"context"
	"net/netip"
	"slices"

	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/network/firewall"
	"escale.dev/escale/internal/network/port"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var _ network.Spreader = (*Driver)(nil)

// Spread implements network.Spreader.
func (d *Driver) Spread(_ context.Context, ports []port.Mapping, far []netip.Addr, s network.Stray) error {
	m := firewall.Mesh{Far: far}
	for _, p := range ports {
		m.Ports = append(m.Ports, firewall.Port{Proto: p.Number(), Host: p.Host, To: p.To, Group: p.Group})
	}
	if err := d.fw.SetMesh(m); err != nil || s.None() {
		return err
	}
	f := stray{s, localAddresses()}
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, f); err != nil {
			d.log.Debug("flows to ports of the cluster are remembered", "error", err)
		}
	}
	return nil
}

// Seal says which networks between hosts are to be encrypted, all of them: what is not is
// dropped. Idempotent; on an error all stays as it was.
func (d *Driver) Seal(list []firewall.Sealed) error { return d.fw.SetSealed(list) }

// stray matches the tracked connections that are to be forgotten.
type stray struct {
	network.Stray
	local map[netip.Addr]bool
}

var _ netlink.CustomConntrackFilter = stray{}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (s stray) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	to, _ := netip.AddrFromSlice(flow.Forward.DstIP)
	from, _ := netip.AddrFromSlice(flow.Reverse.SrcIP)
	to, from = to.Unmap(), from.Unmap()
	if !s.local[to] && !to.IsLoopback() {
		return false
	}
	if flow.Forward.Protocol == unix.IPPROTO_UDP {
		now, ours := s.Datagrams[flow.Forward.DstPort]
		return ours && !slices.Contains(now, from)
	}
	return s.Ports[flow.Forward.DstPort] && slices.Contains(s.Ended, from)
}

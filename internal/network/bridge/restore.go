package bridge

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/network/firewall"
	"escale.dev/escale/internal/sys/netns"
	"escale.dev/escale/internal/sys/rtnl"
	"github.com/vishvananda/netlink"
)

// Restore implements network.Driver: addresses are taken again, links that are
// missing or off their bridge come back, links and published ports of nobody go.
func (d *Driver) Restore(_ context.Context, live map[string][]network.Live) error {
	found, err := d.links()
	if err != nil {
		return err
	}
	var errs []error
	var ports []firewall.Port
	addrs := map[string][]netip.Addr{}
	for id, list := range live {
		b, err := d.network(id)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, l := range list {
			ep := l.Endpoint
			published, err := d.takeUp(b, l, found[ep.HostLink])
			if err != nil {
				d.log.Error("taking up the network of a running container", "container", l.ContainerID, "link", ep.HostLink, "error", err)
			}
			ports = append(ports, published...)
			addrs[ep.HostLink] = addressesOf(ep)
			delete(found, ep.HostLink)
		}
	}
	if len(found) > 0 {
		names := slices.Sorted(maps.Keys(found))
		d.log.Info("removing links that belong to no container", "links", names)
		errs = append(errs, deleteLinks(d.remover.group, names))
	}
	errs = append(errs, d.sweepBridges(), d.fw.Sync(ports, addrs))
	return errors.Join(errs...)
}

// addressesOf are the addresses of an endpoint.
func addressesOf(ep network.Endpoint) (out []netip.Addr) {
	for _, s := range []string{ep.IP, ep.IP6} {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// takeUp takes up one endpoint that lives; link is what was found of it.
func (d *Driver) takeUp(b *bridged, l network.Live, link netlink.Link) ([]firewall.Port, error) {
	list, err := l.Endpoint.Mappings()
	published := rulesOf(l.Endpoint, list)
	d.note(l.Endpoint.HostLink, b.spec.ID, len(list) > 0)
	return published, errors.Join(err, d.repair(b, l, link, len(list) > 0))
}

// links are this instance's links on the host, by name. Another engine's whose
// prefix happens to be the same are told apart by their bridge.
func (d *Driver) links() (map[string]netlink.Link, error) {
	all, err := rtnl.Whole(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("links of the host: %w", err)
	}
	ours := map[int]bool{0: true} // 0: on no bridge
	d.mu.Lock()
	for _, b := range d.networks {
		ours[b.index] = true
	}
	d.mu.Unlock()
	out := map[string]netlink.Link{}
	for _, l := range all {
		if a := l.Attrs(); l.Type() == "veth" && d.ours(a.Name) && ours[a.MasterIndex] {
			out[a.Name] = l
		}
	}
	return out, nil
}

// repair brings a running container's link back: onto the bridge, or anew when
// the pair is gone but the namespace is there.
func (d *Driver) repair(b *bridged, l network.Live, link netlink.Link, published bool) error {
	ep := l.Endpoint
	if link != nil {
		if link.Attrs().MasterIndex == b.index && link.Attrs().Flags&net.FlagUp != 0 {
			return nil
		}
		d.log.Warn("putting the link of a running container back on its bridge", "container", l.ContainerID, "link", ep.HostLink)
		if err := netlink.LinkSetMasterByIndex(link, b.index); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
		c, err := rtnl.Dial()
		if err != nil {
			return err
		}
		defer c.Close()
		return c.Do(portRequest(b, ep.HostLink, published))
	}
	if !netns.Bound(l.Path) || !d.ours(ep.HostLink) {
		return nil // the namespace cannot be reached: the manager has told of it
	}
	return d.reconnect(b, l, published)
}

// reconnect makes the pair of links of a running container anew.
func (d *Driver) reconnect(b *bridged, l network.Live, published bool) error {
	ep := l.Endpoint
	d.log.Warn("making the link of a running container anew", "container", l.ContainerID, "link", ep.HostLink)
	mac, err := net.ParseMAC(ep.MAC)
	if err != nil {
		return err
	}
	ns, err := netns.Open(l.Path)
	if err != nil {
		return err
	}
	defer ns.Close()
	v := veth{ns: ns, mac: mac, hairpin: published, Link: l.Inside()}
	c, err := rtnl.Dial()
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Do(pairRequest(b, v, ep.HostLink)); err != nil {
		return err
	}
	return d.host6.plug(c, b, v, ep.HostLink)
}

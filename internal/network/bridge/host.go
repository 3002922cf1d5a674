package bridge

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"

	"escale.dev/escale/internal/network/ipam"
	"escale.dev/escale/internal/sys/rtnl"
	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ensureBridge makes the bridge, or takes up the one that is there, and returns
// its index and address. A bridge that is there keeps its address, unless the
// configuration names another and nothing is connected to it.
func (d *Driver) ensureBridge(name string, want netip.Prefix) (int, netip.Prefix, error) {
	link, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return d.makeBridge(name, want)
	}
	if err != nil {
		return 0, netip.Prefix{}, err
	}
	if link.Type() != "bridge" {
		return 0, netip.Prefix{}, fmt.Errorf("a link of this name is there and no bridge but %q: %w", link.Type(), errdefs.ErrFailedPrecondition)
	}
	addrs, err := addresses(link)
	if err != nil {
		return 0, netip.Prefix{}, err
	}
	if len(addrs) > 0 && want.IsValid() && !slices.Contains(addrs, want) {
		busy, err := hasPorts(link.Attrs().Index)
		if err != nil {
			return 0, netip.Prefix{}, err
		}
		if busy {
			d.log.Warn("bridge keeps its address: containers are connected to it", "bridge", name, "address", addrs[0], "bip", want)
			want = addrs[0]
		} else if err := removeAddresses(link, addrs); err != nil {
			return 0, netip.Prefix{}, err
		} else {
			addrs = nil
		}
	}
	switch {
	case len(addrs) == 0:
		if want, err = d.assign(link, want); err != nil {
			return 0, netip.Prefix{}, err
		}
	case !want.IsValid():
		want = addrs[0]
	}
	return link.Attrs().Index, want, netlink.LinkSetUp(link)
}

// makeBridge makes the bridge with an address. On an error it is removed again.
func (d *Driver) makeBridge(name string, want netip.Prefix) (int, netip.Prefix, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, d.cfg.LinkMTU()
	link := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(link); err != nil {
		return 0, netip.Prefix{}, err
	}
	addr, err := d.assign(link, want)
	if err == nil {
		// Of its own, or the bridge would take that of a port and change it, and
		// containers would lose their gateway for a while.
		err = netlink.LinkSetHardwareAddr(link, hardware(addr.Addr()))
	}
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return 0, netip.Prefix{}, errors.Join(err, deleteLink(name))
	}
	return link.Attrs().Index, addr, nil
}

// assign gives a bridge without an address the one wanted or one of a subnet
// that nothing on the host uses.
func (d *Driver) assign(link netlink.Link, want netip.Prefix) (netip.Prefix, error) {
	addr := want
	if !addr.IsValid() {
		used, err := d.used(link)
		if err != nil {
			return addr, err
		}
		subnet, err := ipam.Choose(d.cfg.Ranges(), used)
		if err != nil {
			return addr, err
		}
		addr = netip.PrefixFrom(subnet.Addr().Next(), subnet.Bits())
	}
	a, err := netlink.ParseAddr(addr.String())
	if err != nil {
		return addr, err
	}
	a.Broadcast = last(addr).AsSlice()
	if err := netlink.AddrAdd(link, a); err != nil {
		return addr, fmt.Errorf("address %s: %w", addr, err)
	}
	return addr, nil
}

// used are the subnets of all links and routes of the host but those of link.
func (d *Driver) used(link netlink.Link) ([]netip.Prefix, error) {
	var out []netip.Prefix
	addrs, err := rtnl.Whole(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("addresses of the host: %w", err)
	}
	for _, a := range addrs {
		if a.LinkIndex == link.Attrs().Index {
			continue
		}
		if p, ok := prefix(a.IP, a.Mask); ok {
			out = append(out, p)
		}
	}
	routes, err := rtnl.Whole(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("routes of the host: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil || r.LinkIndex == link.Attrs().Index {
			continue
		}
		// Half of everything is a default route in disguise, as VPNs set it.
		if p, ok := prefix(r.Dst.IP, r.Dst.Mask); ok && p.Bits() > 1 {
			out = append(out, p)
		}
	}
	return out, nil
}

func prefix(ip, mask []byte) (netip.Prefix, bool) {
	a, ok := netip.AddrFromSlice(ip)
	if !ok || len(mask) == 0 {
		return netip.Prefix{}, false
	}
	bits := 0
	for _, b := range mask {
		for ; b&0x80 != 0; b <<= 1 {
			bits++
		}
	}
	return netip.PrefixFrom(a.Unmap(), bits), true
}

func addresses(link netlink.Link) ([]netip.Prefix, error) {
	list, err := rtnl.Whole(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_V4) })
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, a := range list {
		if p, ok := prefix(a.IP, a.Mask); ok {
			out = append(out, p)
		}
	}
	return out, nil
}

func removeAddresses(link netlink.Link, addrs []netip.Prefix) error {
	for _, p := range addrs {
		a, err := netlink.ParseAddr(p.String())
		if err != nil {
			return err
		}
		if err := netlink.AddrDel(link, a); err != nil {
			return fmt.Errorf("address %s: %w", p, err)
		}
	}
	return nil
}

// hasPorts tells whether links are connected to the bridge with this index.
func hasPorts(index int) (bool, error) {
	links, err := rtnl.Whole(netlink.LinkList)
	if err != nil {
		return false, fmt.Errorf("links of the host: %w", err)
	}
	return slices.ContainsFunc(links, func(l netlink.Link) bool { return l.Attrs().MasterIndex == index }), nil
}

// settings sets the sysctls that the bridge needs.
func (d *Driver) settings(link string) error {
	// 127.0.0.1 and a published port: packets with loopback addresses cross the
	// bridge's link. The firewall drops those that do not belong there.
	if err := setting("net/ipv4/conf/"+link+"/route_localnet", "1"); err != nil {
		return err
	}
	// No IPv6 on the network yet: nothing a container says may reconfigure the host.
	if err := setting("net/ipv6/conf/"+link+"/disable_ipv6", "1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	on, err := get("net/ipv4/ip_forward")
	if err != nil || on == "1" {
		return err
	}
	if !d.cfg.IPForward {
		d.log.Warn("net.ipv4.ip_forward is off and left so: containers reach nothing outside and their published ports are not reached")
		return nil
	}
	if err := setting("net/ipv4/ip_forward", "1"); err != nil {
		return err
	}
	d.log.Info("net.ipv4.ip_forward was off: turned on for containers; the host now forwards between all its networks unless its firewall says otherwise")
	return nil
}

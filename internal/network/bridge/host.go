package bridge

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"

	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/network/firewall"
	"escale.dev/escale/internal/network/inside"
	"escale.dev/escale/internal/network/ipam"
	"escale.dev/escale/internal/sys/rtnl"
	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ensure makes the bridge of a network, or takes up the one that is there.
func (d *Driver) ensure(b *bridged) error {
	if b.spec.Name == network.Bridge {
		index, addr, err := d.ensureBridge(b.opts.link, d.cfg.BIP, b.spec.Avoid)
		if err != nil {
			return err
		}
		b.index = index
		b.spec.Subnets = []network.Subnet{{Prefix: addr.Masked(), Gateway: addr.Addr()}}
	} else if err := d.ensureUser(b); err != nil {
		return err
	}
	b.v4, b.v6 = b.spec.Subnet(false), b.spec.Subnet(true)
	return d.settings(b)
}

// mark is the alias of the bridge of a network: what bears it is this instance's,
// and goes with the network.
func (d house) mark(id string) string { return d.cfg.Instance + ":" + id }

// marked is the id of the network whose mark a bridge bears; empty: it is none of
// this instance's.
func (d house) marked(link string) string {
	l, err := netlink.LinkByName(link)
	if err != nil || l.Type() != "bridge" {
		return ""
	}
	id, ours := strings.CutPrefix(l.Attrs().Alias, d.mark(""))
	if !ours {
		return ""
	}
	return id
}

// owns tells whether the bridge of a network was made for it.
func (d *Driver) owns(b *bridged) bool {
	return b.spec.Name == network.Bridge || b.opts.link == ownName(b.spec.ID) || d.marked(b.opts.link) == b.spec.ID
}

// ensureUser makes the bridge of a network of a user's. One that the user made
// himself has to have the network's address, or none.
func (d *Driver) ensureUser(b *bridged) error {
	link, err := netlink.LinkByName(b.opts.link)
	switch {
	case errors.As(err, new(netlink.LinkNotFoundError)):
		if link, err = d.makeUser(b); err != nil {
			return err
		}
	case err != nil:
		return err
	case link.Type() != "bridge":
		return errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("bridge device with name %s is no bridge but a %s", b.opts.link, link.Type()))
	}
	if b.opts.link == ownName(b.spec.ID) && d.marked(b.opts.link) != b.spec.ID { // an engine was killed before it marked it
		if err := netlink.LinkSetAlias(link, d.mark(b.spec.ID)); err != nil {
			return err
		}
	}
	b.index = link.Attrs().Index
	return d.address(link, b)
}

// ownName is the name of the bridge of a network that asks for no other.
func ownName(id string) string { return "br-" + id[:min(12, len(id))] }

// newBridge is a bridge yet to be made, without multicast snooping: nobody on it asks who
// listens to what, and without such a querier a bridge sends multicast to all ports anyway
// (Documentation/networking/bridge.rst, "Multicast"). What is kept for it of each port makes ports
// come and go more slowly the more there are.
func newBridge(attrs netlink.LinkAttrs) *netlink.Bridge {
	snoop := false
	return &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snoop}
}

// makeUser makes a bridge that bears the mark of its network. The name that a user
// has chosen comes last: one without the mark would be taken for the user's own.
func (d *Driver) makeUser(b *bridged) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = ownName(b.spec.ID), b.opts.mtu
	// Of its own, or the bridge would take that of a port and change it, and
	// containers would lose their gateway for a while.
	attrs.HardwareAddr = hardware(b.spec.Subnet(false).Gateway, b.spec.ID)
	link := newBridge(attrs)
	err := netlink.LinkAdd(link)
	if errors.Is(err, unix.EEXIST) { // what is left of an engine that was killed here
		if err = deleteLink(attrs.Name); err == nil {
			err = netlink.LinkAdd(link)
		}
	}
	if err != nil {
		return nil, err
	}
	if err = netlink.LinkSetAlias(link, d.mark(b.spec.ID)); err == nil && attrs.Name != b.opts.link {
		err = netlink.LinkSetName(link, b.opts.link)
	}
	if err != nil {
		return nil, errors.Join(err, deleteLink(attrs.Name))
	}
	return link, nil
}

// address gives the bridge of a network its addresses and sets it up. On an error
// a bridge of ours that nobody is on is removed again.
func (d *Driver) address(link netlink.Link, b *bridged) (err error) {
	defer func() {
		if err != nil && d.owns(b) {
			if busy, e := hasPorts(link.Attrs().Index); e == nil && !busy {
				err = errors.Join(err, deleteLink(b.opts.link))
			}
		}
	}()
	var wanted []netip.Prefix
	v4, v6 := b.spec.Subnet(false), b.spec.Subnet(true)
	if v4.Gateway.IsValid() && !b.opts.inhibit && b.opts.mode4 != firewall.Isolated {
		wanted = append(wanted, netip.PrefixFrom(v4.Gateway, v4.Prefix.Bits()))
	}
	if v6.Prefix.IsValid() {
		if err := six(b.opts.link); err != nil {
			return err
		}
		if v6.Gateway.IsValid() && b.opts.mode6 != firewall.Isolated {
			wanted = append(wanted, netip.PrefixFrom(v6.Gateway, v6.Prefix.Bits()))
		}
	}
	there, err := addresses(link, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, p := range wanted {
		if slices.Contains(there, p) {
			continue
		}
		for _, o := range there {
			if o.Addr().BitLen() == p.Addr().BitLen() && !o.Addr().IsLinkLocalUnicast() {
				return errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("bridge %s (%s) does not match requested configuration %s", b.opts.link, o.Addr(), p.Addr()))
			}
		}
		if err := addAddress(link, p); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(link)
}

// six turns IPv6 on for a bridge: nothing that a container says on it may
// reconfigure the host, and its addresses are valid at once.
func six(link string) error {
	conf := "net/ipv6/conf/" + link + "/"
	for _, s := range [][2]string{{"accept_ra", "0"}, {"accept_dad", "0"}, {"disable_ipv6", "0"}} {
		if err := inside.Sysctl(conf+s[0], s[1]); err != nil {
			return fmt.Errorf("IPv6: %w", err)
		}
	}
	return nil
}

// ensureBridge makes the bridge of the default network, or takes up the one that
// is there, and returns its index and address. A bridge that is there keeps its
// address, unless the configuration names another and nothing is connected to it.
func (d house) ensureBridge(name string, want netip.Prefix, avoid []netip.Prefix) (int, netip.Prefix, error) {
	link, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return d.makeBridge(name, want, avoid)
	}
	if err != nil {
		return 0, netip.Prefix{}, err
	}
	if link.Type() != "bridge" {
		return 0, netip.Prefix{}, fmt.Errorf("a link of this name is there and no bridge but %q: %w", link.Type(), errdefs.ErrFailedPrecondition)
	}
	addrs, err := addresses(link, netlink.FAMILY_V4)
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
		if want, err = d.assign(link, want, avoid); err != nil {
			return 0, netip.Prefix{}, err
		}
	case !want.IsValid():
		want = addrs[0]
	}
	return link.Attrs().Index, want, netlink.LinkSetUp(link)
}

// makeBridge makes the bridge with an address. On an error it is removed again.
func (d house) makeBridge(name string, want netip.Prefix, avoid []netip.Prefix) (int, netip.Prefix, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, d.cfg.LinkMTU()
	link := newBridge(attrs)
	if err := netlink.LinkAdd(link); err != nil {
		return 0, netip.Prefix{}, err
	}
	addr, err := d.assign(link, want, avoid)
	if err == nil {
		// Of its own, or the bridge would take that of a port and change it, and
		// containers would lose their gateway for a while.
		err = netlink.LinkSetHardwareAddr(link, hardware(addr.Addr(), name))
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
func (d house) assign(link netlink.Link, want netip.Prefix, avoid []netip.Prefix) (netip.Prefix, error) {
	addr := want
	if !addr.IsValid() {
		used, err := ipam.Host(link.Attrs().Index)
		if err != nil {
			return addr, err
		}
		subnet, err := ipam.Choose(d.cfg.Ranges(false), append(used, avoid...))
		if err != nil {
			return addr, err
		}
		addr = netip.PrefixFrom(subnet.Addr().Next(), subnet.Bits())
	}
	return addr, addAddress(link, addr)
}

// addAddress gives a link an address, which is valid at once.
func addAddress(link netlink.Link, p netip.Prefix) error {
	a, err := netlink.ParseAddr(p.String())
	if err != nil {
		return err
	}
	if p.Addr().Is4() && p.Bits() < 31 {
		a.Broadcast = ipam.Last(p).AsSlice()
	}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := netlink.AddrAdd(link, a); err != nil {
		return fmt.Errorf("address %s: %w", p, err)
	}
	return nil
}

func addresses(link netlink.Link, family int) ([]netip.Prefix, error) {
	list, err := rtnl.Whole(func() ([]netlink.Addr, error) { return netlink.AddrList(link, family) })
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, a := range list {
		if p, ok := ipam.Prefix(a.IP, a.Mask); ok {
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
func (d house) settings(b *bridged) error {
	// 127.0.0.1 and a published port: packets with loopback addresses cross the
	// bridge's link. The firewall drops those that do not belong there.
	if err := inside.Sysctl("net/ipv4/conf/"+b.opts.link+"/route_localnet", "1"); err != nil {
		return err
	}
	if !b.v6.Prefix.IsValid() {
		// Nothing a container says may reconfigure the host.
		if err := inside.Sysctl("net/ipv6/conf/"+b.opts.link+"/disable_ipv6", "1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := d.forwarding("net/ipv4/ip_forward", "net.ipv4.ip_forward"); err != nil {
		return err
	}
	if b.v6.Prefix.IsValid() && !b.spec.Internal {
		if err := keepAdvertisements(d.cfg.IPForward); err != nil {
			return err
		}
		return d.forwarding("net/ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding")
	}
	return nil
}

// forwarding turns a sysctl of the host on, if the configuration lets it.
func (d house) forwarding(path, name string) error {
	on, err := inside.Read(path)
	if err != nil || on == "1" {
		return err
	}
	if !d.cfg.IPForward {
		d.log.Warn(name + " is off and left so: containers reach nothing outside and their published ports are not reached")
		return nil
	}
	if err := inside.Sysctl(path, "1"); err != nil {
		return err
	}
	d.log.Info(name + " was off: turned on for containers; the host now forwards between all its networks unless its firewall says otherwise")
	return nil
}

// keepAdvertisements lets those links go on to believe router advertisements that
// do, since a host that forwards believes none unless it is told so expressly:
// it would lose its own default route.
func keepAdvertisements(forward bool) error {
	const conf = "net/ipv6/conf/"
	if on, err := inside.Read(conf + "all/forwarding"); err != nil || on == "1" || !forward {
		return err
	}
	links, err := os.ReadDir("/proc/sys/" + conf)
	if err != nil {
		return err
	}
	for _, l := range links {
		if l.Name() == "all" || l.Name() == "default" || l.Name() == "lo" {
			continue
		}
		if v, err := inside.Read(conf + l.Name() + "/accept_ra"); err == nil && v == "1" {
			if err := inside.Sysctl(conf+l.Name()+"/accept_ra", "2"); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// deleteMarked deletes the bridge of a network that this driver does not know: of
// one that could not be made whole.
func (d *Driver) deleteMarked(id string) error {
	links, err := rtnl.Whole(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("links of the host: %w", err)
	}
	for _, l := range links {
		if l.Type() == "bridge" && l.Attrs().Alias == d.mark(id) {
			return deleteLink(l.Attrs().Name)
		}
	}
	return nil
}

// sweepBridges deletes bridges of networks that nobody knows, made or half removed
// by an engine that was killed. One with ports is left alone: its network's record
// may only not be readable.
func (d *Driver) sweepBridges() error {
	links, err := rtnl.Whole(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("links of the host: %w", err)
	}
	masters := map[int]bool{}
	for _, l := range links {
		masters[l.Attrs().MasterIndex] = true
	}
	var errs []error
	for _, l := range links {
		id, ours := strings.CutPrefix(l.Attrs().Alias, d.mark(""))
		if l.Type() != "bridge" || !ours || masters[l.Attrs().Index] {
			continue
		}
		d.mu.Lock()
		known := d.known[id]
		d.mu.Unlock()
		if !known {
			d.log.Info("removing a bridge that belongs to no network", "bridge", l.Attrs().Name, "network", id)
			errs = append(errs, deleteLink(l.Attrs().Name))
		}
	}
	return errors.Join(errs...)
}

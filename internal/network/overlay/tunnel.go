package overlay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"escale.dev/escale/internal/network/overlay/esp"
	"escale.dev/escale/internal/sys/rtnl"
	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Peer is an address on a network that is on another node.
type Peer struct {
	Addr netip.Addr
	MAC  net.HardwareAddr // empty: the one that goes with the address
	VTEP netip.Addr       // the node's
}

// hardware is the hardware address that goes with an address.
func hardware(a netip.Addr) net.HardwareAddr {
	raw := a.AsSlice()
	return append(net.HardwareAddr{0x02, 0x42}, raw[len(raw)-4:]...)
}

// linkName is the name of the VXLAN link of a network. Its alias says whose it is.
func linkName(id string) string { return "vx-" + id[:min(12, len(id))] }

func (d *Driver) mark(id string) string { return d.cfg.Instance + ":" + id }

// MTU is how long packets of a network that is made now are, unless it says otherwise: bytes.
func (d *Driver) MTU(encrypted bool) int {
	mtu := cmp.Or(d.underlayMTU(), d.cfg.LinkMTU()-overhead4)
	if encrypted {
		return sealedMTU(mtu)
	}
	return mtu
}

// sealedMTU is how long packets may be that are encrypted, where others may be so long. What
// ESP carries is filled up, with the two bytes of its trailer, to a multiple of four.
func sealedMTU(mtu int) int {
	mtu -= esp.Overhead
	return mtu - (mtu+overheadUDP+2)%4
}

// overheadUDP is what VXLAN and UDP add to a packet and the header of its frame.
const overheadUDP = overhead4 - 20

// underlayMTU is how long packets in an overlay network may be so that they fit into those
// of the link that has this node's address; 0: that is not known.
func (d *Driver) underlayMTU() int {
	d.mu.Lock()
	local := d.under.Local
	d.mu.Unlock()
	if !local.IsValid() {
		return 0
	}
	family, overhead := netlink.FAMILY_V4, overhead4
	if local.Is6() {
		family, overhead = netlink.FAMILY_V6, overhead6
	}
	list, err := rtnl.Whole(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, family) })
	if err != nil {
		return 0
	}
	for _, a := range list {
		if ip, ok := netip.AddrFromSlice(a.IP); ok && ip.Unmap() == local {
			if l, err := netlink.LinkByIndex(a.LinkIndex); err == nil && l.Attrs().Flags&net.FlagLoopback == 0 {
				return l.Attrs().MTU - overhead
			}
		}
	}
	return 0
}

// SetPeers says what of a network is on other nodes, all of it. What the kernel knows is
// changed by the difference. NotFound when there is no such network.
func (d *Driver) SetPeers(_ context.Context, id string, peers []Peer) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.networks[id]
	if s == nil {
		return fmt.Errorf("network %s not found: %w", id, errdefs.ErrNotFound)
	}
	s.peers, s.told = slices.Clone(peers), true
	if err := d.tunnel(s); err != nil {
		return fmt.Errorf("network %s: peers: %w", id, err)
	}
	return nil
}

// healed puts the VXLAN link back on a bridge that was made anew.
func (d *Driver) healed(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s := d.networks[id]; s != nil {
		if err := d.tunnel(s); err != nil {
			d.log.Error("network is cut off from other nodes: its bridge was made anew", "network", id, "error", err)
		}
	}
}

// tunnel makes the VXLAN link of a network that has peers, and what it knows of them. Called
// with mu held, as all that follow.
func (d *Driver) tunnel(s *spanned) error {
	if !s.told {
		return nil
	}
	if len(s.peers) == 0 || !d.under.Local.IsValid() {
		if err := removeTunnel(linkName(s.id)); err != nil || !s.seal {
			return err
		}
		return d.cipher.Remove(s.vni)
	}
	if s.vni == 0 {
		return fmt.Errorf("it has no number: %w", errdefs.ErrFailedPrecondition)
	}
	if s.seal && !s.keys.Known() {
		return nil // what an earlier engine left goes on until there are keys
	}
	bridge, err := d.Bridges.Link(s.id)
	if err != nil {
		return err
	}
	master, err := netlink.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("bridge %q: %w", bridge, err)
	}
	if s.seal { // before anything can be sent
		if err := d.encrypt(s); err != nil {
			return err
		}
	}
	link, err := d.ensureTunnel(s, master)
	if err != nil {
		return err
	}
	return know(link.Attrs().Index, s.peers)
}

// ensureTunnel takes up the VXLAN link that is there, or makes one.
func (d *Driver) ensureTunnel(s *spanned, master netlink.Link) (netlink.Link, error) {
	name := linkName(s.id)
	link, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return d.makeTunnel(s, master)
	}
	if err != nil {
		return nil, err
	}
	if v, ok := link.(*netlink.Vxlan); !ok || !d.fits(v, s) {
		if err := removeTunnel(name); err != nil {
			return nil, err
		}
		return d.makeTunnel(s, master)
	}
	if link.Attrs().MasterIndex != master.Attrs().Index || link.Attrs().Flags&net.FlagUp == 0 || link.Attrs().Alias != d.mark(s.id) {
		return link, d.plug(link, s, master)
	}
	return link, nil
}

// fits tells whether a link is as it is to be.
func (d *Driver) fits(v *netlink.Vxlan, s *spanned) bool {
	src, _ := netip.AddrFromSlice(v.SrcAddr)
	low, high := s.from()
	return v.PortLow == low && v.PortHigh == high && v.VxlanId == int(s.vni) && v.Port == int(d.under.Port) && src.Unmap() == d.under.Local && v.Proxy && !v.Learning && v.MTU == s.mtu
}

// makeTunnel makes the link. On an error nothing is left behind.
func (d *Driver) makeTunnel(s *spanned, master netlink.Link) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = linkName(s.id), s.mtu
	low, high := s.from()
	link := &netlink.Vxlan{
		PortLow: low, PortHigh: high,
		LinkAttrs: attrs, VxlanId: int(s.vni), SrcAddr: d.under.Local.AsSlice(), Port: int(d.under.Port),
		Learning: false, Proxy: true, UDP6ZeroCSumTx: d.under.Local.Is6(), UDP6ZeroCSumRx: d.under.Local.Is6(),
	}
	if err := netlink.LinkAdd(link); err != nil {
		if errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("VXLAN link of number %d and port %d: another program or engine of this host has one: %w", s.vni, d.under.Port, err)
		}
		return nil, fmt.Errorf("VXLAN link: %w", err)
	}
	if err := d.plug(link, s, master); err != nil {
		return nil, errors.Join(err, removeTunnel(attrs.Name))
	}
	return link, nil
}

// plug marks the link, puts it on its bridge and sets it up. The bridge learns nothing from it
// and floods nothing to it but questions for addresses, which the link answers itself.
func (d *Driver) plug(link netlink.Link, s *spanned, master netlink.Link) error {
	for what, do := range map[string]func() error{
		"alias":  func() error { return netlink.LinkSetAlias(link, d.mark(s.id)) },
		"bridge": func() error { return netlink.LinkSetMaster(link, master) },
	} {
		if err := do(); err != nil {
			return fmt.Errorf("VXLAN link: %s: %w", what, err)
		}
	}
	for what, do := range map[string]func() error{
		"learning": func() error { return netlink.LinkSetLearning(link, false) },
		"flooding": func() error { return netlink.LinkSetFlood(link, false) },
		"up":       func() error { return netlink.LinkSetUp(link) },
	} {
		if err := do(); err != nil {
			return fmt.Errorf("VXLAN link: %s: %w", what, err)
		}
	}
	return nil
}

// removeTunnel removes the VXLAN link of this name; what is not there is no error.
func removeTunnel(name string) error {
	link, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return err
	}
	if link.Type() != "vxlan" {
		return fmt.Errorf("link %q is no VXLAN link but a %s: %w", name, link.Type(), errdefs.ErrFailedPrecondition)
	}
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("VXLAN link %q: %w", name, err)
	}
	return nil
}

// sweep removes VXLAN links of networks that nobody knows.
func (d *Driver) sweep() error {
	links, err := rtnl.Whole(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("links of the host: %w", err)
	}
	var errs []error
	for _, l := range links {
		alias := l.Attrs().Alias
		if l.Type() != "vxlan" || len(alias) <= len(d.mark("")) || alias[:len(d.mark(""))] != d.mark("") {
			continue
		}
		if d.networks[alias[len(d.mark("")):]] == nil {
			d.log.Info("removing a VXLAN link that belongs to no network", "link", l.Attrs().Name)
			errs = append(errs, removeTunnel(l.Attrs().Name))
		}
	}
	return errors.Join(errs...)
}

// know makes the forwarding entries and neighbours of a link those of the peers.
func know(index int, peers []Peer) error {
	macs, neighbours := map[string]netip.Addr{}, map[netip.Addr]net.HardwareAddr{}
	for _, p := range peers {
		mac := p.MAC
		if len(mac) == 0 {
			mac = hardware(p.Addr)
		}
		macs[mac.String()], neighbours[p.Addr] = p.VTEP, mac
	}
	return errors.Join(syncForwarding(index, macs), syncNeighbours(index, neighbours))
}

// syncForwarding: each hardware address stands twice, once with the bridge, so that what goes
// there goes by this link only, and once with the link, with the node that has it.
func syncForwarding(index int, want map[string]netip.Addr) error {
	list, err := rtnl.Whole(func() ([]netlink.Neigh, error) { return netlink.NeighList(index, unix.AF_BRIDGE) })
	if err != nil {
		return fmt.Errorf("forwarding entries: %w", err)
	}
	there, known := map[string]netip.Addr{}, map[string]bool{}
	own := ""
	if l, err := netlink.LinkByIndex(index); err == nil {
		own = l.Attrs().HardwareAddr.String()
	}
	var errs []error
	for _, n := range list {
		mac := n.HardwareAddr.String()
		to, _ := netip.AddrFromSlice(n.IP)
		_, wanted := want[mac]
		switch {
		case n.Flags&netlink.NTF_SELF != 0:
			if there[mac] = to.Unmap(); !wanted {
				errs = append(errs, gone(netlink.NeighDel(&n)))
			}
		case mac == own || n.State&netlink.NUD_PERMANENT != 0 && n.State&netlink.NUD_NOARP == 0:
			// The link's own.
		default:
			if known[mac] = true; !wanted {
				n.Flags = netlink.NTF_MASTER
				errs = append(errs, gone(netlink.NeighDel(&n)))
			}
		}
	}
	for mac, vtep := range want {
		hw, err := net.ParseMAC(mac)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if there[mac] != vtep {
			errs = append(errs, netlink.NeighSet(&netlink.Neigh{LinkIndex: index, Family: unix.AF_BRIDGE, State: netlink.NUD_PERMANENT | netlink.NUD_NOARP, Flags: netlink.NTF_SELF, IP: vtep.AsSlice(), HardwareAddr: hw}))
		}
		if !known[mac] {
			errs = append(errs, netlink.NeighSet(&netlink.Neigh{LinkIndex: index, Family: unix.AF_BRIDGE, State: netlink.NUD_NOARP, Flags: netlink.NTF_MASTER, HardwareAddr: hw}))
		}
	}
	return errors.Join(errs...)
}

func syncNeighbours(index int, want map[netip.Addr]net.HardwareAddr) error {
	var errs []error
	there := map[netip.Addr]string{}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		list, err := rtnl.Whole(func() ([]netlink.Neigh, error) { return netlink.NeighList(index, family) })
		if err != nil {
			return fmt.Errorf("neighbours: %w", err)
		}
		for _, n := range list {
			a, _ := netip.AddrFromSlice(n.IP)
			if n.State&netlink.NUD_PERMANENT == 0 {
				continue // the kernel's own
			}
			if there[a.Unmap()] = n.HardwareAddr.String(); want[a.Unmap()] == nil {
				errs = append(errs, gone(netlink.NeighDel(&n)))
			}
		}
	}
	for a, mac := range want {
		if there[a] != mac.String() {
			errs = append(errs, netlink.NeighSet(&netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac}))
		}
	}
	return errors.Join(errs...)
}

// gone is err, unless it says that there is nothing.
func gone(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

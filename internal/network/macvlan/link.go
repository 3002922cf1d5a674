package macvlan

import (
	"crypto/sha256"
	"errors"
	"fmt"
	gonet "net"
	"strconv"
	"strings"

	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/sys/rtnl"
	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// link is a link of the network's kind on its parent.
func (n *net) link(kind, name string, mac gonet.HardwareAddr) netlink.Link {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex, attrs.HardwareAddr = name, n.index, mac
	if kind == "ipvlan" {
		attrs.HardwareAddr = nil // all have the parent's
		return &netlink.IPVlan{LinkAttrs: attrs, Mode: ipModes[n.mode], Flag: ipFlags[n.flag]}
	}
	return &netlink.Macvlan{LinkAttrs: attrs, Mode: modes[n.mode]}
}

// hardware is the MAC address of an endpoint: the one asked for, else one of its
// own made of its id. A link that has the parent for itself has the parent's.
func hardware(n *net, j network.Join) gonet.HardwareAddr {
	if len(j.MAC) > 0 {
		return j.MAC
	}
	if n.mode == "passthru" {
		return nil
	}
	sum := sha256.Sum256([]byte(j.EndpointID))
	return gonet.HardwareAddr{0x02, 0x42, sum[0], sum[1], sum[2], sum[3]}
}

// deleteNamed deletes a link; one that is not there is no error.
func deleteNamed(name string) error {
	l, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkDel(l)
	}
	if errors.As(err, new(netlink.LinkNotFoundError)) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// ours is the id in the mark of a link of ours; false when it bears none.
func (d *Driver) ours(l netlink.Link) (id string, ok bool) {
	return strings.CutPrefix(l.Attrs().Alias, d.mark(""))
}

// deleteMarked deletes links of the driver's kind in the namespace of the calling
// thread that bear the mark of an endpoint which unwanted names.
func (d *Driver) deleteMarked(unwanted func(id string) bool) error {
	links, err := rtnl.Whole(netlink.LinkList)
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range links {
		if id, ok := d.ours(l); ok && l.Type() == d.kind && unwanted(id) {
			errs = append(errs, deleteNamed(l.Attrs().Name))
		}
	}
	return errors.Join(errs...)
}

// sweepLinks deletes links on the host that were to go into a namespace.
func (d *Driver) sweepLinks() error {
	links, err := rtnl.Whole(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("links of the host: %w", err)
	}
	var errs []error
	for _, l := range links {
		if l.Type() == d.kind && strings.HasPrefix(l.Attrs().Name, d.cfg.LinkPrefix()) {
			errs = append(errs, deleteNamed(l.Attrs().Name))
		}
	}
	return errors.Join(errs...)
}

// sweepParents deletes parents that were made for networks nobody knows.
func (d *Driver) sweepParents() error {
	links, err := rtnl.Whole(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("links of the host: %w", err)
	}
	var errs []error
	for _, l := range links {
		id, ours := d.ours(l)
		kind, id, _ := strings.Cut(id, ":")
		if !ours || kind != d.kind {
			continue
		}
		d.mu.Lock()
		known := d.known[id]
		for _, n := range d.networks {
			known = known || n.parent == l.Attrs().Name
		}
		d.mu.Unlock()
		if !known {
			errs = append(errs, deleteNamed(l.Attrs().Name))
		}
	}
	return errors.Join(errs...)
}

// ensureParent finds the parent of a network, or makes it: a dummy link, or a VLAN
// of the link before the dot.
func (d *Driver) ensureParent(n *net) (index int, err error) {
	l, err := netlink.LinkByName(n.parent)
	if err == nil {
		if _, ours := d.ours(l); ours {
			err = netlink.LinkSetUp(l)
		}
		return l.Attrs().Index, err
	}
	if !errors.As(err, new(netlink.LinkNotFoundError)) {
		return 0, err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = ownName(d.kind, n.spec.ID) // the other name comes with the mark: without it is garbage that is known by its name
	var link netlink.Link = &netlink.Dummy{LinkAttrs: attrs}
	if !n.dummy {
		master, vid, err := vlan(n.parent)
		if err != nil {
			return 0, err
		}
		attrs.ParentIndex = master.Attrs().Index
		link = &netlink.Vlan{LinkAttrs: attrs, VlanId: vid}
	}
	if err := deleteNamed(attrs.Name); err != nil { // what an engine left that was killed here
		return 0, err
	}
	err = netlink.LinkAdd(link)
	if n.dummy && errors.Is(err, unix.EOPNOTSUPP) {
		// Kernels without dummy links have pairs, whose other end is of no use.
		pair := &netlink.Veth{LinkAttrs: attrs, PeerName: "dp-" + attrs.Name[len("dm-"):]}
		if link, err = pair, netlink.LinkAdd(pair); err == nil {
			if err = upNamed(pair.PeerName); err != nil {
				err = errors.Join(err, netlink.LinkDel(pair))
			}
		}
	}
	if err != nil {
		return 0, errdefs.ErrInternal.WithMessage(fmt.Sprintf("failed to create the parent link %s: %v", n.parent, err))
	}
	err = netlink.LinkSetAlias(link, d.mark(d.kind+":"+n.spec.ID))
	if err == nil && attrs.Name != n.parent {
		err = netlink.LinkSetName(link, n.parent)
	}
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return 0, errors.Join(err, netlink.LinkDel(link))
	}
	return link.Attrs().Index, nil
}

// upNamed sets a link up.
func upNamed(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

// vlan reads "eth0.50".
func vlan(name string) (master netlink.Link, id int, err error) {
	bad := func(format string, args ...any) error {
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
	}
	dot := strings.LastIndexByte(name, '.')
	if dot < 0 {
		return nil, 0, bad("invalid subinterface vlan name %s, example formatting is eth0.10", name)
	}
	id, err = strconv.Atoi(name[dot+1:])
	if err != nil {
		return nil, 0, bad("unable to parse a valid vlan id from: %s (ex. eth0.10 for vlan 10)", name[dot+1:])
	}
	if id < 1 || id > 4094 {
		return nil, 0, bad("vlan id must be between 1-4094, received: %d", id)
	}
	master, err = netlink.LinkByName(name[:dot])
	if err != nil {
		return nil, 0, bad("-o parent interface was not found on the host: %s", name[:dot])
	}
	return master, id, nil
}

// dropParent deletes the parent that was made for a network, unless another of
// ours is on it.
func (d *Driver) dropParent(n *net) error {
	d.mu.Lock()
	for _, o := range d.networks {
		if o.parent == n.parent && o.spec.ID != n.spec.ID {
			d.mu.Unlock()
			return nil
		}
	}
	d.mu.Unlock()
	l, err := netlink.LinkByName(n.parent)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, ours := d.ours(l); !ours && !n.dummy {
		return nil
	}
	return deleteNamed(n.parent)
}

// probe tells whether the kernel has links of this kind, and takes one on the
// parent: it makes one and deletes it.
func (d *Driver) probe(n *net) error {
	if n.mode == "passthru" {
		return nil // the one that there can be may be a container's already
	}
	name := d.cfg.LinkPrefix() + n.spec.ID[:min(7, len(n.spec.ID))]
	err := netlink.LinkAdd(n.link(d.kind, name, nil))
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return errdefs.ErrNotImplemented.WithMessage(fmt.Sprintf("the kernel of this host has no %s (module %s)", d.kind, d.kind))
	case err != nil:
		return errdefs.ErrInternal.WithMessage(fmt.Sprintf("failed to create the %s port: %v", d.kind, err))
	}
	return deleteNamed(name)
}

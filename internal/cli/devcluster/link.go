package devcluster

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"escale.dev/escale/internal/sys/netns"
	"github.com/containerd/errdefs"
	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The switch is a network namespace with the bridges, one for each side of a partition: in
// the host's own, its firewalls would have their say in what nodes send each other.

// bridge is the one of a side: the host's is 0, the others come with partitions.
func bridge(side int) string { return fmt.Sprintf("br%d", side) }

// uplink is the host's link to the switch, there called "host".
func (c *cluster) uplink() string { return c.Name + "-host" }

func (c *cluster) switchboard() string { return filepath.Join("/run/netns", c.Name+"-switch") }

// choose finds a subnet that nobody on the host has.
func choose() (netip.Prefix, error) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("routes of the host: %w", err)
	}
next:
	for i := range 256 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 213, byte(i), 0}), 24)
		for _, r := range routes {
			if r.Dst == nil {
				continue
			}
			a, _ := netip.AddrFromSlice(r.Dst.IP.To4())
			if ones, _ := r.Dst.Mask.Size(); ones > 0 && netip.PrefixFrom(a, ones).Overlaps(p) {
				continue next
			}
		}
		return p, nil
	}
	return netip.Prefix{}, fmt.Errorf("all of 10.213.0.0/16 is in use on this host: say one with --subnet: %w", errdefs.ErrResourceExhausted)
}

// plug does something in the switch.
func (c *cluster) plug(do func() error) error {
	h, err := netns.Open(c.switchboard())
	if err != nil {
		return err
	}
	return errors.Join(h.Do(do), h.Close())
}

// wire makes the switch and hangs the host on it. Idempotent.
func (c *cluster) wire() error {
	if err := bind(c.switchboard()); err != nil {
		return err
	}
	if err := c.plug(func() error { return makeBridge(0) }); err != nil {
		return err
	}
	if _, err := netlink.LinkByName(c.uplink()); err != nil {
		h, err := netns.Open(c.switchboard())
		if err != nil {
			return err
		}
		err = netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: c.uplink()}, PeerName: "host", PeerNamespace: netlink.NsFd(h.Fd())})
		if err = errors.Join(err, h.Close()); err != nil {
			return fmt.Errorf("link %s: %w", c.uplink(), err)
		}
	}
	if err := c.plug(func() error { return hang("host", 0) }); err != nil {
		return err
	}
	if err := address(c.uplink(), c.host()); err != nil {
		return err
	}
	return c.masquerade()
}

// makeBridge makes the bridge of a side. Idempotent. It runs in the switch.
func makeBridge(side int) error {
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridge(side)}}); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("bridge %s: %w", bridge(side), err)
	}
	l, err := netlink.LinkByName(bridge(side))
	if err == nil {
		err = netlink.LinkSetUp(l)
	}
	return err
}

// hang hangs a link on the bridge of a side. It runs in the switch.
func hang(link string, side int) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return fmt.Errorf("link %s: %w", link, err)
	}
	b, err := netlink.LinkByName(bridge(side))
	if err == nil {
		err = netlink.LinkSetMaster(l, b)
	}
	if err == nil {
		err = netlink.LinkSetUp(l)
	}
	if err != nil {
		return fmt.Errorf("link %s: %w", link, err)
	}
	return nil
}

// address gives a link its address and sets it up.
func address(link string, p netip.Prefix) error {
	l, err := netlink.LinkByName(link)
	if err == nil {
		err = netlink.LinkSetUp(l)
	}
	if err == nil {
		err = netlink.AddrReplace(l, &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}})
	}
	if err != nil {
		return fmt.Errorf("link %s: address %s: %w", link, p, err)
	}
	return nil
}

// table is what the cluster has of nftables.
func (c *cluster) table() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "escale-dev-" + c.Name}
}

// masquerade lets nodes reach what the host reaches, under its address.
func (c *cluster) masquerade() error {
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
		return err
	}
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	t := conn.AddTable(c.table())
	conn.FlushTable(t)
	ch := conn.AddChain(&nftables.Chain{Table: t, Name: "postrouting", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
	p := c.Subnet.Masked()
	mask := net.CIDRMask(p.Bits(), 32)
	var out [16]byte
	copy(out[:], c.uplink())
	conn.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: binaryutil.NativeEndian.PutUint32(0)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Addr().AsSlice()},
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: out[:]},
		&expr.Masq{},
	}})
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("nftables table %s: %w", t.Name, err)
	}
	return nil
}

// connect makes the node's namespace and its link, or takes up those that are there.
func (n *node) connect() error {
	if err := bind(n.namespace()); err != nil {
		return err
	}
	inside, err := netns.Open(n.namespace())
	if err != nil {
		return err
	}
	defer inside.Close()
	err = inside.Do(func() error { _, err := netlink.LinkByName("eth0"); return err })
	var missing netlink.LinkNotFoundError
	if err != nil && !errors.As(err, &missing) {
		return err
	}
	if err != nil {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: n.Name}, PeerName: "eth0", PeerNamespace: netlink.NsFd(inside.Fd())}
		if err := n.c.plug(func() error { return netlink.LinkAdd(veth) }); err != nil {
			return fmt.Errorf("node %s: link: %w", n.Name, err)
		}
	}
	if err := n.stand(); err != nil {
		return err
	}
	return inside.Do(func() error {
		if err := address("lo", netip.MustParsePrefix("127.0.0.1/8")); err != nil {
			return err
		}
		if err := address("eth0", netip.PrefixFrom(n.Addr, n.c.Subnet.Bits())); err != nil {
			return err
		}
		if err := netlink.RouteReplace(&netlink.Route{Gw: n.c.host().Addr().AsSlice()}); err != nil {
			return fmt.Errorf("default route: %w", err)
		}
		return nil
	})
}

// bind makes a namespace with its handle. Idempotent.
func bind(path string) error {
	if netns.Bound(path) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	_ = f.Close()
	h, err := netns.New()
	if err != nil {
		return err
	}
	defer h.Close()
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", h.Fd()), path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("handle of a network namespace %s: %w", path, err)
	}
	return nil
}

// unbind undoes bind. Idempotent.
func unbind(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// stand hangs the node's link on the bridge of its side.
func (n *node) stand() error {
	return n.c.plug(func() error { return errors.Join(makeBridge(n.Side), hang(n.Name, n.Side)) })
}

// unlink removes the switch, with its links, and the rules of a cluster. Idempotent.
func (c *cluster) unlink() error {
	errs := []error{unbind(c.switchboard())}
	if l, err := netlink.LinkByName(c.uplink()); err == nil {
		errs = append(errs, netlink.LinkDel(l)) // of itself it would go a moment later
	}
	conn, err := nftables.New()
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyIPv4)
	for _, t := range tables {
		if t.Name == c.table().Name {
			conn.DelTable(t)
			err = conn.Flush()
		}
	}
	return errors.Join(append(errs, err)...)
}

package plugin

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/network/inside"
	"escale.dev/escale/internal/sys/netns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// bring takes the link that a plugin has made into a namespace and sets it up; the entry
// is locked. It gives the link's name there, and sets the join's MAC to the link's.
func (s *Store) bring(e *entry, ns *netns.Handle, link joined, j *network.Join) (string, error) {
	l, err := netlink.LinkByName(link.src)
	if err != nil {
		return "", fmt.Errorf("link %q of the plugin: %w", link.src, err)
	}
	name, err := nameFor(ns, link.prefix, j)
	if err != nil {
		return "", err
	}
	e.note.Source, e.note.Inside = link.src, name
	if err := s.save(e, true); err != nil {
		return "", err
	}
	if err := inside.Move(l.Attrs().Index, ns.Fd(), name); err != nil {
		return "", fmt.Errorf("link %q of the plugin: %w", link.src, err)
	}
	in := j.Inside()
	in.Name, in.Gateway, in.Gateway6 = name, inside.Link{}.Gateway, inside.Link{}.Gateway6 // default routes are the manager's
	return name, ns.Do(func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if len(j.MAC) > 0 && l.Attrs().HardwareAddr.String() != j.MAC.String() {
			if err := netlink.LinkSetHardwareAddr(l, j.MAC); err != nil {
				return fmt.Errorf("link %q inside: MAC address %s: %w", name, j.MAC, err)
			}
		}
		if len(j.MAC) == 0 {
			j.MAC = l.Attrs().HardwareAddr
		}
		if err := in.Up(); err != nil {
			return err
		}
		return addRoutes(l.Attrs().Index, link.routes)
	})
}

// nameFor chooses the link's name inside: what the user asked for, else the prefix
// with the first free number.
func nameFor(ns *netns.Handle, prefix string, j *network.Join) (string, error) {
	if j.Interface != "" {
		return j.Interface, nil
	}
	name := ""
	err := ns.Do(func() error {
		for i := 0; ; i++ {
			name = prefix + strconv.Itoa(i)
			if !network.ValidLink(name) {
				return fmt.Errorf("no free name for a link %q", prefix)
			}
			if j.Taken[name] {
				continue
			}
			if _, err := netlink.LinkByName(name); errors.As(err, new(netlink.LinkNotFoundError)) {
				return nil
			} else if err != nil {
				return err
			}
		}
	})
	return name, err
}

// addRoutes makes routes in the namespace of the calling thread: those onto the link
// first, which others may need.
func addRoutes(index int, routes []route) error {
	for _, direct := range []bool{true, false} {
		for _, r := range routes {
			if r.via.IsValid() == direct {
				continue
			}
			one := netlink.Route{LinkIndex: index, Dst: prefixNet(r.dst)}
			if r.via.IsValid() {
				one.Gw = r.via.AsSlice()
			} else {
				one.Scope = netlink.SCOPE_LINK
			}
			if err := netlink.RouteAdd(&one); err != nil {
				return fmt.Errorf("route to %s: %w", r.dst, err)
			}
		}
	}
	return nil
}

// sendBack takes the link of an endpoint out of the namespace, if it is there still, and
// gives it the name that the plugin knows.
func sendBack(n *note) error {
	if n.Inside == "" || !netns.Bound(n.Path) {
		return nil
	}
	host, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return err
	}
	defer host.Close()
	ns, err := netns.Open(n.Path)
	if err != nil {
		return err
	}
	defer ns.Close()
	return ns.Do(func() error {
		l, err := netlink.LinkByName(n.Inside)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return nil
		}
		if err == nil {
			err = inside.Move(l.Attrs().Index, int(host.Fd()), n.Source)
		}
		if errors.Is(err, unix.EEXIST) { // the plugin has made another
			err = netlink.LinkDel(l)
		}
		return err
	})
}

// has tells whether the link of an endpoint is in its namespace.
func (n *note) has() (bool, error) {
	if n.Inside == "" {
		return true, nil
	}
	ns, err := netns.Open(n.Path)
	if err != nil {
		return false, err
	}
	defer ns.Close()
	err = ns.Do(func() error { _, err := netlink.LinkByName(n.Inside); return err })
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return false, nil
	}
	return err == nil, err
}

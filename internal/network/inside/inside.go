// Package inside sets up a link in the namespace of a container: addresses,
// default routes, sysctls. Its functions work in the network namespace of the
// calling thread.
package inside

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strings"

	"escale.dev/escale/internal/network/ipam"
	"escale.dev/escale/internal/sys/rtnl"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Link is how a link is to be. It has to be there, and down.
type Link struct {
	Name              string
	IP, IP6           netip.Prefix // the zero Prefix: none of that family
	Gateway, Gateway6 netip.Addr   // of the default routes; zero: none, unspecified: straight onto the link
	LinkLocal         []netip.Addr // further addresses
	Sysctls           []string     // "net.ipv4.conf.IFNAME.forwarding=1"
}

// Prepare sets up a namespace that was just made: the loopback link, and no IPv6 on links
// that come but where Link asks for it.
func Prepare() error {
	c, err := rtnl.Dial()
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Do(upRequest(1)); err != nil { // lo always is the first link
		return fmt.Errorf("loopback link: %w", err)
	}
	conf, err := OpenFolder("net/ipv6/conf/default")
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the kernel has no IPv6
	}
	if err != nil {
		return err
	}
	defer conf.Close()
	return conf.Set("disable_ipv6", "1")
}

// Up sets the link up. Blocks for a fraction of a millisecond.
func (l Link) Up() error {
	c, err := rtnl.Dial()
	if err != nil {
		return err
	}
	defer c.Close()
	there, err := c.Link(l.Name)
	if err != nil {
		return fmt.Errorf("link %q inside: %w", l.Name, err)
	}
	index := there.Index
	if err := l.six(there); err != nil {
		return err
	}
	for _, s := range l.Sysctls {
		if err := l.sysctl(s); err != nil {
			return err
		}
	}
	var reqs []*nl.NetlinkRequest
	for _, p := range l.addresses() {
		reqs = append(reqs, addressRequest(index, p))
	}
	reqs = append(reqs, upRequest(index))
	for _, gw := range []netip.Addr{l.Gateway, l.Gateway6} {
		if gw.IsValid() {
			reqs = append(reqs, RouteRequest(index, gw, unix.NLM_F_CREATE|unix.NLM_F_EXCL))
		}
	}
	if err := c.Do(reqs...); err != nil {
		return fmt.Errorf("link %q inside: %w", l.Name, err)
	}
	return nil
}

// six turns IPv6 on or off. Without it the link has no address of its own, no
// neighbour discovery, and believes no router advertisement. With it addresses
// are not asked for on the link, which would take a second or two: they are given
// out here, once.
func (l Link) six(there rtnl.Link) error {
	on := l.IP6.IsValid()
	for _, a := range l.LinkLocal {
		on = on || a.Is6()
	}
	if there.NoIPv6 && !on {
		return nil
	}
	conf, err := OpenFolder("net/ipv6/conf/" + l.Name)
	if errors.Is(err, fs.ErrNotExist) && !on {
		return nil // the kernel has no IPv6
	}
	if err == nil {
		defer conf.Close()
		if !on {
			err = conf.Set("disable_ipv6", "1")
		} else {
			err = errors.Join(conf.Set("disable_ipv6", "0"), conf.Set("accept_ra", "0"), conf.Set("accept_dad", "0"))
		}
	}
	if err != nil {
		return fmt.Errorf("IPv6 of link %q inside: %w", l.Name, err)
	}
	return nil
}

func (l Link) sysctl(s string) error {
	key, value, _ := strings.Cut(s, "=")
	f := strings.SplitN(key, ".", 5) // net.ipv4.conf.IFNAME.name, as network.Manager has checked
	if len(f) != 5 || strings.Contains(key, "/") {
		return fmt.Errorf("sysctl %q is none of a link", s)
	}
	f[3] = l.Name
	// Names of links may hold dots, those of sysctls have slashes for theirs.
	f[4] = strings.ReplaceAll(f[4], ".", "/")
	if err := os.WriteFile("/proc/sys/"+strings.Join(f, "/"), []byte(value), 0); err != nil {
		return fmt.Errorf("sysctl %q: %w", s, err)
	}
	return nil
}

func (l Link) addresses() (out []netip.Prefix) {
	for _, p := range []netip.Prefix{l.IP, l.IP6} {
		if p.IsValid() {
			out = append(out, p)
		}
	}
	for _, a := range l.LinkLocal {
		if a.Is4() {
			out = append(out, netip.PrefixFrom(a, 16))
		} else {
			out = append(out, netip.PrefixFrom(a, 64))
		}
	}
	return out
}

func addressRequest(index int, p netip.Prefix) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	msg := nl.NewIfAddrmsg(unix.AF_INET)
	msg.Index, msg.Prefixlen, msg.Scope = uint32(index), uint8(p.Bits()), unix.RT_SCOPE_UNIVERSE
	if p.Addr().Is6() {
		msg.Family, msg.Flags = unix.AF_INET6, unix.IFA_F_NODAD
	}
	if p.Addr().IsLinkLocalUnicast() {
		msg.Scope = unix.RT_SCOPE_LINK
	}
	req.AddData(msg)
	ip := p.Addr().AsSlice()
	req.AddData(nl.NewRtAttr(unix.IFA_LOCAL, ip))
	req.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, ip))
	if p.Addr().Is4() && p.Bits() < 31 {
		req.AddData(nl.NewRtAttr(unix.IFA_BROADCAST, ipam.Last(p).AsSlice()))
	}
	return req
}

func upRequest(index int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index, msg.Flags, msg.Change = int32(index), unix.IFF_UP, unix.IFF_UP
	req.AddData(msg)
	return req
}

// RouteRequest makes a default route over the link with this index. flags are
// those of a new route (NLM_F_CREATE and others); an unspecified gateway means
// straight onto the link.
func RouteRequest(index int, gateway netip.Addr, flags int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_NEWROUTE, flags)
	msg := nl.NewRtMsg()
	msg.Family = unix.AF_INET
	if gateway.Is6() {
		msg.Family = unix.AF_INET6
	}
	if gateway.IsUnspecified() && gateway.Is4() {
		msg.Scope = unix.RT_SCOPE_LINK
	}
	req.AddData(msg)
	if !gateway.IsUnspecified() {
		req.AddData(nl.NewRtAttr(unix.RTA_GATEWAY, gateway.AsSlice()))
	}
	req.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(index))))
	return req
}

// Read reads a sysctl ("net/ipv4/ip_forward").
func Read(name string) (string, error) {
	b, err := os.ReadFile("/proc/sys/" + name)
	return strings.TrimSpace(string(b)), err
}

// Sysctl writes a sysctl, unless it has the value already.
func Sysctl(name, value string) error {
	if old, err := Read(name); err != nil || old == value {
		return err
	}
	return os.WriteFile("/proc/sys/"+name, []byte(value), 0)
}

// Move takes a link of the namespace of the calling thread into another, given by a
// descriptor of it, and gives it its name there, in one step.
func Move(index, namespace int, name string) error {
	c, err := rtnl.Dial()
	if err != nil {
		return err
	}
	defer c.Close()
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(namespace))))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	return c.Do(req)
}

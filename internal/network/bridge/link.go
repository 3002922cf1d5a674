package bridge

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"

	"escale.dev/escale/internal/network/inside"
	"escale.dev/escale/internal/sys/netns"
	"escale.dev/escale/internal/sys/rtnl"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Numbers of linux/veth.h and linux/if_link.h.
const (
	vethPeer         = 1 // VETH_INFO_PEER
	inet6AddrGenMode = 8 // IFLA_INET6_ADDR_GEN_MODE
	addrGenNone      = 1 // IN6_ADDR_GEN_MODE_NONE
)

// veth is a pair of links: one on the host, a port of the bridge, and one in a
// namespace.
type veth struct {
	inside.Link
	ns      *netns.Handle
	mac     net.HardwareAddr
	hairpin bool // frames may go back out of the port by which they came in
}

// ours tells whether a link bears the name of one of this instance's.
func (d house) ours(link string) bool {
	return strings.HasPrefix(link, d.cfg.LinkPrefix())
}

// connect makes a pair of links and sets up the inside. It returns the name of
// the host's end. On an error nothing is left behind.
func (d *Driver) connect(b *bridged, v veth, endpoint string) (host string, err error) {
	c, err := rtnl.Dial()
	if err != nil {
		return "", err
	}
	defer c.Close()
	const digits = 7 // prefix and digits are 15 characters together
	for try := 0; ; try++ {
		if len(endpoint) < (try+1)*digits {
			return "", fmt.Errorf("no free name for a link of endpoint %q", endpoint)
		}
		host = d.cfg.LinkPrefix() + endpoint[try*digits:(try+1)*digits]
		err = c.Do(pairRequest(b, v, host))
		if !errors.Is(err, unix.EEXIST) || try == 2 {
			break
		}
	}
	if errors.Is(err, unix.EEXIST) {
		return "", fmt.Errorf("link %q: %w", host, err) // another's
	}
	if err == nil {
		err = d.host6.plug(c, b, v, host)
	}
	if err == nil {
		return host, nil
	}
	return "", errors.Join(fmt.Errorf("link %q: %w", host, err), deleteLink(host))
}

// awaitCarrier makes the kernel work off what it has noticed of these links. They
// learn that their peer is up, and the bridge that it has a port, by a work queue;
// a packet before that is lost, and the next comes after a second. To be asked for
// a link makes the kernel do its part of the queue first (rtnl_getlink, since
// Linux 6.8; before, a start within some milliseconds of its first packet may
// lose that one).
func awaitCarrier(c *rtnl.Conn, links ...string) error {
	for _, l := range links {
		if _, err := c.Index(l); err != nil {
			return fmt.Errorf("link %q: %w", l, err)
		}
	}
	return nil
}

// plug brings both ends of a pair up and the host's onto the bridge, last: whenever a port
// of a bridge comes up or goes down, the kernel goes through all of them, so it comes when
// it is up for good.
func (h *host6) plug(c *rtnl.Conn, b *bridged, v veth, host string) error {
	if hasIPv6() {
		h.off(host)
	}
	if err := c.Do(linkRequest(host)); err != nil {
		return err
	}
	if err := v.ns.Do(v.Up); err != nil {
		return err
	}
	if err := awaitCarrier(c, host); err != nil {
		return err
	}
	master := linkRequest(host)
	master.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(b.index))))
	if err := c.Do(master, portRequest(b, host, v.hairpin)); err != nil {
		return err
	}
	return awaitCarrier(c, b.opts.link)
}

// linkRequest brings a link up. More can be added to it.
func linkRequest(name string) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Flags, msg.Change = unix.IFF_UP, unix.IFF_UP
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	return req
}

// host6 is IPv6 of the host's links.
type host6 struct {
	once sync.Once
	conf inside.Folder
	err  error
}

// off turns IPv6 off on a port of a bridge, which is to be done while it is down: it needs
// none for what the bridge passes on. Each port that has it has a route of its own for
// multicast, and the kernel goes through all of them whenever a link goes down. Where it
// cannot be turned off it stays on.
func (h *host6) off(link string) {
	h.once.Do(func() { h.conf, h.err = inside.OpenFolder("net/ipv6/conf") })
	if h.err == nil {
		_ = h.conf.Set(link+"/disable_ipv6", "1")
	}
}

func (h *host6) close() {
	h.once.Do(func() { h.err = fs.ErrClosed })
	if h.err == nil {
		h.conf.Close()
	}
}

// pairRequest makes the pair, the inside in its namespace with its name and MAC.
func pairRequest(b *bridged, v veth, host string) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	mtu := nl.Uint32Attr(uint32(b.opts.mtu))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(host)))
	req.AddData(nl.NewRtAttr(unix.IFLA_MTU, mtu))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, []byte("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(vethPeer, nl.NewIfInfomsg(unix.AF_UNSPEC).Serialize())
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(v.Name))
	peer.AddRtAttr(unix.IFLA_ADDRESS, v.mac)
	peer.AddRtAttr(unix.IFLA_MTU, mtu)
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(v.ns.Fd())))
	req.AddData(info)
	return req
}

// portRequest sets the options of a port of the bridge. With br_netfilter a
// container that reaches its own published port is sent back by the port by which
// it came, which is what hairpin allows. Without icc ports are isolated from each
// other, but not from the host. IPv6 gives the host's end no address: it needs
// none, and a thousand routes to link-local neighbours make each new link slower.
func portRequest(b *bridged, host string, hairpin bool) *nl.NetlinkRequest {
	req := linkRequest(host)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_SLAVE_KIND, nl.ZeroTerminated("bridge"))
	data := info.AddRtAttr(nl.IFLA_INFO_SLAVE_DATA, nil)
	data.AddRtAttr(nl.IFLA_BRPORT_MODE, nl.Uint8Attr(flag(hairpin)))
	data.AddRtAttr(nl.IFLA_BRPORT_ISOLATED, nl.Uint8Attr(flag(!b.opts.icc)))
	req.AddData(info)
	if hasIPv6() {
		families := nl.NewRtAttr(unix.IFLA_AF_SPEC|unix.NLA_F_NESTED, nil)
		families.AddRtAttr(unix.AF_INET6|unix.NLA_F_NESTED, nil).AddRtAttr(inet6AddrGenMode, nl.Uint8Attr(addrGenNone))
		req.AddData(families)
	}
	return req
}

func flag(on bool) uint8 {
	if on {
		return 1
	}
	return 0
}

// hasIPv6 tells whether the kernel has IPv6 at all.
var hasIPv6 = sync.OnceValue(func() bool {
	_, err := os.Stat("/proc/net/if_inet6")
	return err == nil
})

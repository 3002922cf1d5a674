package lb

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"escale.dev/escale/internal/sys/netns"
	"escale.dev/escale/internal/sys/netns/netnstest"
	"github.com/vishvananda/netlink"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// The table as nft(8) shows it.
func TestTable(t *testing.T) {
	got := Table([]Service{
		{addr("fd00::9"), []netip.Addr{addr("fd00::3")}},
		{addr("10.1.0.9"), []netip.Addr{addr("10.1.0.3"), addr("fd00::3"), addr("10.1.0.2")}},
		{addr("10.1.0.8"), nil},
	}).String()
	const want = `table inet escale-services {
	map vips {
		type ipv4_addr : verdict
		elements = { 10.1.0.9 : goto to-10.1.0.9 }
	}

	map vips6 {
		type ipv6_addr : verdict
		elements = { fd00::9 : goto to-fd00__9 }
	}

	chain output {
		type nat hook output priority -100; policy accept;
		ip daddr vmap @vips
		ip6 daddr vmap @vips6
	}

	chain to-10.1.0.9 {
		dnat ip to numgen inc mod 2 map { 0x00000000 : 10.1.0.2, 0x01000000 : 10.1.0.3 }
	}

	chain to-fd00__9 {
		dnat ip6 to numgen inc mod 1 map { 0x00000000 : fd00::3 }
	}
}
`
	if got != want {
		t.Errorf("the table is\n%s\nwant\n%s", got, want)
	}
}

// box is a namespace in which 10.1.0.2 and 3, and fd00::2 and 3, answer their last digit,
// while 10.1.0.9 and fd00::9 are nobody's.
func box(t *testing.T) *netns.Handle {
	t.Helper()
	netnstest.Root(t)
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	do(t, ns, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "eth0"
		eth := &netlink.Veth{LinkAttrs: attrs, PeerName: "peer"}
		if err := netlink.LinkAdd(eth); err != nil {
			return err
		}
		peer, err := netlink.LinkByName("peer")
		if err != nil {
			return err
		}
		for _, l := range []netlink.Link{lo, eth, peer} {
			if err := netlink.LinkSetUp(l); err != nil {
				return err
			}
		}
		for a, l := range map[string]netlink.Link{"10.1.0.1/24": eth, "fd00::1/64": eth, "10.1.0.2/32": lo, "10.1.0.3/32": lo, "fd00::2/128": lo, "fd00::3/128": lo} {
			p, err := netlink.ParseAddr(a)
			if err == nil {
				p.Flags = 2 // IFA_F_NODAD
				err = netlink.AddrAdd(l, p)
			}
			if err != nil {
				return err
			}
		}
		for _, n := range []string{"2", "3"} {
			for _, host := range []string{"10.1.0." + n, "fd00::" + n} {
				if err := answer(t, host, n); err != nil {
					return err
				}
			}
		}
		return nil
	})
	return ns
}

func do(t *testing.T, ns *netns.Handle, f func() error) {
	t.Helper()
	if err := ns.Do(f); err != nil {
		t.Fatal(err)
	}
}

func answer(t *testing.T, host, text string) error {
	family := "4"
	if addr(host).Is6() {
		family = "6"
	}
	l, err := net.Listen("tcp"+family, net.JoinHostPort(host, "80"))
	if err != nil {
		return err
	}
	u, err := net.ListenPacket("udp"+family, net.JoinHostPort(host, "80"))
	if err != nil {
		return err
	}
	t.Cleanup(func() {
		l.Close()
		u.Close()
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, text)
			c.Close()
		}
	}()
	go func() {
		b := make([]byte, 10)
		for {
			_, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = u.WriteTo([]byte(text), from)
		}
	}()
	return nil
}

// call gives who answered a new connection.
func call(ns *netns.Handle, host string) (text string) {
	if err := ns.Do(func() error {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(host, "80"), 300*time.Millisecond)
		if err != nil {
			return err
		}
		defer c.Close()
		b, err := io.ReadAll(c)
		text = string(b)
		return err
	}); err != nil {
		return "nobody"
	}
	return text
}

func TestSet(t *testing.T) {
	ns := box(t)
	set := func(list ...Service) {
		t.Helper()
		do(t, ns, func() error { return Set(list, nil) })
	}
	for _, at := range []struct{ vip, two, three string }{{"10.1.0.9", "10.1.0.2", "10.1.0.3"}, {"fd00::9", "fd00::2", "fd00::3"}} {
		vip := addr(at.vip)
		set(Service{vip, []netip.Addr{addr(at.two), addr(at.three)}})
		seen := map[string]int{}
		for range 6 {
			seen[call(ns, at.vip)]++
		}
		if seen["2"] != 3 || seen["3"] != 3 {
			t.Errorf("%s: of six connections %v", at.vip, seen)
		}
		set(Service{vip, []netip.Addr{addr(at.three)}})
		for range 3 {
			if got := call(ns, at.vip); got != "3" {
				t.Errorf("%s: %s answers, who does not serve any more", at.vip, got)
			}
		}
		set(Service{VIP: vip})
		if got := call(ns, at.vip); got != "nobody" {
			t.Errorf("%s: nobody serves, and %s answers", at.vip, got)
		}
	}
	set()
}

// A client that keeps its socket is served by who serves now.
func TestDatagramsFollow(t *testing.T) {
	ns := box(t)
	vip := addr("10.1.0.9")
	var c net.Conn
	do(t, ns, func() (err error) {
		if err = Set([]Service{{vip, []netip.Addr{addr("10.1.0.2")}}}, nil); err == nil {
			c, err = net.Dial("udp", "10.1.0.9:80")
		}
		return err
	})
	defer c.Close()
	ask := func() string {
		t.Helper()
		if _, err := c.Write([]byte("?")); err != nil {
			t.Fatal(err)
		}
		if err := c.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 10)
		n, err := c.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	if got := ask(); got != "2" {
		t.Errorf("%s answers", got)
	}
	next := []Service{{vip, []netip.Addr{addr("10.1.0.3")}}}
	do(t, ns, func() error { return Set(next, Lost([]Service{{vip, []netip.Addr{addr("10.1.0.2")}}}, next)) })
	if got := ask(); got != "3" {
		t.Errorf("%s answers, who does not serve any more", got)
	}
	do(t, ns, func() error { return Set(nil, Lost(next, nil)) })
	if _, err := c.Write([]byte("?")); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 10)); err == nil {
		t.Errorf("the service is no more, and %d bytes come", n)
	}
}

// Addresses of services are lost to who served them and does so no more.
func TestLost(t *testing.T) {
	one, two, a, b := addr("10.1.0.8"), addr("10.1.0.9"), addr("10.1.0.2"), addr("10.1.0.3")
	for _, c := range []struct {
		before, after []Service
		want          int
	}{
		{nil, []Service{{one, []netip.Addr{a}}}, 0},
		{[]Service{{one, []netip.Addr{a}}}, []Service{{one, []netip.Addr{b, a}}}, 0},
		{[]Service{{one, []netip.Addr{a, b}}}, []Service{{one, []netip.Addr{b}}}, 1},
		{[]Service{{one, []netip.Addr{a}}, {two, []netip.Addr{b}}}, nil, 2},
		{[]Service{{one, nil}}, nil, 0},
	} {
		if got := Lost(c.before, c.after); len(got) != c.want {
			t.Errorf("%v, then %v: %v", c.before, c.after, got)
		}
	}
}

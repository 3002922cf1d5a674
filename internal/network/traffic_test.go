package network_test

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/network/firewall"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// bridgeNetfilter runs a test with iptables seeing bridged packets and without:
// dockerd and kubelets turn it on, most machines have it off.
func bridgeNetfilter(t *testing.T, test func(t *testing.T)) {
	const name = "net/bridge/bridge-nf-call-iptables"
	for _, v := range []string{"0", "1"} {
		t.Run("bridge-nf-call-iptables="+v, func(t *testing.T) {
			if os.Geteuid() != 0 {
				t.Skip("needs root: sends packets between namespaces")
			}
			old, err := os.ReadFile("/proc/sys/" + name)
			if errors.Is(err, fs.ErrNotExist) {
				if v == "1" {
					t.Skip("needs br_netfilter in the kernel")
				}
			} else {
				for _, n := range []string{name, "net/bridge/bridge-nf-call-ip6tables"} {
					sysctl(t, n, v)
					t.Cleanup(func() { sysctl(t, n, string(old)) })
				}
			}
			test(t)
		})
	}
}

func TestTraffic(t *testing.T) {
	bridgeNetfilter(t, func(t *testing.T) {
		h := newHost(t)
		out := h.outside()
		a := h.start("a", "8080->80", "8080->80/udp", "127.0.0.1:8081->80", hostIP+":8082->80")
		b := h.start("b")
		gw := a.Endpoints[0].Gateway
		for _, proto := range []string{"tcp", "udp"} {
			a.serve(proto, "0.0.0.0:80")
			b.serve(proto, "0.0.0.0:90")
			out.serve(proto, "0.0.0.0:70")

			b.reaches(proto, a.ip()+":80", "a", b.ip())
			a.reaches(proto, b.ip()+":90", "b", a.ip())
			h.here().reaches(proto, a.ip()+":80", "a", gw)
			a.reaches(proto, outsideIP+":70", "outside", hostIP)

			out.reaches(proto, hostIP+":8080", "a", outsideIP)
			h.here().reaches(proto, "127.0.0.1:8080", "a", gw)
			h.here().reaches(proto, hostIP+":8080", "a", hostIP)
			h.here().reaches(proto, gw+":8080", "a", gw)
			b.reaches(proto, hostIP+":8080", "a", gw)
			b.reaches(proto, gw+":8080", "a", gw)
			a.reaches(proto, hostIP+":8080", "a", gw) // itself
			a.reaches(proto, gw+":8080", "a", gw)
		}
		h.here().reaches("tcp", "127.0.0.1:8081", "a", gw)
		out.blocked("tcp", hostIP+":8081")
		b.blocked("tcp", gw+":8081")
		out.reaches("tcp", hostIP+":8082", "a", outsideIP)
		h.here().blocked("tcp", "127.0.0.1:8082")

		if busybox, err := exec.LookPath("busybox"); err == nil {
			a.must(func() error {
				out, err := exec.Command(busybox, "ping", "-c1", "-W2", b.ip()).CombinedOutput()
				if err != nil {
					t.Errorf("ping: %s", out)
				}
				return nil
			})
		}
	})
}

// Only published ports lead in: a machine on the same wire that routes to the
// containers' subnet does not reach them.
func TestNoWayInBesidePublishedPorts(t *testing.T) {
	h := newHost(t)
	out := h.outside()
	a := h.start("a", "8080->80")
	a.serve("tcp", "0.0.0.0:80")
	a.serve("tcp", "0.0.0.0:81")
	out.must(func() error { return route("172.16.0.0/12", hostIP) })
	out.reaches("tcp", hostIP+":8080", "a", outsideIP)
	out.blocked("tcp", a.ip()+":80")
	out.blocked("tcp", a.ip()+":81")
}

// guardOff empties the chain that drops dishonest packets, which shows that a
// test would notice if it did not work.
func guardOff(t *testing.T, h *host) {
	if err := h.m.Close(); err != nil { // or it would be put right at once
		t.Fatal(err)
	}
	c := &nftables.Conn{}
	c.FlushChain(&nftables.Chain{Table: &nftables.Table{Family: nftables.TableFamilyINet, Name: firewall.TableName(h.cfg.Instance)}, Name: "guard"})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
}

func TestLoopbackIsNotReachedFromOutside(t *testing.T) {
	h := newHost(t)
	out := h.outside()
	a := h.start("a", "127.0.0.1:8081->80")
	a.serve("tcp", "0.0.0.0:80")
	out.must(func() error { // a machine that sends 127.0.0.1 over the wire
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/in0/route_localnet", []byte("1"), 0); err != nil {
			return err
		}
		return route("127.0.0.0/8", hostIP)
	})
	out.blocked("tcp", "127.0.0.1:8081")
	guardOff(t, h)
	if got, err := out.ask("tcp", "127.0.0.1:8081", patience); err != nil {
		t.Errorf("without the guard: %q, %v: this test proves nothing", got, err)
	}
}

func TestContainersCannotReachTheHostsLoopback(t *testing.T) {
	h := newHost(t)
	a := h.start("a")
	h.here().serve("tcp", "127.0.0.1:7000")
	gw := a.Endpoints[0].Gateway
	a.must(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.AddrDel(lo, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(127, 0, 0, 1), Mask: net.CIDRMask(8, 32)}}); err != nil {
			return err
		}
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/eth0/route_localnet", []byte("1"), 0); err != nil {
			return err
		}
		return route("127.0.0.0/8", gw)
	})
	a.blocked("tcp", "127.0.0.1:7000")
	guardOff(t, h)
	if got, err := a.ask("tcp", "127.0.0.1:7000", patience); err != nil {
		t.Errorf("without the guard: %q, %v: this test proves nothing", got, err)
	}
}

func TestSourcesAreNotForged(t *testing.T) {
	h := newHost(t)
	out, a := h.outside(), h.start("a")
	var in net.PacketConn
	out.must(func() (err error) { in, err = net.ListenPacket("udp4", outsideIP+":70"); return err })
	defer in.Close()
	forge := func() (string, error) {
		a.must(func() error {
			c, err := net.DialUDP("udp4", &net.UDPAddr{IP: net.IPv4(10, 9, 9, 9)}, &net.UDPAddr{IP: net.ParseIP(outsideIP), Port: 70})
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write([]byte("x"))
			return err
		})
		_ = in.SetReadDeadline(time.Now().Add(250 * time.Millisecond))
		_, from, err := in.ReadFrom(make([]byte, 10))
		if err != nil {
			return "", err
		}
		return from.String(), nil
	}
	a.must(func() error { return configure("eth0", "10.9.9.9/32") })
	if from, err := forge(); err == nil {
		t.Errorf("a packet from %s got out", from)
	}
	guardOff(t, h)
	if _, err := forge(); err != nil {
		t.Errorf("without the guard: %v: this test proves nothing", err)
	}
}

func TestContainersApart(t *testing.T) {
	bridgeNetfilter(t, func(t *testing.T) {
		h := newHost(t, func(c *network.Config) { c.ICC = false })
		out := h.outside()
		a, b := h.start("a", "8080->80"), h.start("b")
		a.serve("tcp", "0.0.0.0:80")
		b.serve("tcp", "0.0.0.0:80")
		a.blocked("tcp", b.ip()+":80")
		b.blocked("tcp", a.ip()+":80")
		gw := a.Endpoints[0].Gateway
		out.reaches("tcp", hostIP+":8080", "a", outsideIP)
		h.here().reaches("tcp", "127.0.0.1:8080", "a", gw)
		h.here().reaches("tcp", b.ip()+":80", "b", gw)
	})
}

func TestWithoutMasquerade(t *testing.T) {
	h := newHost(t, func(c *network.Config) { c.IPMasq = false })
	out, a := h.outside(), h.start("a")
	out.serve("tcp", "0.0.0.0:70")
	out.must(func() error { return route("172.16.0.0/12", hostIP) })
	a.reaches("tcp", outsideIP+":70", "outside", a.ip())
}

// A client that goes on sending UDP from one port must reach who has the
// published port now, not who had it, nor the host that answered before.
func TestUDPFlowsFollowThePort(t *testing.T) {
	h := newHost(t)
	out := h.outside()
	var c *net.UDPConn
	out.must(func() (err error) {
		c, err = net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.ParseIP(hostIP), Port: 8080})
		return err
	})
	defer c.Close()
	ask := func() string {
		_, _ = c.Write([]byte("?"))
		_ = c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		buf := make([]byte, 100)
		n, _ := c.Read(buf)
		return string(buf[:n])
	}
	server, err := net.ListenPacket("udp4", ":8080") // so that the host takes what comes
	if err != nil {
		t.Fatal(err)
	}
	ask()
	server.Close()
	for _, name := range []string{"a", "b"} {
		s, err := h.m.Setup(t.Context(), request(name, "8080->80/udp"))
		if err != nil {
			t.Fatal(err)
		}
		n := h.node(name, s)
		n.serve("udp", ":80")
		if got, want := ask(), name+" "+outsideIP+"\n"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		for _, f := range s.Held {
			f.Close()
		}
		if err := h.m.Unpublish(t.Context(), s.ID, s.Endpoints); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := h.m.Teardown(t.Context(), s.ID, s.Endpoints); err != nil {
				t.Error(err)
			}
		}()
	}
}

func TestNone(t *testing.T) {
	h := newHost(t)
	r := request("a", "8080->80") // what is published is for other networks
	r.Networks = map[string]*settings{"none": nil}
	a := h.startAs(r)
	a.must(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		if len(links) != 1 || links[0].Attrs().Flags&net.FlagUp == 0 {
			t.Errorf("links %v, want the loopback link, up", links)
		}
		return nil
	})
	a.serve("tcp", "127.0.0.1:80")
	a.reaches("tcp", "127.0.0.1:80", "a", "127.0.0.1")
	if _, err := a.ask("tcp", outsideIP+":70", patience); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("to the outside: %v", err)
	}
	if ep := a.Endpoints[0]; ep.Network != "none" || ep.IP != "" || ep.HostLink != "" || len(a.Held) != 0 {
		t.Errorf("endpoint %+v", ep)
	}
	h.is(count{handles: 1, tables: 1, bridges: 1})
}

package overlay_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/network/bridge"
	"escale.dev/escale/internal/network/overlay"
	"escale.dev/escale/internal/network/overlay/esp"
	"escale.dev/escale/internal/sys/netns"
	"escale.dev/escale/internal/sys/netns/netnstest"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// asNode makes the test program one of the hosts: it has a network namespace of its own, and
// does what lines on its standard input say.
const asNode = "ESCALE_OVERLAY_NODE"

// order is what a host is to do, with a container of it.
type order struct {
	Do    string
	Addr  string // of the host, or of what is called
	Box   int    // the container; its addresses end in this number
	Peers []overlay.Peer
	Size  int
	Keys  esp.Keys
}

// answer is what came of it.
type answer struct{ Text, Err string }

// host is a host as the test has it.
type host struct {
	t    *testing.T
	addr string
	in   io.Writer
	out  *bufio.Scanner
}

// hosts are some, on one link, with addresses 192.0.2.1 and so on; the first have an encrypted
// network.
func hosts(t *testing.T, n, sealed int) []*host {
	t.Helper()
	netnstest.Root(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "wire"
	wire := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(wire); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(wire) })
	if err := netlink.LinkSetUp(wire); err != nil {
		t.Fatal(err)
	}
	var out []*host
	for i := range n {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), asNode+"=1")
		cmd.Stderr = os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		answers, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			in.Close()
			if err := cmd.Wait(); err != nil {
				t.Errorf("host: %v", err)
			}
		})
		a := netlink.NewLinkAttrs()
		a.Name, a.MasterIndex = fmt.Sprint("port", i), wire.Attrs().Index
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: a, PeerName: "uplink", PeerNamespace: netlink.NsPid(cmd.Process.Pid)}); err != nil {
			t.Fatal(err)
		}
		port, err := netlink.LinkByName(a.Name)
		if err == nil {
			t.Cleanup(func() { _ = netlink.LinkDel(port) }) // the kernel takes its time for a namespace
			err = netlink.LinkSetUp(port)
		}
		if err != nil {
			t.Fatal(err)
		}
		h := &host{t: t, addr: fmt.Sprint("192.0.2.", i+1), in: in, out: bufio.NewScanner(answers)}
		if i < sealed {
			h.must(order{Do: "seal"})
		}
		h.must(order{Do: "open", Addr: h.addr})
		out = append(out, h)
	}
	return out
}

func (h *host) try(o order) (string, error) {
	h.t.Helper()
	b, err := json.Marshal(o)
	if err != nil {
		h.t.Fatal(err)
	}
	if _, err := h.in.Write(append(b, '\n')); err != nil {
		h.t.Fatal(err)
	}
	if !h.out.Scan() {
		h.t.Fatalf("host %s has ended", h.addr)
	}
	var a answer
	if err := json.Unmarshal(h.out.Bytes(), &a); err != nil {
		h.t.Fatal(err)
	}
	if a.Err != "" {
		return a.Text, fmt.Errorf("host %s: %s: %s", h.addr, o.Do, a.Err)
	}
	return a.Text, nil
}

func (h *host) must(o order) string {
	h.t.Helper()
	text, err := h.try(o)
	if err != nil {
		h.t.Fatal(err)
	}
	return text
}

// at are the addresses of container n as a peer on a host.
func at(h *host, n int) []overlay.Peer {
	vtep := netip.MustParseAddr(h.addr)
	mac := net.HardwareAddr{0x02, 0x42, 10, 90, 0, byte(n)}
	return []overlay.Peer{
		{Addr: netip.MustParseAddr(fmt.Sprint("10.90.0.", n)), MAC: mac, VTEP: vtep},
		{Addr: netip.MustParseAddr(fmt.Sprint("fd00:90::", n)), MAC: mac, VTEP: vtep},
	}
}

// reach calls a container of another host by both families and protocols.
func (h *host) reach(from, to int, want bool) {
	h.t.Helper()
	for _, addr := range []string{fmt.Sprint("tcp 10.90.0.", to, ":80"), fmt.Sprint("udp 10.90.0.", to, ":80"), fmt.Sprintf("tcp [fd00:90::%d]:80", to), fmt.Sprintf("udp [fd00:90::%d]:80", to)} {
		got, err := h.try(order{Do: "call", Box: from, Addr: addr, Size: 1000})
		for range 5 { // an emulated machine takes its time
			if err == nil || !want {
				break
			}
			got, err = h.try(order{Do: "call", Box: from, Addr: addr, Size: 1000})
		}
		if ok := err == nil && got == fmt.Sprint(to); ok != want {
			h.t.Errorf("container %d of %s calls %s: %q %v, want an answer: %t", from, h.addr, addr, got, err, want)
		}
	}
}

func TestAcrossHosts(t *testing.T) {
	hs := hosts(t, 3, 0)
	a, b, c := hs[0], hs[1], hs[2]
	for i, h := range hs {
		h.must(order{Do: "join", Box: 11 + i})
	}
	t.Run("strangers do not meet", func(t *testing.T) { a.reach(11, 12, false) })
	all := slices.Concat(at(a, 11), at(b, 12), at(c, 13))
	for i, h := range hs {
		h.must(order{Do: "peers", Peers: slices.Concat(all[:2*i], all[2*i+2:])})
	}
	a.reach(11, 12, true)
	b.reach(12, 11, true)
	c.reach(13, 11, true)
	if got := a.must(order{Do: "mtu", Box: 11}); got != "1450" {
		t.Errorf("the MTU inside is %s, of 1500 outside", got)
	}
	for _, size := range []int{1422, 1423} { // with headers of IPv4 and UDP 1450, and one more
		_, err := a.try(order{Do: "call", Box: 11, Addr: "udp 10.90.0.12:80", Size: size})
		if whole := size == 1422; (err == nil) != whole {
			t.Errorf("a datagram of %d bytes that must not be taken apart: %v", size, err)
		}
	}
	if got := a.must(order{Do: "call", Box: 11, Addr: "tcp 10.90.0.12:80", Size: 300_000}); got != "12" {
		t.Errorf("many bytes: %q", got)
	}

	// A container moves: with its addresses it is on another host.
	b.must(order{Do: "leave", Box: 12})
	c.must(order{Do: "join", Box: 12})
	a.must(order{Do: "peers", Peers: slices.Concat(at(c, 12), at(c, 13))})
	b.must(order{Do: "peers"})
	c.must(order{Do: "peers", Peers: at(a, 11)})
	a.reach(11, 12, true)
	c.reach(12, 11, true)
	c.reach(12, 13, true) // on its own host

	// One is gone: nothing tells of it any more.
	a.must(order{Do: "peers", Peers: at(c, 13)})
	if got := a.must(order{Do: "entries"}); strings.Contains(got, "10.90.0.12") || strings.Contains(got, "02:42:0a:5a:00:0c") || !strings.Contains(got, "10.90.0.13") {
		t.Errorf("entries that are left:\n%s", got)
	}
	a.reach(11, 12, false)
	a.reach(11, 13, true)

	// The engine is killed and another takes over: what goes across goes on.
	a.must(order{Do: "successor"})
	a.reach(11, 13, true)
	a.must(order{Do: "peers", Peers: at(c, 13)})
	a.reach(11, 13, true)
	// Somebody removes the bridge: all is as it was.
	a.must(order{Do: "break"})
	a.reach(11, 13, true)
	a.must(order{Do: "peers"})
	if got := a.must(order{Do: "entries"}); got != "" {
		t.Errorf("without peers there are entries:\n%s", got)
	}
}

// site is a host as it is.
type site struct {
	d     alone
	boxes map[int]*netns.Handle
	eps   map[int]network.Endpoint
	addr  netip.Addr
	stop  context.CancelFunc
	seal  bool // the network is encrypted

	heard    atomic.Int64 // datagrams of a stranger
	stopFlow chan struct{}
	flown    chan string
}

// node is the program of a host.
func node() {
	s := &site{boxes: map[int]*netns.Handle{}, eps: map[int]network.Endpoint{}, stop: func() {}}
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		var o order
		var a answer
		err := json.Unmarshal(in.Bytes(), &o)
		if err == nil {
			a.Text, err = s.do(o)
		}
		if err != nil {
			a.Err = err.Error()
		}
		if err := json.NewEncoder(os.Stdout).Encode(a); err != nil {
			os.Exit(1)
		}
	}
}

func (s *site) do(o order) (string, error) {
	ctx := context.Background()
	switch o.Do {
	case "open":
		return "", s.open(ctx, o.Addr)
	case "join":
		return "", s.join(ctx, o.Box)
	case "leave":
		return "", s.d.Leave(ctx, s.eps[o.Box])
	case "peers":
		return "", s.d.SetPeers(ctx, id, o.Peers)
	case "seal":
		s.seal = true
		return "", nil
	case "keys":
		return "", errors.Join(s.d.SetKeys(ctx, id, o.Keys), s.d.SetPeers(ctx, id, o.Peers))
	case "flow":
		return "", s.flow(o)
	case "flown":
		close(s.stopFlow)
		return <-s.flown, nil
	case "inject":
		return "", inject(o)
	case "heard":
		return fmt.Sprint(s.heard.Load()), nil
	case "forgetful":
		s.stop()
		b := bridge.New(config())
		return "", alone{overlay.New(config(), b), b}.Restore(ctx, nil)
	case "flush":
		return "", errors.Join(netlink.XfrmPolicyFlush(), netlink.XfrmStateFlush(0))
	case "xfrm":
		return xfrm()
	case "mtu":
		var text string
		err := s.boxes[o.Box].Do(func() error {
			l, err := netlink.LinkByName("eth0")
			if err == nil {
				text = fmt.Sprint(l.Attrs().MTU)
			}
			return err
		})
		return text, err
	case "call":
		return s.call(o)
	case "entries":
		return entries()
	case "successor":
		return "", s.successor(ctx)
	case "break":
		return "", s.sever()
	}
	return "", fmt.Errorf("%q?", o.Do)
}

// open sets the host up: its address, and a driver with the network.
func (s *site) open(ctx context.Context, addr string) error {
	s.addr = netip.MustParseAddr(addr)
	for name, at := range map[string]string{"lo": "", "uplink": addr + "/24"} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if at != "" {
			a, err := netlink.ParseAddr(at)
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(l, a); err != nil {
				return err
			}
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
	}
	// Of the program's own namespace, as sysctls are looked up through it.
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return err
	}
	return s.begin(ctx)
}

func (s *site) begin(ctx context.Context) error {
	b := bridge.New(config())
	s.d = alone{overlay.New(config(), b), b}
	s.d.SetUnderlay(overlay.Underlay{Local: s.addr})
	of := spec()
	if s.seal {
		of.Options["encrypted"] = ""
	}
	if _, err := s.d.Create(ctx, of); err != nil {
		return err
	}
	watching, stop := context.WithCancel(ctx)
	s.stop = stop
	ready := make(chan struct{})
	go func() { _ = b.Watch(watching, func() { close(ready) }) }()
	<-ready
	ready = make(chan struct{})
	go func() { _ = s.d.Watch(watching, sync.OnceFunc(func() { close(ready) })) }()
	<-ready
	return nil
}

// successor is the next engine after this one was killed.
func (s *site) successor(ctx context.Context) error {
	s.stop()
	if err := s.begin(ctx); err != nil {
		return err
	}
	var live []network.Live
	for _, ep := range s.eps {
		live = append(live, network.Live{Endpoint: ep})
	}
	return s.d.Restore(ctx, map[string][]network.Live{id: live})
}

// sever removes the bridge, and waits until it is there again with both links.
func (s *site) sever() error {
	bridge, err := s.d.Link(id)
	if err != nil {
		return err
	}
	old, err := netlink.LinkByName(bridge)
	if err != nil {
		return err
	}
	if err := netlink.LinkDel(old); err != nil {
		return err
	}
	for range 500 {
		l, err := netlink.LinkByName(bridge)
		vx, e := netlink.LinkByName("vx-" + id[:12])
		if err == nil && e == nil && l.Attrs().Index != old.Attrs().Index && vx.Attrs().MasterIndex == l.Attrs().Index {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("the bridge does not come back")
}

// join makes a container that answers its number on port 80.
func (s *site) join(ctx context.Context, n int) error {
	ns, err := netns.New()
	if err != nil {
		return err
	}
	j := network.Join{
		ContainerID: fmt.Sprint(n), EndpointID: strings.Repeat(fmt.Sprint(n), 32), Interface: "eth0",
		IP: netip.MustParsePrefix(fmt.Sprintf("10.90.0.%d/24", n)), IP6: netip.MustParsePrefix(fmt.Sprintf("fd00:90::%d/64", n)),
		Gateway: netip.MustParseAddr("10.90.0.1"), Gateway6: netip.MustParseAddr("fd00:90::1"),
	}
	ep, err := s.d.Join(ctx, id, ns, j)
	if err != nil {
		return err
	}
	ep.Network, ep.NetworkID = "net", id
	ep.IP, ep.PrefixLen, ep.IP6, ep.PrefixLen6 = j.IP.Addr().String(), 24, j.IP6.Addr().String(), 64
	s.boxes[n], s.eps[n] = ns, ep
	return ns.Do(func() error {
		for _, family := range []string{"4", "6"} {
			l, err := net.Listen("tcp"+family, ":80")
			if err != nil {
				return err
			}
			u, err := net.ListenPacket("udp"+family, ":80")
			if err != nil {
				return err
			}
			go streams(l, n)
			go s.datagrams(u, n)
		}
		return nil
	})
}

// streams and datagrams answer with a number.
func streams(l net.Listener, n int) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(io.Discard, c)
			fmt.Fprint(c, n)
		}()
	}
}

func (s *site) datagrams(u net.PacketConn, n int) {
	b := make([]byte, 2000)
	for {
		size, from, err := u.ReadFrom(b)
		if err != nil {
			return
		}
		if strings.Contains(string(b[:size]), injected) {
			s.heard.Add(1)
		}
		_, _ = u.WriteTo([]byte(fmt.Sprint(n)), from)
	}
}

// call sends so many bytes from a container and gives the answer.
func (s *site) call(o order) (string, error) {
	var text string
	err := s.boxes[o.Box].Do(func() error {
		proto, addr, _ := strings.Cut(o.Addr, " ")
		c, err := net.DialTimeout(proto, addr, time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
			return err
		}
		if u, ok := c.(*net.UDPConn); ok {
			if err := whole(u); err != nil {
				return err
			}
		}
		if _, err := c.Write([]byte(strings.Repeat(secret, o.Size/len(secret)+1)[:o.Size])); err != nil {
			return err
		}
		if tcp, ok := c.(*net.TCPConn); ok {
			if err := tcp.CloseWrite(); err != nil {
				return err
			}
			b, err := io.ReadAll(c)
			text = string(b)
			return err
		}
		b := make([]byte, 100)
		n, err := c.Read(b)
		text = string(b[:n])
		return err
	})
	return text, err
}

// whole forbids to take datagrams of IPv4 apart.
func whole(u *net.UDPConn) error {
	raw, err := u.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
	})
}

// entries are the forwarding entries and neighbours of the link to other hosts that tell of
// peers.
func entries() (string, error) {
	l, err := netlink.LinkByName("vx-" + id[:12])
	if err != nil {
		return "", nil
	}
	var out []string
	for _, family := range []int{unix.AF_BRIDGE, unix.AF_INET, unix.AF_INET6} {
		list, err := netlink.NeighList(l.Attrs().Index, family)
		if err != nil {
			return "", err
		}
		for _, n := range list {
			if n.State&netlink.NUD_NOARP != 0 || family != unix.AF_BRIDGE && n.State&netlink.NUD_PERMANENT != 0 {
				out = append(out, fmt.Sprint(n.IP, " ", n.HardwareAddr))
			}
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n"), nil
}

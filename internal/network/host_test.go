package network_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/network/bridge"
	"escale.dev/escale/internal/network/firewall"
	"escale.dev/escale/internal/network/macvlan"
	"escale.dev/escale/internal/network/none"
	"escale.dev/escale/internal/sys/netns"
	"escale.dev/escale/internal/sys/netns/netnstest"
	"escale.dev/escale/internal/sys/nft"
	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	apinetwork "github.com/moby/moby/api/types/network"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if os.Getenv(victimEnv) != "" {
		victim()
		return
	}
	netnstest.Main(m)
}

// host is the machine of a test: this program's own network namespace.
type host struct {
	t   testing.TB
	cfg network.Config
	m   *network.Manager
}

// newHost opens a Manager; at the end of the test it is destroyed, and whatever
// it leaves behind is an error.
func newHost(t testing.TB, options ...func(*network.Config)) *host {
	t.Helper()
	netnstest.Root(t)
	cfg := network.DefaultConfig()
	dir := t.TempDir()
	cfg.NetnsDir, cfg.Dir = filepath.Join(dir, "netns"), filepath.Join(dir, "networks")
	cfg.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	for _, o := range options {
		o(&cfg)
	}
	h := &host{t: t, cfg: cfg, m: managerOf(cfg)}
	t.Cleanup(h.destroy)
	if err := h.m.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	return h
}

func managerOf(cfg network.Config) *network.Manager {
	return network.NewManager(cfg, bridge.New(cfg), none.New(), none.Host(), macvlan.New(cfg), macvlan.IPVLAN(cfg))
}

func (h *host) destroy() {
	ctx := context.Background() // the test's own has ended
	if err := h.m.Destroy(ctx); err != nil {
		h.t.Errorf("Destroy: %v", err)
	}
	h.nothingLeft()
}

// again is a new engine on the same machine, as after a kill of the first.
func (h *host) again(live map[string][]network.Endpoint) {
	h.t.Helper()
	if err := h.m.Close(); err != nil { // a killed engine's sockets close too
		h.t.Fatal(err)
	}
	h.m = managerOf(h.cfg)
	if err := h.m.Open(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	if err := h.m.Restore(h.t.Context(), live); err != nil {
		h.t.Fatal(err)
	}
}

// count is what bears an instance's name in the kernel.
type count struct{ links, handles, elements, tables, bridges, foreign int }

func (h *host) count() (c count) {
	h.t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		h.t.Fatal(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, h.cfg.LinkPrefix()) {
			c.links++
		}
		if l.Attrs().Name == h.cfg.Bridge() || strings.HasPrefix(l.Attrs().Alias, h.cfg.Instance+":") {
			c.bridges++
		}
	}
	names, err := os.ReadDir(h.cfg.NetnsDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		h.t.Fatal(err)
	}
	c.handles = len(names)
	var conn nft.Conn
	defer conn.Close()
	table := firewall.Rules(h.cfg.Instance, nil)
	elements, err := conn.Read(table)
	if err != nil {
		h.t.Fatal(err)
	}
	for _, m := range []string{"ports", "host_ports", "ports6", "host_ports6", "open", "open6"} {
		c.elements += len(elements[m])
	}
	ok, err := conn.Exists(table.Ref())
	if err != nil {
		h.t.Fatal(err)
	}
	if ok {
		c.tables++
	}
	c.foreign = len(h.foreignRules())
	return c
}

// owners counts the links that the table of frames knows.
func (h *host) owners() int {
	h.t.Helper()
	var conn nft.Conn
	defer conn.Close()
	table := firewall.Honesty(h.cfg.Instance, "")
	elements, err := conn.Read(table)
	if err != nil {
		h.t.Fatal(err)
	}
	links := map[any]bool{}
	for _, m := range table.Maps {
		for _, e := range elements[m.Name] {
			if f, ok := nft.Fields(e.Key, m.Key...); ok && len(f) == 2 {
				links[f[0]] = true
			}
		}
	}
	return len(links)
}

// foreignRules are the comments of our rules in the tables of others.
func (h *host) foreignRules() (comments []string) {
	h.t.Helper()
	c := &nftables.Conn{}
	var chains []*nftables.Chain
	for _, f := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		list, err := c.ListChainsOfTableFamily(f)
		if err != nil {
			h.t.Fatal(err)
		}
		chains = append(chains, list...)
	}
	for _, ch := range chains {
		rules, err := c.GetRules(ch.Table, ch)
		if err != nil {
			h.t.Fatal(err)
		}
		for _, r := range rules {
			if s, ok := userdata.GetString(r.UserData, userdata.TypeComment); ok && strings.HasPrefix(s, firewall.TableName(h.cfg.Instance)) {
				comments = append(comments, ch.Name+" "+s)
			}
		}
	}
	return comments
}

func (h *host) nothingLeft() {
	h.t.Helper()
	if c := h.count(); c != (count{}) {
		h.t.Errorf("left in the kernel: %+v", c)
	}
	var conn nft.Conn
	defer conn.Close()
	if ok, err := conn.Exists(firewall.Honesty(h.cfg.Instance, "").Ref()); ok || err != nil {
		h.t.Errorf("the table of frames is left: %v, %v", ok, err)
	}
	if b, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(b), h.cfg.NetnsDir) {
		h.t.Error("a mount is left on the folder of namespaces")
	}
}

func (h *host) is(want count) {
	h.t.Helper()
	if got := h.count(); got != want {
		h.t.Errorf("the kernel has %+v, want %+v", got, want)
	}
	if n := h.owners(); n != want.links {
		h.t.Errorf("the table of frames knows %d links, want %d", n, want.links)
	}
}

// box is a container: here only its network.
type box struct {
	*network.Sandbox
	*node
}

func request(name string, bindings ...string) network.Request {
	r := network.Request{ContainerID: strings.Repeat(fmt.Sprintf("%02x", name[0]), 31) + fmt.Sprintf("%02x", len(name)), Name: name, Bindings: apinetwork.PortMap{}}
	for _, b := range bindings { // [address:]port->port[/proto]
		hostPart, p, _ := strings.Cut(b, "->")
		pb := apinetwork.PortBinding{HostPort: hostPart}
		if i := strings.LastIndexByte(hostPart, ':'); i >= 0 {
			pb.HostIP, pb.HostPort = netip.MustParseAddr(strings.Trim(hostPart[:i], "[]")), hostPart[i+1:]
		}
		port := apinetwork.MustParsePort(p)
		r.Bindings[port] = append(r.Bindings[port], pb)
	}
	return r
}

// start sets a container's network up and takes it down when the test ends.
func (h *host) start(name string, bindings ...string) *box {
	h.t.Helper()
	return h.startAs(request(name, bindings...))
}

func (h *host) startAs(r network.Request) *box {
	h.t.Helper()
	s, err := h.m.Setup(h.t.Context(), r)
	if err != nil {
		h.t.Fatalf("Setup of %s: %v", r.Name, err)
	}
	ns, err := netns.Open(s.Path)
	if err != nil {
		h.t.Fatal(err)
	}
	b := &box{Sandbox: s, node: &node{t: h.t, name: r.Name, ns: ns}}
	h.t.Cleanup(func() {
		ns.Close()
		for _, f := range s.Held {
			f.Close()
		}
		if err := h.m.Teardown(context.Background(), s.ID, s.Endpoints); err != nil {
			h.t.Errorf("Teardown of %s: %v", r.Name, err)
		}
	})
	return b
}

func (b *box) ip() string { return b.Endpoints[0].IP }

// node is a place from which to speak and at which to listen; the host itself
// has no namespace of its own here.
type node struct {
	t    testing.TB
	name string
	ns   *netns.Handle
}

func (n *node) do(fn func() error) error {
	if n.ns == nil {
		return fn()
	}
	return n.ns.Do(fn)
}

func (n *node) must(fn func() error) {
	n.t.Helper()
	if err := n.do(fn); err != nil {
		n.t.Fatalf("%s: %v", n.name, err)
	}
}

// family is a protocol of IPv4 unless it names its own.
func family(proto string) string {
	if strings.HasSuffix(proto, "6") {
		return proto
	}
	return proto + "4"
}

// serve answers on a TCP or UDP port with the node's name and the address of who asks.
func (n *node) serve(proto, addr string) {
	n.t.Helper()
	if strings.HasPrefix(proto, "udp") {
		var c net.PacketConn
		n.must(func() (err error) { c, err = net.ListenPacket(family(proto), addr); return err })
		n.t.Cleanup(func() { c.Close() })
		go func() {
			buf := make([]byte, 100)
			for {
				_, from, err := c.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = c.WriteTo([]byte(n.answer(from)), from)
			}
		}()
		return
	}
	var l net.Listener
	n.must(func() (err error) { l, err = net.Listen(versioned(proto), addr); return err })
	n.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, n.answer(c.RemoteAddr()))
			c.Close()
		}
	}()
}

func (n *node) answer(from net.Addr) string {
	host, _, _ := net.SplitHostPort(from.String())
	return n.name + " " + host + "\n"
}

// versioned is a protocol over IPv4 unless it says otherwise.
func versioned(proto string) string {
	if strings.HasSuffix(proto, "6") {
		return proto
	}
	return proto + "4"
}

// patience is how long an answer may take; what is dropped is known only by waiting.
const patience = 3 * time.Second

// ask asks the server at addr and gives its answer.
func (n *node) ask(proto, addr string, wait time.Duration) (answer string, err error) {
	var c net.Conn
	err = n.do(func() (err error) { c, err = net.DialTimeout(versioned(proto), addr, wait); return err })
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(wait))
	if strings.HasPrefix(proto, "udp") {
		if _, err := c.Write([]byte("?")); err != nil {
			return "", err
		}
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(line), err
}

// reaches wants a server called name that sees the question come from seen.
func (n *node) reaches(proto, addr, name, seen string) {
	n.t.Helper()
	got, err := n.ask(proto, addr, patience)
	if want := name + " " + seen; err != nil || got != want {
		n.t.Errorf("%s to %s %s: %q, %v, want %q", n.name, proto, addr, got, err, want)
	}
}

// blocked wants no answer.
func (n *node) blocked(proto, addr string) {
	n.t.Helper()
	if got, err := n.ask(proto, addr, 250*time.Millisecond); err == nil {
		n.t.Errorf("%s to %s %s: answered %q, want none", n.name, proto, addr, got)
	}
}

// here is the host as a node.
func (h *host) here() *node { return &node{t: h.t, name: "host"} }

// The addresses between host and outside.
const (
	hostIP     = "192.0.2.1"
	outsideIP  = "192.0.2.2"
	hostIP6    = "2001:db8::1"
	outsideIP6 = "2001:db8::2"
)

// outside is another machine, on a link to this one.
func (h *host) outside() *node {
	h.t.Helper()
	ns, err := netns.New()
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		_ = netlink.LinkDel(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "out0"}})
		ns.Close()
	})
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "out0"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "in0", PeerNamespace: netlink.NsFd(ns.Fd())}); err != nil {
		h.t.Fatal(err)
	}
	h.here().must(func() error { return configure("out0", hostIP+"/24", hostIP6+"/64") })
	n := &node{t: h.t, name: "outside", ns: ns}
	n.must(func() error { return configure("in0", outsideIP+"/24", outsideIP6+"/64") })
	// To be asked for makes the kernel see that its peer is up, or the first packet
	// is lost; see awaitCarrier in the driver.
	if _, err := netlink.LinkByName("out0"); err != nil {
		h.t.Fatal(err)
	}
	return n
}

// configure gives a link of the calling thread's namespace addresses.
func configure(link string, addrs ...string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	for _, addr := range addrs {
		a, err := netlink.ParseAddr(addr)
		if err != nil {
			return err
		}
		if a.IP.To4() == nil {
			a.Flags = unix.IFA_F_NODAD // there at once
		}
		if err := netlink.AddrAdd(l, a); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(l)
}

func sysctl(t testing.TB, name, value string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

// route adds a route in the calling thread's namespace.
func route(dst, via string) error {
	return netlink.RouteAdd(&netlink.Route{Dst: ipnet(dst), Gw: net.ParseIP(via), Protocol: unix.RTPROT_STATIC})
}

func ipnet(s string) *net.IPNet {
	_, n, err := net.ParseCIDR(s)
	if err != nil {
		panic(err)
	}
	return n
}

type settings = apinetwork.EndpointSettings

// node opens the namespace of a sandbox.
func (h *host) node(name string, s *network.Sandbox) *node {
	h.t.Helper()
	ns, err := netns.Open(s.Path)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { ns.Close() })
	return &node{t: h.t, name: name, ns: ns}
}

// logTo sends the log to b, from goroutines that do not outlive the test's reads.
func logTo(b *strings.Builder) func(*network.Config) {
	return func(c *network.Config) {
		c.Logger = slog.New(slog.NewTextHandler(&lockedWriter{w: b}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	}
}

type lockedWriter struct {
	mu sync.Mutex
	w  *strings.Builder
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

package network_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/network/firewall"
	"escale.dev/escale/internal/sys/netns"
	"escale.dev/escale/internal/sys/nft"
	"github.com/vishvananda/netlink"
)

// A running container goes on through a restart of the engine, its address and
// port stay taken, and the next gets others.
func TestRestoreKeepsWhatLives(t *testing.T) {
	h := newHost(t)
	a := h.start("a", "8080->80")
	a.serve("tcp", ":80")
	live := map[string][]network.Endpoint{a.ID: roundTrip(t, a.Endpoints)}
	h.again(live)
	h.is(count{links: 1, handles: 1, elements: 1, tables: 1, bridges: 1})
	h.here().reaches("tcp", "127.0.0.1:8080", "a", "172.17.0.1")
	b := h.start("b")
	if b.ip() == a.ip() {
		t.Errorf("address %s was given twice", b.ip())
	}
	if _, err := h.m.Setup(t.Context(), request("c", "8080->80")); err == nil || !strings.Contains(err.Error(), "port is already allocated") {
		t.Errorf("a port that is taken: %v", err)
	}
	if info, _ := h.m.Inspect("bridge"); len(info.Containers) != 2 {
		t.Errorf("Inspect: %+v", info)
	}
}

// roundTrip is what a record on disk makes of endpoints.
func roundTrip(t *testing.T, eps []network.Endpoint) (out []network.Endpoint) {
	t.Helper()
	b, err := json.Marshal(eps)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// A bridge that somebody removes is there anew at once, with all that was on it.
func TestBridgeRemoved(t *testing.T) {
	h := newHost(t)
	user := h.make(network.Create{Name: "user", EnableIPv6: yes()})
	a, b, c, d := h.start("a", "8080->80"), h.start("b"), h.startAs(on("c", "user")), h.startAs(on("d", "user"))
	a.serve("tcp", ":80")
	c.serve("tcp", ":80")
	c.serve("tcp6", ":81")
	for range 3 {
		for _, name := range []string{h.cfg.Bridge(), bridgeOf(user)} {
			l, err := netlink.LinkByName(name)
			if err == nil {
				err = netlink.LinkDel(l)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		e := h.startAs(on("e", "bridge", "user")) // whether the watch was quicker or not
		b.reaches("tcp", a.ip()+":80", "a", b.ip())
		d.reaches("tcp", c.ip()+":80", "c", d.ip())
		d.reaches("tcp6", "["+c.Endpoints[0].IP6+"]:81", "c", d.Endpoints[0].IP6)
		h.here().reaches("tcp", "127.0.0.1:8080", "a", "172.17.0.1")
		h.stop(e)
	}
	h.is(count{links: 4, handles: 4, elements: 1, tables: 1, bridges: 2})
	for _, x := range []*box{c, d} {
		h.stop(x)
	}
	if err := h.m.Remove(t.Context(), "user"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond) // what its owner removes does not come back
	h.gone(bridgeOf(user))
}

// The link of a running container that somebody deletes, on the host or inside, is made
// anew at once, with its addresses, routes and ports; one of a container that has ended
// is not, nor one that is deleted without end.
func TestLinkRemoved(t *testing.T) {
	h := newHost(t)
	h.make(network.Create{Name: "user", EnableIPv6: yes()})
	a, b := h.startAs(on("a", "user", "bridge")), h.start("b", "8080->80")
	b.serve("tcp", ":80")
	del := func(b *box, i int, inside bool) {
		t.Helper()
		name, do := b.Endpoints[i].HostLink, func(f func() error) error { return f() }
		if inside {
			name = b.Endpoints[i].Interface
			ns, err := netns.Open(b.Path)
			if err != nil {
				t.Fatal(err)
			}
			defer ns.Close()
			do = ns.Do
		}
		if err := do(func() error {
			l, err := netlink.LinkByName(name)
			if err == nil {
				err = netlink.LinkDel(l)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	whole := func(b *box, i int) {
		t.Helper()
		h.soon(b.Endpoints[i].HostLink+" is back", func() bool {
			_, err := netlink.LinkByName(b.Endpoints[i].HostLink)
			return err == nil
		})
	}
	way, begin := a.way(), time.Now()
	for _, inside := range []bool{false, true} {
		for i := range a.Endpoints {
			del(a, i, inside)
			whole(a, i)
		}
		h.soon("the way out is back", func() bool { return a.way() == way })
		del(b, 0, inside)
		whole(b, 0)
		h.soon("the port is back", func() bool {
			l, err := netlink.LinkByName(b.Endpoints[0].HostLink)
			return err == nil && l.Attrs().OperState == netlink.OperUp
		})
		h.here().reaches("tcp", "127.0.0.1:8080", "b", "172.17.0.1")
	}
	for range 3 {
		del(b, 0, false)
		whole(b, 0)
	}
	del(b, 0, false)
	time.Sleep(200 * time.Millisecond) // longer than it took before
	if _, err := netlink.LinkByName(b.Endpoints[0].HostLink); err == nil && time.Since(begin) < 50*time.Second {
		t.Error("a link is made anew without end")
	}
	h.stop(a)
	h.stop(b)
	h.is(count{tables: 1, bridges: 2})
}

// Whatever an engine can leave half-made or half-removed, and what somebody else
// may have taken away, is put right by the next one; a container that lives
// answers on its published port afterwards.
func TestRestoreRepairs(t *testing.T) {
	del := func(t *testing.T, link string) {
		t.Helper()
		l, err := netlink.LinkByName(link)
		if err == nil {
			err = netlink.LinkDel(l)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	add := func(t *testing.T, link netlink.Link) {
		t.Helper()
		if err := netlink.LinkAdd(link); err != nil {
			t.Fatal(err)
		}
	}
	kernel := func(t *testing.T, do func(c *nft.Conn, table nft.Table) error) {
		t.Helper()
		var c nft.Conn
		defer c.Close()
		if err := do(&c, firewall.Rules(network.DefaultInstance, nil)); err != nil {
			t.Fatal(err)
		}
	}
	stray := nft.Elements{"ports": {{Key: nft.Bytes(uint8(6), uint16(9999)), Value: nft.Bytes(netip.MustParseAddr("172.17.0.99"), uint16(80))}}}
	for name, spoil := range map[string]func(t *testing.T, h *host, a *box){
		"nothing": func(*testing.T, *host, *box) {},
		"a handle without namespace": func(t *testing.T, h *host, _ *box) {
			if err := os.WriteFile(filepath.Join(h.cfg.NetnsDir, "dead.1"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"a namespace of nobody": func(t *testing.T, h *host, _ *box) {
			f, err := netns.OpenFolder(h.cfg.NetnsDir)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			ns, err := f.New("dead.1")
			if err != nil {
				t.Fatal(err)
			}
			ns.Close()
		},
		"a container of nobody": func(t *testing.T, h *host, _ *box) {
			s, err := h.m.Setup(t.Context(), request("dead", "9090->80"))
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range s.Held {
				f.Close()
			}
		},
		"many of nobody": func(t *testing.T, h *host, _ *box) {
			for i := range 5 {
				if _, err := h.m.Setup(t.Context(), numbered(i, false)); err != nil {
					t.Fatal(err)
				}
			}
		},
		"links of nobody, off the bridge": func(t *testing.T, h *host, _ *box) {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = h.cfg.LinkPrefix() + "dead"
			add(t, &netlink.Veth{LinkAttrs: attrs, PeerName: h.cfg.LinkPrefix() + "peer"})
		},
		"a published port of nobody": func(t *testing.T, _ *host, _ *box) {
			kernel(t, func(c *nft.Conn, table nft.Table) error { return c.Change(table, table, nil, stray) })
		},
		"its port gone": func(t *testing.T, h *host, a *box) {
			kernel(t, func(c *nft.Conn, table nft.Table) error {
				left, err := c.Read(table)
				if err != nil {
					return err
				}
				return c.Change(table, table, left, nil)
			})
		},
		"the table gone": func(t *testing.T, _ *host, _ *box) {
			kernel(t, func(c *nft.Conn, table nft.Table) error { return c.Delete(table.Ref()) })
		},
		"its link gone":      func(t *testing.T, _ *host, a *box) { del(t, a.Endpoints[0].HostLink) },
		"the bridge gone":    func(t *testing.T, h *host, _ *box) { del(t, h.cfg.Bridge()) },
		"all of them gone":   func(t *testing.T, h *host, a *box) { del(t, a.Endpoints[0].HostLink); del(t, h.cfg.Bridge()) },
		"its link taken off": func(t *testing.T, _ *host, a *box) { takeOff(t, a.Endpoints[0].HostLink) },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			a := h.start("a", "8080->80")
			a.serve("tcp", ":80")
			if err := h.m.Close(); err != nil { // the engine is killed, and then
				t.Fatal(err)
			}
			spoil(t, h, a)
			h.again(map[string][]network.Endpoint{a.ID: a.Endpoints})
			h.is(count{links: 1, handles: 1, elements: 1, tables: 1, bridges: 1})
			h.here().reaches("tcp", "127.0.0.1:8080", "a", "172.17.0.1")
			h.start("b").reaches("tcp", a.ip()+":80", "a", "172.17.0.3")
			h.again(nil) // it has ended while the engine was away
			h.is(count{tables: 1, bridges: 1})
		})
	}
}

func takeOff(t *testing.T, link string) {
	t.Helper()
	l, err := netlink.LinkByName(link)
	if err == nil {
		err = netlink.LinkSetNoMaster(l)
	}
	if err == nil {
		err = netlink.LinkSetDown(l)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A record that says nonsense is told of and harms nobody else.
func TestRestoreOfABadRecord(t *testing.T) {
	h := newHost(t)
	a := h.start("a", "8080->80")
	a.serve("tcp", ":80")
	bad := a.Endpoints[0]
	bad.IP, bad.HostLink, bad.EndpointID = "nonsense", "lo", strings.Repeat("f", 64)
	foreign := bad
	foreign.Network, foreign.IP = "blue", "10.0.0.1"
	if err := h.m.Close(); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	h.cfg.Logger = slog.New(slog.NewTextHandler(&said, nil))
	h.m = managerOf(h.cfg)
	if err := h.m.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := h.m.Restore(t.Context(), map[string][]network.Endpoint{a.ID: a.Endpoints, "bad": {bad}, "foreign": {foreign}, "hole": {{}}}); err != nil {
		t.Errorf("one bad record keeps the engine from starting: %v", err)
	}
	if !strings.Contains(said.String(), "nonsense") || !strings.Contains(said.String(), "network=blue") {
		t.Errorf("Restore said %q", said.String())
	}
	h.here().reaches("tcp", "127.0.0.1:8080", "a", "172.17.0.1")
	if err := h.m.Teardown(t.Context(), "bad", []network.Endpoint{bad}); err != nil {
		t.Errorf("Teardown: %v", err)
	}
	if _, err := netlink.LinkByName("lo"); err != nil {
		t.Error("a record made the engine delete a link that is not its own")
	}
}

// The victim is an engine in a process of its own that sets containers up and
// down until it is killed, writing down what lives as an engine's records do.
const victimEnv = "ESCALE_NETWORK_VICTIM"

func victim() {
	cfg := network.DefaultConfig()
	cfg.NetnsDir, cfg.Dir = os.Getenv(victimEnv), os.Getenv(victimEnv+"_DIR")
	cfg.Logger = slog.New(slog.DiscardHandler)
	m := managerOf(cfg)
	ctx := context.Background()
	if err := m.Open(ctx); err != nil {
		fmt.Println("error", err)
		return
	}
	fmt.Println("open")
	if cfg.Dir != "" {
		fmt.Println("error", victimUsers(ctx, m))
		return
	}
	for i := 0; ; i++ {
		s, err := m.Setup(ctx, numbered(i, true))
		if err != nil {
			fmt.Println("error", err)
			return
		}
		if i%3 == 0 { // this one is recorded, and runs on
			b, _ := json.Marshal(map[string][]network.Endpoint{s.ID: s.Endpoints})
			fmt.Println("live", string(b))
			continue
		}
		if err := m.Teardown(ctx, s.ID, s.Endpoints); err != nil {
			fmt.Println("error", err)
			return
		}
	}
}

// An engine that is killed at any instant leaves nothing but what its records say.
func TestKill(t *testing.T) {
	h := newHost(t)
	rounds := 25
	if testing.Short() {
		rounds = 5
	}
	for round := range rounds {
		if err := h.m.Close(); err != nil {
			t.Fatal(err)
		}
		live := runVictim(t, h, time.Duration(rand.IntN(60_000))*time.Microsecond)
		h.again(live)
		h.is(count{links: len(live), handles: len(live), elements: len(live), tables: 1, bridges: 1})
		for id, eps := range live {
			if !netns.Bound(h.m.Path(id, eps)) {
				t.Errorf("round %d: %s has lost its namespace", round, id)
			}
			if err := h.m.Teardown(t.Context(), id, eps); err != nil {
				t.Errorf("round %d: %v", round, err)
			}
		}
		h.is(count{tables: 1, bridges: 1})
		if t.Failed() {
			t.Fatalf("after round %d", round)
		}
	}
}

// runVictim runs a process that makes networks of containers, and kills it after a
// while from when it is open; the variables say more of what it does. The result is
// what it had told of by then.
func runVictim(t *testing.T, h *host, after time.Duration, variables ...string) map[string][]network.Endpoint {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(append(os.Environ(), victimEnv+"="+h.cfg.NetnsDir), variables...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	live := map[string][]network.Endpoint{}
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		word, rest, _ := strings.Cut(lines.Text(), " ")
		switch word {
		case "open":
			time.AfterFunc(after, func() { _ = cmd.Process.Signal(syscall.SIGKILL) })
		case "live":
			if json.Unmarshal([]byte(rest), &live) != nil {
				t.Logf("cut off: %s", rest)
			}
		case "error":
			t.Error(rest)
		}
	}
	_ = cmd.Wait()
	return live
}

// Two engines that start at once on one host take different subnets; each adopts
// its own again, and Destroy of one leaves the other's alone.
func TestTwoEngines(t *testing.T) {
	one := newHost(t, func(c *network.Config) { c.Instance = "one" })
	hosts := make(chan *host)
	for _, name := range []string{"two", "three"} {
		go func() {
			cfg := one.cfg
			cfg.Instance, cfg.NetnsDir = name, filepath.Join(one.cfg.NetnsDir, "..", name)
			h := &host{t: t, cfg: cfg, m: managerOf(cfg)}
			if err := h.m.Open(t.Context()); err != nil {
				t.Error(err)
			}
			hosts <- h
		}()
	}
	two, three := <-hosts, <-hosts
	t.Cleanup(two.destroy)
	t.Cleanup(three.destroy)
	subnets := map[string]bool{}
	for _, h := range []*host{one, two, three} {
		info, err := h.m.Inspect("bridge")
		if err != nil {
			t.Fatal(err)
		}
		subnets[info.Subnet(false).Prefix.String()] = true
	}
	if len(subnets) != 3 {
		t.Fatalf("subnets %v", subnets)
	}
	a, b := one.start("a", "8080->80"), two.start("b", "8081->80")
	a.serve("tcp", ":80")
	b.serve("tcp", ":80")
	if _, err := two.m.Setup(t.Context(), request("c", "8080->80")); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("a port of the other engine: %v", err)
	}
	before, _ := two.m.Inspect("bridge")
	two.again(map[string][]network.Endpoint{b.ID: b.Endpoints})
	if after, _ := two.m.Inspect("bridge"); after.Subnet(false).Prefix != before.Subnet(false).Prefix {
		t.Errorf("subnets %v became %v", before.IPAM.Subnets, after.IPAM.Subnets)
	}
	one.here().reaches("tcp", "127.0.0.1:8080", "a", a.Endpoints[0].Gateway)
	one.here().reaches("tcp", "127.0.0.1:8081", "b", b.Endpoints[0].Gateway)
	a.blocked("tcp", b.ip()+":80") // networks are apart
}

func TestBridgeAddress(t *testing.T) {
	bip := netip.MustParsePrefix("10.44.0.1/24")
	h := newHost(t, func(c *network.Config) { c.BridgeName, c.BIP = "br-own", bip })
	if gw := h.m.HostGateway(); gw != "10.44.0.1" {
		t.Fatalf("gateway %s", gw)
	}
	h.cfg.BIP = netip.Prefix{}
	h.again(nil)
	if gw := h.m.HostGateway(); gw != "10.44.0.1" {
		t.Errorf("an adopted bridge has gateway %s", gw)
	}
	h.cfg.BIP = netip.MustParsePrefix("10.45.0.1/24")
	h.again(nil)
	if gw := h.m.HostGateway(); gw != "10.45.0.1" {
		t.Errorf("with another --bip: gateway %s", gw)
	}
	a := h.start("a")
	h.cfg.BIP = bip
	h.again(map[string][]network.Endpoint{a.ID: a.Endpoints})
	if gw := h.m.HostGateway(); gw != "10.45.0.1" {
		t.Errorf("with another --bip and a container: gateway %s", gw)
	}
	b := h.start("b")
	b.serve("tcp", ":80")
	a.reaches("tcp", b.ip()+":80", "b", a.ip())
}

func TestBridgeNameOfAnotherLink(t *testing.T) {
	h := newHost(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "dummy7"
	d := &netlink.Veth{LinkAttrs: attrs, PeerName: "dummy8"}
	if err := netlink.LinkAdd(d); err != nil {
		t.Fatal(err)
	}
	defer netlink.LinkDel(d)
	cfg := h.cfg
	cfg.Instance, cfg.BridgeName, cfg.NetnsDir = "other", "dummy7", t.TempDir()+"/netns"
	m := managerOf(cfg)
	if err := m.Open(t.Context()); err == nil || !strings.Contains(err.Error(), "no bridge") {
		t.Errorf("Open: %v", err)
	}
	if err := m.Destroy(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := netlink.LinkByName("dummy7"); err != nil {
		t.Error("the link was removed")
	}
}

package network_test

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/network"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// iptables is the filter table as iptables-nft and dockerd make it.
type iptables struct {
	t     *testing.T
	c     *nftables.Conn
	table *nftables.Table
}

func newIptables(t *testing.T) *iptables {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces, links and nftables tables")
	}
	i := &iptables{t: t, c: &nftables.Conn{}, table: &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "filter"}}
	t.Cleanup(i.remove)
	return i
}

func (i *iptables) remove() {
	i.c.AddTable(i.table)
	i.c.DelTable(i.table)
	i.flush()
}

func (i *iptables) flush() {
	i.t.Helper()
	if err := i.c.Flush(); err != nil {
		i.t.Fatal(err)
	}
}

// forward makes FORWARD drop by policy; with dockerd it jumps to DOCKER-USER,
// which returns.
func (i *iptables) forward(policy nftables.ChainPolicy, dockerd bool) {
	i.t.Helper()
	i.c.AddTable(i.table)
	f := i.c.AddChain(&nftables.Chain{Table: i.table, Name: "FORWARD", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &policy})
	if dockerd {
		u := i.c.AddChain(&nftables.Chain{Table: i.table, Name: "DOCKER-USER"})
		i.rule(f, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictJump, Chain: u.Name})
		i.rule(u, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictReturn})
	}
	i.flush()
}

func (i *iptables) rule(c *nftables.Chain, exprs ...expr.Any) {
	i.c.AddRule(&nftables.Rule{Table: i.table, Chain: c, Exprs: exprs})
}

var ours = []string{"escale-escale: escale0 out", "escale-escale: escale0 in"}

func in(chain string) (out []string) {
	for _, r := range ours {
		out = append(out, chain+" "+r)
	}
	return out
}

func (h *host) foreignAre(want []string) {
	h.t.Helper()
	if got := h.foreignRules(); !slices.Equal(got, want) {
		h.t.Errorf("rules of ours in foreign chains: %q, want %q", got, want)
	}
}

// soon waits until the watch has put something right.
func (h *host) soon(what string, there func() bool) {
	h.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !there(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			h.t.Fatalf("%s: not put right", what)
		}
	}
}

// foreignBecome waits until the watch has put the rules right.
func (h *host) foreignBecome(want []string) {
	h.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if slices.Equal(h.foreignRules(), want) {
			return
		}
	}
	h.foreignAre(want)
}

func TestBesideDockerd(t *testing.T) {
	bridgeNetfilter(t, func(t *testing.T) {
		i := newIptables(t)
		i.forward(nftables.ChainPolicyDrop, true)
		h := newHost(t)
		out := h.outside()
		h.foreignAre(in("DOCKER-USER"))
		if text, err := exec.Command("iptables", "-S", "DOCKER-USER").Output(); err == nil {
			want := "-N DOCKER-USER\n-A DOCKER-USER -i escale0 -m comment --comment \"escale-escale: escale0 out\" -j ACCEPT\n" +
				"-A DOCKER-USER -o escale0 -m comment --comment \"escale-escale: escale0 in\" -j ACCEPT\n-A DOCKER-USER -j RETURN\n"
			if string(text) != want {
				t.Errorf("iptables shows\n%swant\n%s", text, want)
			}
		}
		a, b := h.start("a", "8080->80"), h.start("b")
		a.serve("tcp", ":80")
		out.serve("tcp", ":70")
		a.reaches("tcp", outsideIP+":70", "outside", hostIP)
		out.reaches("tcp", hostIP+":8080", "a", outsideIP)
		b.reaches("tcp", a.ip()+":80", "a", b.ip())
		b.reaches("tcp", hostIP+":8080", "a", "172.17.0.1")
		h.again(map[string][]network.Endpoint{a.ID: a.Endpoints, b.ID: b.Endpoints})
		h.foreignAre(in("DOCKER-USER")) // not twice
	})
}

func TestDropPolicyWithoutDockerd(t *testing.T) {
	i := newIptables(t)
	i.forward(nftables.ChainPolicyDrop, false)
	h := newHost(t)
	out := h.outside()
	h.foreignAre(in("FORWARD"))
	a := h.start("a")
	out.serve("tcp", ":70")
	a.reaches("tcp", outsideIP+":70", "outside", hostIP)
}

func TestAcceptPolicyNeedsNothing(t *testing.T) {
	i := newIptables(t)
	i.forward(nftables.ChainPolicyAccept, false)
	h := newHost(t)
	h.foreignAre(nil)
}

// The administrator's own rules in DOCKER-USER come first.
func TestDropsOfTheAdministratorWin(t *testing.T) {
	i := newIptables(t)
	i.forward(nftables.ChainPolicyDrop, true)
	u := &nftables.Chain{Table: i.table, Name: "DOCKER-USER"}
	i.c.InsertRule(&nftables.Rule{Table: i.table, Chain: u, Exprs: []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
		&expr.Cmp{Register: 1, Data: []byte{192, 0, 2, 2}}, &expr.Verdict{Kind: expr.VerdictDrop}}})
	i.flush()
	h := newHost(t)
	out := h.outside()
	a := h.start("a")
	out.serve("tcp", ":70")
	a.blocked("tcp", outsideIP+":70")
}

// dockerd that starts after the engine, one that goes, and somebody who flushes
// everything, as a restart of nftables.service does.
func TestWatch(t *testing.T) {
	i := newIptables(t)
	h := newHost(t)
	out := h.outside()
	a := h.start("a", "8080->80")
	a.serve("tcp", ":80")
	h.foreignAre(nil)
	i.forward(nftables.ChainPolicyDrop, true)
	h.foreignBecome(in("DOCKER-USER"))
	out.reaches("tcp", hostIP+":8080", "a", outsideIP)
	i.remove()
	h.foreignBecome(nil)
	i.forward(nftables.ChainPolicyDrop, false)
	h.foreignBecome(in("FORWARD"))
	flushed := nftables.Chain{Table: &nftables.Table{Family: nftables.TableFamilyINet, Name: "escale-escale"}, Name: "publish"}
	i.c.FlushChain(&flushed)
	i.flush()
	h.soon("the rules of a chain", func() bool {
		rules, err := i.c.GetRules(flushed.Table, &flushed)
		return err == nil && len(rules) > 0
	})
	i.c.FlushRuleset()
	i.flush()
	h.soon("the tables", func() bool { return h.count().elements == 1 && h.owners() == 1 })
	h.is(count{links: 1, handles: 1, elements: 1, tables: 1, bridges: 1})
	out.reaches("tcp", hostIP+":8080", "a", outsideIP)
}

// A drop that only its owner can lift is told of, with what to add.
func TestPlainDropIsToldOf(t *testing.T) {
	c := &nftables.Conn{}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "site"})
	policy := nftables.ChainPolicyDrop
	c.AddChain(&nftables.Chain{Table: table, Name: "fwd", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &policy})
	log := &strings.Builder{}
	h := newHost(t, logTo(log), func(*network.Config) {
		if err := c.Flush(); err != nil {
			t.Fatal(err)
		}
	})
	defer func() {
		c.DelTable(table)
		if err := c.Flush(); err != nil {
			t.Error(err)
		}
	}()
	if err := h.m.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := `nft insert rule inet site fwd iifname \"escale0\" accept`
	if n := strings.Count(log.String(), want); n != 1 {
		t.Errorf("told %d times in %s", n, log)
	}
}

// ufw is the chains of iptables' filter table as ufw lays them out: forwarded
// packets are dropped by policy, unless "ufw route allow" said otherwise.
func (i *iptables) ufw() (routes *nftables.Chain) {
	i.t.Helper()
	drop := nftables.ChainPolicyDrop
	i.c.AddTable(i.table)
	f := i.c.AddChain(&nftables.Chain{Table: i.table, Name: "FORWARD", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop})
	before := i.c.AddChain(&nftables.Chain{Table: i.table, Name: "ufw-before-forward"})
	routes = i.c.AddChain(&nftables.Chain{Table: i.table, Name: "ufw-user-forward"})
	i.rule(f, &expr.Verdict{Kind: expr.VerdictJump, Chain: before.Name})
	i.rule(before, &expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: []byte{byte(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED), 0, 0, 0}, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)}, &expr.Verdict{Kind: expr.VerdictAccept})
	i.rule(before, &expr.Verdict{Kind: expr.VerdictJump, Chain: routes.Name})
	i.flush()
	return routes
}

// With ufw published ports are reached, unless the administrator keeps all to ufw:
// then "ufw route allow" is what counts, by the container's address and port.
func TestBesideUfw(t *testing.T) {
	for _, strict := range []bool{false, true} {
		t.Run(fmt.Sprintf("strict=%v", strict), func(t *testing.T) {
			i := newIptables(t)
			routes := i.ufw()
			h := newHost(t, func(c *network.Config) { c.Strict = strict })
			out := h.outside()
			a := h.start("a", "8080->80", "8081->81")
			a.serve("tcp", ":80")
			a.serve("tcp", ":81")
			if !strict {
				h.foreignAre(in("FORWARD"))
				out.reaches("tcp", hostIP+":8080", "a", outsideIP)
				return
			}
			h.foreignAre(nil)
			out.blocked("tcp", hostIP+":8080")
			// ufw route allow proto tcp from any to any port 80
			i.rule(routes, &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Register: 1, Data: []byte{6}},
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
				&expr.Cmp{Register: 1, Data: []byte{0, 80}}, &expr.Verdict{Kind: expr.VerdictAccept})
			i.flush()
			out.reaches("tcp", hostIP+":8080", "a", outsideIP)
			out.blocked("tcp", hostIP+":8081")
		})
	}
}

// ip6tables drops as iptables does.
func TestIPv6BesideDropPolicy(t *testing.T) {
	i := newIptables(t)
	i.table = &nftables.Table{Family: nftables.TableFamilyIPv6, Name: "filter"}
	i.forward(nftables.ChainPolicyDrop, false)
	h := newHost(t)
	out := h.outside()
	h.foreignAre(nil) // no network has IPv6 yet
	info := h.six("six", "fd00:6::/64", nil)
	b := bridgeOf(info)
	h.foreignAre([]string{"FORWARD escale-escale: " + b + " out", "FORWARD escale-escale: " + b + " in"})
	a := h.startAs(publishing("a", []string{"six"}, "8080->80"))
	a.serve("tcp6", ":80")
	out.serve("tcp6", ":70")
	a.reaches("tcp6", at(outsideIP6, 70), "outside", hostIP6)
	out.reaches("tcp6", at(hostIP6, 8080), "a", outsideIP6)
}

// What the administrator writes into the chain "user" is asked first.
func TestUserChain(t *testing.T) {
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Skip("needs nft(8), as administrators do")
	}
	h := newHost(t)
	out := h.outside()
	a := h.start("a", "8080->80", "8081->81")
	for _, p := range []string{":80", ":81", ":82"} {
		a.serve("tcp", p)
	}
	out.must(func() error { return route("172.16.0.0/12", hostIP) })
	run := func(rule string) {
		t.Helper()
		if b, err := exec.Command(nft, strings.Fields("add rule inet escale-escale user "+rule)...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %s", rule, b)
		}
	}
	run("meta l4proto tcp ct original proto-dst 8081 ip saddr " + outsideIP + " drop")
	run("tcp dport 82 accept")
	check := func() {
		t.Helper()
		out.reaches("tcp", hostIP+":8080", "a", outsideIP)
		out.blocked("tcp", hostIP+":8081")
		out.reaches("tcp", a.ip()+":82", "a", outsideIP)
	}
	check()
	h.make(network.Create{Name: "other"})
	check()
	h.again(map[string][]network.Endpoint{a.ID: a.Endpoints})
	check()
}

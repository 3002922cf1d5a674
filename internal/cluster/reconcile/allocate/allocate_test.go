package allocate

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/address"
	"escale.dev/escale/internal/cluster/store/loop/looptest"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"
)

// bench is a Bench with networks.
type bench struct{ *looptest.Bench }

func newBench(t *testing.T) bench { return bench{looptest.New(t, Loop{})} }

func overlayOf(name string, f ...func(*network.CreateRequest)) *cluster.Network {
	c := &network.CreateRequest{Driver: "overlay"}
	for _, f := range f {
		f(c)
	}
	return &cluster.Network{Meta: cluster.Meta{Name: name}, Spec: cluster.NetworkSpec{Name: name, Create: c}}
}

func (b bench) network(name string, f ...func(*network.CreateRequest)) {
	b.Helper()
	b.Commit(store.Create(overlayOf(name, f...)))
}

func subnet(list ...string) func(*network.CreateRequest) {
	return func(c *network.CreateRequest) {
		c.IPAM = &network.IPAM{}
		for _, s := range list {
			c.IPAM.Config = append(c.IPAM.Config, network.IPAMConfig{Subnet: netip.MustParsePrefix(s)})
		}
	}
}

func six(c *network.CreateRequest) { on := true; c.EnableIPv6 = &on }

func on(list ...string) func(*cluster.ServiceSpec) {
	return func(s *cluster.ServiceSpec) {
		for _, n := range list {
			s.Networks = append(s.Networks, cluster.Attachment{Network: n})
		}
	}
}

func publish(ports ...cluster.Port) func(*cluster.ServiceSpec) {
	return func(s *cluster.ServiceSpec) { s.Ports = ports }
}

// settle lets the loop work until it rests.
func (b bench) settle() {
	b.Helper()
	for range 100 {
		before := b.Store.View().Revision()
		b.Look()
		if b.Store.View().Revision() == before {
			return
		}
	}
	b.Fatal("it does not come to rest")
}

func (b bench) net(name string) *cluster.Network {
	b.Helper()
	n, err := store.Named[*cluster.Network](b.Store.View(), name)
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// of writes the addresses of a service's tasks, as far as they have not ended.
func (b bench) of(service string) string {
	b.Helper()
	var out []string
	for _, slot := range cluster.Slots(store.List[*cluster.Task](b.Store.View(), store.Owner(b.Get(service).ID))) {
		for _, t := range slot.Tasks {
			var list []string
			for _, a := range t.Addresses {
				list = append(list, a.Addr.String())
			}
			if !t.Status.State.Ended() {
				out = append(out, strings.Join(list, "+"))
			}
		}
	}
	return strings.Join(out, " ")
}

func vips(s *cluster.Service) string {
	var out []string
	for _, a := range s.Status.VIPs {
		out = append(out, a.Addr.String())
	}
	return strings.Join(out, " ")
}

func TestNetworks(t *testing.T) {
	b := newBench(t)
	b.Node("n", func(n *cluster.Node) { n.Status.Routes = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/23")} })
	b.network("a")
	b.network("b", six)
	b.network("c", subnet("10.0.3.0/25", "10.9.0.0/16"))
	b.network("d", func(c *network.CreateRequest) { c.Options = map[string]string{OptionVNI: "77,78"} })
	b.Commit(store.Create(&cluster.Network{Meta: cluster.Meta{Name: "local"}, Spec: cluster.NetworkSpec{Name: "local", Create: &network.CreateRequest{Driver: "bridge"}}}))
	b.settle()
	vnis := map[uint32]bool{}
	var all []netip.Prefix
	for _, name := range []string{"a", "b", "c", "d"} {
		n := b.net(name)
		if !n.Ready() || n.Status.Err != "" || vnis[n.Status.VNI] {
			t.Errorf("network %s: %+v", name, n.Status)
		}
		vnis[n.Status.VNI] = true
		for _, s := range n.Status.Subnets {
			for _, p := range all {
				if p.Overlaps(s.Prefix) {
					t.Errorf("%s overlaps with %s", s.Prefix, p)
				}
			}
			if all = append(all, s.Prefix); !s.Prefix.Contains(s.Gateway) {
				t.Errorf("subnet %+v", s)
			}
		}
	}
	if b.net("d").Status.VNI != 77 || !vnis[4096] || !vnis[4097] || !vnis[4098] {
		t.Errorf("numbers %v", vnis)
	}
	if s := b.net("c").Status.Subnets; len(s) != 2 || s[0].Prefix != netip.MustParsePrefix("10.0.3.0/25") || s[1].Gateway != netip.MustParseAddr("10.9.0.1") {
		t.Errorf("subnets that were asked for: %+v", s)
	}
	if s := b.net("b").Status.Subnets; len(s) != 2 || !s[0].Prefix.Addr().Is4() || s[1].Prefix.Bits() != 64 || s[1].Prefix.Addr().As16()[0] != 0xfd {
		t.Errorf("subnets of both families: %+v", s)
	}
	for _, p := range all {
		if p.Overlaps(netip.MustParsePrefix("10.0.0.0/23")) {
			t.Errorf("%s is what a node reaches otherwise", p)
		}
	}
	if b.net("local").Ready() {
		t.Error("a network of another driver was given a number")
	}
}

// Subnets come from the cluster's own pools.
func TestPools(t *testing.T) {
	b := newBench(t)
	b.Commit(store.Create(&cluster.Cluster{Meta: cluster.Meta{Name: cluster.DefaultCluster}, Status: cluster.ClusterStatus{
		AddressPools: []netip.Prefix{netip.MustParsePrefix("172.40.0.0/26"), netip.MustParsePrefix("172.41.0.0/27")}, SubnetSize: 27,
	}}))
	b.settle()
	if in := b.net("ingress"); !in.Ingress() || !in.Ready() {
		t.Errorf("a cluster begins with the network of published ports: %+v", in)
	}
	b.Commit(store.Delete(b.net("ingress")))
	for i := range 4 {
		b.network(fmt.Sprint("n", i))
	}
	b.settle()
	if address.Ingress(b.Store.View()) != nil {
		t.Error("it was removed, and is there again")
	}
	seen := map[netip.Prefix]bool{}
	failed := 0
	for i := range 4 {
		switch n := b.net(fmt.Sprint("n", i)); {
		case n.Ready():
			seen[n.Status.Subnets[0].Prefix] = true
		case n.Status.Err == "all predefined address pools have been fully subnetted":
			failed++
		}
	}
	if len(seen) != 3 || failed != 1 || !seen[netip.MustParsePrefix("172.41.0.0/27")] {
		t.Errorf("%v, %d networks without", seen, failed)
	}
}

// What cannot be had is said, and had as soon as it can be.
func TestNetworksThatCannotBe(t *testing.T) {
	b := newBench(t)
	b.network("a", subnet("10.1.0.0/24"))
	b.settle()
	b.network("b", subnet("10.1.0.128/25"))
	b.network("c", func(c *network.CreateRequest) { c.Options = map[string]string{OptionVNI: "many"} })
	b.Service("web", looptest.Replicated(1), on("b"))
	b.Task("web", 1, cluster.TaskNew)
	b.settle()
	const overlap = "invalid pool request: Pool overlaps with other one on this address space"
	if got := b.net("b").Status; got.Err != overlap || b.net("b").Ready() {
		t.Errorf("%+v", got)
	}
	if got := b.net("c").Status.Err; got != `invalid vxlan id value "many" passed` {
		t.Error(got)
	}
	if task := b.Find("web.1#1"); task.Status.Err != "network b: "+overlap || b.Get("web").Status.Err != task.Status.Err {
		t.Errorf("a task on it says %q", task.Status.Err)
	}
	b.Commit(store.Delete(b.net("a")))
	b.settle()
	if got := b.of("web"); got != "10.1.0.131/25" || b.Get("web").Status.Err != "" || b.Find("web.1#1").Status.Err != "" {
		t.Errorf("%q %+v", got, b.Get("web").Status)
	}
}

func TestServices(t *testing.T) {
	b := newBench(t)
	b.network("a", subnet("10.1.0.0/24"))
	b.network("b", subnet("10.2.0.0/24", "fd00:2::/64"), six)
	b.Service("one", looptest.Replicated(2), on("a", "b"))
	b.Service("two", looptest.Replicated(1), on("a"), func(s *cluster.ServiceSpec) { s.Endpoint = cluster.EndpointDNSRR })
	b.Service("none", looptest.Replicated(1), publish(cluster.Port{Proto: network.TCP, Target: 80}))
	for slot := range uint64(2) {
		b.Task("one", slot+1, cluster.TaskNew)
	}
	b.Task("two", 1, cluster.TaskPending)
	b.Task("none", 1, cluster.TaskNew)
	b.settle()
	if got := vips(b.Get("one")); len(strings.Fields(got)) != 3 {
		t.Errorf("addresses of a service on two networks, one of both families: %q", got)
	}
	if got := vips(b.Get("two")) + vips(b.Get("none")); got != "" {
		t.Errorf("addresses of services that have none: %q", got)
	}
	if got := b.Get("none").Status.Ports; got != nil {
		t.Errorf("without a network of published ports: %v", got)
	}
	for _, service := range []string{"one", "two"} {
		for _, list := range strings.Fields(b.of(service)) {
			if n := strings.Count(list, "/"); n != map[string]int{"one": 3, "two": 1}[service] {
				t.Errorf("a task of %s has %s", service, list)
			}
		}
	}
	b.distinct()
	before := b.of("one")
	b.Becomes("one.1#1", cluster.TaskFailed)
	b.Commit(store.Create(b.Find("one.1#1").Successor(b.Get("one").Spec.Task, 1)))
	b.settle()
	if got := b.of("one"); strings.Fields(got)[0] == strings.Fields(before)[0] {
		t.Errorf("an address just given back is given out: %q after %q", got, before)
	}
	b.Change("one", func(s *cluster.Service) { s.Spec.Networks = s.Spec.Networks[:1] })
	b.settle()
	if got := vips(b.Get("one")); !strings.HasPrefix(got, "10.1.0.") || strings.Contains(got, " ") {
		t.Errorf("on one network only: %q", got)
	}
}

// distinct fails when an address is two's.
func (b bench) distinct() {
	b.Helper()
	if err := distinct(b.Store.View()); err != nil {
		b.Error(err)
	}
}

func distinct(v store.View) error {
	seen := map[string]string{}
	note := func(network string, a netip.Addr, who string) error {
		key := network + " " + a.String()
		if other := seen[key]; other != "" {
			return fmt.Errorf("%s is that of %s and of %s", key, other, who)
		}
		seen[key] = who
		return nil
	}
	for _, n := range store.List[*cluster.Network](v) {
		for _, s := range n.Status.Subnets {
			if err := note(n.ID, s.Gateway, "gateway"); err != nil {
				return err
			}
		}
		for _, who := range n.Status.Attached {
			for _, a := range who.Addrs {
				if err := note(n.ID, a.Addr(), who.Node+who.Container); err != nil {
					return err
				}
			}
		}
	}
	for _, s := range store.List[*cluster.Service](v) {
		for _, a := range s.Status.VIPs {
			if err := note(a.Network, a.Addr.Addr(), s.Name); err != nil {
				return err
			}
		}
	}
	for _, t := range store.List[*cluster.Task](v) {
		for _, a := range t.Addresses {
			if !t.Status.State.Ended() {
				if err := note(a.Network, a.Addr.Addr(), t.ID); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// Who finds no free address waits for one.
func TestExhaustion(t *testing.T) {
	b := newBench(t)
	b.network("small", subnet("10.1.0.0/29")) // six hosts: the gateway, the service and four
	b.Service("web", looptest.Replicated(6), on("small"))
	for slot := range uint64(6) {
		b.Task("web", slot+1, cluster.TaskNew)
	}
	b.settle()
	b.distinct()
	given := func() int { return strings.Count(b.of("web"), "/") }
	if n := given(); n != 4 {
		t.Fatalf("%d tasks have an address, want 4: %q", n, b.of("web"))
	}
	why := address.Exhausted(b.net("small"), false).Error()
	var has, waits []string
	for slot := range 6 {
		task := b.Find(fmt.Sprintf("web.%d#1", slot+1))
		if len(task.Addresses) > 0 {
			has = append(has, task.Name+"#1")
		} else if waits = append(waits, task.Status.Err); task.Status.Err != why {
			t.Errorf("a task that waits says %q", task.Status.Err)
		}
	}
	if len(waits) != 2 || b.Get("web").Status.Err != why {
		t.Errorf("%q wait, their service says %q", waits, b.Get("web").Status.Err)
	}
	b.Becomes(has[0], cluster.TaskFailed)
	b.settle()
	if n := given(); n != 4 {
		t.Errorf("%d tasks have an address after one has ended, want 4", n)
	}
	b.Becomes(has[1], cluster.TaskShutdown)
	b.settle()
	if n := given(); n != 4 || b.Get("web").Status.Err != "" || b.net("small").Status.Full {
		t.Errorf("%d tasks have an address, want 4; %q", n, b.Get("web").Status.Err)
	}
	b.distinct()
}

func TestPorts(t *testing.T) {
	b := newBench(t)
	b.Commit(store.Create(cluster.NewIngress()))
	b.Node("n1")
	b.Node("n2")
	b.Service("web", looptest.Replicated(1), publish(
		cluster.Port{Proto: network.TCP, Target: 80, Published: 8080}, cluster.Port{Proto: network.TCP, Target: 81}, cluster.Port{Proto: network.TCP, Target: 82},
		cluster.Port{Proto: network.TCP, Target: 80, Published: 9000, Host: true}))
	b.Task("web", 1, cluster.TaskNew)
	b.settle()
	published := func(name string) (out []uint16) {
		for _, p := range b.Get(name).Status.Ports {
			out = append(out, p.Published)
		}
		return out
	}
	if got := fmt.Sprint(published("web")); got != "[8080 30000 30001 9000]" {
		t.Errorf("published %s", got)
	}
	if vips(b.Get("web")) == "" || b.of("web") == "" || len(b.net("ingress").Status.Attached) != 2 {
		t.Errorf("on the network of published ports: service %q task %q nodes %v", vips(b.Get("web")), b.of("web"), b.net("ingress").Status.Attached)
	}
	b.Service("other", looptest.Replicated(1), publish(cluster.Port{Proto: network.TCP, Target: 80, Published: 8080}))
	b.Task("other", 1, cluster.TaskNew)
	b.Service("datagrams", looptest.Replicated(1), publish(cluster.Port{Proto: network.UDP, Target: 80, Published: 8080}, cluster.Port{Proto: network.TCP, Target: 80}))
	b.settle()
	if got, want := b.Get("other").Status.Err, fmt.Sprintf("port '8080' is already in use by service 'web' (%s) as an ingress port", b.Get("web").ID); got != want || b.of("other") != "" {
		t.Errorf("%q, want %q; its task has %q", got, want, b.of("other"))
	}
	if got := fmt.Sprint(published("datagrams")); got != "[8080 30002]" {
		t.Errorf("published %s", got)
	}
	b.Change("web", func(s *cluster.Service) { s.Spec.Ports = s.Spec.Ports[1:] })
	b.settle()
	if got := fmt.Sprint(published("web"), published("other")); got != "[30000 30001 9000] [8080]" || b.of("other") == "" {
		t.Errorf("once the port was free: %s, %q", got, b.Get("other").Status.Err)
	}
	b.DeleteNode("n2")
	b.settle()
	if got := b.net("ingress").Status.Attached; len(got) != 1 || got[0].Node != "n1" {
		t.Errorf("of a node that has gone: %v", got)
	}
	b.distinct()
}

// Ports that are left open are chosen once, for services of apps and of swarms from the same
// ones; who has some keeps them.
func TestPortsLeftOpen(t *testing.T) {
	b := newBench(t)
	b.Commit(store.Create(cluster.NewIngress()))
	b.Commit(store.Create(&cluster.App{Meta: cluster.Meta{ID: "shop", Name: "shop"}}))
	b.settle()
	open := func(target uint16, proto network.IPProtocol) cluster.Port {
		return cluster.Port{Proto: proto, Target: target}
	}
	b.Commit(store.Create(&cluster.Service{Meta: cluster.Meta{Name: "shop_web", Owner: "shop"}, Numbers: 1, Spec: cluster.ServiceSpec{
		Mode: looptest.Replicated(1), Number: 1, Ports: []cluster.Port{open(80, network.TCP)},
	}}))
	for _, name := range []string{"a", "b"} {
		b.Service(name, looptest.Replicated(1), publish(open(80, network.TCP), open(90, network.TCP), open(80, network.UDP)))
	}
	b.Service("twice", looptest.Replicated(1), publish(open(80, network.TCP), open(80, network.TCP)))
	b.settle()
	published := func(name string) string {
		var out []uint16
		for _, p := range b.Get(name).Status.Ports {
			out = append(out, p.Published)
		}
		return fmt.Sprint(out)
	}
	chosen := map[string]bool{}
	for _, s := range store.List[*cluster.Service](b.Store.View()) {
		for _, p := range s.Status.Ports {
			key := fmt.Sprint(p.Proto, p.Published)
			if chosen[key] || p.Published < firstPort || p.Published > lastPort {
				t.Errorf("%s publishes %s, which is another's or out of range", s.Name, key)
			}
			chosen[key] = true
		}
		if len(s.Status.Ports) != len(s.Spec.Ports) || s.Status.Err != "" {
			t.Errorf("%s: %+v", s.Name, s.Status)
		}
	}
	before := b.Get("b").Status.Ports
	b.Change("b", func(s *cluster.Service) { s.Spec.Ports = s.Spec.Ports[1:] })
	b.settle()
	if got, want := published("b"), fmt.Sprint([]uint16{before[1].Published, before[2].Published}); got != want {
		t.Errorf("two of three ports: %s, were %s", got, want)
	}
	// What the first was given is wanted by the second now: the first gets another.
	two := b.Get("twice").Status.Ports
	b.Change("twice", func(s *cluster.Service) { s.Spec.Ports[1].Published = two[0].Published })
	b.settle()
	if got := b.Get("twice").Status.Ports; got[1].Published != two[0].Published || got[0].Published == got[1].Published {
		t.Errorf("a port left open and one that was chosen before: %s", published("twice"))
	}
}

// Of a range a service gets one port for all nodes, keeps it while it suits, and waits when
// there is none.
func TestPortsOfRanges(t *testing.T) {
	b := newBench(t)
	b.Commit(store.Create(cluster.NewIngress()))
	ranged := func(first, last uint16) cluster.Port {
		return cluster.Port{Proto: network.TCP, Target: 80, Published: first, Last: last}
	}
	published := func(name string) (out []string) {
		for _, p := range b.Get(name).Status.Ports {
			out = append(out, p.Range())
		}
		return out
	}
	check := func(what string, want string) {
		t.Helper()
		b.settle()
		var got []string
		for _, name := range []string{"a", "b", "c"} {
			got = append(got, fmt.Sprint(published(name)))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %s, want %s", what, strings.Join(got, " "), want)
		}
	}
	b.Service("a", looptest.Replicated(1), publish(cluster.Port{Proto: network.TCP, Target: 81, Published: 8000}, ranged(8000, 8001)))
	b.settle()
	b.Service("b", looptest.Replicated(1), publish(ranged(8000, 8002), ranged(65535, 65535)))
	b.settle()
	b.Service("c", looptest.Replicated(1), publish(ranged(8000, 8002)))
	check("three", "[8000 8001] [8002 65535] []")
	if got := b.Get("c").Status.Err; got != "no port from 8000 to 8002 is free" {
		t.Errorf("%q", got)
	}
	b.Change("b", func(s *cluster.Service) { s.Spec.Ports = []cluster.Port{ranged(8001, 8003)} })
	check("another range that has it", "[8000 8001] [8002] []")
	b.Change("a", func(s *cluster.Service) { s.Spec.Ports = s.Spec.Ports[1:] })
	check("one is free", "[8001] [8002] [8000]")
	b.Change("b", func(s *cluster.Service) { s.Spec.Ports = []cluster.Port{ranged(9000, 9001)} })
	check("one that has it not", "[8001] [9000] [8000]")
}

// Two that take an address at once do not both get it.
func TestRace(t *testing.T) {
	b := newBench(t)
	b.network("a")
	b.settle()
	b.Service("one", looptest.Replicated(1), on("a"))
	b.Service("two", looptest.Replicated(1), on("a"))
	v := b.Store.View()
	first, second := Loop{}.Decide(v, ofService+b.Get("one").ID, b.Now), Loop{}.Decide(v, ofService+b.Get("two").ID, b.Now)
	if len(first.Changes) == 0 || len(second.Changes) == 0 {
		t.Fatalf("nothing to decide: %v %v", first, second)
	}
	b.Commit(first.Changes...)
	if _, err := b.Store.Commit(t.Context(), second.Changes...); !errdefs.IsConflict(err) {
		t.Errorf("the second got an address of the same view: %v", err)
	}
	b.settle()
	b.distinct()
}

// Encrypted networks send from ports that their numbers say: no two of them from one.
func TestNumbersOfEncrypted(t *testing.T) {
	b := newBench(t)
	sealed := func(vni string) func(*network.CreateRequest) {
		return func(c *network.CreateRequest) {
			if c.Options = map[string]string{"encrypted": ""}; vni != "" {
				c.Options[OptionVNI] = vni
			}
		}
	}
	b.network("a", sealed(fmt.Sprint(firstVNI+senders)))
	b.settle()
	b.network("b", sealed(fmt.Sprint(firstVNI+2*senders)))
	b.network("c", func(c *network.CreateRequest) {
		c.Options = map[string]string{OptionVNI: fmt.Sprint(firstVNI + 3*senders - 1)}
	})
	b.settle()
	b.network("d", sealed(""))
	b.settle()
	if got := b.net("b").Status; got.VNI != 0 || !strings.Contains(got.Err, "one port") {
		t.Errorf("%+v", got)
	}
	if got := b.net("c").Status.VNI; got != firstVNI+3*senders-1 {
		t.Errorf("a network that is not encrypted has %d", got)
	}
	if got := b.net("d").Status; got.VNI == 0 || got.VNI%senders == firstVNI%senders {
		t.Errorf("the next one has %d, which sends from the port of the first", got.VNI)
	}
}

package simulation

import (
	"fmt"
	"net/netip"
	"testing"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// Whatever happens, in whatever order: no address of an overlay network is that of two, no
// task has a node before it has its addresses, and in the end all have what they need.
func TestAddresses(t *testing.T) {
	for seed := range uint64(40) {
		w := newWorld(t, seed, 1+int(seed%3))
		w.commit(store.Create(cluster.NewIngress()))
		// Small enough that those who end and those who come meet.
		w.commit(store.Create(&cluster.Network{Meta: cluster.Meta{Name: "net"}, Spec: cluster.NetworkSpec{Name: "net", Create: &network.CreateRequest{
			Driver: "overlay", IPAM: &network.IPAM{Config: []network.IPAMConfig{{Subnet: netip.MustParsePrefix("10.7.0.0/27")}}},
		}}}))
		names := []string{"a", "b"}
		for _, n := range names {
			s := spec(good, 1, 1+uint64(w.rng.IntN(4)))
			s.Networks = []cluster.Attachment{{Network: "net"}}
			s.Ports = []cluster.Port{{Proto: network.TCP, Target: 80}}
			s.Update = &cluster.Rollout{Parallelism: uint64(w.rng.IntN(3)), StartFirst: w.rng.IntN(2) == 0}
			w.service(n, s)
		}
		w.watch = func() { w.addressesAreHeld(seed) }
		for range 60 {
			w.step(names)
		}
		w.resume()
		for _, n := range names {
			w.change(n, func(s *cluster.ServiceSpec) {
				s.Task.Container = &container.Config{Image: good}
				s.Task.Force++
			})
		}
		w.settle()
		for _, n := range names {
			o, err := store.Named[*cluster.Service](w.s.View(), n)
			if err != nil {
				t.Fatal(err)
			}
			up, live := w.running(n)
			if want := int(o.Spec.Mode.Replicated.Replicas); up[o.Spec.Number] != want || live != want || len(o.Status.VIPs) != 2 || o.Status.Err != "" {
				t.Fatalf("seed %d: of %s %v are up and %d live, want %d; %+v\n%s", seed, n, up, live, want, o.Status, w.describe())
			}
		}
	}
}

// addressesAreHeld fails when an address is two's, or a task has a node and no address.
func (w *world) addressesAreHeld(seed uint64) {
	seen := map[string]string{}
	note := func(network string, a netip.Prefix, who string) {
		key := fmt.Sprint(network, " ", a.Addr())
		if other := seen[key]; other != "" {
			w.t.Fatalf("seed %d: %s is that of %s and of %s", seed, key, other, who)
		}
		seen[key] = who
	}
	for _, n := range store.List[*cluster.Network](w.s.View()) {
		for _, who := range n.Status.Attached {
			for _, a := range who.Addrs {
				note(n.ID, a, "node "+who.Node)
			}
		}
	}
	for _, s := range store.List[*cluster.Service](w.s.View()) {
		for _, a := range s.Status.VIPs {
			note(a.Network, a.Addr, s.Name)
		}
	}
	for _, t := range store.List[*cluster.Task](w.s.View()) {
		for _, a := range t.Addresses {
			if !t.Status.State.Ended() {
				note(a.Network, a.Addr, t.ID)
			}
		}
		if t.Node != "" && len(t.Addresses) < 2 {
			w.t.Fatalf("seed %d: task %s has a node and the addresses %v", seed, t.ID, t.Addresses)
		}
	}
}

package allocate

import (
	"net/netip"
	"strings"
	"testing"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/loop/looptest"
	"github.com/moby/moby/api/types/network"
)

// A task has the address that its spec asks for; a second one waits until it is free.
func TestAskedAddress(t *testing.T) {
	b := newBench(t)
	b.network("front", subnet("10.55.0.0/24", "fd00:55::/64"), six)
	b.settle()
	at := &network.EndpointSettings{IPAMConfig: &network.EndpointIPAMConfig{IPv4Address: netip.MustParseAddr("10.55.0.77")}}
	b.Service("web", looptest.Replicated(2), func(s *cluster.ServiceSpec) {
		s.Endpoint = cluster.EndpointDNSRR
		s.Networks = []cluster.Attachment{{Network: "front", Settings: at}}
	})
	b.Task("web", 1, cluster.TaskNew)
	b.settle()
	b.Task("web", 2, cluster.TaskNew)
	b.settle()
	if got := b.of("web"); !strings.Contains(got, "10.55.0.77/24") || !strings.Contains(got, "fd00:55::") || strings.Count(got, "/24") != 1 {
		t.Errorf("they have %s", got)
	}
	if second := tasksOf(b, "web", 2); second.Status.Err != "Address already in use" {
		t.Errorf("the second waits for %q", second.Status.Err)
	}
	b.Becomes("web.1#1", cluster.TaskShutdown)
	b.settle()
	if got := b.of("web"); !strings.Contains(got, "10.55.0.77/24") {
		t.Errorf("the second has %s once it is free", got)
	}
}

func tasksOf(b bench, service string, slot uint64) *cluster.Task {
	for _, t := range store.List[*cluster.Task](b.Store.View(), store.Owner(b.Get(service).ID)) {
		if t.Slot == slot {
			return t
		}
	}
	b.Fatalf("%s has no task %d", service, slot)
	return nil
}

// A task that is for a network as it is to be gets no address of the one that it is still.
func TestEarly(t *testing.T) {
	b := newBench(t)
	n := overlayOf("shop_default")
	n.Owner = "shop"
	b.Commit(store.Create(n))
	b.settle()
	b.Service("web", looptest.Replicated(1), func(s *cluster.ServiceSpec) {
		s.Endpoint, s.Networks = cluster.EndpointDNSRR, []cluster.Attachment{{Network: "shop_default", Made: 1}}
	})
	b.Task("web", 1, cluster.TaskNew)
	b.settle()
	if got := tasksOf(b, "web", 1).Addresses; len(got) > 0 {
		t.Errorf("it has %v", got)
	}
	next := overlayOf("shop_default", subnet("10.56.0.0/24"))
	next.Owner, next.Spec.Made = "shop", 1
	b.Commit(store.Delete(b.net("shop_default")), store.Create(next))
	b.settle()
	if got := b.of("web"); !strings.Contains(got, "10.56.0.") {
		t.Errorf("then it has %s", got)
	}
}

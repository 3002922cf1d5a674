package node

import (
	"context"
	"net/netip"
	"testing"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/ca"
	"escale.dev/escale/internal/cluster/dispatch"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/address"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"
)

// A manager gets its place and the keys of the store; a worker gets neither, nor does who has
// no address. A container of a worker gets an address on a network that is for such.
func TestEnlist(t *testing.T) {
	w := newSite(t)
	asked := ""
	w.m.Seat = func(_ context.Context, node, addr, url string) (Seat, error) {
		asked = node + " " + addr + " " + url
		return Seat{Members: "all", Keys: [][]byte{[]byte("key")}}, nil
	}
	m := w.manager("m1", 1)
	list := []dispatch.Manager{{Addr: m.addr}}
	a, err := w.m.Authority()
	if err != nil {
		t.Fatal(err)
	}
	w.commit(store.Create(&cluster.Node{Meta: cluster.Meta{ID: "w1"}}), store.Create(&cluster.Node{Meta: cluster.Meta{ID: "m2"}, Spec: cluster.NodeSpec{Manager: true}}))
	worker, manager := NewMember(w.identity(a, "w1", ca.Worker, 0), m.log), NewMember(w.identity(a, "m2", ca.Manager, 0), m.log)
	if _, err := worker.Enlist(t.Context(), list, "192.0.2.1:2377", "u"); !errdefs.IsPermissionDenied(err) || asked != "" {
		t.Errorf("a worker: %v, %q", err, asked)
	}
	if _, err := manager.Enlist(t.Context(), list, "nowhere", "u"); err == nil || asked != "" {
		t.Errorf("without an address: %v", err)
	}
	seat, err := manager.Enlist(t.Context(), list, "192.0.2.1:2377", "u")
	if err != nil || seat.Members != "all" || len(seat.Keys) != 1 || string(seat.Keys[0]) != "key" || asked != "m2 192.0.2.1:2377 u" {
		t.Errorf("%+v, %v, %q", seat, err, asked)
	}
	subnet := netip.MustParsePrefix("10.7.0.0/24")
	for _, attachable := range []bool{false, true} {
		name := map[bool]string{false: "closed", true: "open"}[attachable]
		w.commit(store.Create(&cluster.Network{Meta: cluster.Meta{ID: name, Name: name}, Spec: cluster.NetworkSpec{Name: name, Create: &network.CreateRequest{Driver: "overlay", Attachable: attachable}},
			Status: cluster.NetworkStatus{VNI: 1, Subnets: []cluster.Subnet{{Prefix: subnet, Gateway: netip.MustParseAddr("10.7.0.1")}}}}))
	}
	g := address.Guest{Network: "closed", Container: "c", Endpoint: "e", Subnet: subnet}
	if _, err := worker.Attach(t.Context(), list, g); !errdefs.IsPermissionDenied(err) {
		t.Errorf("a network that is closed: %v", err)
	}
	g.Network = "open"
	got, err := worker.Attach(t.Context(), list, g)
	attached := func() []cluster.Attached {
		n, err := store.Find[*cluster.Network](w.s.View(), "open")
		if err != nil {
			t.Fatal(err)
		}
		return n.Status.Attached
	}
	if err != nil || !subnet.Contains(got.Addr()) || len(attached()) != 1 || attached()[0].Node != "w1" {
		t.Errorf("%s, %v, %+v", got, err, attached())
	}
	if err := manager.Detach(t.Context(), list, "e", nil); err != nil || len(attached()) != 1 {
		t.Errorf("another node's is given back: %v", err)
	}
	if err := worker.Detach(t.Context(), list, "", []string{"e"}); err != nil || len(attached()) != 1 {
		t.Errorf("what is left is given back: %v", err)
	}
	if err := worker.Detach(t.Context(), list, "", nil); err != nil || len(attached()) != 0 {
		t.Errorf("what has gone stays: %v, %+v", err, attached())
	}
}

package membership

import (
	"log/slog"
	"testing"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/mem"
)

// Who leads anew is said before anybody is asked whether he is there; what is known of the others stays.
func TestLeaderIsSaidAtOnce(t *testing.T) {
	s := mem.New(store.NewState())
	defer s.Close()
	for id, is := range map[string]*cluster.ManagerStatus{
		"old": {Leader: true, Reachable: true, Addr: "old:1"}, "new": {Addr: "new:1"}, "other": {Addr: "other:1"}, "worker": nil, "learner": nil,
	} {
		n := &cluster.Node{Meta: cluster.Meta{ID: id, Name: id}, Spec: cluster.NodeSpec{Manager: id != "worker"}, Status: cluster.NodeStatus{Manager: is}}
		if _, err := s.Commit(t.Context(), store.Create(n)); err != nil {
			t.Fatal(err)
		}
	}
	began := s.View().Revision()
	tend := &tender{m: &Membership{node: "new", log: slog.New(slog.DiscardHandler)}, s: s}
	tend.begin(t.Context())
	for id, want := range map[string]*cluster.ManagerStatus{
		"old": {Reachable: true, Addr: "old:1"}, "new": {Leader: true, Reachable: true, Addr: "new:1"}, "other": {Addr: "other:1"}, "worker": nil, "learner": nil,
	} {
		n, err := store.Find[*cluster.Node](s.View(), id)
		if err != nil {
			t.Fatal(err)
		}
		if is := n.Status.Manager; (is == nil) != (want == nil) || is != nil && *is != *want {
			t.Errorf("%s: %+v, want %+v", id, is, want)
		}
	}
	if now := s.View().Revision(); now != began+1 {
		t.Errorf("%d commits", now-began)
	}
	if tend.begin(t.Context()); s.View().Revision() != began+1 {
		t.Error("it is said again")
	}
}

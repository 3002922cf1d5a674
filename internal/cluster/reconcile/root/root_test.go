package root

import (
	"testing"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/loop/looptest"
)

// The old root goes when the last node has a certificate of the new one, or has gone itself.
func TestRotationEnds(t *testing.T) {
	b := looptest.New(t, Loop{})
	certified := func(by string) func(*cluster.Node) {
		return func(n *cluster.Node) { n.Status.CertIssuer = by }
	}
	b.Commit(store.Create(&cluster.Cluster{Meta: cluster.Meta{ID: "c", Name: cluster.DefaultCluster}, Status: cluster.ClusterStatus{RootCA: []byte("old"), Key: []byte("its key")}}))
	get := func() *cluster.Cluster {
		c, err := store.Find[*cluster.Cluster](b.Store.View(), "c")
		if err != nil {
			t.Fatal(err)
		}
		return store.Copy(c)
	}
	for _, n := range []string{"a", "b", "c"} {
		b.Node(n, certified("old"))
	}
	b.Look()
	c := get()
	c.Status.RootRotation = &cluster.RootRotation{Cert: []byte("new"), Key: []byte("another"), Cross: []byte("x"), Issuer: "new"}
	b.Commit(store.Update(c))
	b.Look()
	b.ChangeNode("a", certified("new"))
	b.Look()
	b.ChangeNode("b", certified("new"))
	b.Look()
	if c := get(); c.Status.RootRotation == nil || string(c.Status.RootCA) != "old" {
		t.Fatalf("a node is forgotten: %+v", c.Status)
	}
	b.DeleteNode("c")
	b.Look()
	if c := get(); c.Status.RootRotation != nil || string(c.Status.RootCA) != "new" || string(c.Status.Key) != "another" {
		t.Errorf("%+v", c.Status)
	}
}

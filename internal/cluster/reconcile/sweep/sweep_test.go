package sweep

import (
	"slices"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/loop/looptest"
	"github.com/moby/moby/api/types/network"
)

// What is to go goes once nodes have had their time, in a cluster only, and nothing else does.
func TestSweep(t *testing.T) {
	b := looptest.New(t, Loop{})
	there := func() (n int) {
		v := b.Store.View()
		return len(store.List[*cluster.Network](v))*10 + len(store.List[*cluster.Volume](v))
	}
	pass := func(d time.Duration, want int) {
		t.Helper()
		b.Pass(d)
		b.Look()
		if got := there(); got != want {
			t.Errorf("after %s more there are %d networks and %d volumes, want %d and %d", d, got/10, got%10, want/10, want%10)
		}
	}
	overlay := &network.CreateRequest{Driver: "overlay"}
	b.Commit(
		store.Create(&cluster.Network{Meta: cluster.Meta{Name: "stays"}, Spec: cluster.NetworkSpec{Name: "stays", Create: overlay}}),
		store.Create(&cluster.Network{Meta: cluster.Meta{Name: "spans"}, Spec: cluster.NetworkSpec{Name: "spans", Create: overlay, Removed: true}}),
		store.Create(&cluster.Network{Meta: cluster.Meta{Name: "local"}, Spec: cluster.NetworkSpec{Name: "local", Removed: true}}),
		store.Create(&cluster.Volume{Meta: cluster.Meta{Name: "data"}, Spec: cluster.VolumeSpec{Name: "data", Removed: true}}),
		store.Create(&cluster.Volume{Meta: cluster.Meta{Name: "kept"}, Spec: cluster.VolumeSpec{Name: "kept"}}),
	)
	pass(time.Hour, 32) // alone: who has them removes them
	now, err := store.Named[*cluster.Volume](b.Store.View(), "data")
	if err != nil {
		t.Fatal(err)
	}
	spans, err := store.Named[*cluster.Network](b.Store.View(), "spans")
	if err != nil {
		t.Fatal(err)
	}
	local, err := store.Named[*cluster.Network](b.Store.View(), "local")
	if err != nil {
		t.Fatal(err)
	}
	b.Commit(
		store.Create(&cluster.Cluster{Meta: cluster.Meta{Name: cluster.DefaultCluster}}),
		store.Update(store.Copy(now)), store.Update(store.Copy(spans)), store.Update(store.Copy(local)),
	)
	pass(Spanning-time.Millisecond, 32)
	pass(time.Millisecond, 22)
	pass(Local-Spanning-time.Millisecond, 22)
	pass(time.Millisecond, 11)
}

// A volume whose node is away is owed: it is nobody's, and goes once the node has been back for a
// while, or is a node no more. One of a node that is there goes as ever, and so does what is not on one node.
func TestOwed(t *testing.T) {
	b := looptest.New(t, Loop{})
	node := func(id string, ready bool) *cluster.Node {
		return &cluster.Node{Meta: cluster.Meta{ID: id, Name: id}, Status: cluster.NodeStatus{Ready: ready}}
	}
	volume := func(name, at, driver string) *cluster.Volume {
		return &cluster.Volume{Meta: cluster.Meta{Name: name, Owner: "shop"}, Spec: cluster.VolumeSpec{Name: name, Driver: driver, Removed: true}, Status: cluster.VolumeStatus{Node: at}}
	}
	look := func(d time.Duration, want ...string) {
		t.Helper()
		b.Pass(d)
		b.Look()
		var got []string
		for _, v := range store.List[*cluster.Volume](b.Store.View()) {
			if owed := v.Name == v.Spec.Name+"@"+v.ID; owed != v.Status.Owed || owed == (v.Owner != "") {
				t.Errorf("%s: owed %t, of %q", v.Name, v.Status.Owed, v.Owner)
			}
			got = append(got, v.Spec.Name)
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("after %v more there are %v, want %v", d, got, want)
		}
	}
	ready := func(id string, is bool) {
		t.Helper()
		n, err := store.Find[*cluster.Node](b.Store.View(), id)
		if err != nil {
			t.Fatal(err)
		}
		n = store.Copy(n)
		n.Status.Ready, n.Status.Since = is, b.Now
		b.Commit(store.Update(n))
	}
	b.Commit(store.Create(&cluster.Cluster{Meta: cluster.Meta{Name: cluster.DefaultCluster}}),
		store.Create(node("away", false)), store.Create(node("lost", false)), store.Create(node("here", true)), store.Create(node("fails", true)))
	b.Commit(store.Create(volume("data", "away", "")), store.Create(volume("old", "lost", "local")), store.Create(volume("mine", "here", "")),
		store.Create(volume("later", "fails", "")), store.Create(volume("far", "away", "nfsplugin")), store.Create(volume("none", "", "")))
	look(time.Second, "data", "far", "later", "mine", "none", "old")
	ready("fails", false)
	look(Local-time.Second, "data", "later", "old")
	look(time.Hour, "data", "later", "old")
	lost, err := store.Find[*cluster.Node](b.Store.View(), "lost")
	if err != nil {
		t.Fatal(err)
	}
	b.Commit(store.Delete(lost))
	look(0, "data", "later")
	ready("away", true)
	look(Owed-time.Second, "data", "later")
	ready("away", false)
	look(Owed, "data", "later")
	ready("away", true)
	look(Owed-time.Second, "data", "later")
	look(time.Second, "later")
}

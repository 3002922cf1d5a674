package sweep

import (
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

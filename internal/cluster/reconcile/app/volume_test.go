package app

import (
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
)

// In a cluster it is known where a volume is, also when the app has gone without it: the next
// one of the name has it again. On a host that is alone nothing of it is left.
func TestVolumeLeftBehind(t *testing.T) {
	for _, clustered := range []bool{false, true} {
		s := spec()
		db := s.Services["db"]
		db.Task.Host.Mounts = []mount.Mount{{Type: mount.TypeVolume, Source: "shop_data", Target: "/data"}}
		s.Services["db"] = db
		b := newBench(t, s)
		if clustered {
			b.commit(store.Create(&cluster.Cluster{Meta: cluster.Meta{Name: cluster.DefaultCluster}}))
		}
		volume := func() *cluster.Volume {
			v, err := store.Named[*cluster.Volume](b.s.View(), "shop_data")
			if err != nil {
				return nil
			}
			return v
		}
		b.steps(made)
		task := b.task("db", 1, 1, cluster.TaskRunning, func(t *cluster.Task) { t.Node, t.Status.RunningAt = "n3", time.Now() })
		for b.decide() != "" {
		}
		if got := volume().Status.Node; clustered != (got == "n3") {
			t.Errorf("in a cluster %t: it is known to be on %q", clustered, got)
		}
		b.commit(store.Delete(b.find(task)))
		b.ask(func(s *cluster.AppSpec) { s.Removed = true })
		for range 10 {
			b.decide()
			b.clear()
		}
		left := volume()
		if clustered != (left != nil && left.Owner == "" && left.Status.Node == "n3") || len(store.List[*cluster.App](b.s.View())) != 0 {
			t.Fatalf("in a cluster %t: left is %+v", clustered, left)
		}
		b.commit(store.Create(&cluster.App{Meta: cluster.Meta{Name: "shop"}, Spec: s}))
		b.decide()
		if v := volume(); v == nil || v.Owner != b.app().ID || clustered != (v.Status.Node == "n3") {
			t.Errorf("in a cluster %t: the next app has %+v", clustered, v)
		}
		b.ask(func(s *cluster.AppSpec) { s.Removed, s.Volumed = true, true })
		for range 10 {
			b.decide()
			b.clear()
		}
		if v := volume(); v != nil {
			t.Errorf("in a cluster %t: an app that goes with its volumes leaves %+v", clustered, v)
		}
	}
}

// A network of the cluster's whose options differ is exchanged for another one once its tasks
// have ended; one that was this host's becomes the cluster's as it stands.
func TestNetworkAnew(t *testing.T) {
	s := spec()
	s.Networks["default"] = cluster.NetworkSpec{Name: "shop_default", Create: &network.CreateRequest{Driver: "bridge"}}
	b := newBench(t, s)
	b.steps(made)
	is := func() *cluster.Network {
		n, err := store.Named[*cluster.Network](b.s.View(), "shop_default")
		if err != nil {
			b.Fatal(err)
		}
		return n
	}
	first := is().ID
	change := func(f func(*network.CreateRequest)) {
		b.ask(func(s *cluster.AppSpec) {
			n := s.Networks["default"]
			f(n.Create)
			n.Made++
			s.Networks["default"] = n
		})
	}
	change(func(c *network.CreateRequest) { c.Driver = "overlay" })
	b.steps("update network shop_default")
	if is().ID != first || !is().Overlay() {
		t.Errorf("one that spans the nodes now: %+v", is())
	}
	task := b.task("db", 1, 1, cluster.TaskRunning, func(t *cluster.Task) { t.Addresses = []cluster.TaskAddress{{Network: first}} })
	change(func(c *network.CreateRequest) { c.Internal = true })
	b.decide()
	if is().ID != first || is().Spec.Create.Internal {
		t.Error("it was exchanged under a task that is on it")
	}
	c := store.Copy(b.find(task))
	c.Status.State = cluster.TaskShutdown
	b.commit(store.Update(c))
	b.steps("create network shop_default, delete network shop_default")
	if is().ID == first || !is().Spec.Create.Internal || is().Spec.Made != 2 {
		t.Errorf("after that: %+v", is())
	}
}

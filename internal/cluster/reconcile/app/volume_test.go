package app

import (
	"slices"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/mem"
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

// An app that goes with its volumes does not wait for a node that is away; one that leaves them does,
// for they may be wanted again, and so does one whose volumes nobody knows to be there.
func TestGoneWhileAway(t *testing.T) {
	for name, c := range map[string]struct {
		volumes, away, known, waits bool
	}{
		"with its volumes":    {volumes: true, away: true, known: true},
		"without":             {away: true, known: true, waits: true},
		"nobody knows":        {volumes: true, away: true, waits: true},
		"the node is there":   {volumes: true, known: true, waits: true},
		"no volume, no wait":  {away: true},
		"no volume, it waits": {waits: true},
	} {
		s := spec()
		if c.known || c.volumes {
			db := s.Services["db"]
			db.Task.Host.Mounts = []mount.Mount{{Type: mount.TypeVolume, Source: "shop_data", Target: "/data"}}
			s.Services["db"] = db
		}
		b := newBench(t, s)
		n := &cluster.Node{Meta: cluster.Meta{ID: "n3", Name: "h3"}, Status: cluster.NodeStatus{Ready: true}}
		b.commit(store.Create(&cluster.Cluster{Meta: cluster.Meta{Name: cluster.DefaultCluster}}), store.Create(n))
		b.steps(made)
		task := b.task("db", 1, 1, cluster.TaskRunning, func(t *cluster.Task) {
			if t.Node = "n3"; c.known {
				t.Status.RunningAt = time.Now()
			}
		})
		for b.decide() != "" {
		}
		b.ask(func(s *cluster.AppSpec) { s.Removed, s.Volumed = true, c.volumes })
		b.decide()
		gone := store.Copy(b.find(task))
		gone.Desired = cluster.TaskRemove // as the loop of services has it
		b.commit(store.Update(gone))
		if c.away {
			now, err := store.Find[*cluster.Node](b.s.View(), "n3")
			if err != nil {
				t.Fatal(err)
			}
			is := store.Copy(now)
			is.Status.Ready = false
			if keys := (Loop{}).Keys(b.s.View(), store.Event{Old: now, New: is}); !slices.Contains(keys, b.app().ID) {
				t.Errorf("%s: the node goes, and it looks at %q", name, keys)
			}
			b.commit(store.Update(is))
		}
		for b.decide() != "" {
		}
		if left := len(store.List[*cluster.Task](b.s.View())); c.waits != (left == 1) {
			t.Errorf("%s: %d tasks are left", name, left)
		}
	}
}

// An app that goes hears of it when a volume of its is let go of.
func TestVolumeLetGo(t *testing.T) {
	was := &cluster.Volume{Meta: cluster.Meta{ID: "v", Owner: "shop"}}
	is := store.Copy(was)
	is.Owner = ""
	if keys := (Loop{}).Keys(mem.New(store.NewState()).View(), store.Event{Old: was, New: is}); !slices.Contains(keys, "shop") {
		t.Errorf("it looks at %q", keys)
	}
}

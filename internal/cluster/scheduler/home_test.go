package scheduler

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/mem"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
)

// What uses things of one node is placed there alone, and who asks is told why; a host that has
// left its cluster has all of them.
func TestKept(t *testing.T) {
	s := machines(t, 3, func(int, *cluster.Node) {})
	kept := cluster.TaskSpec{Placement: cluster.Placement{Keep: &cluster.Keep{Node: "node2", Why: "bind /srv/site"}}}
	lost := cluster.TaskSpec{Placement: cluster.Placement{Keep: &cluster.Keep{Node: "gone", Why: "bind /srv/site"}}}
	if got := schedule(t, s, Loop{}, lost); got[0] != "node0" {
		t.Errorf("in no cluster: %s", got[0])
	}
	commit(t, s, store.Create(&cluster.Cluster{Meta: cluster.Meta{Name: cluster.DefaultCluster}}))
	if got := schedule(t, s, Loop{}, kept, kept, lost); !slices.Equal(got, []string{"node2", "node2", "no suitable node (bind /srv/site was on node gone, which is no more)"}) {
		t.Errorf("in a cluster: %q", got)
	}
	n, err := store.Find[*cluster.Node](s.View(), "node2")
	if err != nil {
		t.Fatal(err)
	}
	n = store.Copy(n)
	n.Spec.Availability = cluster.Drain
	commit(t, s, store.Update(n))
	if got := schedule(t, s, Loop{}, kept); got[0] != "no suitable node (bind /srv/site is on node n2; node not available on 1 node)" {
		t.Errorf("its node is drained: %q", got[0])
	}
}

func commit(t *testing.T, s *mem.Store, changes ...store.Change) {
	t.Helper()
	if _, err := s.Commit(t.Context(), changes...); err != nil {
		t.Fatal(err)
	}
}

// withVolume is a task of an app that has a volume.
func withVolume(service string, slot uint64, source string) *cluster.Task {
	return &cluster.Task{
		Meta: cluster.Meta{Owner: service, ID: fmt.Sprint(service, slot)}, App: "shop", Slot: slot, Number: 1, Desired: cluster.TaskRunning, Status: cluster.TaskStatus{State: cluster.TaskNew},
		Spec: cluster.TaskSpec{Host: &container.HostConfig{Mounts: []mount.Mount{{Type: mount.TypeVolume, Source: source, Target: "/data"}}}},
	}
}

// Tasks of an app that have one volume in common are on one node, whether they are placed
// together or one after the other, and where the volume has been before.
func TestVolumesOfApps(t *testing.T) {
	s := machines(t, 4, func(int, *cluster.Node) {})
	var changes []store.Change
	for _, service := range []string{"db", "backup"} {
		for slot := range uint64(3) {
			changes = append(changes, store.Create(withVolume(service, slot+1, "shop_data")))
		}
	}
	commit(t, s, changes...)
	commit(t, s, Loop{}.Decide(s.View(), all, time.Now()).Changes...)
	at := map[string]bool{}
	for _, task := range store.List[*cluster.Task](s.View()) {
		at[task.Node] = true
	}
	if len(at) != 1 {
		t.Errorf("placed together they are on %v", at)
	}
	if got := place(t, s, Loop{}, withVolume("later", 1, "shop_data")); !at[got] {
		t.Errorf("one that comes later is on %s, the others on %v", got, at)
	}
	// Of others, and where it is said, each is where there is most room.
	free := withVolume("free", 1, "shop_data")
	free.Labels = map[string]string{cluster.LabelVolumes: "anywhere"}
	if got := place(t, s, Loop{}, free); at[got] {
		t.Errorf("one that may be anywhere is on %s, as those that may not", got)
	}
	other := withVolume("other", 1, "shop_data")
	other.App = "market"
	if got := place(t, s, Loop{}, other); at[got] {
		t.Errorf("one of another app is on %s", got)
	}
	commit(t, s, store.Create(&cluster.Volume{Meta: cluster.Meta{Name: "shop_old", Owner: "shop"}, Spec: cluster.VolumeSpec{Name: "shop_old"}, Status: cluster.VolumeStatus{Node: "node3"}}),
		store.Create(&cluster.Volume{Meta: cluster.Meta{Name: "shop_nfs", Owner: "shop"}, Spec: cluster.VolumeSpec{Name: "shop_nfs", Options: map[string]string{"type": "nfs"}}, Status: cluster.VolumeStatus{Node: "node3"}}))
	for slot := range uint64(2) {
		if got := place(t, s, Loop{}, withVolume("old", slot+1, "shop_old")); got != "node3" {
			t.Errorf("where its volume is: %s", got)
		}
	}
	if got := place(t, s, Loop{}, withVolume("nfs", 1, "shop_nfs")); got == "node3" {
		t.Error("a volume that is everywhere holds its task")
	}
}

// Services that share a volume are where all of them can be, whoever is placed first.
func TestCompanions(t *testing.T) {
	s := machines(t, 4, func(i int, n *cluster.Node) { n.Spec.Manager = i < 3 })
	commit(t, s, store.Create(&cluster.Cluster{Meta: cluster.Meta{Name: cluster.DefaultCluster}}))
	spec := func(service string, p cluster.Placement) cluster.ServiceSpec {
		out := withVolume(service, 1, "shop_"+service[:1]).Spec
		out.Placement = p
		return cluster.ServiceSpec{Mode: cluster.Mode{Replicated: &cluster.Replicated{Replicas: 1}}, Task: out}
	}
	for name, p := range map[string]cluster.Placement{"db": {Constraints: []string{"node.role == worker"}}, "dump": {}, "keep": {Keep: &cluster.Keep{Node: "node2", Why: "bind /x"}}, "kin": {}} {
		service := &cluster.Service{Meta: cluster.Meta{ID: name, Name: "shop_" + name, Owner: "shop"}, Spec: spec(name, p)}
		commit(t, s, store.Create(service))
	}
	if got := place(t, s, Loop{}, withVolume("dump", 1, "shop_d")); got != "node3" {
		t.Errorf("one that shares with a service of workers is on %s", got)
	}
	if got := place(t, s, Loop{}, withVolume("kin", 1, "shop_k")); got != "node2" {
		t.Errorf("one that shares with a service that is kept is on %s", got)
	}
}

// Nodes that have spoken to a new leader come first, whatever else they have; where only others
// will do a task waits until they speak.
func TestHeard(t *testing.T) {
	s := machines(t, 4, func(int, *cluster.Node) {})
	spoken := map[string]bool{"node2": true}
	l := Loop{Heard: func(node string) bool { return spoken[node] }}
	if got := schedule(t, s, l, cluster.TaskSpec{}, cluster.TaskSpec{}); !slices.Equal(got, []string{"node2", "node2"}) {
		t.Errorf("one has spoken, and they are on %v", got)
	}
	there := cluster.TaskSpec{Placement: cluster.Placement{Constraints: []string{"node.hostname == n1"}}}
	if got := schedule(t, s, l, there); got[0] != "" {
		t.Errorf("its node has not spoken, and it is told %q", got[0])
	}
	now := time.Now()
	if d := l.Decide(s.View(), all, now); len(d.Changes) != 0 || !d.Again.After(now) || d.Again.After(now.Add(time.Second)) {
		t.Errorf("it is to wait: %+v", d)
	}
	spoken["node1"] = true
	commit(t, s, l.Decide(s.View(), all, now).Changes...)
	if n := len(store.List[*cluster.Task](s.View(), store.OnNode("node1"))); n != 1 {
		t.Errorf("its node has spoken, and has %d tasks", n)
	}
	if got := schedule(t, s, l, cluster.TaskSpec{}); got[0] != "node1" {
		t.Errorf("two have spoken, and the next is on %v", got)
	}
}

// A node that is to remove a volume of before gets nothing that has one of the name, until it has done so.
func TestIndebted(t *testing.T) {
	s := machines(t, 1, func(int, *cluster.Node) {})
	old := &cluster.Volume{Meta: cluster.Meta{Name: "shop_d@1"}, Spec: cluster.VolumeSpec{Name: "shop_d", Removed: true}, Status: cluster.VolumeStatus{Node: "node0", Owed: true}}
	commit(t, s, store.Create(old))
	if got := place(t, s, Loop{}, withVolume("db", 1, "shop_d")); got != `no suitable node (the volume "shop_d" of before is to be removed on 1 node)` {
		t.Errorf("it is told %q", got)
	}
	if got := place(t, s, Loop{}, withVolume("web", 1, "shop_w")); got != "node0" {
		t.Errorf("one with another volume is told %q", got)
	}
	before, revision := store.List[*cluster.Volume](s.View())[0], s.View().Revision()
	commit(t, s, store.Delete(before))
	if keys := told(t, s, revision); len(keys) == 0 {
		t.Error("the scheduler is not told that the volume has gone")
	}
	commit(t, s, Loop{}.Decide(s.View(), all, time.Now()).Changes...)
	if n := len(store.List[*cluster.Task](s.View(), store.OnNode("node0"))); n != 2 {
		t.Errorf("%d tasks are there, want both", n)
	}
}

package simulation

import (
	"fmt"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
)

// join makes nodes that come now.
func (w *world) join(names ...string) {
	w.t.Helper()
	for _, n := range names {
		w.commit(store.Create(&cluster.Node{Meta: cluster.Meta{ID: n, Name: n}, Spec: cluster.NodeSpec{Labels: map[string]string{"zone": n[:1]}}, Status: cluster.NodeStatus{Ready: true, Since: w.now}}))
	}
}

// node changes a node.
func (w *world) node(id string, f func(*cluster.Node)) {
	w.t.Helper()
	n, err := store.Find[*cluster.Node](w.s.View(), id)
	if err != nil {
		w.t.Fatal(err)
	}
	n = store.Copy(n)
	f(n)
	w.commit(store.Update(n))
}

// on counts the tasks of a service that run, by node.
func (w *world) on(name string) map[string]int {
	w.t.Helper()
	o, err := store.Named[*cluster.Service](w.s.View(), name)
	if err != nil {
		w.t.Fatal(err)
	}
	out := map[string]int{}
	for _, t := range store.List[*cluster.Task](w.s.View(), store.Owner(o.ID)) {
		if t.Status.State == cluster.TaskRunning && !t.Desired.Stops() {
			out[t.Node]++
		}
	}
	return out
}

// made counts the tasks of a service that there ever were.
func (w *world) made(name string) (n uint64) {
	w.t.Helper()
	o, err := store.Named[*cluster.Service](w.s.View(), name)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, slot := range cluster.Slots(store.List[*cluster.Task](w.s.View(), store.Owner(o.ID))) {
		n += slot.Current().Number
	}
	return n
}

// rests fails when something changes though nothing has happened, however long one waits.
func (w *world) rests() {
	w.t.Helper()
	for range 3 {
		before := w.s.View().Revision()
		w.now = w.now.Add(time.Hour)
		w.settle()
		if w.s.View().Revision() != before {
			w.t.Fatalf("it does not rest:\n%s", w.describe())
		}
	}
}

// Nodes that come get their part of what is there, one task after the other; what cannot
// move stays, and nothing moves twice.
func TestRebalance(t *testing.T) {
	for _, startFirst := range []bool{false, true} {
		w := newWorld(t, 1, 0)
		w.join("a1", "b1")
		service := func(name string, replicas uint64, f func(*cluster.ServiceSpec)) {
			s := spec(good, 1, replicas)
			s.Update = &cluster.Rollout{Parallelism: 1, StartFirst: startFirst}
			s.Task.Host = &container.HostConfig{}
			f(&s)
			w.service(name, s)
		}
		service("web", 9, func(*cluster.ServiceSpec) {})
		service("zoned", 6, func(s *cluster.ServiceSpec) { s.Task.Placement.Spread = []string{"node.labels.zone"} })
		service("still", 6, func(s *cluster.ServiceSpec) { s.Labels = map[string]string{cluster.LabelRebalance: "off"} })
		service("quiet", 6, func(s *cluster.ServiceSpec) {
			s.Task.Container.Labels = map[string]string{cluster.LabelRebalance: "off"}
		})
		service("data", 6, func(s *cluster.ServiceSpec) {
			s.Task.Host.Mounts = []mount.Mount{{Type: mount.TypeVolume, Source: "data", Target: "/data"}}
		})
		service("few", 2, func(*cluster.ServiceSpec) {})
		service("here", 6, func(s *cluster.ServiceSpec) { s.Task.Placement.Constraints = []string{"node.labels.zone != c"} })
		w.settle()
		w.watch = func() {
			up, _ := w.running("web")
			if least := map[bool]int{true: 9, false: 8}[startFirst]; up[1] < least || up[1] > 10 {
				t.Fatalf("%d are up\n%s", up[1], w.describe())
			}
		}
		w.join("b2", "c1")
		joined := w.now
		w.settle()
		for name, want := range map[string]string{
			"web": "map[a1:3 b1:2 b2:2 c1:2]", "zoned": "map[a1:2 b1:1 b2:1 c1:2]", "still": "map[a1:3 b1:3]", "quiet": "map[a1:3 b1:3]",
			"data": "map[a1:3 b1:3]", "few": "map[a1:1 b1:1]", "here": "map[a1:2 b1:2 b2:2]",
		} {
			got := w.on(name)
			if name == "web" && len(got) == 4 { // which node has one more is nobody's concern
				for n, is := range got {
					if is < 2 || is > 3 {
						t.Errorf("web: %s has %d", n, is)
					}
				}
				continue
			}
			if fmt.Sprint(got) != want {
				t.Errorf("startFirst=%t: %s: %v, want %s", startFirst, name, got, want)
			}
		}
		if moved := w.made("web") - 9; moved != 4 {
			t.Errorf("%d tasks of web were moved, 4 are enough", moved)
		}
		if took := w.now.Sub(joined); took < 2*time.Minute {
			t.Errorf("four moves of a service in %s", took)
		}
		w.rests()
	}
}

// Whatever becomes of nodes, services and tasks: in the end all is even, and rests.
func TestRebalanceHistories(t *testing.T) {
	for seed := range uint64(40) {
		w := newWorld(t, seed, 0)
		w.join("a0", "b0")
		names := []string{"plain", "zoned"}
		for _, name := range names {
			s := spec(good, 1, uint64(2+w.rng.IntN(8)))
			s.Update = &cluster.Rollout{Parallelism: 1, StartFirst: w.rng.IntN(2) == 0}
			if name == "zoned" {
				s.Task.Placement.Spread = []string{"node.labels.zone"}
			}
			w.service(name, s)
		}
		nodes := []string{"a0", "b0"}
		for n := range 40 {
			switch w.rng.IntN(6) {
			case 0:
				nodes = append(nodes, fmt.Sprint("abc"[w.rng.IntN(3):][:1], n+1))
				w.join(nodes[len(nodes)-1])
			case 1:
				w.node(nodes[w.rng.IntN(len(nodes))], func(n *cluster.Node) {
					n.Spec.Availability = []cluster.Availability{cluster.Active, cluster.Active, cluster.Drain, cluster.Paused}[w.rng.IntN(4)]
				})
			case 2:
				w.node(nodes[w.rng.IntN(len(nodes))], func(n *cluster.Node) { n.Status.Ready, n.Status.Since = !n.Status.Ready, w.now })
			default:
				w.step(names)
			}
		}
		w.resume()
		for _, id := range nodes {
			w.node(id, func(n *cluster.Node) { n.Spec.Availability, n.Status.Ready = cluster.Active, true })
		}
		for _, name := range names {
			w.change(name, func(s *cluster.ServiceSpec) {
				s.Task.Container = &container.Config{Image: good}
				s.Task.Force++
			})
		}
		w.settle()
		for _, name := range names {
			zones, least, most := map[string]int{}, 1<<30, 0
			got := w.on(name)
			for _, id := range nodes {
				zones[id[:1]] += got[id]
				least, most = min(least, got[id]), max(most, got[id])
			}
			if name == "zoned" {
				least, most = 1<<30, 0
				for _, n := range zones {
					least, most = min(least, n), max(most, n)
				}
			}
			if most-least > 1 {
				t.Fatalf("seed %d: %s is uneven: %v", seed, name, got)
			}
		}
		w.rests()
	}
}

// What exists on one node keeps its task there, which says so while the node is away; what
// is on a node that is no more holds nobody.
func TestVolumesStay(t *testing.T) {
	w := newWorld(t, 1, 0)
	w.join("a1", "b1")
	s := spec(good, 1, 1)
	s.Update = &cluster.Rollout{Parallelism: 1, StartFirst: true}
	s.Task.Host = &container.HostConfig{Mounts: []mount.Mount{{Type: mount.TypeVolume, Source: "data", Target: "/data"}}}
	w.service("db", s)
	w.settle()
	want := func(nodes, why string) {
		t.Helper()
		w.settle()
		o, err := store.Named[*cluster.Service](w.s.View(), "db")
		if err != nil {
			t.Fatal(err)
		}
		current := cluster.Slots(store.List[*cluster.Task](w.s.View(), store.Owner(o.ID)))[0].Current()
		if got := fmt.Sprint(w.on("db")); got != nodes || current.Status.Err != why {
			t.Fatalf("%s, %q; want %s, %q\n%s", got, current.Status.Err, nodes, why, w.describe())
		}
	}
	want("map[a1:1]", "")
	w.change("db", func(s *cluster.ServiceSpec) { s.Task.Force++ })
	want("map[a1:1]", "")
	w.node("a1", func(n *cluster.Node) { n.Spec.Availability = cluster.Drain })
	want("map[]", `no suitable node (volume "data" is on node a1; node not available on 1 node): "escale volume move data NODE" takes it along`)
	w.node("a1", func(n *cluster.Node) { n.Spec.Availability = cluster.Active })
	want("map[a1:1]", "")
	w.node("a1", func(n *cluster.Node) { n.Status.Ready = false })
	n, err := store.Find[*cluster.Node](w.s.View(), "a1")
	if err != nil {
		t.Fatal(err)
	}
	w.away = "a1"
	want("map[]", `no suitable node (volume "data" is on node a1; node not available on 1 node): "escale volume move data NODE" takes it along`)
	w.commit(store.Delete(n))
	want("map[b1:1]", "")
	// Whoever does not care has its tasks anywhere.
	w.change("db", func(s *cluster.ServiceSpec) {
		s.Labels = map[string]string{cluster.LabelVolumes: "anywhere"}
		s.Task.Force++
	})
	w.join("c1")
	want("map[c1:1]", "")
}

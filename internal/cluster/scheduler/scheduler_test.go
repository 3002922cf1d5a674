package scheduler

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/mem"
)

// machines makes a store with nodes n0, n1 …
func machines(t *testing.T, n int, f func(i int, n *cluster.Node)) *mem.Store {
	t.Helper()
	s := mem.New(store.NewState())
	for i := range n {
		node := &cluster.Node{Meta: cluster.Meta{Name: fmt.Sprint("n", i)}, Status: cluster.NodeStatus{
			Ready: true, Platform: cluster.Platform{OS: "linux", Architecture: "x86_64"}, Resources: cluster.Resources{NanoCPUs: 2e9, Memory: 1 << 30}}}
		node.ID = fmt.Sprint("node", i)
		f(i, node)
		if _, err := s.Commit(t.Context(), store.Create(node)); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// schedule makes a task at a time and gives each its node, or why it has none.
func schedule(t *testing.T, s *mem.Store, l Loop, tasks ...cluster.TaskSpec) (out []string) {
	t.Helper()
	for i, spec := range tasks {
		task := &cluster.Task{Meta: cluster.Meta{Owner: "service"}, Spec: spec, Slot: uint64(i + 1), Number: 1, Desired: cluster.TaskRunning, Status: cluster.TaskStatus{State: cluster.TaskNew}}
		if _, err := s.Commit(t.Context(), store.Create(task)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Commit(t.Context(), l.Decide(s.View(), all, time.Now()).Changes...); err != nil {
			t.Fatal(err)
		}
		if again := l.Decide(s.View(), all, time.Now()); len(again.Changes) > 0 {
			t.Errorf("it is never content: %+v", again)
		}
		got, err := store.Find[*cluster.Task](s.View(), task.ID)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, got.Node+got.Status.Err)
	}
	return out
}

func TestFilters(t *testing.T) {
	s := machines(t, 3, func(i int, n *cluster.Node) {
		n.Spec.Labels = map[string]string{"Zone": "abc"[i : i+1]}
		switch i {
		case 1:
			n.Spec.Availability = cluster.Drain
		case 2:
			n.Spec.Manager = true
			n.Status.Resources = cluster.Resources{NanoCPUs: 8e9, Memory: 8 << 30, Generic: map[string]int64{"gpu": 1}}
		}
	})
	for _, c := range []struct {
		spec cluster.TaskSpec
		want string
	}{
		{cluster.TaskSpec{Placement: cluster.Placement{Constraints: []string{"node.role==manager"}}}, "node2"},
		{cluster.TaskSpec{Placement: cluster.Placement{Constraints: []string{"node.labels.Zone!=c"}}}, "node0"},
		{cluster.TaskSpec{Placement: cluster.Placement{Constraints: []string{"node.labels.zone==a"}}}, "no suitable node (node not available on 1 node; scheduling constraints not satisfied on 2 nodes)"},
		{cluster.TaskSpec{Placement: cluster.Placement{Constraints: []string{"node.platform.arch == amd64", "NODE.ROLE == Worker"}}}, "node0"},
		{cluster.TaskSpec{Placement: cluster.Placement{Constraints: []string{"nonsense"}}}, "constraint expected one operator from ==, !=: invalid argument"},
		{cluster.TaskSpec{Placement: cluster.Placement{Constraints: []string{"node.nonsense!=x"}}}, "no suitable node (node not available on 1 node; scheduling constraints not satisfied on 2 nodes)"},
		{cluster.TaskSpec{Placement: cluster.Placement{Platforms: []cluster.Platform{{Architecture: "arm64"}}}}, "no suitable node (node not available on 1 node; unsupported platform on 2 nodes)"},
		{cluster.TaskSpec{Reserved: cluster.Resources{Memory: 2 << 30}}, "node2"},
		{cluster.TaskSpec{Reserved: cluster.Resources{Memory: 7 << 30}}, "no suitable node (node not available on 1 node; insufficient resources on 2 nodes)"},
		{cluster.TaskSpec{Reserved: cluster.Resources{Generic: map[string]int64{"gpu": 1}}}, "node2"},
		{cluster.TaskSpec{Reserved: cluster.Resources{Generic: map[string]int64{"gpu": 1}}}, "no suitable node (node not available on 1 node; insufficient resources on 2 nodes)"},
		{cluster.TaskSpec{Placement: cluster.Placement{MaxPerNode: 1}}, "no suitable node (node not available on 1 node; max replicas per node limit exceed on 2 nodes)"},
	} {
		if got := schedule(t, s, Loop{}, c.spec)[0]; got != c.want {
			t.Errorf("%+v: %q, want %q", c.spec, got, c.want)
		}
	}
}

func TestScores(t *testing.T) {
	zones := func(i int, n *cluster.Node) { n.Spec.Labels = map[string]string{"zone": "aab"[i : i+1]} }
	over := cluster.TaskSpec{Placement: cluster.Placement{Spread: []string{"node.labels.zone"}}}
	for name, c := range map[string]struct {
		score Score
		spec  cluster.TaskSpec
		want  string
	}{
		"spread":       {nil, cluster.TaskSpec{}, "node0 node1 node2 node0 node1 node2"},
		"over a label": {nil, over, "node0 node2 node1 node2 node0 node2"},
		"usage":        {Usage, cluster.TaskSpec{}, "node2 node2 node2 node2 node2 node2"},
		"pack":         {Pack, cluster.TaskSpec{Reserved: cluster.Resources{NanoCPUs: 1e9}}, "node0 node0 node1 node1 node2 node2"},
	} {
		s := machines(t, 3, func(i int, n *cluster.Node) {
			zones(i, n)
			n.Status.Used = cluster.Resources{NanoCPUs: n.Status.Resources.NanoCPUs / int64(i+1), Memory: n.Status.Resources.Memory / 2}
		})
		if got := strings.Join(schedule(t, s, Loop{Score: c.score}, c.spec, c.spec, c.spec, c.spec, c.spec, c.spec), " "); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// A task that finds no node gets one as soon as there is one.
func TestNodeComes(t *testing.T) {
	s := machines(t, 1, func(_ int, n *cluster.Node) { n.Status.Ready = false })
	if got := schedule(t, s, Loop{}, cluster.TaskSpec{})[0]; got != "no suitable node (node not available on 1 node)" {
		t.Error(got)
	}
	n := store.Copy(store.List[*cluster.Node](s.View())[0])
	n.Status.Ready = true
	if _, err := s.Commit(t.Context(), store.Update(n)); err != nil {
		t.Fatal(err)
	}
	if got := schedule(t, s, Loop{}, cluster.TaskSpec{})[0]; got != "node0" || len(store.List[*cluster.Task](s.View(), store.OnNode("node0"))) != 2 {
		t.Error(got)
	}
}

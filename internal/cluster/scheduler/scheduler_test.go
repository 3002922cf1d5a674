package scheduler

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/mem"
	"github.com/moby/moby/api/types/network"
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
		out = append(out, place(t, s, l, task))
	}
	return out
}

// place makes a task and gives it its node, or why it has none.
func place(t *testing.T, s *mem.Store, l Loop, task *cluster.Task) string {
	t.Helper()
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
	return got.Node + got.Status.Err
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
		{cluster.TaskSpec{Placement: cluster.Placement{Constraints: []string{"nonsense"}}}, "constraint expected one operator from ==, !="},
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

// told are the keys that the loop looks at after the last commit.
func told(t *testing.T, s *mem.Store, since uint64) (keys []string) {
	t.Helper()
	w, err := s.Watch(since, Loop{}.Kinds()...)
	if err != nil {
		t.Fatal(err)
	}
	list, err := w.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list {
		for _, e := range c.Events {
			keys = append(keys, Loop{}.Keys(s.View(), e)...)
		}
	}
	return keys
}

// A task that waits for an address waits no more when the network goes.
func TestNetworkGoes(t *testing.T) {
	s := machines(t, 1, func(int, *cluster.Node) {})
	n := &cluster.Network{Meta: cluster.Meta{Name: "net"}, Spec: cluster.NetworkSpec{Name: "net", Create: &network.CreateRequest{Driver: "overlay"}}}
	task := &cluster.Task{Slot: 1, Number: 1, Desired: cluster.TaskRunning, Status: cluster.TaskStatus{State: cluster.TaskNew}, Networks: []cluster.Attachment{{Network: "net"}}}
	if _, err := s.Commit(t.Context(), store.Create(n), store.Create(task)); err != nil {
		t.Fatal(err)
	}
	if d := (Loop{}).Decide(s.View(), all, time.Now()); len(d.Changes) != 0 {
		t.Errorf("it goes before its address: %+v", d.Changes)
	}
	before := s.View().Revision()
	o, err := store.Named[*cluster.Network](s.View(), "net")
	if err == nil {
		_, err = s.Commit(t.Context(), store.Delete(o))
	}
	if err != nil {
		t.Fatal(err)
	}
	if keys := told(t, s, before); len(keys) == 0 {
		t.Error("nothing tells the loop")
	}
	if d := (Loop{}).Decide(s.View(), all, time.Now()); len(d.Changes) != 1 {
		t.Errorf("without the network: %+v", d.Changes)
	}
}

// Of many tasks that are placed in one go each sees where those before it went.
func TestManyAtOnce(t *testing.T) {
	for name, spec := range map[string]cluster.TaskSpec{
		"insufficient resources on 2 nodes":             {Reserved: cluster.Resources{NanoCPUs: 1e9}},
		"max replicas per node limit exceed on 2 nodes": {Placement: cluster.Placement{MaxPerNode: 2}},
	} {
		s := machines(t, 2, func(int, *cluster.Node) {})
		var changes []store.Change
		for i := range uint64(5) {
			changes = append(changes, store.Create(&cluster.Task{
				Meta: cluster.Meta{Owner: "service"}, Spec: spec, Slot: i + 1, Number: 1, Desired: cluster.TaskRunning, Status: cluster.TaskStatus{State: cluster.TaskNew},
			}))
		}
		if _, err := s.Commit(t.Context(), changes...); err != nil {
			t.Fatal(err)
		}
		d := Loop{}.Decide(s.View(), all, time.Now())
		if _, err := s.Commit(t.Context(), d.Changes...); err != nil {
			t.Fatal(err)
		}
		v := s.View()
		on := map[string]int{}
		for _, task := range store.List[*cluster.Task](v) {
			if on[task.Node]++; task.Node == "" && task.Status.Err != "no suitable node ("+name+")" {
				t.Errorf("the fifth says %q, want %s", task.Status.Err, name)
			}
		}
		for _, node := range []string{"node0", "node1"} {
			if l := v.NodeLoad(node); on[node] != 2 || l.Tasks != 2 || l.Services["service"] != 2 || l.Reserved.NanoCPUs != 2*spec.Reserved.NanoCPUs {
				t.Errorf("%s: %d tasks on %s, load %+v", name, on[node], node, l)
			}
		}
	}
}

// Tasks that want one port of their node are never on one node, and say why they wait.
func TestHostPorts(t *testing.T) {
	s := machines(t, 2, func(int, *cluster.Node) {})
	tcp := func(address string, published uint16) cluster.Port {
		return cluster.Port{Proto: "tcp", Target: 80, Published: published, Address: address, Host: true}
	}
	udp := cluster.Port{Proto: "udp", Target: 80, Published: 8079, Last: 8080, Host: true}
	for i, c := range []struct {
		port cluster.Port
		want string
	}{
		{tcp("", 8080), "node0"},
		{tcp("", 8080), "node1"},
		{tcp("", 8080), "no suitable node (host-mode port already in use on 2 nodes)"},
		{tcp("127.0.0.1", 8080), "no suitable node (host-mode port already in use on 2 nodes)"},
		{cluster.Port{Proto: "udp", Target: 80, Published: 8080, Host: true}, "node0"},
		{tcp("", 0), "node1"},
		{tcp("127.0.0.1", 90), "node0"},
		{tcp("127.0.0.2", 90), "node1"},
		{tcp("127.0.0.2", 90), "node0"},
		{cluster.Port{Proto: "tcp", Target: 80, Published: 8079, Last: 8080, Host: true}, "node1"},
		{cluster.Port{Proto: "tcp", Target: 80, Published: 8079, Last: 8080, Host: true}, "node0"},
		{cluster.Port{Proto: "tcp", Target: 80, Published: 8079, Last: 8080, Host: true}, "no suitable node (host-mode port already in use on 2 nodes)"},
		{tcp("0.0.0.0", 90), "no suitable node (host-mode port already in use on 2 nodes)"},
	} {
		task := &cluster.Task{Meta: cluster.Meta{Owner: fmt.Sprint("service", i)}, Slot: 1, Number: 1, Desired: cluster.TaskRunning, Status: cluster.TaskStatus{State: cluster.TaskNew}, Ports: []cluster.Port{c.port}}
		if got := place(t, s, Loop{}, task); got != c.want {
			t.Errorf("%d: %q, want %q", i, got, c.want)
		}
	}
	// One that has two of a range does not fit where one is left.
	for i, want := range []string{"node1", "no suitable node (host-mode port already in use on 2 nodes)"} {
		task := &cluster.Task{Meta: cluster.Meta{Owner: fmt.Sprint("two", i)}, Slot: 1, Number: 1, Desired: cluster.TaskRunning, Status: cluster.TaskStatus{State: cluster.TaskNew}, Ports: []cluster.Port{udp, udp}}
		if got := place(t, s, Loop{}, task); got != want {
			t.Errorf("two ranges, %d: %q, want %q", i, got, want)
		}
	}
	// Whoever ends makes room.
	first := store.Copy(store.List[*cluster.Task](s.View(), store.Owner("service0"))[0])
	first.Status.State = cluster.TaskComplete
	d := Loop{}.Keys(s.View(), store.Event{Old: first, New: first})
	if _, err := s.Commit(t.Context(), store.Update(first)); err != nil || len(d) != 1 {
		t.Fatal(err, d)
	}
	if _, err := s.Commit(t.Context(), Loop{}.Decide(s.View(), all, time.Now()).Changes...); err != nil {
		t.Fatal(err)
	}
	if got := store.List[*cluster.Task](s.View(), store.Owner("service2"))[0]; got.Node != "node0" {
		t.Errorf("%q %q", got.Node, got.Status.Err)
	}
}

// Replicas that are placed in one look see each other's ports.
func TestHostPortsAtOnce(t *testing.T) {
	s := machines(t, 3, func(int, *cluster.Node) {})
	service := &cluster.Service{Meta: cluster.Meta{ID: "service", Name: "web"}, Spec: cluster.ServiceSpec{Number: 1, Ports: []cluster.Port{{Proto: "tcp", Target: 80, Published: 8080, Host: true}, {Proto: "tcp", Target: 81, Published: 8081}}}}
	for n := range uint64(4) {
		if _, err := s.Commit(t.Context(), store.Create(service.First(n+1, ""))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Commit(t.Context(), Loop{}.Decide(s.View(), all, time.Now()).Changes...); err != nil {
		t.Fatal(err)
	}
	nodes := map[string]int{}
	for _, task := range store.List[*cluster.Task](s.View()) {
		nodes[task.Node]++
		if task.Node == "" && task.Status.Err != "no suitable node (host-mode port already in use on 3 nodes)" {
			t.Error(task.Status.Err)
		}
	}
	if len(nodes) != 4 {
		t.Errorf("%v", nodes)
	}
}

// Of resources that have names each task gets some of its own, and gives them back.
func TestClaims(t *testing.T) {
	s := machines(t, 1, func(_ int, n *cluster.Node) {
		n.Status.Named = map[string][]string{"gpu": {"a", "b", "c"}}
		n.Status.Resources.Generic = map[string]int64{"gpu": 3, "ssd": 1}
	})
	claim := func(service, kind string, n int64) *cluster.Task {
		return &cluster.Task{
			Meta: cluster.Meta{Owner: service}, Slot: 1, Number: 1, Desired: cluster.TaskRunning, Status: cluster.TaskStatus{State: cluster.TaskNew},
			Spec: cluster.TaskSpec{Reserved: cluster.Resources{Generic: map[string]int64{kind: n}}},
		}
	}
	has := func(service string) string {
		return fmt.Sprint(store.List[*cluster.Task](s.View(), store.Owner(service))[0].Claimed)
	}
	if got := place(t, s, Loop{}, claim("one", "gpu", 2)); got != "node0" || has("one") != "map[gpu:[a b]]" {
		t.Error(got, has("one"))
	}
	if got := place(t, s, Loop{}, claim("two", "gpu", 2)); got != "no suitable node (insufficient resources on 1 node)" {
		t.Error(got)
	}
	one := store.Copy(store.List[*cluster.Task](s.View(), store.Owner("one"))[0])
	one.Status.State = cluster.TaskFailed
	if _, err := s.Commit(t.Context(), store.Update(one)); err != nil {
		t.Fatal(err)
	}
	if got := place(t, s, Loop{}, claim("three", "gpu", 1)); got != "node0" || has("two") != "map[gpu:[a b]]" || has("three") != "map[gpu:[c]]" {
		t.Error(got, has("two"), has("three"))
	}
	if got := place(t, s, Loop{}, claim("four", "ssd", 1)); got != "node0" || has("four") != "map[]" {
		t.Error(got, has("four"))
	}
}

// Tasks of a place that fail again and again are tried elsewhere.
func TestShuns(t *testing.T) {
	s := machines(t, 2, func(int, *cluster.Node) {})
	for n, want := range []string{"node0", "node1"} {
		failures := []uint64{shunned - 1, shunned}[n]
		task := &cluster.Task{Meta: cluster.Meta{Owner: "service"}, Slot: 1, Number: uint64(n + 2), Failures: failures, Desired: cluster.TaskRunning, Status: cluster.TaskStatus{State: cluster.TaskNew}}
		if got := place(t, s, Loop{}, task); got != want {
			t.Errorf("after %d failures: %s, want %s", failures, got, want)
		}
		for _, task := range store.List[*cluster.Task](s.View(), store.OnNode(want)) {
			task = store.Copy(task)
			task.Status.State, task.Status.At = cluster.TaskFailed, time.Unix(int64(n+1), 0)
			if _, err := s.Commit(t.Context(), store.Update(task)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A task on an encrypted network goes to nodes whose kernel encrypts, and says why it waits
// when there are none.
func TestEncrypted(t *testing.T) {
	for able, want := range map[int]string{1: "node1", 2: "node2", 9: "no suitable node (no IPsec for encrypted network sealed on 3 nodes)"} {
		s := machines(t, 3, func(i int, n *cluster.Node) { n.Status.Encrypts = i == able })
		for name, options := range map[string]map[string]string{"sealed": {"encrypted": "true"}, "open": nil} {
			n := &cluster.Network{Meta: cluster.Meta{ID: name, Name: name}, Spec: cluster.NetworkSpec{Name: name, Create: &network.CreateRequest{Driver: "overlay", Options: options}}}
			if _, err := s.Commit(t.Context(), store.Create(n)); err != nil {
				t.Fatal(err)
			}
		}
		on := func(name string, slot uint64) string {
			return place(t, s, Loop{}, &cluster.Task{
				Meta: cluster.Meta{Owner: name}, Slot: slot, Number: 1, Desired: cluster.TaskRunning, Status: cluster.TaskStatus{State: cluster.TaskNew},
				Networks: []cluster.Attachment{{Network: name}}, Addresses: []cluster.TaskAddress{{Network: name, Addr: netip.MustParsePrefix("10.0.0.2/24")}},
			})
		}
		if got := on("sealed", 1); got != want {
			t.Errorf("only node %d encrypts: %s, want %s", able, got, want)
		}
		if got := on("open", 1); got == "" || strings.Contains(got, "no suitable") {
			t.Errorf("a network that is not encrypted: %s", got)
		}
	}
}

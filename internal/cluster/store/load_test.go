package store

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"escale.dev/escale/internal/cluster"
)

// What the store says of each node's load is what counting its tasks gives, whatever was
// written, also where it is followed, and after it was read anew.
func TestNodeLoad(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	states := []cluster.TaskState{cluster.TaskNew, cluster.TaskPending, cluster.TaskAssigned, cluster.TaskRunning, cluster.TaskFailed, cluster.TaskComplete}
	set := func(task *cluster.Task) {
		task.Owner, task.Node = fmt.Sprint("s", rng.IntN(3)), []string{"", "a", "b", "c"}[rng.IntN(4)]
		task.Status.State = states[rng.IntN(len(states))]
		task.Spec.Reserved = cluster.Resources{NanoCPUs: rng.Int64N(3), Memory: rng.Int64N(3)}
		task.Ports = nil
		for range rng.IntN(3) {
			task.Ports = append(task.Ports, cluster.Port{Proto: "tcp", Published: uint16(80 + rng.IntN(3)), Host: true})
		}
		if rng.IntN(2) == 0 {
			task.Spec.Reserved.Generic = map[string]int64{"gpu": 1 + rng.Int64N(2)}
		}
	}
	s, follower, reset := NewState(), NewState(), NewState()
	for range 300 {
		tasks := List[*cluster.Task](s.View())
		g := s.Stage()
		var changes []Change
		for _, task := range tasks {
			switch rng.IntN(4) {
			case 0:
				changes = append(changes, Delete(task))
			case 1:
				task = Copy(task)
				set(task)
				changes = append(changes, Update(task))
			}
		}
		for range rng.IntN(4) {
			task := &cluster.Task{}
			set(task)
			changes = append(changes, Create(task))
		}
		if _, err := g.Add(changes); err != nil {
			t.Fatal(err)
		}
		if rng.IntN(5) == 0 {
			g.Abort()
			continue
		}
		g.Apply()
		recount(t, s.View())
		if writes, at := g.Writes(); len(writes) > 0 {
			f := follower.Stage()
			if err := f.Replay(at, writes); err != nil {
				t.Fatal(err)
			}
			f.Apply()
			recount(t, follower.View())
		}
		if rng.IntN(20) == 0 {
			if err := reset.Reset(s.Revision(), Writes(s.View())); err != nil {
				t.Fatal(err)
			}
			recount(t, reset.View())
		}
	}
	again := NewState()
	if err := again.Fill(s.Revision(), Writes(s.View())); err != nil {
		t.Fatal(err)
	}
	recount(t, again.View())
	for _, s := range []*State{follower, reset} { // what is left of a load of nobody's is none
		if err := s.Reset(1, nil); err != nil {
			t.Fatal(err)
		}
		recount(t, s.View())
	}
}

func sorted(list []cluster.Port) []cluster.Port {
	return slices.SortedFunc(slices.Values(list), func(a, b cluster.Port) int { return int(a.Published) - int(b.Published) })
}

func recount(t *testing.T, v View) {
	t.Helper()
	want := map[string]NodeLoad{}
	waiting := 0
	for _, task := range List[*cluster.Task](v) {
		if task.Waits() {
			waiting++
		}
		if _, in := counts(task); in {
			l := want[task.Node]
			l.Node = task.Node
			want[task.Node] = l.plus(task, 1)
		}
	}
	for _, node := range []string{"a", "b", "c"} {
		is, want := v.NodeLoad(node), want[node]
		if is.Tasks != want.Tasks || !is.Reserved.Equal(want.Reserved) || !maps.Equal(is.Services, want.Services) || !slices.Equal(sorted(is.Ports), sorted(want.Ports)) {
			t.Fatalf("load of %s: %+v, counted %+v", node, is, want)
		}
	}
	list := slices.Collect(v.Waiting())
	if len(list) != waiting {
		t.Fatalf("%d tasks wait, counted %d", len(list), waiting)
	}
	if !slices.IsSortedFunc(list, func(a, b *cluster.Task) int { return a.CreatedAt.Compare(b.CreatedAt) }) {
		t.Fatal("those that wait are not in the order in which they were made")
	}
}

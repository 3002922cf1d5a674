package replicated

import (
	"fmt"
	"testing"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/loop/looptest"
)

func TestPlaces(t *testing.T) {
	b := looptest.New(t, Loop{})
	b.Service("web", looptest.Replicated(2), func(s *cluster.ServiceSpec) {
		s.Labels, s.Networks, s.Halted = map[string]string{"l": "1"}, []cluster.Attachment{{Network: "n"}}, true
	})
	b.Steps("web.1#1 made halted=true, web.2#1 made halted=true", "")
	one := b.Find("web.1#1")
	if s := b.Get("web"); one.Owner != s.ID || one.Slot != 1 || one.Labels["l"] != "1" || len(one.Networks) != 1 || one.Spec.Container.Image != "a" || one.Status.State != cluster.TaskNew {
		t.Errorf("made is %+v", one)
	}
	// What becomes of a place is others' to decide, as long as there is something in it.
	b.Becomes("web.1#1", cluster.TaskRunning)
	b.Becomes("web.1#1", cluster.TaskFailed)
	b.Rest(0)
	b.Deleted("web.1#1")
	b.Steps("web.1#1 made halted=true", "")
	scale := func(n uint64) {
		b.Change("web", func(s *cluster.Service) { s.Spec.Mode, s.Spec.Halted = looptest.Replicated(n), false })
	}
	scale(4)
	b.Steps("web.3#1 made, web.4#1 made", "")
	b.Becomes("web.4#1", cluster.TaskFailed) // what has ended goes, too
	scale(1)
	b.Steps("web.2#1: wants remove, web.3#1: wants remove, web.4#1: wants remove", "")
	scale(2)
	b.Steps("web.2#1 made", "") // what is to be removed is in nobody's place
	scale(0)
	b.Steps("web.1#1: wants remove, web.2#1: wants remove", "")
}

// Of a service that has gone all tasks go, whatever it was, but for those that are let go.
func TestServiceGoes(t *testing.T) {
	for name, mode := range map[string]cluster.Mode{"replicated": looptest.Replicated(1), "global": {Global: true}, "job": {Job: &cluster.Job{Total: 1}}} {
		t.Run(name, func(t *testing.T) {
			b := looptest.New(t, Loop{})
			s := b.Service("web", mode)
			b.Task("web", 1, cluster.TaskRunning)
			b.Task("web", 2, cluster.TaskRunning, func(t *cluster.Task) { t.Desired = cluster.TaskOrphaned })
			if name != "replicated" {
				b.Rest(0)
			}
			b.Commit(store.Delete(b.Get("web")))
			b.Steps("web.1#1: wants remove", "")
			if all := (Loop{}).All(b.Store.View()); len(all) == 0 || all[0] != s.ID {
				t.Errorf("an engine that starts then looks at %v", all)
			}
		})
	}
}

// More than a commit takes are made one commit after the other.
func TestMany(t *testing.T) {
	b := looptest.New(t, Loop{})
	b.Service("web", looptest.Replicated(250))
	has := func() (n int) {
		seen := map[uint64]bool{}
		for _, task := range store.List[*cluster.Task](b.Store.View()) {
			if task.Desired == cluster.TaskRunning && !seen[task.Slot] {
				seen[task.Slot] = true
				n++
			}
		}
		return n
	}
	for range 3 {
		b.Look()
	}
	if has() != 250 {
		t.Errorf("there are %d", has())
	}
	b.Change("web", func(s *cluster.Service) { s.Spec.Mode = looptest.Replicated(0) })
	for range 3 {
		b.Look()
	}
	b.Rest(0)
	if has() != 0 {
		t.Error(fmt.Sprint(has(), " are left"))
	}
}

func TestGuarded(t *testing.T) {
	b := looptest.New(t, Loop{})
	b.Service("web", looptest.Replicated(1))
	b.Guarded("web")
}

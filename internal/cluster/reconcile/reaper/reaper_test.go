package reaper

import (
	"fmt"
	"testing"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/loop/looptest"
)

func TestRemoved(t *testing.T) {
	for _, c := range []struct {
		name    string
		state   cluster.TaskState
		desired cluster.TaskState
		node    string
		gone    bool
		want    string
	}{
		{"ended, and its container is gone", cluster.TaskShutdown, cluster.TaskRemove, "n", true, "web.1#1 deleted"},
		{"its container is there still", cluster.TaskShutdown, cluster.TaskRemove, "n", false, ""},
		{"runs still", cluster.TaskRunning, cluster.TaskRemove, "n", false, ""},
		{"on no node yet", cluster.TaskPending, cluster.TaskRemove, "", false, "web.1#1 deleted"},
		{"ended, to be looked at", cluster.TaskFailed, cluster.TaskShutdown, "n", false, ""},
		{"its node has been removed", cluster.TaskRunning, cluster.TaskRemove, "gone", false, "web.1#1 deleted"},
		{"to end, and its node has been removed", cluster.TaskRunning, cluster.TaskShutdown, "gone", false, "web.1#1 deleted"},
		{"ended before its node was removed", cluster.TaskFailed, cluster.TaskShutdown, "gone", false, ""},
		{"not dealt with yet", cluster.TaskRunning, cluster.TaskRunning, "gone", false, ""},
		{"let go", cluster.TaskOrphaned, cluster.TaskOrphaned, "n", false, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := looptest.New(t, Loop{})
			b.Node("n")
			b.Service("web", looptest.Replicated(1))
			b.Task("web", 1, c.state, func(t *cluster.Task) { t.Desired, t.Node, t.Status.Gone = c.desired, c.node, c.gone })
			b.DeleteService("web") // the service need not be there
			b.Steps(c.want, "")
		})
	}
}

// Of a node that has been removed nobody hears any more: what was to end there has.
func TestNodeRemoved(t *testing.T) {
	b := looptest.New(t, Loop{})
	b.Node("n")
	b.Service("web", looptest.Replicated(2))
	for slot := range uint64(2) {
		b.Task("web", slot+1, cluster.TaskRunning, func(t *cluster.Task) { t.Desired, t.Node = cluster.TaskRemove, "n" })
	}
	b.Rest(0)
	b.DeleteNode("n")
	b.Steps("web.1#1 deleted, web.2#1 deleted", "")
}

// A place keeps its task, whatever became of it, and so many of those before that have
// ended and are dealt with.
func TestHistory(t *testing.T) {
	for keep, gone := range map[int]int{0: 4, 2: 7, 20: 0} {
		t.Run(fmt.Sprint(keep), func(t *testing.T) {
			b := looptest.New(t, Loop{Keep: keep})
			b.Node("n")
			b.Service("web", looptest.Replicated(2))
			for n := range uint64(10) {
				b.Task("web", 1, cluster.TaskFailed, func(t *cluster.Task) { t.Number, t.Desired, t.Node = n+1, cluster.TaskShutdown, "n" })
			}
			b.Task("web", 2, cluster.TaskFailed, func(t *cluster.Task) { t.Number = 1 })
			want := ""
			for n := range gone {
				want += fmt.Sprintf(", web.1#%d: wants remove", n+1)
			}
			b.Steps(want[min(2, len(want)):])
			for b.Look() != "" {
				continue
			}
			b.Find("web.1#10")
			b.Find("web.2#1")
		})
	}
}

// An app's place keeps its last failure, until a task that was told to end comes after it.
func TestApp(t *testing.T) {
	b := looptest.New(t, Loop{})
	b.Node("n")
	b.Service("web", looptest.Replicated(1))
	next := func(n uint64, state cluster.TaskState) {
		b.Task("web", 1, state, func(t *cluster.Task) {
			t.Number, t.Node, t.App = n, "n", "a"
			if state.Ended() {
				t.Desired = cluster.TaskShutdown
			}
		})
	}
	next(1, cluster.TaskFailed)
	next(2, cluster.TaskFailed)
	next(3, cluster.TaskRunning)
	b.Steps("web.1#1: wants remove", "")
	b.Becomes("web.1#3", cluster.TaskShutdown, func(t *cluster.Task) { t.Desired = cluster.TaskShutdown })
	b.Rest(0)
	next(4, cluster.TaskRunning)
	b.Becomes("web.1#3", cluster.TaskShutdown)
	b.Steps("web.1#2: wants remove, web.1#3: wants remove", "")
}

// What failed of an earlier version goes once one of a later version is well; what failed
// of a later one stays, so that who comes back from it sees why.
func TestPastVersions(t *testing.T) {
	b := looptest.New(t, Loop{})
	b.Node("n")
	b.Service("web", looptest.Replicated(1))
	next := func(n, spec uint64, state cluster.TaskState) {
		b.Task("web", 1, state, func(t *cluster.Task) {
			t.Number, t.SpecNumber, t.Node, t.App, t.Status.Healthy = n, spec, "n", "a", false
			if state.Ended() {
				t.Desired = cluster.TaskShutdown
			}
		})
	}
	healthy := func(t *cluster.Task) { t.Status.Healthy = true }
	next(1, 2, cluster.TaskFailed)
	next(2, 1, cluster.TaskRunning)
	b.Becomes("web.1#2", cluster.TaskRunning, healthy) // went back
	b.Rest(0)
	b.Becomes("web.1#2", cluster.TaskFailed, func(t *cluster.Task) { t.Desired = cluster.TaskShutdown })
	next(3, 3, cluster.TaskPreparing)
	b.Rest(0) // who comes takes over what those before have
	b.Becomes("web.1#3", cluster.TaskReady)
	b.Steps("web.1#1: wants remove", "")
	b.Becomes("web.1#3", cluster.TaskRunning, func(t *cluster.Task) { t.Status.Healthy = false })
	b.Rest(0)
	b.Becomes("web.1#3", cluster.TaskRunning, healthy)
	b.Steps("web.1#2: wants remove", "")
}

// What runs still, or nobody has dealt with, is no history.
func TestNoHistory(t *testing.T) {
	b := looptest.New(t, Loop{Keep: 1})
	b.Node("n")
	b.Service("web", looptest.Replicated(1))
	for n, c := range []struct{ state, desired cluster.TaskState }{
		{cluster.TaskRunning, cluster.TaskShutdown}, {cluster.TaskFailed, cluster.TaskRunning}, {cluster.TaskFailed, cluster.TaskShutdown}, {cluster.TaskRunning, cluster.TaskRunning},
	} {
		b.Task("web", 1, c.state, func(t *cluster.Task) { t.Number, t.Desired, t.Node = uint64(n+1), c.desired, "n" })
	}
	b.Rest(0)
	b.Becomes("web.1#1", cluster.TaskShutdown)
	b.Steps("web.1#1: wants remove", "")
	b.Becomes("web.1#1", cluster.TaskShutdown, func(t *cluster.Task) { t.Status.Gone = true })
	b.Steps("web.1#1 deleted", "")
}

// The swarm's limit counts the present task, too.
func TestLimitOfTheSwarm(t *testing.T) {
	for limit, left := range map[int64]int{-1: 10, 0: 1, 1: 1, 3: 3} {
		b := looptest.New(t, Loop{})
		b.Node("n")
		c := &cluster.Cluster{Meta: cluster.Meta{Name: cluster.DefaultCluster}}
		c.Spec.Orchestration.TaskHistoryRetentionLimit = &limit
		b.Commit(store.Create(c))
		b.Service("web", looptest.Replicated(1))
		for n := range uint64(10) {
			b.Task("web", 1, cluster.TaskFailed, func(t *cluster.Task) { t.Number, t.Desired, t.Node = n+1, cluster.TaskShutdown, "n" })
		}
		for b.Look() != "" {
			continue
		}
		is := 0
		for _, t := range store.List[*cluster.Task](b.Store.View()) {
			if t.Desired != cluster.TaskRemove {
				is++
			}
		}
		if is != left {
			t.Errorf("limit %d: %d are left", limit, is)
		}
	}
}

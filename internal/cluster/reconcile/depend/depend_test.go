package depend

import (
	"testing"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/loop/looptest"
)

// newBench has a service "web" that needs "db", with a task that is made.
func newBench(t *testing.T, n cluster.Need) *looptest.Bench {
	b := looptest.New(t, Loop{})
	n.Service = "db"
	b.Service("web", looptest.Replicated(1), func(s *cluster.ServiceSpec) { s.Task.Needs = []cluster.Need{n} })
	b.Task("web", 1, cluster.TaskReady)
	return b
}

func says(s string) string { return `web.1#1: says "` + s + `"` }

func TestConditions(t *testing.T) {
	ill := func(t *cluster.Task) { t.Status.Healthy = false }
	exit := func(t *cluster.Task) { t.Status.Container = &cluster.ContainerStatus{ExitCode: 3} }
	unmade := func(t *cluster.Task) { t.Status.Err = "no such image" }
	const released = `web.1#1: released says "prepared"`
	for _, c := range []struct {
		name     string
		need     cluster.Need
		replicas uint64
		tasks    []cluster.TaskState // of db, each in a place of its own
		f        func(*cluster.Task)
		want     string
	}{
		{"started, none", cluster.Need{Condition: cluster.Started}, 1, nil, nil, says("waits for service db: 0 of 1 started")},
		{"started, not yet", cluster.Need{Condition: cluster.Started}, 1, []cluster.TaskState{cluster.TaskStarting}, nil, says("waits for service db: 0 of 1 started")},
		{"started", cluster.Need{Condition: cluster.Started}, 1, []cluster.TaskState{cluster.TaskRunning}, ill, released},
		{"started, and over", cluster.Need{Condition: cluster.Started}, 1, []cluster.TaskState{cluster.TaskComplete}, nil, released},
		{"started, and failed", cluster.Need{Condition: cluster.Started}, 1, []cluster.TaskState{cluster.TaskFailed}, nil, says("waits for service db: 0 of 1 started")},
		{"started, one of two", cluster.Need{Condition: cluster.Started}, 2, []cluster.TaskState{cluster.TaskRunning}, nil, says("waits for service db: 1 of 2 started")},
		{"healthy", cluster.Need{Condition: cluster.Healthy}, 1, []cluster.TaskState{cluster.TaskRunning}, nil, released},
		{"not healthy", cluster.Need{Condition: cluster.Healthy}, 1, []cluster.TaskState{cluster.TaskRunning}, ill, says("waits for service db: 0 of 1 healthy")},
		{"healthy, scaled to none", cluster.Need{Condition: cluster.Healthy}, 0, nil, nil, released},
		{"completed", cluster.Need{Condition: cluster.Completed}, 1, []cluster.TaskState{cluster.TaskComplete}, nil, released},
		{"completed, both", cluster.Need{Condition: cluster.Completed}, 2, []cluster.TaskState{cluster.TaskComplete, cluster.TaskRunning}, nil, says("waits for service db to complete")},
		{"completed, not begun", cluster.Need{Condition: cluster.Completed}, 1, nil, nil, says("waits for service db to complete")},
		{"completed, badly", cluster.Need{Condition: cluster.Completed}, 1, []cluster.TaskState{cluster.TaskFailed}, exit, says(`service \"db\" didn't complete successfully: exit 3`)},
		{"completed, never made", cluster.Need{Condition: cluster.Completed}, 1, []cluster.TaskState{cluster.TaskRejected}, unmade, says(`service \"db\" didn't complete successfully: no such image`)},
		{"completed, badly, optional", cluster.Need{Condition: cluster.Completed, Optional: true}, 1, []cluster.TaskState{cluster.TaskFailed}, exit, released},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, c.need)
			b.Service("db", looptest.Replicated(c.replicas))
			for i, s := range c.tasks {
				b.Task("db", uint64(i+1), s, func(t *cluster.Task) {
					if c.f != nil {
						c.f(t)
					}
				})
			}
			b.Steps(c.want, "")
		})
	}
}

// A service that is not there is waited for, unless it is optional, and told of when it comes.
func TestMissing(t *testing.T) {
	newBench(t, cluster.Need{Condition: cluster.Started, Optional: true}).Steps(`web.1#1: released says "prepared"`, "")
	b := newBench(t, cluster.Need{Condition: cluster.Healthy})
	b.Steps(says("waits for service db, which is not there"), "")
	b.Service("db", looptest.Replicated(1))
	b.Steps(says("waits for service db: 0 of 1 healthy"), "")
	b.Task("db", 1, cluster.TaskStarting)
	b.Rest(0)
	b.Becomes("db.1#1", cluster.TaskRunning, func(t *cluster.Task) { t.Status.Healthy = false })
	b.Rest(0)
	b.Becomes("db.1#1", cluster.TaskRunning)
	b.Steps(`web.1#1: released says "prepared"`, "")
	b.Becomes("db.1#1", cluster.TaskFailed) // what was let start is not called back
	b.Rest(0)
}

// In a place in transit the old task will do.
func TestInTransit(t *testing.T) {
	b := newBench(t, cluster.Need{Condition: cluster.Healthy})
	b.Service("db", looptest.Replicated(1))
	b.Task("db", 1, cluster.TaskRunning)
	b.Update("db.1#1")
	b.Steps(`web.1#1: released says "prepared"`, "")
}

// All needs must be met, and the first that is not is told of.
func TestSeveral(t *testing.T) {
	b := newBench(t, cluster.Need{Condition: cluster.Started})
	web := b.Find("web.1#1")
	web.Spec.Needs = append(web.Spec.Needs, cluster.Need{Service: "job", Condition: cluster.Completed})
	b.Commit(store.Update(web))
	b.Service("db", looptest.Replicated(1))
	b.Service("job", cluster.Mode{Job: &cluster.Job{Total: 1}})
	b.Task("job", 1, cluster.TaskRunning)
	b.Steps(says("waits for service db: 0 of 1 started"), "")
	b.Task("db", 1, cluster.TaskRunning)
	b.Steps(says("waits for service job to complete"), "")
	b.Becomes("job.1#1", cluster.TaskComplete)
	b.Steps(`web.1#1: released says "prepared"`, "")
}

// Only a task that waits is spoken of; while its node makes it, the node does.
func TestSilence(t *testing.T) {
	for _, c := range []struct {
		state, desired cluster.TaskState
		needs          []cluster.Need
	}{
		{cluster.TaskPreparing, cluster.TaskRunning, []cluster.Need{{Service: "db"}}},
		{cluster.TaskReady, cluster.TaskShutdown, []cluster.Need{{Service: "db"}}},
		{cluster.TaskShutdown, cluster.TaskRunning, []cluster.Need{{Service: "db"}}},
		{cluster.TaskReady, cluster.TaskRunning, nil},
	} {
		b := looptest.New(t, Loop{})
		b.Service("web", looptest.Replicated(1), func(s *cluster.ServiceSpec) { s.Task.Needs = c.needs })
		b.Task("web", 1, c.state, func(t *cluster.Task) { t.Desired = c.desired })
		b.Rest(0)
	}
}

// Only those that wait for a service are looked at when something of it changes.
func TestKeys(t *testing.T) {
	b := newBench(t, cluster.Need{Condition: cluster.Healthy})
	b.Service("db", looptest.Replicated(1))
	b.Service("other", looptest.Replicated(1))
	b.Task("db", 1, cluster.TaskRunning)
	b.Task("other", 1, cluster.TaskRunning)
	v := b.Store.View()
	for _, o := range store.List[*cluster.Task](v) {
		want := 1
		if o.Name == "other.1" {
			want = 0
		}
		if got := (Loop{}).Keys(v, store.Event{New: o}); len(got) != want {
			t.Errorf("after a change of %s: %d tasks are looked at, want %d", o.Name, len(got), want)
		}
	}
	for _, s := range store.List[*cluster.Service](v) {
		if got := (Loop{}).Keys(v, store.Event{Old: s}); len(got) != map[string]int{"db": 1}[s.Name] {
			t.Errorf("after %s has gone: %v", s.Name, got)
		}
	}
}

// What shares with containers of another waits before its own is made, for one of the present
// spec that runs; if it is only to be made, for one that is made.
func TestShared(t *testing.T) {
	const released = `web.1#1: released`
	for _, c := range []struct {
		name      string
		condition cluster.Condition
		halted    bool
		db        cluster.TaskState
		number    uint64 // of the spec of db's task; its service is at 1
		want      string
	}{
		{"not made", cluster.Started, false, cluster.TaskPreparing, 1, says("waits for service db: 0 of 1 started")},
		{"made", cluster.Started, false, cluster.TaskReady, 1, says("waits for service db: 0 of 1 started")},
		{"runs", cluster.Started, false, cluster.TaskRunning, 1, released},
		{"of another spec", cluster.Started, false, cluster.TaskRunning, 2, says("waits for service db: 0 of 1 started")},
		{"over", cluster.Completed, false, cluster.TaskComplete, 1, released},
		{"over, of another spec", cluster.Completed, false, cluster.TaskComplete, 2, says("waits for service db to complete")},
		{"to be made, not made", cluster.Started, true, cluster.TaskPreparing, 1, says("waits for service db: 0 of 1 started")},
		{"to be made, made", cluster.Started, true, cluster.TaskReady, 1, `web.1#1: joined`},
		{"to be made, failed", cluster.Started, true, cluster.TaskFailed, 1, says("waits for service db: 0 of 1 started")},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := looptest.New(t, Loop{})
			b.Service("web", looptest.Replicated(1), func(s *cluster.ServiceSpec) {
				s.Task.Needs = []cluster.Need{{Service: "db", Condition: c.condition, Shared: true}}
			})
			b.Task("web", 1, cluster.TaskAccepted, func(t *cluster.Task) { t.Halted = c.halted })
			b.Service("db", looptest.Replicated(1), func(s *cluster.ServiceSpec) {
				s.Task.Needs = []cluster.Need{{Service: "far", Condition: cluster.Started}} // it waits itself
			})
			b.Task("db", 1, c.db, func(t *cluster.Task) {
				t.SpecNumber, t.Status.Message = c.number, "waits for service far, which is not there"
			})
			b.Steps(c.want, "")
			web := b.Find("web.1#1")
			if waits := c.want != released && c.want != `web.1#1: joined`; web.Apart() != waits || !web.Held() && waits {
				t.Errorf("its container is not to be made: %t, want %t", web.Apart(), waits)
			}
		})
	}
}

// A task that waits itself is what others wait for.
func TestSharedInARow(t *testing.T) {
	b := looptest.New(t, Loop{})
	b.Service("web", looptest.Replicated(1), func(s *cluster.ServiceSpec) {
		s.Task.Needs = []cluster.Need{{Service: "db", Condition: cluster.Started, Shared: true}}
	})
	b.Task("web", 1, cluster.TaskAccepted, func(t *cluster.Task) { t.Halted = true })
	b.Service("db", looptest.Replicated(1), func(s *cluster.ServiceSpec) {
		s.Task.Needs = []cluster.Need{{Service: "far", Condition: cluster.Started}}
	})
	b.Task("db", 1, cluster.TaskPreparing)
	b.Steps(says("waits for service db: 0 of 1 started"), "")
	b.Becomes("db.1#1", cluster.TaskReady)
	b.Steps(`db.1#1: says "waits for service far, which is not there", web.1#1: joined`, "")
}

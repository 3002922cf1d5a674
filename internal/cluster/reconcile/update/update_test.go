package update

import (
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store/loop/looptest"
)

// newBench has a service of so many healthy tasks whose next number was asked for.
func newBench(t *testing.T, replicas uint64, r *cluster.Rollout) *looptest.Bench {
	b := looptest.New(t, Loop{})
	b.Service("web", looptest.Replicated(replicas), func(s *cluster.ServiceSpec) { s.Update = r })
	for n := range replicas {
		b.Task("web", n+1, cluster.TaskRunning)
	}
	b.Steps("")
	b.Pass(time.Hour)
	b.Roll("web")
	b.Steps("web: number 2 updating update in progress")
	return b
}

const completed = "web: number 2 completed update completed"

// With stop first, the new one starts when the old one has ended.
func TestStopFirst(t *testing.T) {
	b := newBench(t, 2, nil)
	b.Steps("web.1#1: wants shutdown, web.1#2 made wants ready of 2")
	b.Becomes("web.1#2", cluster.TaskReady)
	b.Rest(0)
	b.Becomes("web.1#1", cluster.TaskShutdown)
	b.Steps("web.1#2: wants running")
	b.Rest(0)
	b.Becomes("web.1#2", cluster.TaskRunning)
	b.Steps("web.2#1: wants shutdown, web.2#2 made wants ready of 2")
	b.Becomes("web.2#1", cluster.TaskShutdown)
	b.Steps("web.2#2: wants running")
	b.Becomes("web.2#2", cluster.TaskRunning)
	b.Rest(monitor)
	b.Pass(monitor)
	b.Steps(completed, "")
}

// The same when the old one went with its node, of which nobody tells any more.
func TestOldOneGoes(t *testing.T) {
	b := newBench(t, 1, nil)
	b.Steps("web.1#1: wants shutdown, web.1#2 made wants ready of 2")
	b.Becomes("web.1#2", cluster.TaskReady)
	b.Rest(0)
	b.Deleted("web.1#1")
	b.Steps("web.1#2: wants running")
}

// With start first, the old one ends when the new one is healthy.
func TestStartFirst(t *testing.T) {
	b := newBench(t, 2, &cluster.Rollout{Parallelism: 1, StartFirst: true, Monitor: time.Minute})
	b.Steps("web.1#2 made of 2")
	b.Becomes("web.1#2", cluster.TaskRunning, func(t *cluster.Task) { t.Status.Healthy = false })
	b.Rest(0)
	b.Becomes("web.1#2", cluster.TaskRunning)
	b.Steps("web.1#1: wants shutdown")
	b.Rest(0) // the next place waits until this one's old task is gone
	b.Becomes("web.1#1", cluster.TaskShutdown)
	b.Steps("web.2#2 made of 2")
	b.Becomes("web.2#2", cluster.TaskRunning)
	b.Steps("web.2#1: wants shutdown")
	b.Becomes("web.2#1", cluster.TaskShutdown)
	b.Rest(time.Minute)
	b.Pass(time.Minute)
	b.Steps(completed, "")
}

// A service without tasks is at its new number at once.
func TestNoTasks(t *testing.T) {
	b := looptest.New(t, Loop{})
	b.Service("web", looptest.Replicated(0))
	b.Roll("web")
	b.Rest(0)
}

func TestParallelism(t *testing.T) {
	for _, c := range []struct {
		at   uint64
		want string
	}{
		{1, "web.1#2 made of 2"},
		{2, "web.1#2 made of 2, web.2#2 made of 2"},
		{0, "web.1#2 made of 2, web.2#2 made of 2, web.3#2 made of 2"},
		{9, "web.1#2 made of 2, web.2#2 made of 2, web.3#2 made of 2"},
	} {
		b := newBench(t, 3, &cluster.Rollout{Parallelism: c.at, StartFirst: true})
		b.Steps(c.want, "")
	}
}

// Of tasks on a network that is made anew all end before one of the new ones starts,
// whatever the rollout says.
func TestNetworkMadeAnew(t *testing.T) {
	b := looptest.New(t, Loop{})
	on := func(s *cluster.ServiceSpec) {
		s.Networks = []cluster.Attachment{{Network: "n", Made: s.Number}, {Network: "other"}}
		s.Update = &cluster.Rollout{Parallelism: 1, StartFirst: true}
	}
	b.Service("web", looptest.Replicated(2), on, func(s *cluster.ServiceSpec) { s.Networks[0].Made = 0 })
	b.Task("web", 1, cluster.TaskRunning)
	b.Task("web", 2, cluster.TaskRunning)
	b.Roll("web", on)
	b.Steps("web: number 2 updating update in progress",
		"web.1#1: wants shutdown, web.1#2 made wants ready of 2, web.2#1: wants shutdown, web.2#2 made wants ready of 2")
}

// A place that is done makes room for the next after the delay.
func TestDelay(t *testing.T) {
	b := newBench(t, 2, &cluster.Rollout{Parallelism: 1, Delay: 10 * time.Second})
	b.Steps("web.1#1: wants shutdown, web.1#2 made wants ready of 2")
	b.Becomes("web.1#1", cluster.TaskShutdown)
	b.Steps("web.1#2: wants running")
	b.Becomes("web.1#2", cluster.TaskRunning)
	b.Rest(10 * time.Second)
	b.Pass(9 * time.Second)
	b.Rest(time.Second)
	b.Pass(time.Second)
	b.Steps("web.2#1: wants shutdown, web.2#2 made wants ready of 2")
}

// Places whose task does not run anyway come first, and nobody is told to end there.
func TestDownFirst(t *testing.T) {
	b := looptest.New(t, Loop{})
	b.Service("web", looptest.Replicated(3))
	b.Task("web", 1, cluster.TaskRunning)
	b.Task("web", 2, cluster.TaskFailed)
	b.Task("web", 3, cluster.TaskPending)
	b.Roll("web")
	b.Steps("web: number 2 updating update in progress", "web.2#1: wants shutdown, web.2#2 made of 2")
	b.Becomes("web.2#2", cluster.TaskRunning)
	b.Steps("web.3#1: wants shutdown, web.3#2 made wants ready of 2")
}

// Too many failures: pause, which is the default too, or go on.
func TestFailures(t *testing.T) {
	const paused = `web: number 2 paused update paused due to failure or early termination of task `
	for _, c := range []struct {
		name   string
		r      cluster.Rollout
		state  cluster.TaskState
		after  time.Duration // that it was healthy; negative: that it was not
		paused bool
	}{
		{"default", cluster.Rollout{Parallelism: 1}, cluster.TaskFailed, 0, true},
		{"pause", cluster.Rollout{Parallelism: 1, OnFailure: cluster.FailurePause}, cluster.TaskFailed, time.Second, true},
		{"rejected", cluster.Rollout{Parallelism: 1}, cluster.TaskRejected, 0, true},
		{"continue", cluster.Rollout{Parallelism: 1, OnFailure: cluster.FailureContinue}, cluster.TaskFailed, 0, false},
		{"watched for long enough", cluster.Rollout{Parallelism: 1, Monitor: 10 * time.Second}, cluster.TaskFailed, 11 * time.Second, false},
		{"never healthy", cluster.Rollout{Parallelism: 1, Monitor: time.Second}, cluster.TaskFailed, -time.Minute, true},
		{"within the monitor", cluster.Rollout{Parallelism: 1, Monitor: 10 * time.Second}, cluster.TaskFailed, 10 * time.Second, true},
		{"so many may", cluster.Rollout{Parallelism: 1, MaxFailureRatio: 0.25}, cluster.TaskFailed, 0, false},
		{"so many may not", cluster.Rollout{Parallelism: 1, MaxFailureRatio: 0.24}, cluster.TaskFailed, 0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.r.StartFirst = true
			b := newBench(t, 4, &c.r)
			b.Steps("web.1#2 made of 2")
			b.Becomes("web.1#2", cluster.TaskRunning, func(t *cluster.Task) {
				t.Status.Healthy = false // any more
				if c.after < 0 {
					t.Status.HealthyAt, c.after = time.Time{}, -c.after
				}
			})
			b.Pass(c.after)
			b.Becomes("web.1#2", c.state, func(t *cluster.Task) { t.Status.Err = "boom" })
			want := ""
			if c.paused {
				want = paused + b.Find("web.1#2").ID + ": boom"
			}
			b.Steps(want, "")
		})
	}
}

// Going back is a rollout of what was before, by its own rules; what was given up stays
// known. When that fails, too, it pauses.
func TestRollback(t *testing.T) {
	for _, fails := range []bool{false, true} {
		b := looptest.New(t, Loop{})
		b.Service("web", looptest.Replicated(2), func(s *cluster.ServiceSpec) {
			s.Update = &cluster.Rollout{Parallelism: 1, StartFirst: true, OnFailure: cluster.FailureRollback}
			s.Rollback = &cluster.Rollout{Parallelism: 0, Monitor: time.Second}
		})
		b.Task("web", 1, cluster.TaskRunning)
		b.Task("web", 2, cluster.TaskRunning)
		b.Roll("web")
		b.Steps("web: number 2 updating update in progress", "web.1#2 made of 2")
		b.Becomes("web.1#2", cluster.TaskRunning)
		b.Steps("web.1#1: wants shutdown")
		b.Becomes("web.1#1", cluster.TaskShutdown)
		b.Steps("web.2#2 made of 2")
		b.Becomes("web.2#2", cluster.TaskFailed, func(t *cluster.Task) { t.Status.Err = "boom" })
		b.Steps("web: number 1 rollback_started update rolled back due to failure or early termination of task " + b.Find("web.2#2").ID + ": boom")
		if s := b.Get("web"); s.Status.Wanted == nil || s.Status.Wanted.Number != 2 || s.Previous != nil {
			t.Errorf("given up is %+v, before it %+v", s.Status.Wanted, s.Previous)
		}
		// In place 2 the old one has never ended: it is enough that the new one goes.
		b.Steps("web.1#2: wants shutdown, web.1#3 made wants ready, web.2#2: wants remove")
		b.Becomes("web.1#2", cluster.TaskShutdown)
		b.Steps("web.1#3: wants running")
		if fails {
			b.Becomes("web.1#3", cluster.TaskFailed, func(t *cluster.Task) { t.Status.Err = "boom" })
			b.Steps("web: number 1 rollback_paused rollback paused due to failure or early termination of task "+b.Find("web.1#3").ID+": boom", "")
			continue
		}
		b.Becomes("web.1#3", cluster.TaskRunning)
		b.Rest(time.Second)
		b.Pass(time.Second)
		b.Steps("web: number 1 rollback_completed rollback completed", "")
	}
}

// With nothing to go back to it pauses.
func TestNothingBefore(t *testing.T) {
	b := newBench(t, 1, &cluster.Rollout{Parallelism: 1, StartFirst: true, OnFailure: cluster.FailureRollback})
	b.Steps("web.1#2 made of 2")
	b.Change("web", func(s *cluster.Service) { s.Previous = nil })
	b.Becomes("web.1#2", cluster.TaskRejected)
	b.Steps("web: number 2 paused update paused due to failure or early termination of task "+b.Find("web.1#2").ID+": rejected", "")
}

// Places in transit come to their end when the rollout pauses.
func TestPausedInTransit(t *testing.T) {
	b := newBench(t, 3, &cluster.Rollout{Parallelism: 2})
	b.Steps("web.1#1: wants shutdown, web.1#2 made wants ready of 2, web.2#1: wants shutdown, web.2#2 made wants ready of 2")
	b.Becomes("web.1#2", cluster.TaskRejected)
	b.Steps("web: number 2 paused update paused due to failure or early termination of task "+b.Find("web.1#2").ID+": rejected", "")
	b.Becomes("web.2#1", cluster.TaskShutdown)
	b.Steps("web.2#2: wants running", "")
	b.Becomes("web.2#2", cluster.TaskRunning)
	b.Rest(0) // and the third is left alone
}

// An update during an update goes to the newest; what the first has not touched is made once.
func TestUpdateDuringUpdate(t *testing.T) {
	b := newBench(t, 2, &cluster.Rollout{Parallelism: 1, StartFirst: true})
	b.Steps("web.1#2 made of 2")
	b.Becomes("web.1#2", cluster.TaskRunning)
	b.Steps("web.1#1: wants shutdown")
	b.Becomes("web.1#1", cluster.TaskShutdown)
	b.Roll("web")
	b.Steps("web: number 3 updating update in progress", "web.1#3 made of 3")
	b.Becomes("web.1#3", cluster.TaskRunning)
	b.Steps("web.1#2: wants shutdown")
	b.Becomes("web.1#2", cluster.TaskShutdown)
	b.Steps("web.2#2 made of 3")
}

// What is scaled away is not exchanged; it does not hold up the others either.
func TestScaledDown(t *testing.T) {
	b := newBench(t, 2, &cluster.Rollout{Parallelism: 1, StartFirst: true, Monitor: time.Second})
	b.Change("web", func(s *cluster.Service) { s.Spec.Mode = looptest.Replicated(1) })
	b.Steps("web.1#2 made of 2")
	b.Becomes("web.1#2", cluster.TaskRunning)
	b.Steps("web.1#1: wants shutdown")
	b.Becomes("web.1#1", cluster.TaskShutdown)
	b.Rest(time.Second)
	b.Pass(time.Second)
	b.Steps(completed, "")
}

// A new task bears what the service has beside its containers.
func TestBears(t *testing.T) {
	b := looptest.New(t, Loop{})
	b.Service("web", looptest.Replicated(1))
	b.Task("web", 1, cluster.TaskRunning)
	b.Roll("web")
	b.Change("web", func(s *cluster.Service) {
		s.Spec.Labels, s.Spec.Networks = map[string]string{"v": "2"}, []cluster.Attachment{{Network: "n"}}
	})
	b.Steps("web: number 2 updating update in progress", "web.1#1: wants shutdown, web.1#2 made wants ready of 2")
	if n := b.Find("web.1#2"); n.Labels["v"] != "2" || len(n.Networks) != 1 || n.Spec.Force != 1 {
		t.Errorf("it is %+v", n)
	}
}

// Jobs are not exchanged.
func TestJob(t *testing.T) {
	b := looptest.New(t, Loop{})
	b.Service("web", cluster.Mode{Job: &cluster.Job{Total: 1}})
	b.Task("web", 1, cluster.TaskRunning)
	b.Roll("web")
	b.Rest(0)
}

func TestGuarded(t *testing.T) {
	b := newBench(t, 1, nil)
	b.Guarded("web")
}

// What failed before, of the spec that is gone back to, is no failure of the rollback.
func TestFailedBefore(t *testing.T) {
	b := looptest.New(t, Loop{})
	b.Service("web", looptest.Replicated(1), func(s *cluster.ServiceSpec) {
		s.Update = &cluster.Rollout{Parallelism: 1, OnFailure: cluster.FailureRollback}
	})
	b.Task("web", 1, cluster.TaskFailed, func(t *cluster.Task) { t.Desired = cluster.TaskShutdown })
	b.Pass(time.Hour)
	b.Task("web", 1, cluster.TaskRunning, func(t *cluster.Task) { t.Number = 2 })
	b.Roll("web")
	b.Steps("web: number 2 updating update in progress", "web.1#2: wants shutdown, web.1#3 made wants ready of 2")
	b.Becomes("web.1#2", cluster.TaskShutdown)
	b.Steps("web.1#3: wants running")
	b.Becomes("web.1#3", cluster.TaskFailed, func(t *cluster.Task) { t.Status.Err = "boom" })
	b.Steps("web: number 1 rollback_started update rolled back due to failure or early termination of task " + b.Find("web.1#3").ID + ": boom")
	b.Pass(time.Second)
	b.Steps("web.1#3: wants shutdown, web.1#4 made", "")
	b.Becomes("web.1#4", cluster.TaskRunning)
	b.Pass(time.Minute)
	b.Steps("web: number 1 rollback_completed rollback completed", "")
}

// What shares with containers of another service is exchanged once that one's exchange is
// done, not before and not amid; and when that one goes back, too.
func TestSharers(t *testing.T) {
	for _, end := range []struct {
		state cluster.RolloutState
		begun bool
	}{
		{cluster.UpdateCompleted, true}, {cluster.RollbackCompleted, true}, {cluster.UpdatePaused, false}, {cluster.RollbackPaused, false}, {cluster.RollingBack, false},
	} {
		b := looptest.New(t, Loop{})
		b.Service("vpn", looptest.Replicated(1))
		b.Service("side", looptest.Replicated(1), func(s *cluster.ServiceSpec) {
			s.Task.Needs = []cluster.Need{{Service: "vpn", Condition: cluster.Started, Shared: true}}
		})
		for _, name := range []string{"vpn", "side"} {
			b.Change(name, func(s *cluster.Service) { s.Owner = "app" })
			b.Task(name, 1, cluster.TaskRunning)
		}
		b.Steps("")
		b.Roll("side")
		b.Roll("vpn")
		b.Steps("side: number 2 updating update in progress, vpn: number 2 updating update in progress",
			"side: number 2 updating waits for service vpn, vpn.1#1: wants shutdown, vpn.1#2 made wants ready of 2", "")
		b.Becomes("vpn.1#1", cluster.TaskShutdown)
		b.Steps("vpn.1#2: wants running", "")
		b.Becomes("vpn.1#2", cluster.TaskRunning)
		b.Rest(monitor)
		b.Change("vpn", func(s *cluster.Service) { s.Status.Rollout.State = end.state })
		if !end.begun {
			if got := b.Look(); strings.Contains(got, "side") {
				t.Errorf("after %s: %s", end.state, got)
			}
			continue
		}
		b.Steps("side: number 2 updating update in progress", "side.1#1: wants shutdown, side.1#2 made wants ready of 2", "")
	}
}

// sharing are a service and one that shares with it, both running.
func sharing(t *testing.T) *looptest.Bench {
	t.Helper()
	b := looptest.New(t, Loop{})
	b.Service("vpn", looptest.Replicated(1))
	b.Service("side", looptest.Replicated(1), func(s *cluster.ServiceSpec) {
		s.Task.Needs = []cluster.Need{{Service: "vpn", Condition: cluster.Started, Shared: true}}
	})
	for _, name := range []string{"vpn", "side"} {
		b.Change(name, func(s *cluster.Service) { s.Owner = "app" })
		b.Task(name, 1, cluster.TaskRunning)
	}
	b.Steps("")
	return b
}

// One that is not touched does not wait, nor for one that is not touched.
func TestSharersApart(t *testing.T) {
	b := sharing(t)
	b.Roll("side")
	b.Steps("side: number 2 updating update in progress", "side.1#1: wants shutdown, side.1#2 made wants ready of 2", "")
}

// When the place of the one that is shared with gets its task of the present spec from
// somebody else, nothing but that tells.
func TestSharersAreTold(t *testing.T) {
	b := sharing(t)
	b.Roll("side")
	b.Roll("vpn")
	b.Update("vpn.1#1") // before a rollout of vpn was begun
	b.Becomes("vpn.1#1", cluster.TaskFailed)
	b.Steps("side: number 2 updating update in progress", "side.1#1: wants shutdown, side.1#2 made wants ready of 2", "")
}

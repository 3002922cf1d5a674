package job

import (
	"fmt"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store/loop/looptest"
)

func restart(p cluster.RestartPolicy) func(*cluster.ServiceSpec) {
	return func(s *cluster.ServiceSpec) { s.Task.Restart = p }
}

// So many in all, and so many at once.
func TestConcurrent(t *testing.T) {
	b := looptest.New(t, Loop{})
	b.Service("job", cluster.Mode{Job: &cluster.Job{Total: 5, Concurrent: 2}})
	b.Steps("job.1#1 made wants complete, job.2#1 made wants complete", "")
	b.Becomes("job.2#1", cluster.TaskRunning)
	b.Rest(0)
	b.Becomes("job.2#1", cluster.TaskComplete)
	b.Steps("job.3#1 made wants complete", "")
	b.Becomes("job.1#1", cluster.TaskComplete)
	b.Becomes("job.3#1", cluster.TaskComplete)
	b.Steps("job.4#1 made wants complete, job.5#1 made wants complete", "")
	b.Becomes("job.4#1", cluster.TaskComplete)
	b.Becomes("job.5#1", cluster.TaskComplete)
	b.Rest(0)
}

func TestAllAtOnce(t *testing.T) {
	b := looptest.New(t, Loop{})
	b.Service("job", cluster.Mode{Job: &cluster.Job{Total: 3}})
	b.Steps("job.1#1 made wants complete, job.2#1 made wants complete, job.3#1 made wants complete", "")
}

// Each number is a run, and the tasks of the one before go first.
func TestRuns(t *testing.T) {
	b := looptest.New(t, Loop{})
	b.Service("job", cluster.Mode{Job: &cluster.Job{Total: 2}})
	b.Steps("job.1#1 made wants complete, job.2#1 made wants complete")
	b.Becomes("job.1#1", cluster.TaskComplete)
	b.Change("job", func(s *cluster.Service) { s.Labels = map[string]string{"a": "b"} })
	b.Rest(0) // that is no run
	b.Roll("job")
	b.Steps("job.1#1: wants remove, job.2#1: wants remove", "job.1#1 made wants complete of 2, job.2#1 made wants complete of 2", "")
}

func TestFailures(t *testing.T) {
	for _, c := range []struct {
		name   string
		policy cluster.RestartPolicy
		ends   cluster.TaskState
		again  uint64 // how often it is made anew
		after  time.Duration
	}{
		{name: "on failure", policy: cluster.RestartPolicy{Condition: cluster.RestartOnFailure, Attempts: 1, Delay: 5 * time.Second}, ends: cluster.TaskFailed, again: 1, after: 5 * time.Second},
		{name: "rejected", policy: cluster.RestartPolicy{Condition: cluster.RestartOnFailure, Attempts: 2}, ends: cluster.TaskRejected, again: 2, after: 100 * time.Millisecond},
		{name: "many attempts", policy: cluster.RestartPolicy{Condition: cluster.RestartAny, Attempts: 9}, ends: cluster.TaskFailed, again: 9, after: 100 * time.Millisecond},
		{name: "none", policy: cluster.RestartPolicy{Condition: cluster.RestartNone}, ends: cluster.TaskFailed},
		{name: "well", policy: cluster.RestartPolicy{Condition: cluster.RestartAny}, ends: cluster.TaskComplete},
		{name: "told to end", policy: cluster.RestartPolicy{Condition: cluster.RestartAny}, ends: cluster.TaskShutdown},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := looptest.New(t, Loop{})
			b.Service("job", cluster.Mode{Job: &cluster.Job{Total: 1}}, restart(c.policy))
			b.Steps("job.1#1 made wants complete", "")
			for n := uint64(1); n <= c.again; n++ {
				b.Pass(time.Minute)
				b.Becomes(task(n), c.ends)
				b.Steps(fmt.Sprint(task(n+1), " made wants complete after ", c.after), "")
				if n > 5 {
					b.Deleted(task(n - 5)) // a place keeps a few only
				}
			}
			b.Becomes(task(c.again+1), c.ends)
			b.Rest(0)
		})
	}
}

func task(n uint64) string { return fmt.Sprint("job.1#", n) }

// One that has failed and is made anew counts among those at once.
func TestFailureKeepsItsTurn(t *testing.T) {
	b := looptest.New(t, Loop{})
	b.Service("job", cluster.Mode{Job: &cluster.Job{Total: 3, Concurrent: 1}}, restart(cluster.RestartPolicy{Condition: cluster.RestartOnFailure}))
	b.Steps("job.1#1 made wants complete", "")
	b.Becomes("job.1#1", cluster.TaskFailed)
	b.Steps("job.1#2 made wants complete after 100ms", "")
	b.Becomes("job.1#2", cluster.TaskComplete)
	b.Steps("job.2#1 made wants complete", "")
}

// One on each node that is there and suits.
func TestOnEachNode(t *testing.T) {
	b := looptest.New(t, Loop{})
	b.Node("a")
	b.Node("b", func(n *cluster.Node) { n.Spec.Availability = cluster.Paused })
	b.Node("c", func(n *cluster.Node) { n.Status.Ready = false })
	b.Node("d", func(n *cluster.Node) { n.Spec.Labels = map[string]string{"no": "1"} })
	b.Service("job", cluster.Mode{GlobalJob: true}, func(s *cluster.ServiceSpec) {
		s.Task.Placement.Constraints = []string{"node.labels.no != 1"}
	})
	b.Steps("job.a#1 made wants complete", "")
	b.ChangeNode("c", func(n *cluster.Node) { n.Status.Ready = true })
	b.Steps("job.c#1 made wants complete", "")
	b.Becomes("job.a#1", cluster.TaskComplete)
	b.Rest(0)
}

// What has a schedule waits for its time, whose number is the one to run.
func TestWaitsForItsTime(t *testing.T) {
	b := looptest.New(t, Loop{})
	b.Service("job", cluster.Mode{Job: &cluster.Job{Total: 1}, Schedule: "@daily"})
	b.Rest(0)
	b.Change("job", func(s *cluster.Service) { s.Numbers, s.Spec.Number, s.Status.Run = 2, 2, 2 })
	b.Steps("job.1#1 made wants complete of 2", "")
}

func TestNoJob(t *testing.T) {
	b := looptest.New(t, Loop{})
	b.Service("web", looptest.Replicated(1))
	b.Rest(0)
}

func TestGuarded(t *testing.T) {
	b := looptest.New(t, Loop{})
	b.Service("job", cluster.Mode{Job: &cluster.Job{Total: 1}})
	b.Guarded("job")
}

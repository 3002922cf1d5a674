package restart

import (
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store/loop/looptest"
)

func policy(p cluster.RestartPolicy) func(*cluster.ServiceSpec) {
	return func(s *cluster.ServiceSpec) { s.Task.Restart = p }
}

func TestReplaces(t *testing.T) {
	always := cluster.RestartPolicy{Condition: cluster.RestartAny, Delay: time.Second}
	for _, c := range []struct {
		name    string
		policy  cluster.RestartPolicy
		mode    cluster.Mode
		state   cluster.TaskState
		desired cluster.TaskState
		want    string
	}{
		{"failed", always, looptest.Replicated(1), cluster.TaskFailed, cluster.TaskRunning, "web.1#1: wants shutdown, web.1#2 made after 1s"},
		{"rejected", always, looptest.Replicated(1), cluster.TaskRejected, cluster.TaskRunning, "web.1#1: wants shutdown, web.1#2 made after 1s"},
		{"ended well", always, looptest.Replicated(1), cluster.TaskComplete, cluster.TaskRunning, "web.1#1: wants shutdown, web.1#2 made after 1s"},
		{"of a node", always, cluster.Mode{Global: true}, cluster.TaskFailed, cluster.TaskRunning, "web.1#1: wants shutdown, web.1#2 made after 1s"},
		{"in transit", always, looptest.Replicated(1), cluster.TaskRejected, cluster.TaskReady, "web.1#1: wants shutdown, web.1#2 made wants ready after 1s"},
		{"no more wanted", cluster.RestartPolicy{Condition: cluster.RestartNone}, looptest.Replicated(1), cluster.TaskFailed, cluster.TaskRunning, "web.1#1: wants shutdown"},
		{"runs", always, looptest.Replicated(1), cluster.TaskRunning, cluster.TaskRunning, ""},
		{"was to end", always, looptest.Replicated(1), cluster.TaskFailed, cluster.TaskShutdown, ""},
		{"was to go", always, looptest.Replicated(1), cluster.TaskFailed, cluster.TaskRemove, ""},
		{"was let go", always, looptest.Replicated(1), cluster.TaskFailed, cluster.TaskOrphaned, ""},
		{"of a job", always, cluster.Mode{Job: &cluster.Job{Total: 1}}, cluster.TaskFailed, cluster.TaskComplete, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := looptest.New(t, Loop{})
			b.Service("web", c.mode, policy(c.policy))
			b.Task("web", 1, c.state, func(t *cluster.Task) { t.Desired = c.desired })
			b.Steps(c.want)
			b.Rest(0)
		})
	}
}

// One place after the other, each with its own count; a place whose task was replaced is
// looked at by the new one only.
func TestPlaces(t *testing.T) {
	b := looptest.New(t, Loop{})
	b.Service("web", looptest.Replicated(2), policy(cluster.RestartPolicy{Condition: cluster.RestartAny, Attempts: 1, Delay: time.Second}))
	b.Task("web", 1, cluster.TaskFailed)
	b.Task("web", 2, cluster.TaskRunning)
	b.Steps("web.1#1: wants shutdown, web.1#2 made after 1s", "")
	b.Pass(time.Second)
	b.Becomes("web.2#1", cluster.TaskFailed)
	b.Becomes("web.1#2", cluster.TaskFailed)
	b.Steps("web.1#2: wants shutdown, web.2#1: wants shutdown, web.2#2 made after 1s", "")
}

// Another spec begins to count anew.
func TestNewSpecCountsAnew(t *testing.T) {
	b := looptest.New(t, Loop{})
	b.Service("web", looptest.Replicated(1), policy(cluster.RestartPolicy{Condition: cluster.RestartAny, Attempts: 1, Delay: time.Second}))
	b.Task("web", 1, cluster.TaskFailed)
	b.Steps("web.1#1: wants shutdown, web.1#2 made after 1s", "")
	b.Becomes("web.1#2", cluster.TaskFailed)
	b.Steps("web.1#2: wants shutdown", "")
	b.Pass(time.Second)
	b.Update("web.1#2")
	b.Becomes("web.1#3", cluster.TaskFailed)
	b.Steps("web.1#3: wants shutdown, web.1#4 made of 2 after 1s", "")
}

func TestServiceGoes(t *testing.T) {
	b := looptest.New(t, Loop{})
	b.Service("web", looptest.Replicated(1))
	b.Task("web", 1, cluster.TaskRunning)
	b.DeleteService("web")
	b.Becomes("web.1#1", cluster.TaskFailed)
	b.Rest(0)
}

// What does not need new containers holds for the next one: here, its restarts.
func TestPolicyChangedMeanwhile(t *testing.T) {
	b := looptest.New(t, Loop{})
	b.Service("web", looptest.Replicated(1), policy(cluster.RestartPolicy{Condition: cluster.RestartAny, Delay: time.Minute}))
	b.Task("web", 1, cluster.TaskFailed, func(t *cluster.Task) { t.Spec.Restart = cluster.RestartPolicy{Condition: cluster.RestartNone} })
	b.Steps("web.1#1: wants shutdown, web.1#2 made after 1m0s")
}

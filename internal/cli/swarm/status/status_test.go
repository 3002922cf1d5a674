package status

import (
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"
)

// Of the tasks of a job that have failed only the last of a place waits.
func TestPending(t *testing.T) {
	begun := time.Now()
	task := func(id, service string, slot int, node string, after time.Duration, want, is swarm.TaskState) swarm.Task {
		x := swarm.Task{ID: id, ServiceID: service, Slot: slot, NodeID: node, DesiredState: want, Status: swarm.TaskStatus{State: is, Err: id}}
		x.CreatedAt = begun.Add(after)
		return x
	}
	complete, failed, ready := swarm.TaskStateComplete, swarm.TaskStateFailed, swarm.TaskStateReady
	r := &report{}
	r.tasks([]swarm.Task{
		task("a", "job", 1, "n1", 0, complete, failed),
		task("c", "job", 1, "n1", 2*time.Second, complete, ready),
		task("b", "job", 1, "n2", time.Second, complete, failed),
		task("d", "job", 2, "n1", 0, complete, complete),
		task("e", "each", 0, "n1", 0, complete, failed),
		task("f", "each", 0, "n2", time.Second, complete, failed),
		task("g", "web", 1, "n1", 0, swarm.TaskStateRunning, swarm.TaskStateRunning),
		task("h", "web", 1, "n1", -time.Second, swarm.TaskStateShutdown, failed),
	}, map[string]string{"job": "job", "each": "each", "web": "web"})
	var why string
	for _, p := range r.Pending {
		why += p.Why
	}
	if why != "efc" || r.Tasks.Wanted != 4 || r.Tasks.Running != 1 || r.Tasks.Pending != 3 {
		t.Errorf("wait %q, %+v", why, r.Tasks)
	}
}

package cli_test

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/swarm"
)

// The page says who leads, whether changes can be made, and why each task that does not run waits.
func TestClusterStatus(t *testing.T) {
	p, dir := newPaper(t), t.TempDir()
	p.tasks = append(p.tasks,
		swarm.Task{ID: id("tskp1"), ServiceID: p.services[0].ID, Slot: 2, DesiredState: swarm.TaskStateRunning, Status: swarm.TaskStatus{Timestamp: longAgo, State: swarm.TaskStatePending, Err: "no suitable node (insufficient resources on 2 nodes)"}},
		swarm.Task{ID: id("tskp2"), ServiceID: p.services[0].ID, Slot: 3, NodeID: p.nodes[2].ID, DesiredState: swarm.TaskStateRunning, Status: swarm.TaskStatus{Timestamp: longAgo, State: swarm.TaskStateStarting, Message: "starting"}})
	r := runSwarm(t, p, dir, "escale", "cluster status", true)
	page := regexp.MustCompile(` {2,}`).ReplaceAllString(r.out, " ")
	for _, want := range []string{
		"Managers: 1 of 2 reachable, 2 needed: NO CHANGES ARE TAKEN until more are back\nLeader: east10\nTasks: 5 of 8 run, 3 wait\n",
		"NODE STATUS AVAILABILITY MANAGER ADDRESS TASKS MESSAGE\neast2 Ready Active Unreachable 192.0.2.2 3\neast10 * Ready Active Leader 192.0.2.1 2\nwest Down Drain 192.0.2.3 0 heartbeat failure\n",
		"\nshop_b.1 Failed east2 5 years starting container failed no such file\nweb.2 Pending 5 years no suitable node (insufficient resources on 2 nodes)\nweb.3 Starting west 5 years its node is down\n",
	} {
		if want = strings.ReplaceAll(want, "5 years", units.HumanDuration(time.Since(longAgo))); !strings.Contains(page, want) {
			t.Errorf("no %q in\n%s", want, page)
		}
	}
	r = runSwarm(t, p, dir, "escale", "cluster status --format json", true)
	var out struct {
		Managers struct{ Needed int }
		Pending  []struct{ Name, Why string }
	}
	if err := json.Unmarshal([]byte(r.out), &out); err != nil || out.Managers.Needed != 2 || len(out.Pending) != 3 || out.Pending[1].Name != "web.2" {
		t.Errorf("%v %+v", err, out)
	}
	if r = runSwarm(t, p, dir, "escale", "cluster status --format x", true); r.code != 1 || !strings.Contains(r.err, `format "x"`) {
		t.Errorf("%+v", r)
	}
	if r = runSwarm(t, p, dir, "escale", "cluster status", false); r.code != 1 || !strings.Contains(r.err, "not a swarm manager") {
		t.Errorf("%+v", r)
	}
}

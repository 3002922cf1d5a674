package enforce

import (
	"testing"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store/loop/looptest"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
)

func TestMoves(t *testing.T) {
	drain := func(n *cluster.Node) { n.Spec.Availability = cluster.Drain }
	down := func(n *cluster.Node) { n.Status.Ready = false }
	other := func(n *cluster.Node) { n.Spec.Labels = map[string]string{"disk": "hdd"} }
	startFirst := func(s *cluster.ServiceSpec) { s.Update = &cluster.Rollout{StartFirst: true} }
	none := func(s *cluster.ServiceSpec) { s.Task.Restart.Condition = cluster.RestartNone }
	ssd := func(s *cluster.ServiceSpec) { s.Task.Placement.Constraints = []string{"node.labels.disk == ssd"} }
	plain := func(*cluster.ServiceSpec) {}
	ready := func(t *cluster.Task) { t.Desired = cluster.TaskReady }
	stale := func(t *cluster.Task) { t.SpecNumber = 0 }
	done := func(t *cluster.Task) { t.Desired = cluster.TaskComplete }
	as := func(*cluster.Task) {}
	stop := "web.1#1: wants shutdown, web.1#2 made"
	for _, c := range []struct {
		name string
		mode cluster.Mode
		spec func(*cluster.ServiceSpec)
		task func(*cluster.Task)
		node func(*cluster.Node)
		want string
	}{
		{"drained", looptest.Replicated(1), plain, as, drain, stop + " wants ready"},
		{"drained, start first", looptest.Replicated(1), startFirst, as, drain, "web.1#2 made"},
		{"in transit already", looptest.Replicated(1), plain, ready, drain, stop + " wants ready"},
		{"of a spec that was given up", looptest.Replicated(1), plain, stale, drain, stop + " of 0"},
		{"never restarted", looptest.Replicated(1), none, as, drain, "web.1#1: wants shutdown"},
		{"down", looptest.Replicated(1), plain, as, down, stop},
		{"another label", looptest.Replicated(1), ssd, as, other, stop + " wants ready"},
		{"a label that nobody asks for", looptest.Replicated(1), plain, as, other, ""},
		{"of a job", cluster.Mode{Job: &cluster.Job{Total: 1}}, plain, done, drain, stop + " wants complete"},
		{"the node's own", cluster.Mode{Global: true}, plain, as, drain, ""},
		{"paused", looptest.Replicated(1), plain, as, func(n *cluster.Node) { n.Spec.Availability = cluster.Paused }, ""},
		{"busy", looptest.Replicated(1), plain, as, func(n *cluster.Node) { n.Status.Used.Memory = 1 }, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := looptest.New(t, Loop{})
			for _, n := range []string{"a", "b"} {
				b.Node(n, func(n *cluster.Node) { n.Spec.Labels = map[string]string{"disk": "ssd"} })
			}
			b.Service("web", c.mode, c.spec)
			b.Task("web", 1, cluster.TaskRunning, func(t *cluster.Task) { t.Node = "a" }, c.task)
			b.Steps("")
			b.ChangeNode("a", c.node)
			b.Steps(c.want)
			b.Rest(0)
		})
	}
}

// Start first needs a place to start.
func TestNowhereElse(t *testing.T) {
	b := looptest.New(t, Loop{})
	b.Node("a")
	b.Node("b", func(n *cluster.Node) { n.Spec.Availability = cluster.Paused })
	b.Service("web", looptest.Replicated(1), func(s *cluster.ServiceSpec) { s.Update = &cluster.Rollout{StartFirst: true} })
	b.Task("web", 1, cluster.TaskRunning, func(t *cluster.Task) { t.Node = "a" })
	b.ChangeNode("a", func(n *cluster.Node) { n.Spec.Availability = cluster.Drain })
	b.Steps("web.1#1: wants shutdown, web.1#2 made wants ready", "")
}

// A task that was given a node just when it was drained does not stay.
func TestAssignedToADrainedNode(t *testing.T) {
	b := looptest.New(t, Loop{})
	b.Node("a", func(n *cluster.Node) { n.Spec.Availability = cluster.Drain })
	b.Service("web", looptest.Replicated(1))
	b.Task("web", 1, cluster.TaskNew)
	b.Steps("")
	b.Becomes("web.1#1", cluster.TaskAssigned, func(t *cluster.Task) { t.Node = "a" })
	b.Steps("web.1#1: wants shutdown, web.1#2 made wants ready", "")
}

// A job that each node does is done anew when the node may have it again.
func TestGlobalJob(t *testing.T) {
	b := looptest.New(t, Loop{})
	b.Node("a")
	b.Service("web", cluster.Mode{GlobalJob: true})
	b.Task("web", 0, cluster.TaskRunning, func(t *cluster.Task) { t.Node, t.Desired = "a", cluster.TaskComplete })
	b.ChangeNode("a", func(n *cluster.Node) { n.Spec.Availability = cluster.Drain })
	b.Steps("web.#1: wants remove", "")
}

// A node that is removed, even while it is well, leaves its tasks to others; whose volumes
// were there waits until it is told that nobody has them.
func TestNodeRemoved(t *testing.T) {
	for volume, want := range map[string]string{"": "web.1#1: wants shutdown, web.1#2 made", "data": "web.1#1: wants shutdown, web.1#2 made wants ready"} {
		b := looptest.New(t, Loop{})
		b.Node("a")
		b.Node("b")
		b.Service("web", looptest.Replicated(1), func(s *cluster.ServiceSpec) {
			s.Task.Host = &container.HostConfig{}
			if volume != "" {
				s.Task.Host.Mounts = []mount.Mount{{Type: mount.TypeVolume, Source: volume, Target: "/data"}}
			}
		})
		b.Task("web", 1, cluster.TaskRunning, func(t *cluster.Task) { t.Node = "a" })
		b.Steps("")
		b.DeleteNode("a")
		b.Steps(want)
		b.Rest(0)
	}
}

// What has its volumes on a node stays there while it may, and starts first nowhere else.
func TestBound(t *testing.T) {
	b := looptest.New(t, Loop{})
	b.Node("a")
	b.Node("b")
	b.Service("web", looptest.Replicated(1), func(s *cluster.ServiceSpec) {
		s.Update = &cluster.Rollout{StartFirst: true}
		s.Task.Host = &container.HostConfig{Mounts: []mount.Mount{{Type: mount.TypeVolume, Source: "data", Target: "/data"}}}
	})
	b.Task("web", 1, cluster.TaskRunning, func(t *cluster.Task) { t.Node = "a" })
	b.ChangeNode("a", func(n *cluster.Node) { n.Spec.Availability = cluster.Drain })
	b.Steps("web.1#1: wants shutdown, web.1#2 made wants ready")
	if h := b.Find("web.1#2").Home; h == nil || h.Node != "a" || len(h.Volumes) != 1 {
		t.Errorf("%+v", h)
	}
}

package global

import (
	"testing"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store/loop/looptest"
)

// Each node has its place, keeps it or loses it as it changes.
func TestNodes(t *testing.T) {
	amd64 := func(s *cluster.ServiceSpec) {
		s.Task.Placement.Platforms = []cluster.Platform{{OS: "linux", Architecture: "amd64"}}
	}
	ssd := func(s *cluster.ServiceSpec) {
		s.Task.Placement.Constraints = []string{"node.labels.disk == ssd"}
	}
	for _, c := range []struct {
		name   string
		spec   func(*cluster.ServiceSpec)
		change func(*cluster.Node)
		want   string // becomes of its place
		gets   bool   // a node that is so from the start gets one
	}{
		{name: "as it was", change: func(*cluster.Node) {}, gets: true},
		{name: "drained", change: func(n *cluster.Node) { n.Spec.Availability = cluster.Drain }, want: "web.b#1: wants remove"},
		{name: "paused", change: func(n *cluster.Node) { n.Spec.Availability = cluster.Paused }},
		{name: "not ready", change: func(n *cluster.Node) { n.Status.Ready = false }},
		{name: "constraint", spec: ssd, change: func(n *cluster.Node) { n.Spec.Labels = nil }, want: "web.b#1: wants remove"},
		{name: "platform", spec: amd64, change: func(n *cluster.Node) { n.Status.Platform.Architecture = "arm64" }, want: "web.b#1: wants remove"},
	} {
		t.Run(c.name, func(t *testing.T) {
			suits := func(n *cluster.Node) {
				n.Spec.Labels, n.Status.Platform = map[string]string{"disk": "ssd"}, cluster.Platform{OS: "linux", Architecture: "x86_64"}
			}
			b := looptest.New(t, Loop{})
			b.Node("a", suits)
			spec := c.spec
			if spec == nil {
				spec = func(*cluster.ServiceSpec) {}
			}
			b.Service("web", cluster.Mode{Global: true}, spec)
			b.Steps("web.a#1 made", "")
			b.Node("b", suits)
			b.Steps("web.b#1 made", "")
			if got := b.Find("web.b#1"); got.Node != "b" || got.Slot != 0 {
				t.Errorf("made is %+v", got)
			}
			b.ChangeNode("b", c.change)
			b.Steps(c.want, "")
			b.Node("c", suits, c.change)
			b.Steps(map[bool]string{true: "web.c#1 made"}[c.gets], "")
		})
	}
}

func TestPlaceIsLeftAlone(t *testing.T) {
	b := looptest.New(t, Loop{})
	b.Node("a")
	b.Service("web", cluster.Mode{Global: true})
	b.Service("other", looptest.Replicated(1)) // not of this loop
	b.Steps("web.a#1 made", "")
	b.Becomes("web.a#1", cluster.TaskFailed)
	b.Rest(0)
	b.Deleted("web.a#1")
	b.Steps("web.a#1 made", "")
}

// A node that is no more takes its place with it.
func TestNodeGoes(t *testing.T) {
	b := looptest.New(t, Loop{})
	n := b.Node("a")
	b.Service("web", cluster.Mode{Global: true})
	b.Steps("web.a#1 made", "")
	b.DeleteNode(n.ID)
	b.Steps("web.a#1: wants remove", "")
}

func TestConstraintChanges(t *testing.T) {
	b := looptest.New(t, Loop{})
	b.Node("a")
	b.Node("b", func(n *cluster.Node) { n.Spec.Manager = true })
	b.Service("web", cluster.Mode{Global: true})
	b.Steps("web.a#1 made, web.b#1 made", "")
	b.Change("web", func(s *cluster.Service) {
		s.Spec.Task.Placement.Constraints = []string{"node.role == manager"}
	})
	b.Steps("web.a#1: wants remove", "")
	b.Change("web", func(s *cluster.Service) { s.Spec.Task.Placement.Constraints = []string{"nonsense"} })
	b.Rest(0)
}

func TestGuarded(t *testing.T) {
	b := looptest.New(t, Loop{})
	b.Node("a")
	b.Service("web", cluster.Mode{Global: true})
	b.Guarded("web")
}

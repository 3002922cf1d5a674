package compose

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"escale.dev/escale/client"
)

// What is told of one container becomes what a list tells of it.
func TestSummary(t *testing.T) {
	ago := func(d time.Duration) string { return time.Now().Add(-d).Format(time.RFC3339Nano) }
	r := &container.InspectResponse{
		ID: "c1", Name: "/shop-web-1", Image: "sha256:1", Created: ago(time.Hour), Path: "sh", Args: []string{"-c", "sleep 1"},
		Config: &container.Config{Image: "web:1", Labels: map[string]string{"a": "b"}},
		State:  &container.State{Status: container.StateRunning, StartedAt: ago(3 * time.Minute), Health: &container.Health{Status: container.Healthy}},
		NetworkSettings: &container.NetworkSettings{Ports: network.PortMap{
			network.MustParsePort("80/tcp"): nil, network.MustParsePort("53/udp"): {{HostIP: netip.MustParseAddr("10.0.0.1"), HostPort: "5353"}},
		}},
	}
	x := summary(r)
	got := fmt.Sprintf("%s %s %s %s %s | %s | %s", x.ID, nameOf(x), x.Image, x.Labels["a"], x.Command, x.Status, x.State)
	if want := "c1 shop-web-1 web:1 b sh -c 'sleep 1' | Up 3 minutes (healthy) | running"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if len(x.Ports) != 2 || x.Ports[0].PublicPort != 5353 || x.Ports[1].PublicPort != 0 || x.Ports[1].PrivatePort != 80 {
		t.Errorf("ports: %+v", x.Ports)
	}
	for state, want := range map[container.ContainerState]string{
		container.StatePaused: "Up 3 minutes (Paused)", container.StateExited: "Exited (3) 2 minutes ago", container.StateCreated: "Created", container.StateRestarting: "Restarting (3) 2 minutes ago",
	} {
		r.State = &container.State{Status: state, StartedAt: ago(3 * time.Minute), FinishedAt: ago(2 * time.Minute), ExitCode: 3}
		if got := summary(r).Status; got != want {
			t.Errorf("%s: %q, want %q", state, got, want)
		}
	}
}

// Of containers on other nodes a watcher hears by what becomes of the app, each thing once.
func TestFarNews(t *testing.T) {
	w := &watcher{far: map[string]string{"known": "running"}}
	task := func(id, node, state string, code int) client.AppTask {
		return client.AppTask{Name: "shop-web-1", Container: id, Node: node, State: state, ExitCode: code}
	}
	news := func(own string, tasks ...client.AppTask) (out []string) {
		app := &client.App{Name: "shop", Services: []client.AppService{{Name: "web", Tasks: tasks}}}
		for _, e := range w.farNews(app, own) {
			out = append(out, fmt.Sprint(e.Action, " ", e.Actor.ID, " ", e.Actor.Attributes["exitCode"]))
		}
		return out
	}
	for i, c := range []struct {
		own, want string
		tasks     []client.AppTask
	}{
		{"", "[]", []client.AppTask{task("a", "n2", "running", 0)}}, // in no cluster
		{"n1", "[]", []client.AppTask{task("here", "n1", "running", 0), task("", "n2", "preparing", 0), task("known", "n2", "running", 0)}},
		{"n1", "[start a 0]", []client.AppTask{task("a", "n2", "running", 0)}},
		{"n1", "[]", []client.AppTask{task("a", "n2", "running", 0)}},
		{"n1", "[die a 3 die known 0]", []client.AppTask{task("a", "n2", "failed", 3), task("known", "n2", "shutdown", 0)}},
		{"n1", "[]", []client.AppTask{task("a", "n2", "failed", 3), task("never", "n2", "rejected", 1)}},
	} {
		if got := fmt.Sprint(news(c.own, c.tasks...)); got != c.want {
			t.Errorf("%d: %s, want %s", i, got, c.want)
		}
	}
}

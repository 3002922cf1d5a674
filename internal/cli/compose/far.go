package compose

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/network"
	moby "github.com/moby/moby/client"

	"escale.dev/escale/client"
	composefile "escale.dev/escale/internal/compose"
)

// far lists the containers of an app that other nodes of a cluster have: the engine's list has
// its own only. here are those. A node that cannot be asked leaves its own out.
func (s *session) far(ctx context.Context, project string, stopped bool, here []container.Summary) ([]container.Summary, error) {
	c, err := s.client()
	if err != nil {
		return nil, err
	}
	if !s.managed(ctx) {
		return nil, nil // there are no others, or they cannot be asked from here
	}
	app, err := c.App(ctx, project)
	if err != nil {
		if errdefs.IsNotFound(err) { // no app, or an engine that keeps none
			err = nil
		}
		return nil, err
	}
	known := map[string]bool{}
	for i := range here {
		known[here[i].ID] = true
	}
	var tasks []client.AppTask
	for _, sv := range app.Services {
		for _, t := range sv.Tasks {
			if t.Container != "" && !known[t.Container] && (stopped || t.State == "running") {
				known[t.Container] = true
				tasks = append(tasks, t)
			}
		}
	}
	found := make([]*container.Summary, len(tasks))
	err = s.parallel(len(tasks), func(i int) error {
		res, err := c.ContainerInspect(ctx, tasks[i].Container, moby.ContainerInspectOptions{})
		switch {
		case errdefs.IsNotFound(err): // it has gone
		case errdefs.IsUnavailable(err):
			s.warnf("container %s: %v", tasks[i].Name, err)
		case err != nil:
			return err
		default:
			if x := summary(&res.Container); stopped || x.State == container.StateRunning || x.State == container.StatePaused || x.State == container.StateRestarting {
				found[i] = x
			}
		}
		return nil
	})
	var out []container.Summary
	for _, x := range found {
		if x != nil {
			out = append(out, *x)
		}
	}
	return out, err
}

// managed tells whether the engine is a manager of a swarm.
func (s *session) managed(ctx context.Context) bool {
	c, err := s.client()
	if err != nil {
		return false
	}
	ping, err := c.Ping(ctx, moby.PingOptions{})
	return err == nil && ping.SwarmStatus != nil && ping.SwarmStatus.ControlAvailable
}

// swarm tells whether a project's secrets and configs can be a swarm's. The engine is not asked
// when none of them is somebody else's.
func (s *session) swarm(ctx context.Context, p *types.Project) bool {
	for _, f := range p.Secrets {
		if f.External {
			return s.managed(ctx)
		}
	}
	for _, f := range p.Configs {
		if f.External {
			return s.managed(ctx)
		}
	}
	return false
}

// node is the id of the engine's own node; "" when it is in no cluster.
func (s *session) node(ctx context.Context) string {
	c, err := s.client()
	if err != nil {
		return ""
	}
	res, err := c.Info(ctx, moby.InfoOptions{})
	if err != nil {
		return ""
	}
	return res.Info.Swarm.NodeID
}

// summary is what a list says of a container, out of all that there is to say.
func summary(r *container.InspectResponse) *container.Summary {
	x := &container.Summary{ID: r.ID, Names: []string{r.Name}, ImageID: r.Image}
	if created, err := time.Parse(time.RFC3339Nano, r.Created); err == nil {
		x.Created = created.Unix()
	}
	if r.Config != nil {
		x.Image, x.Labels = r.Config.Image, r.Config.Labels
	}
	x.Command = r.Path
	for _, arg := range r.Args {
		if strings.Contains(arg, " ") {
			arg = "'" + arg + "'"
		}
		x.Command += " " + arg
	}
	x.Mounts = r.Mounts
	if st := r.State; st != nil {
		x.State, x.Status = st.Status, statusText(st)
		if st.Health != nil {
			x.Health = &container.HealthSummary{Status: st.Health.Status, FailingStreak: st.Health.FailingStreak}
		}
	}
	if n := r.NetworkSettings; n != nil {
		x.NetworkSettings = &container.NetworkSettingsSummary{Networks: n.Networks}
		x.Ports = portsOf(n.Ports)
	}
	return x
}

// statusText is what a list says of how a container is.
func statusText(st *container.State) string {
	age := func(when string) string {
		at, err := time.Parse(time.RFC3339Nano, when)
		if err != nil {
			return "a time"
		}
		return units.HumanDuration(time.Since(at))
	}
	switch st.Status {
	case container.StateRunning:
		if st.Health == nil || st.Health.Status == container.NoHealthcheck {
			return "Up " + age(st.StartedAt)
		}
		health := string(st.Health.Status)
		if st.Health.Status == container.Starting {
			health = "health: starting"
		}
		return "Up " + age(st.StartedAt) + " (" + health + ")"
	case container.StatePaused:
		return "Up " + age(st.StartedAt) + " (Paused)"
	case container.StateRestarting:
		return fmt.Sprintf("Restarting (%d) %s ago", st.ExitCode, age(st.FinishedAt))
	case container.StateExited:
		return fmt.Sprintf("Exited (%d) %s ago", st.ExitCode, age(st.FinishedAt))
	}
	word := string(st.Status)
	return strings.ToUpper(word[:min(1, len(word))]) + word[min(1, len(word)):]
}

// farNews makes of what has become of an app the events that its containers on other nodes have
// not told here: their start and their end. own is the id of this node.
func (w *watcher) farNews(app *client.App, own string) (out []events.Message) {
	for _, sv := range app.Services {
		for _, t := range sv.Tasks {
			if t.Container == "" || own == "" || t.Node == "" || t.Node == own || w.far[t.Container] == t.State {
				continue
			}
			e := events.Message{Type: events.ContainerEventType, TimeNano: t.Since.UnixNano(), Actor: events.Actor{ID: t.Container, Attributes: map[string]string{
				"name": t.Name, composefile.LabelProject: app.Name, composefile.LabelService: sv.Name, composefile.LabelOneOff: "False",
				composefile.LabelNumber: strconv.FormatUint(max(t.Slot, 1), 10), "exitCode": strconv.Itoa(t.ExitCode),
			}}}
			was := w.far[t.Container]
			w.far[t.Container] = t.State
			switch {
			case t.State == "running":
				e.Action = events.ActionStart
			case ended(&t) && was == "running":
				e.Action = events.ActionDie
			default:
				continue
			}
			out = append(out, e)
		}
	}
	return out
}

// portsOf are ports as a list has them.
func portsOf(m network.PortMap) (out []container.PortSummary) {
	for _, p := range slices.SortedFunc(maps.Keys(m), func(a, b network.Port) int { return int(a.Num()) - int(b.Num()) }) {
		if len(m[p]) == 0 {
			out = append(out, container.PortSummary{PrivatePort: p.Num(), Type: string(p.Proto())})
		}
		for _, at := range m[p] {
			var public uint16
			if n, err := network.ParsePort(at.HostPort); err == nil {
				public = n.Num()
			}
			out = append(out, container.PortSummary{IP: at.HostIP, PrivatePort: p.Num(), PublicPort: public, Type: string(p.Proto())})
		}
	}
	return out
}

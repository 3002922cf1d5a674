package service

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/swarm"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cli/swarm/task"
	"escale.dev/escale/internal/cli/table"
	"escale.dev/escale/internal/cli/verb"
)

func lsCommand(a *verb.App) *cobra.Command {
	var o verb.List
	return o.Command("List services", "Print only IDs", func(ctx context.Context) error {
		c, err := a.Connect()
		if err != nil {
			return err
		}
		list, err := Find(ctx, c, o.Filter, o.Quiet)
		if err != nil {
			return err
		}
		return Print(a.Out, o.FormatOr(a.Config().ServicesFormat), o.Quiet, list)
	})
}

// Find lists services. Unless quiet, their counts of tasks are there, which engines
// before API 1.41 do not tell.
func Find(ctx context.Context, c *client.Client, f verb.Filter, quiet bool) ([]swarm.Service, error) {
	res, err := c.ServiceList(ctx, moby.ServiceListOptions{Filters: f.API(), Status: !quiet})
	if err != nil || quiet {
		return res.Items, err
	}
	return res.Items, count(ctx, c, res.Items)
}

// count counts the tasks of services that came without.
func count(ctx context.Context, c *client.Client, list []swarm.Service) error {
	filters, status := moby.Filters{}, map[string]*swarm.ServiceStatus{}
	for i := range list {
		s := &list[i]
		if s.ServiceStatus != nil || s.Spec.Mode.Replicated == nil && s.Spec.Mode.Global == nil {
			continue
		}
		s.ServiceStatus = &swarm.ServiceStatus{}
		if r := s.Spec.Mode.Replicated; r != nil && r.Replicas != nil {
			s.ServiceStatus.DesiredTasks = *r.Replicas
		}
		status[s.ID] = s.ServiceStatus
		filters.Add("service", s.ID)
	}
	if len(status) == 0 {
		return nil
	}
	tasks, err := c.TaskList(ctx, moby.TaskListOptions{Filters: filters})
	if err != nil || len(tasks.Items) == 0 {
		return err
	}
	nodes, err := c.NodeList(ctx, moby.NodeListOptions{})
	if err != nil {
		return err
	}
	live := map[string]bool{}
	for _, n := range nodes.Items {
		live[n.ID] = n.Status.State != swarm.NodeStateDown
	}
	for _, s := range status {
		s.DesiredTasks = 0
	}
	for _, t := range tasks.Items {
		s := status[t.ServiceID]
		if s == nil {
			continue
		}
		if t.DesiredState != swarm.TaskStateShutdown {
			s.DesiredTasks++
		}
		if live[t.NodeID] && t.Status.State == swarm.TaskStateRunning {
			s.RunningTasks++
		}
	}
	return nil
}

// Print prints a list of services, by name.
func Print(out io.Writer, format string, quiet bool, list []swarm.Service) error {
	slices.SortStableFunc(list, func(x, y swarm.Service) int { return verb.Natural(x.Spec.Name, y.Spec.Name) })
	rows := make([]table.Row, len(list))
	for i := range list {
		rows[i] = &row{&list[i]}
	}
	return table.Write(out, formatOf(format, quiet), &row{&swarm.Service{}}, rows)
}

func formatOf(format string, quiet bool) table.Format {
	switch {
	case format == "table" && quiet:
		return "{{.ID}}"
	case format == "table":
		return `table {{.ID}}\t{{.Name}}\t{{.Mode}}\t{{.Replicas}}\t{{.Image}}\t{{.Ports}}`
	case format == "raw" && quiet:
		return "id: {{.ID}}"
	case format == "raw":
		return "id: {{.ID}}\nname: {{.Name}}\nmode: {{.Mode}}\nreplicas: {{.Replicas}}\nimage: {{.Image}}\nports: {{.Ports}}\n"
	}
	return table.Format(format)
}

// row is a service in a list. Its methods are the fields of a template.
type row struct{ s *swarm.Service }

// Headers gives the title of each column.
func (r *row) Headers() map[string]string {
	return map[string]string{"ID": "ID", "Name": "NAME", "Mode": "MODE", "Replicas": "REPLICAS", "Image": "IMAGE", "Ports": "PORTS"}
}

// MarshalJSON gives every field by its name.
func (r *row) MarshalJSON() ([]byte, error) { return table.MarshalRow(r) }

// ID is the service's ID, cut.
func (r *row) ID() string { return task.ShortID(r.s.ID) }

// Name is the service's name.
func (r *row) Name() string { return r.s.Spec.Name }

// Mode is how its tasks come about.
func (r *row) Mode() string {
	switch m := r.s.Spec.Mode; {
	case m.Global != nil:
		return "global"
	case m.Replicated != nil:
		return "replicated"
	case m.ReplicatedJob != nil:
		return "replicated job"
	case m.GlobalJob != nil:
		return "global job"
	}
	return ""
}

// Replicas is how many tasks run, of how many; of jobs how many are done, too.
func (r *row) Replicas() string {
	var n swarm.ServiceStatus
	if r.s.ServiceStatus != nil {
		n = *r.s.ServiceStatus
	}
	text := fmt.Sprintf("%d/%d", n.RunningTasks, n.DesiredTasks)
	placement := r.s.Spec.TaskTemplate.Placement
	switch m := r.s.Spec.Mode; {
	case m.ReplicatedJob != nil:
		var total uint64
		if m.ReplicatedJob.TotalCompletions != nil {
			total = *m.ReplicatedJob.TotalCompletions
		}
		text += fmt.Sprintf(" (%d/%d completed)", n.CompletedTasks, total)
	case m.GlobalJob != nil:
		text += fmt.Sprintf(" (%d/%d completed)", n.CompletedTasks, n.DesiredTasks+n.CompletedTasks)
	case m.Replicated != nil && placement != nil && placement.MaxReplicas > 0:
		text += fmt.Sprintf(" (max %d per node)", placement.MaxReplicas)
	}
	return text
}

// Image is what its tasks run.
func (r *row) Image() string {
	if r.s.Spec.TaskTemplate.ContainerSpec == nil {
		return ""
	}
	return task.ShortImage(r.s.Spec.TaskTemplate.ContainerSpec.Image)
}

// span is a range of ports that leads to one, or to a range of the same length.
type span struct {
	from, to, target, targetEnd uint32
	proto                       string
}

func (s span) String() string {
	ports := func(a, b uint32) string {
		if b > a {
			return fmt.Sprintf("%d-%d", a, b)
		}
		return fmt.Sprint(a)
	}
	return fmt.Sprintf("*:%s->%s/%s", ports(s.from, s.to), ports(s.target, s.targetEnd), s.proto)
}

// follows tells whether a port goes on a span: the next one on the outside, to the same
// or the next one inside. A span that moves inside goes on moving.
func (s span) follows(p swarm.PortConfig) bool {
	if string(p.Protocol) != s.proto || p.PublishedPort-s.to > 1 || p.TargetPort-s.targetEnd > 1 {
		return false
	}
	return s.target == s.targetEnd || p.TargetPort > s.targetEnd
}

// Ports are those of every node that lead to the tasks; neighbours are joined.
func (r *row) Ports() string {
	ports := slices.Clone(r.s.Endpoint.Ports)
	slices.SortStableFunc(ports, func(x, y swarm.PortConfig) int {
		return cmp.Or(strings.Compare(string(x.Protocol), string(y.Protocol)), cmp.Compare(x.PublishedPort, y.PublishedPort))
	})
	var spans []span
	for _, p := range ports {
		if p.PublishMode != swarm.PortConfigPublishModeIngress {
			continue
		}
		if n := len(spans); n > 0 && spans[n-1].follows(p) {
			spans[n-1].to, spans[n-1].targetEnd = p.PublishedPort, p.TargetPort
			continue
		}
		spans = append(spans, span{p.PublishedPort, p.PublishedPort, p.TargetPort, p.TargetPort, string(p.Protocol)})
	}
	var words []string
	for _, s := range spans {
		if s.from > 0 {
			words = append(words, s.String())
		}
	}
	return strings.Join(words, ", ")
}

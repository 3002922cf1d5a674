// Package status is `escale cluster status`: how a cluster is, on one page.
package status

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/swarm"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cli/swarm/task"
	"escale.dev/escale/internal/cli/verb"
)

// report is what is known of a cluster; its JSON is what --format json prints.
type report struct {
	ID       string
	Managers managers
	Nodes    []node
	Tasks    counts
	Pending  []pending
}

// managers tells how those are that keep the cluster's store: most of them must be
// reachable for it to take changes.
type managers struct {
	Count, Reachable, Needed int
	Leader                   string
}

type node struct {
	ID, Hostname, Role, Status, Availability, Manager, Addr, Message string
	Self                                                             bool
	Running                                                          int
}

type counts struct{ Wanted, Running, Pending int }

// pending is a task that is to run and does not: why, and since when.
type pending struct {
	Name, State, Node, Why string
	Since                  time.Time
}

// Command is `cluster status`.
func Command(a *verb.App) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:               "status [OPTIONS]",
		Short:             "Show how the cluster is: its nodes, its managers, and which tasks do not run, and why",
		Args:              verb.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if format != "" && format != "json" {
				return fmt.Errorf("format %q: it is a page for people, or json", format)
			}
			c, err := a.Connect()
			if err != nil {
				return err
			}
			r, err := look(cmd.Context(), c)
			if err != nil {
				return err
			}
			if format == "json" {
				e := json.NewEncoder(a.Out)
				e.SetIndent("", "    ")
				return e.Encode(r)
			}
			return r.write(a.Out)
		},
	}
	cmd.Flags().StringVar(&format, "format", "", `Print "json" instead of a page`)
	_ = cmd.RegisterFlagCompletionFunc("format", verb.Words("json"))
	return cmd
}

// look asks a manager for all there is to say.
func look(ctx context.Context, c *client.Client) (*report, error) {
	nodes, err := c.NodeList(ctx, moby.NodeListOptions{})
	if err != nil {
		return nil, err
	}
	info, err := c.Info(ctx, moby.InfoOptions{})
	if err != nil {
		return nil, err
	}
	tasks, err := c.TaskList(ctx, moby.TaskListOptions{})
	if err != nil {
		return nil, err
	}
	services, err := c.ServiceList(ctx, moby.ServiceListOptions{})
	if err != nil {
		return nil, err
	}
	r := &report{}
	if info.Info.Swarm.Cluster != nil {
		r.ID = info.Info.Swarm.Cluster.ID
	}
	r.nodes(nodes.Items, info.Info.Swarm.NodeID)
	names := map[string]string{}
	for _, s := range services.Items {
		names[s.ID] = s.Spec.Name
	}
	r.tasks(tasks.Items, names)
	return r, nil
}

func (r *report) nodes(list []swarm.Node, self string) {
	for _, n := range list {
		x := node{
			ID: n.ID, Hostname: n.Description.Hostname, Role: string(n.Spec.Role), Status: string(n.Status.State), Availability: string(n.Spec.Availability),
			Addr: n.Status.Addr, Message: n.Status.Message, Self: n.ID == self,
		}
		if m := n.ManagerStatus; m != nil {
			r.Managers.Count++
			x.Manager = string(m.Reachability)
			if m.Reachability == swarm.ReachabilityReachable {
				r.Managers.Reachable++
			}
			if m.Leader {
				x.Manager, r.Managers.Leader = "leader", n.Description.Hostname
			}
		}
		r.Nodes = append(r.Nodes, x)
	}
	r.Managers.Needed = r.Managers.Count/2 + 1
	slices.SortStableFunc(r.Nodes, func(x, y node) int { return verb.Natural(x.Hostname, y.Hostname) })
}

// tasks counts those that are to run, and says of each that does not what it waits for.
func (r *report) tasks(list []swarm.Task, services map[string]string) {
	at := map[string]*node{}
	for i := range r.Nodes {
		at[r.Nodes[i].ID] = &r.Nodes[i]
	}
	last := latest(list)
	for _, t := range list {
		if t.DesiredState != swarm.TaskStateRunning && t.DesiredState != swarm.TaskStateReady && t.DesiredState != swarm.TaskStateComplete || t.Status.State == swarm.TaskStateComplete {
			continue
		}
		if ended(t) && last[placeOf(t)].ID != t.ID {
			continue // a job's: another has come for it
		}
		r.Tasks.Wanted++
		host := at[t.NodeID]
		if t.Status.State == swarm.TaskStateRunning {
			r.Tasks.Running++
			if host != nil {
				host.Running++
			}
			continue
		}
		p := pending{Name: cmp.Or(services[t.ServiceID], t.ServiceID), State: string(t.Status.State), Why: cmp.Or(t.Status.Err, t.Status.Message), Since: t.Status.Timestamp}
		if t.Slot > 0 {
			p.Name += fmt.Sprintf(".%d", t.Slot)
		}
		if host != nil {
			p.Node = host.Hostname
			if host.Status == string(swarm.NodeStateDown) {
				p.Why = "its node is down"
			}
		}
		r.Pending = append(r.Pending, p)
		r.Tasks.Pending++
	}
	slices.SortStableFunc(r.Pending, func(x, y pending) int {
		return cmp.Or(verb.Natural(x.Name, y.Name), strings.Compare(x.Node, y.Node))
	})
}

// place is what the tasks that come one after the other have in common.
type place struct {
	service, node string // node of tasks that have no slot
	slot          int
}

func placeOf(t swarm.Task) place {
	if t.Slot > 0 {
		return place{service: t.ServiceID, slot: t.Slot}
	}
	return place{service: t.ServiceID, node: t.NodeID}
}

// latest is the last task of each place.
func latest(list []swarm.Task) map[place]swarm.Task {
	out := map[place]swarm.Task{}
	for _, t := range list {
		if o, ok := out[placeOf(t)]; !ok || t.CreatedAt.After(o.CreatedAt) {
			out[placeOf(t)] = t
		}
	}
	return out
}

func ended(t swarm.Task) bool {
	switch t.Status.State {
	case swarm.TaskStateFailed, swarm.TaskStateRejected, swarm.TaskStateShutdown, swarm.TaskStateOrphaned, swarm.TaskStateRemove:
		return true
	}
	return false
}

// write prints the page.
func (r *report) write(out io.Writer) error {
	m := r.Managers
	fmt.Fprintf(out, "Cluster:   %s\nManagers:  %d of %d reachable, %d needed%s\nLeader:    %s\n", r.ID, m.Reachable, m.Count, m.Needed, m.health(), cmp.Or(m.Leader, "none"))
	fmt.Fprintf(out, "Tasks:     %d of %d run, %d wait\n\n", r.Tasks.Running, r.Tasks.Wanted, r.Tasks.Pending)
	t := tabwriter.NewWriter(out, 10, 1, 3, ' ', 0)
	fmt.Fprintln(t, "NODE\tSTATUS\tAVAILABILITY\tMANAGER\tADDRESS\tTASKS\tMESSAGE")
	for _, n := range r.Nodes {
		name := n.Hostname
		if n.Self {
			name += " *"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\t%s\n", name, task.Title(n.Status), task.Title(n.Availability), task.Title(n.Manager), n.Addr, n.Running, n.Message)
	}
	if len(r.Pending) == 0 {
		return t.Flush()
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	t = tabwriter.NewWriter(out, 10, 1, 3, ' ', 0)
	fmt.Fprintln(t, "WAITS\tSTATE\tNODE\tSINCE\tWHY")
	for _, p := range r.Pending {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", p.Name, task.Title(p.State), p.Node, units.HumanDuration(time.Since(p.Since)), strings.ReplaceAll(p.Why, "\n", " "))
	}
	return t.Flush()
}

// health says what follows from how many managers are reachable.
func (m managers) health() string {
	switch left := m.Reachable - m.Needed; {
	case left < 0:
		return ": NO CHANGES ARE TAKEN until more are back"
	case left == 0 && m.Count > 1:
		return ": none more may be lost"
	case m.Count > 1:
		return fmt.Sprintf(": %d more may be lost", left)
	}
	return ""
}

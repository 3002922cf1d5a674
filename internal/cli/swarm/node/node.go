// Package node holds the commands about the nodes of a cluster.
package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"github.com/moby/moby/api/types/swarm"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cli/spec"
	"escale.dev/escale/internal/cli/swarm/inspect"
	"escale.dev/escale/internal/cli/swarm/task"
	"escale.dev/escale/internal/cli/table"
	"escale.dev/escale/internal/cli/verb"
)

// Commands are those of `node`.
func Commands(a *verb.App) []*cobra.Command {
	return []*cobra.Command{
		demoteCommand(a), inspectCommand(a), lsCommand(a), promoteCommand(a), psCommand(a), rmCommand(a), updateCommand(a),
	}
}

// names offers the names of nodes.
func names(a *verb.App) verb.Completer {
	return a.Complete(func(ctx context.Context, c *client.Client) ([]string, error) {
		res, err := c.NodeList(ctx, moby.NodeListOptions{})
		var names []string
		for _, n := range res.Items {
			names = append(names, n.Description.Hostname)
		}
		return names, err
	})
}

// Reference gives the ID of the node that is called "self", and other words as they are.
func Reference(ctx context.Context, c *client.Client, name string) (string, error) {
	if name != "self" {
		return name, nil
	}
	res, err := c.Info(ctx, moby.InfoOptions{})
	if err != nil || res.Info.Swarm.NodeID != "" {
		return res.Info.Swarm.NodeID, err
	}
	// What asks about the cluster says best why there is none.
	if _, err := c.NodeList(ctx, moby.NodeListOptions{}); err != nil {
		return "", err
	}
	return "", errors.New("node ID not found in /info")
}

func inspectCommand(a *verb.App) *cobra.Command {
	var o inspect.Options
	return o.Command("node", "self|NODE [NODE...]", names(a), func(cmd *cobra.Command, nodes []string) error {
		ctx := cmd.Context()
		c, err := a.Connect()
		if err != nil {
			return err
		}
		return o.Run(a.Out, nodes, func(name string) (inspect.Object, error) {
			id, err := Reference(ctx, c, name)
			if err != nil {
				return inspect.Object{}, err
			}
			res, err := c.NodeInspect(ctx, id, moby.NodeInspectOptions{})
			return inspect.Object{Raw: res.Raw, Type: swarm.Node{}, Page: page{&res.Node}.write}, err
		})
	})
}

func lsCommand(a *verb.App) *cobra.Command {
	var o verb.List
	cmd := o.Command("List the nodes of the cluster", "Print only IDs", func(ctx context.Context) error {
		c, err := a.Connect()
		if err != nil {
			return err
		}
		res, err := c.NodeList(ctx, moby.NodeListOptions{Filters: o.Filter.API()})
		if err != nil {
			return err
		}
		var own swarm.Info
		if len(res.Items) > 0 && !o.Quiet {
			info, err := c.Info(ctx, moby.InfoOptions{})
			if err != nil {
				return err
			}
			own = info.Info.Swarm
		}
		slices.SortStableFunc(res.Items, func(x, y swarm.Node) int { return verb.Natural(x.Description.Hostname, y.Description.Hostname) })
		rows := make([]table.Row, len(res.Items))
		for i := range res.Items {
			rows[i] = &row{&res.Items[i], &own}
		}
		return table.Write(a.Out, formatOf(o.FormatOr(a.Config().NodesFormat), o.Quiet), &row{&swarm.Node{}, &own}, rows)
	})
	return cmd
}

func formatOf(format string, quiet bool) table.Format {
	switch {
	case format == "table" && quiet:
		return "{{.ID}}"
	case format == "table":
		return `table {{.ID}} {{if .Self}}*{{else}} {{end}}\t{{.Hostname}}\t{{.Status}}\t{{.Availability}}\t{{.ManagerStatus}}\t{{.EngineVersion}}`
	case format == "raw" && quiet:
		return "node_id: {{.ID}}"
	case format == "raw":
		return "node_id: {{.ID}}\nhostname: {{.Hostname}}\nstatus: {{.Status}}\navailability: {{.Availability}}\nmanager_status: {{.ManagerStatus}}\n"
	}
	return table.Format(format)
}

// row is a node in a list. Its methods are the fields of a template.
type row struct {
	n   *swarm.Node
	own *swarm.Info // of the node that was asked
}

// Headers gives the title of each column.
func (r *row) Headers() map[string]string {
	return map[string]string{
		"ID": "ID", "Self": "", "Hostname": "HOSTNAME", "Status": "STATUS", "Availability": "AVAILABILITY", "ManagerStatus": "MANAGER STATUS",
		"EngineVersion": "ENGINE VERSION", "TLSStatus": "TLS STATUS",
	}
}

// MarshalJSON gives every field by its name.
func (r *row) MarshalJSON() ([]byte, error) { return table.MarshalRow(r) }

// ID is the node's ID.
func (r *row) ID() string { return r.n.ID }

// Self tells whether it is the node that was asked.
func (r *row) Self() bool { return r.n.ID == r.own.NodeID }

// Hostname is the name of its machine.
func (r *row) Hostname() string { return r.n.Description.Hostname }

// Status is whether it is there.
func (r *row) Status() string { return task.Title(string(r.n.Status.State)) }

// Availability is whether it gets tasks.
func (r *row) Availability() string { return task.Title(string(r.n.Spec.Availability)) }

// ManagerStatus is what a manager is: the leader, or reachable, or not.
func (r *row) ManagerStatus() string {
	switch m := r.n.ManagerStatus; {
	case m == nil:
		return ""
	case m.Leader:
		return "Leader"
	default:
		return task.Title(string(m.Reachability))
	}
}

// TLSStatus is whether it trusts what the cluster trusts.
func (r *row) TLSStatus() string {
	have := r.n.Description.TLSInfo
	if r.own.Cluster == nil || reflect.DeepEqual(r.own.Cluster.TLSInfo, swarm.TLSInfo{}) || reflect.DeepEqual(have, swarm.TLSInfo{}) {
		return "Unknown"
	}
	if reflect.DeepEqual(have, r.own.Cluster.TLSInfo) {
		return "Ready"
	}
	return "Needs Rotation"
}

// EngineVersion is that of its engine.
func (r *row) EngineVersion() string { return r.n.Description.Engine.EngineVersion }

func psCommand(a *verb.App) *cobra.Command {
	var o task.Options
	cmd := &cobra.Command{
		Use:               "ps [OPTIONS] [NODE...]",
		Short:             "List the tasks of nodes: of this one unless told",
		ValidArgsFunction: names(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				args = []string{"self"}
			}
			c, err := a.Connect()
			if err != nil {
				return err
			}
			return ps(cmd.Context(), a, c, &o, args)
		},
	}
	o.AddFlags(cmd.Flags())
	return cmd
}

func ps(ctx context.Context, a *verb.App, c *client.Client, o *task.Options, nodes []string) error {
	var errs []error
	var tasks []swarm.Task
	for _, name := range nodes {
		found, err := tasksOf(ctx, c, o, name)
		if err != nil {
			errs = append(errs, err)
		}
		if moby.IsErrConnectionFailed(err) {
			break
		}
		tasks = append(tasks, found...)
	}
	if len(errs) == 0 || len(tasks) > 0 {
		if err := o.Print(ctx, a, c, tasks); err != nil {
			errs = append(errs, err)
		}
	}
	return verb.Join(errs)
}

func tasksOf(ctx context.Context, c *client.Client, o *task.Options, name string) ([]swarm.Task, error) {
	id, err := Reference(ctx, c, name)
	if err != nil {
		return nil, err
	}
	n, err := c.NodeInspect(ctx, id, moby.NodeInspectOptions{})
	if err != nil {
		return nil, err
	}
	res, err := c.TaskList(ctx, moby.TaskListOptions{Filters: o.Filter.With("node", n.Node.ID).API()})
	return res.Items, err
}

func rmCommand(a *verb.App) *cobra.Command {
	var o moby.NodeRemoveOptions
	cmd := &cobra.Command{
		Use:               "rm [OPTIONS] NODE [NODE...]",
		Aliases:           []string{"remove"},
		Short:             "Remove nodes from the cluster",
		Args:              verb.MinArgs(1),
		ValidArgsFunction: names(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			return a.InTurn(args, func(name string) error {
				_, err := c.NodeRemove(cmd.Context(), name, o)
				return err
			})
		},
	}
	cmd.Flags().BoolVarP(&o.Force, "force", "f", false, "Although it is there, or cannot be reached")
	return cmd
}

func promoteCommand(a *verb.App) *cobra.Command {
	return roleCommand(a, "promote", "Make workers managers", swarm.NodeRoleManager,
		"Node %s is already a manager.\n", "Node %s promoted to a manager in the swarm.\n")
}

func demoteCommand(a *verb.App) *cobra.Command {
	return roleCommand(a, "demote", "Make managers workers", swarm.NodeRoleWorker,
		"Node %s is already a worker.\n", "Manager %s demoted in the swarm.\n")
}

func roleCommand(a *verb.App, name, short string, role swarm.NodeRole, already, done string) *cobra.Command {
	return &cobra.Command{
		Use:               name + " NODE [NODE...]",
		Short:             short,
		Args:              verb.MinArgs(1),
		ValidArgsFunction: names(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, node := range args {
				changed, id, err := change(cmd.Context(), a, node, func(s *swarm.NodeSpec) (bool, error) {
					same := s.Role == role
					s.Role = role
					return !same, nil
				})
				switch {
				case err != nil:
					return err
				case changed:
					a.Printf(done, node)
				default:
					a.Printf(already, id)
				}
			}
			return nil
		},
	}
}

// change changes a node's spec, unless there is nothing to change.
func change(ctx context.Context, a *verb.App, name string, how func(*swarm.NodeSpec) (bool, error)) (changed bool, id string, err error) {
	c, err := a.Connect()
	if err != nil {
		return false, "", err
	}
	res, err := c.NodeInspect(ctx, name, moby.NodeInspectOptions{})
	if err != nil {
		return false, "", err
	}
	n := &res.Node
	if changed, err = how(&n.Spec); err != nil || !changed {
		return false, n.ID, err
	}
	_, err = c.NodeUpdate(ctx, n.ID, moby.NodeUpdateOptions{Version: n.Version, Spec: n.Spec})
	return true, n.ID, err
}

func updateCommand(a *verb.App) *cobra.Command {
	var role, availability string
	var add, remove spec.List
	cmd := &cobra.Command{
		Use:               "update [OPTIONS] NODE",
		Short:             "Change a node",
		Args:              verb.ExactArgs(1),
		ValidArgsFunction: names(a),
		Example: `escale node update --availability drain worker1
escale node update --label-add zone=east worker1`,
	}
	f := cmd.Flags()
	f.StringVar(&role, "role", "", `What it is: "worker", "manager"`)
	f.StringVar(&availability, "availability", "", `Whether it gets tasks: "active", "pause" (no new ones), "drain" (none)`)
	f.Var(&add, "label-add", "Add or change a label: KEY[=VALUE]")
	f.Var(&remove, "label-rm", "Remove a label, by its key")
	_ = cmd.RegisterFlagCompletionFunc("role", verb.Words("worker", "manager"))
	_ = cmd.RegisterFlagCompletionFunc("availability", verb.Words("active", "pause", "drain"))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		_, _, err := change(cmd.Context(), a, args[0], func(s *swarm.NodeSpec) (bool, error) {
			if f.Changed("role") {
				s.Role = swarm.NodeRole(role)
			}
			if f.Changed("availability") {
				s.Availability = swarm.NodeAvailability(availability)
			}
			if s.Labels == nil {
				s.Labels = map[string]string{}
			}
			maps.Copy(s.Labels, spec.KeyValues(add.Values))
			for _, k := range remove.Values {
				if _, ok := s.Labels[k]; !ok {
					return false, fmt.Errorf("key %s doesn't exist in node's labels", k)
				}
				delete(s.Labels, k)
			}
			return true, nil
		})
		if err == nil {
			a.Println(args[0])
		}
		return err
	}
	return cmd
}

// Package stack holds the commands about stacks: the services, networks, secrets and
// configs of a compose file, which bear the stack's name as a label. What reads compose
// files is done by escaled, in the package deploy below.
package stack

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/moby/moby/api/types/swarm"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cli/swarm/service"
	"escale.dev/escale/internal/cli/swarm/task"
	"escale.dev/escale/internal/cli/table"
	"escale.dev/escale/internal/cli/verb"
)

// label is what everything of a stack bears, with the stack's name.
const label = "com.docker.stack.namespace"

// Commands are those of `stack`.
func Commands(a *verb.App) []*cobra.Command {
	return []*cobra.Command{configCommand(a), deployCommand(a), lsCommand(a), psCommand(a), rmCommand(a), servicesCommand(a)}
}

// names offers the names of stacks.
func names(a *verb.App) verb.Completer {
	return a.Complete(func(ctx context.Context, c *client.Client) ([]string, error) {
		list, err := stacks(ctx, c)
		var names []string
		for _, s := range list {
			names = append(names, s.name)
		}
		return names, err
	})
}

// checkName refuses what is no name of a stack.
func checkName(names ...string) error {
	for _, n := range names {
		if strings.TrimFunc(n, func(r rune) bool { return unicode.IsSpace(r) || r == '"' || r == '\'' }) == "" {
			return fmt.Errorf("invalid stack name: %q", n)
		}
	}
	return nil
}

// stack is a name, and how many services bear it.
type stack struct {
	name     string
	services int
}

func stacks(ctx context.Context, c *client.Client) ([]stack, error) {
	res, err := c.ServiceList(ctx, moby.ServiceListOptions{Filters: moby.Filters{}.Add("label", label)})
	if err != nil {
		return nil, err
	}
	count := map[string]int{}
	for _, s := range res.Items {
		name, ok := s.Spec.Labels[label]
		if !ok {
			return nil, fmt.Errorf("cannot get label %s for service %s", label, s.ID)
		}
		count[name]++
	}
	var list []stack
	for name, n := range count {
		list = append(list, stack{name, n})
	}
	slices.SortFunc(list, func(x, y stack) int { return verb.Natural(x.name, y.name) })
	return list, nil
}

func lsCommand(a *verb.App) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:               "ls [OPTIONS]",
		Aliases:           []string{"list"},
		Short:             "List stacks",
		Args:              verb.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			list, err := stacks(cmd.Context(), c)
			if err != nil {
				return err
			}
			rows := make([]table.Row, len(list))
			for i, s := range list {
				rows[i] = &row{s}
			}
			if format == "" || format == "table" {
				format = `table {{.Name}}\t{{.Services}}`
			}
			return table.Write(a.Out, table.Format(format), &row{}, rows)
		},
	}
	cmd.Flags().StringVar(&format, "format", "", verb.FormatHelp)
	return cmd
}

// row is a stack in a list. Its methods are the fields of a template.
type row struct{ s stack }

// Headers gives the title of each column.
func (r *row) Headers() map[string]string {
	return map[string]string{"Name": "NAME", "Services": "SERVICES"}
}

// MarshalJSON gives every field by its name.
func (r *row) MarshalJSON() ([]byte, error) { return table.MarshalRow(r) }

// Name is the stack's name.
func (r *row) Name() string { return r.s.name }

// Services is how many it has.
func (r *row) Services() string { return fmt.Sprint(r.s.services) }

func psCommand(a *verb.App) *cobra.Command {
	var o task.Options
	cmd := &cobra.Command{
		Use:               "ps [OPTIONS] STACK",
		Short:             "List the tasks of a stack",
		Args:              verb.ExactArgs(1),
		ValidArgsFunction: names(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkName(args[0]); err != nil {
				return err
			}
			c, err := a.Connect()
			if err != nil {
				return err
			}
			res, err := c.TaskList(cmd.Context(), moby.TaskListOptions{Filters: o.Filter.With("label", label+"="+args[0]).API()})
			if err != nil {
				return err
			}
			if len(res.Items) == 0 {
				return errors.New("nothing found in stack: " + args[0])
			}
			return o.Print(cmd.Context(), a, c, res.Items)
		},
	}
	o.AddFlags(cmd.Flags())
	return cmd
}

func servicesCommand(a *verb.App) *cobra.Command {
	var o verb.List
	cmd := &cobra.Command{
		Use:               "services [OPTIONS] STACK",
		Short:             "List the services of a stack",
		Args:              verb.ExactArgs(1),
		ValidArgsFunction: names(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkName(args[0]); err != nil {
				return err
			}
			c, err := a.Connect()
			if err != nil {
				return err
			}
			list, err := service.Find(cmd.Context(), c, o.Filter.With("label", label+"="+args[0]), o.Quiet)
			if err != nil {
				return err
			}
			if len(list) == 0 {
				a.Complain("Nothing found in stack:", args[0])
				return nil
			}
			return service.Print(a.Out, o.FormatOr(a.Config().ServicesFormat), o.Quiet, list)
		},
	}
	o.AddFlags(cmd.Flags(), "Print only IDs")
	return cmd
}

func rmCommand(a *verb.App) *cobra.Command {
	var detach bool
	cmd := &cobra.Command{
		Use:               "rm [OPTIONS] STACK [STACK...]",
		Aliases:           []string{"remove", "down"},
		Short:             "Remove stacks: their services, secrets, configs and networks",
		Args:              verb.MinArgs(1),
		ValidArgsFunction: names(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkName(args...); err != nil {
				return err
			}
			c, err := a.Connect()
			if err != nil {
				return err
			}
			var errs []error
			for _, name := range args {
				err := Remove(cmd.Context(), a, c, name)
				switch {
				case err == nil && !detach:
					err = gone(cmd.Context(), c, name)
				case err != nil && !errors.Is(err, errRemoved):
					return err
				}
				if err != nil {
					errs = append(errs, err)
				}
			}
			return verb.Join(errs)
		},
	}
	cmd.Flags().BoolVarP(&detach, "detach", "d", true, "Do not wait until its tasks have ended")
	return cmd
}

var errRemoved = errors.New("failed to remove some resources from stack")

// Remove removes all of a stack, and tells what. Tasks may not have ended when it returns.
func Remove(ctx context.Context, a *verb.App, c *client.Client, name string) error {
	of := moby.Filters{}.Add("label", label+"="+name)
	services, err := c.ServiceList(ctx, moby.ServiceListOptions{Filters: of})
	if err != nil {
		return err
	}
	networks, err := c.NetworkList(ctx, moby.NetworkListOptions{Filters: of})
	if err != nil {
		return err
	}
	secrets, err := c.SecretList(ctx, moby.SecretListOptions{Filters: of})
	if err != nil {
		return err
	}
	configs, err := c.ConfigList(ctx, moby.ConfigListOptions{Filters: of})
	if err != nil {
		return err
	}
	if len(services.Items)+len(networks.Items)+len(secrets.Items)+len(configs.Items) == 0 {
		a.Complain("Nothing found in stack:", name)
		return nil
	}
	r := remover{a: a}
	r.services(ctx, c, services.Items)
	for _, s := range secrets.Items {
		r.remove("secret", s.Spec.Name, s.ID, func() error { _, err := c.SecretRemove(ctx, s.ID, moby.SecretRemoveOptions{}); return err })
	}
	for _, s := range configs.Items {
		r.remove("config", s.Spec.Name, s.ID, func() error { _, err := c.ConfigRemove(ctx, s.ID, moby.ConfigRemoveOptions{}); return err })
	}
	for _, n := range networks.Items {
		r.remove("network", n.Name, n.ID, func() error { _, err := c.NetworkRemove(ctx, n.ID, moby.NetworkRemoveOptions{}); return err })
	}
	if r.failed {
		return fmt.Errorf("%w: %s", errRemoved, name)
	}
	return nil
}

// Prune removes services, and tells which.
func Prune(ctx context.Context, a *verb.App, c *client.Client, services []swarm.Service) {
	r := remover{a: a}
	r.services(ctx, c, services)
}

// remover removes one thing after the other, whatever comes of it.
type remover struct {
	a      *verb.App
	failed bool
}

func (r *remover) remove(kind, name, id string, do func() error) {
	r.a.Println("Removing", kind, name)
	if err := do(); err != nil {
		r.failed = true
		r.a.Complain(fmt.Sprintf("Failed to remove %s %s: %s", kind, id, err))
	}
}

func (r *remover) services(ctx context.Context, c *client.Client, list []swarm.Service) {
	slices.SortFunc(list, func(x, y swarm.Service) int { return strings.Compare(x.Spec.Name, y.Spec.Name) })
	for _, s := range list {
		r.remove("service", s.Spec.Name, s.ID, func() error { _, err := c.ServiceRemove(ctx, s.ID, moby.ServiceRemoveOptions{}); return err })
	}
}

// gone waits until no task of a stack runs any more.
func gone(ctx context.Context, c *client.Client, name string) error {
	for {
		res, err := c.TaskList(ctx, moby.TaskListOptions{Filters: moby.Filters{}.Add("label", label+"="+name)})
		if err != nil {
			return fmt.Errorf("failed to wait on tasks of stack: %s: failed to get tasks: %w", name, err)
		}
		left := slices.ContainsFunc(res.Items, func(t swarm.Task) bool {
			switch t.Status.State {
			case swarm.TaskStateComplete, swarm.TaskStateShutdown, swarm.TaskStateFailed, swarm.TaskStateRejected, swarm.TaskStateRemove, swarm.TaskStateOrphaned:
				return false
			}
			return true
		})
		if !left {
			return nil
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

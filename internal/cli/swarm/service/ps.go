package service

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/swarm"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cli/swarm/node"
	"escale.dev/escale/internal/cli/swarm/task"
	"escale.dev/escale/internal/cli/verb"
)

func psCommand(a *verb.App) *cobra.Command {
	var o task.Options
	cmd := &cobra.Command{
		Use:               "ps [OPTIONS] SERVICE [SERVICE...]",
		Short:             "List the tasks of services",
		Args:              verb.MinArgs(1),
		ValidArgsFunction: names(a),
		RunE: func(cmd *cobra.Command, args []string) error {
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

func ps(ctx context.Context, a *verb.App, c *client.Client, o *task.Options, services []string) error {
	filter, missing, err := byServices(ctx, c, o.Filter, services)
	if err != nil {
		return err
	}
	if filter, err = byNodes(ctx, c, filter); err != nil {
		return err
	}
	res, err := c.TaskList(ctx, moby.TaskListOptions{Filters: filter.API()})
	if err != nil {
		return err
	}
	o.NoTrunc = o.NoTrunc || o.Quiet
	if err := o.Print(ctx, a, c, res.Items); err != nil {
		return err
	}
	if len(missing) > 0 {
		return errors.New(strings.Join(missing, "\n"))
	}
	return nil
}

// byServices adds the IDs of services to a filter: those with that ID, that name, or
// the one whose ID begins so. It gives what to say of those that are not there.
func byServices(ctx context.Context, c *client.Client, f verb.Filter, services []string) (verb.Filter, []string, error) {
	byID, err := c.ServiceList(ctx, moby.ServiceListOptions{Filters: moby.Filters{}.Add("id", services...)})
	if err != nil {
		return nil, nil, err
	}
	byName, err := c.ServiceList(ctx, moby.ServiceListOptions{Filters: moby.Filters{}.Add("name", services...)})
	if err != nil {
		return nil, nil, err
	}
	var missing []string
	for _, name := range services {
		i := slices.IndexFunc(byID.Items, func(s swarm.Service) bool { return s.ID == name })
		if i >= 0 {
			f = f.With("service", name)
			continue
		}
		if i = slices.IndexFunc(byName.Items, func(s swarm.Service) bool { return s.Spec.Name == name }); i >= 0 {
			f = f.With("service", byName.Items[i].ID)
			continue
		}
		var begin []string
		for _, s := range byID.Items {
			if strings.HasPrefix(s.ID, name) {
				begin = append(begin, s.ID)
			}
		}
		switch len(begin) {
		case 0:
			missing = append(missing, "no such service: "+name)
		case 1:
			f = f.With("service", begin[0])
		default:
			return nil, nil, errors.New("multiple services found with provided prefix: " + name)
		}
	}
	if len(missing) == len(services) {
		return nil, nil, errors.New(strings.Join(missing, "\n"))
	}
	return f, missing, nil
}

// byNodes puts this node's ID in the place of "self".
func byNodes(ctx context.Context, c *client.Client, f verb.Filter) (verb.Filter, error) {
	if !f["node"]["self"] {
		return f, nil
	}
	id, err := node.Reference(ctx, c, "self")
	if err != nil {
		return nil, err
	}
	f = f.With("node", id)
	delete(f["node"], "self")
	return f, nil
}

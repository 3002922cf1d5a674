package service

import (
	"context"
	"errors"
	"io"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cli/swarm/inspect"
	"escale.dev/escale/internal/cli/verb"
)

func inspectCommand(a *verb.App) *cobra.Command {
	var o inspect.Options
	cmd := o.Command("service", "SERVICE [SERVICE...]", names(a), func(cmd *cobra.Command, services []string) error {
		ctx := cmd.Context()
		c, err := a.Connect()
		if err != nil {
			return err
		}
		if o.Format == "" {
			o.Format = a.Config().ServiceFormat
		}
		o.Format = strings.TrimPrefix(o.Format, "raw")
		return o.Run(a.Out, services, func(name string) (inspect.Object, error) {
			res, err := c.ServiceInspect(ctx, name, moby.ServiceInspectOptions{InsertDefaults: true})
			if errdefs.IsNotFound(err) {
				err = errors.New("Error: no such service: " + name) //nolint:staticcheck // Docker's words.
			}
			return inspect.Object{Raw: res.Raw, Type: swarm.Service{}, Page: func(w io.Writer) {
				p := page{Writer: w, s: &res.Service, networks: networksOf(ctx, c, &res.Service)}
				p.write()
			}}, err
		})
	})
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		switch {
		case o.Pretty && o.Format != "":
			return errors.New("--format is incompatible with human friendly format")
		case strings.HasPrefix(o.Format, "pretty") && o.Format != "pretty":
			return errors.New("Cannot supply extra formatting options to the pretty template") //nolint:staticcheck // Docker's words.
		}
		return run(cmd, args)
	}
	return cmd
}

// networksOf gives the names of a service's networks, or their IDs where one is not there.
func networksOf(ctx context.Context, c *client.Client, s *swarm.Service) []string {
	var list []string
	for _, n := range s.Spec.TaskTemplate.Networks {
		name := n.Target
		if res, err := c.NetworkInspect(ctx, n.Target, moby.NetworkInspectOptions{Scope: "swarm"}); err == nil && res.Network.ID == n.Target {
			name = res.Network.Name
		}
		list = append(list, name)
	}
	return list
}

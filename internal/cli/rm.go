package cli

import (
	"context"
	"errors"
	"strings"

	"github.com/containerd/errdefs"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func rmCommand(a *app) *cobra.Command {
	var o moby.ContainerRemoveOptions
	cmd := &cobra.Command{
		Use:     "rm [OPTIONS] CONTAINER [CONTAINER...]",
		Aliases: []string{"remove"},
		Example: `escale rm web
escale rm -fv $(escale ps -aq)                      # all of them, running ones too`,
		Args:              minArgs(1),
		ValidArgsFunction: completeContainers(a, allContainers, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			return a.each(cmd.Context(), args, func(ctx context.Context, name string) error {
				if name = strings.Trim(name, "/"); name == "" {
					return errors.New("container name cannot be empty")
				}
				_, err := c.ContainerRemove(ctx, name, o)
				return err
			}, func(err error) error {
				if o.Force && errdefs.IsNotFound(err) {
					a.complain(err) // -f: gone is gone
					return nil
				}
				return err
			})
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.Force, "force", "f", false, "Kill the container first if it runs")
	f.BoolVarP(&o.RemoveLinks, "link", "l", false, "Remove the link of this name")
	f.BoolVarP(&o.RemoveVolumes, "volumes", "v", false, "Remove the container's anonymous volumes too")
	return cmd
}

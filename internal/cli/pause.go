package cli

import (
	"context"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func pauseCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "pause CONTAINER [CONTAINER...]",
		Args:              minArgs(1),
		ValidArgsFunction: completeContainers(a, runningContainers, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			return a.each(cmd.Context(), args, func(ctx context.Context, name string) error {
				_, err := c.ContainerPause(ctx, name, moby.ContainerPauseOptions{})
				return err
			}, nil)
		},
	}
}

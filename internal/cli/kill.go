package cli

import (
	"context"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func killCommand(a *app) *cobra.Command {
	var sig string
	cmd := &cobra.Command{
		Use:               "kill [OPTIONS] CONTAINER [CONTAINER...]",
		Args:              minArgs(1),
		ValidArgsFunction: completeContainers(a, runningContainers, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			return a.each(cmd.Context(), args, func(ctx context.Context, name string) error {
				_, err := c.ContainerKill(ctx, name, moby.ContainerKillOptions{Signal: sig})
				return err
			}, nil)
		},
	}
	cmd.Flags().StringVarP(&sig, "signal", "s", "", "Signal to send")
	_ = cmd.RegisterFlagCompletionFunc("signal", completeWords("TERM", "INT", "KILL", "HUP", "QUIT", "USR1", "USR2"))
	return cmd
}

package cli

import (
	"context"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/client"
)

func killCommand(a *app) *cobra.Command {
	var sig string
	cmd := eachRunning(a, "kill [OPTIONS] CONTAINER [CONTAINER...]", func(ctx context.Context, c *client.Client, name string) error {
		_, err := c.ContainerKill(ctx, name, moby.ContainerKillOptions{Signal: sig})
		return err
	})
	cmd.Flags().StringVarP(&sig, "signal", "s", "", "Signal to send")
	_ = cmd.RegisterFlagCompletionFunc("signal", completeWords(signals...))
	return cmd
}

// signals are the ones that a shell completes; every other is taken too.
var signals = []string{"TERM", "INT", "KILL", "HUP", "QUIT", "USR1", "USR2"}

package cli

import (
	"context"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/client"
)

func pauseCommand(a *app) *cobra.Command {
	return eachRunning(a, "pause CONTAINER [CONTAINER...]", func(ctx context.Context, c *client.Client, name string) error {
		_, err := c.ContainerPause(ctx, name, moby.ContainerPauseOptions{})
		return err
	})
}

func unpauseCommand(a *app) *cobra.Command {
	return eachRunning(a, "unpause CONTAINER [CONTAINER...]", func(ctx context.Context, c *client.Client, name string) error {
		_, err := c.ContainerUnpause(ctx, name, moby.ContainerUnpauseOptions{})
		return err
	})
}

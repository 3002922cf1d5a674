package cli

import (
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func waitCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "wait CONTAINER [CONTAINER...]",
		Args:              minArgs(1),
		ValidArgsFunction: completeContainers(a, runningContainers, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			return inTurn(args, func(name string) error {
				w := c.ContainerWait(cmd.Context(), name, moby.ContainerWaitOptions{})
				select {
				case r := <-w.Result:
					a.println(r.StatusCode)
					return nil
				case err := <-w.Error:
					return err
				}
			})
		},
	}
}

package cli

import (
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func restartCommand(a *app) *cobra.Command {
	var s stopFlags
	cmd := &cobra.Command{
		Use:               "restart [OPTIONS] CONTAINER [CONTAINER...]",
		Args:              minArgs(1),
		ValidArgsFunction: completeContainers(a, allContainers, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			timeout, err := s.wait(cmd.Flags())
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			return inTurn(args, func(name string) error {
				_, err := c.ContainerRestart(cmd.Context(), name, moby.ContainerRestartOptions{Signal: s.signal, Timeout: timeout})
				if err == nil {
					a.println(name)
				}
				return err
			})
		},
	}
	s.add(cmd)
	return orApp(a, cmd)
}

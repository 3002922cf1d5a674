package cli

import (
	"errors"

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
			var errs []error
			for _, name := range args {
				_, err := c.ContainerRestart(cmd.Context(), name, moby.ContainerRestartOptions{Signal: s.signal, Timeout: timeout})
				switch {
				case err == nil:
					a.println(name)
				case moby.IsErrConnectionFailed(err):
					return errors.Join(append(errs, err)...)
				default:
					errs = append(errs, err)
				}
			}
			return errors.Join(errs...)
		},
	}
	s.add(cmd)
	return cmd
}

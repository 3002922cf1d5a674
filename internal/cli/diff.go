package cli

import (
	"errors"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func diffCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "diff CONTAINER",
		Long:              "Each line is a kind and a path: A was added, C was changed, D was deleted.",
		Args:              exactArgs(1),
		ValidArgsFunction: completeContainers(a, allContainers, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] == "" {
				return errors.New("Container name cannot be empty") //nolint:staticcheck // Docker's words.
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			r, err := c.ContainerDiff(cmd.Context(), args[0], moby.ContainerDiffOptions{})
			if err != nil {
				return err
			}
			for _, change := range r.Changes {
				a.println(change.Kind, change.Path)
			}
			return nil
		},
	}
}

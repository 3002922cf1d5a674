package cli

import (
	"errors"
	"fmt"
	"strings"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func renameCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "rename CONTAINER NEW_NAME",
		Args:              exactArgs(2),
		ValidArgsFunction: completeContainers(a, allContainers, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			from, to := strings.TrimSpace(args[0]), strings.TrimSpace(args[1])
			if from == "" || to == "" {
				return errors.New("Error: Neither old nor new names may be empty") //nolint:staticcheck // Docker's words.
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			_, err = c.ContainerRename(cmd.Context(), from, moby.ContainerRenameOptions{NewName: to})
			if err == nil || moby.IsErrConnectionFailed(err) {
				return err
			}
			return fmt.Errorf("%w\nError: failed to rename container named %s", err, from)
		},
	}
}

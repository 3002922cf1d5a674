package cli

import (
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func tagCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "tag SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]",
		Args:              exactArgs(2),
		ValidArgsFunction: completeImages(a, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			_, err = c.ImageTag(cmd.Context(), moby.ImageTagOptions{Source: args[0], Target: args[1]})
			return err
		},
	}
	cmd.Flags().SetInterspersed(false)
	return cmd
}

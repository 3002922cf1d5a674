package cli

import (
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func commitCommand(a *app) *cobra.Command {
	var o moby.ContainerCommitOptions
	var pause bool
	cmd := &cobra.Command{
		Use: "commit [OPTIONS] CONTAINER [REPOSITORY[:TAG]]",
		Example: `escale commit web web:patched
escale commit -m "with nginx" -c 'CMD ["nginx"]' -c 'ENV MODE=live' web web:patched`,
		Args:              rangeArgs(1, 2),
		ValidArgsFunction: completeContainers(a, allContainers, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				o.Reference = args[1]
			}
			o.NoPause = !pause
			c, err := a.client()
			if err != nil {
				return err
			}
			res, err := c.ContainerCommit(cmd.Context(), args[0], o)
			if err != nil {
				return err
			}
			a.println(res.ID)
			return nil
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.StringVarP(&o.Author, "author", "a", "", `Who made the image ("Ann <ann@example.com>")`)
	f.StringArrayVarP(&o.Changes, "change", "c", nil, "Dockerfile instruction to apply to the image")
	f.StringVarP(&o.Comment, "message", "m", "", "Why the image was made")
	f.BoolVarP(&pause, "pause", "p", true, "Pause the container meanwhile")
	return cmd
}

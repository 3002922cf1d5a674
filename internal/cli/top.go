package cli

import (
	"fmt"
	"strings"
	"text/tabwriter"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func topCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "top CONTAINER [ps OPTIONS]",
		Example: `escale top web
escale top web -o pid,rss,args`,
		Args:              minArgs(1),
		ValidArgsFunction: completeContainers(a, runningContainers, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			list, err := c.ContainerTop(cmd.Context(), args[0], moby.ContainerTopOptions{Arguments: args[1:]})
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(a.out, 20, 1, 3, ' ', 0)
			fmt.Fprintln(w, strings.Join(list.Titles, "\t"))
			for _, p := range list.Processes {
				fmt.Fprintln(w, strings.Join(p, "\t"))
			}
			return w.Flush()
		},
	}
	cmd.Flags().SetInterspersed(false) // what follows the container is for ps
	return cmd
}

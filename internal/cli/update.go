package cli

import (
	"context"
	"errors"
	"slices"
	"sync"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/internal/cli/spec"
)

func updateCommand(a *app) *cobra.Command {
	var u spec.Update
	cmd := &cobra.Command{
		Use: "update [OPTIONS] CONTAINER [CONTAINER...]",
		Example: `escale update -m 512m --memory-swap 1g web
escale update --cpus 1.5 --restart unless-stopped web`,
		Args:              minArgs(1),
		ValidArgsFunction: completeContainers(a, allContainers, -1),
	}
	f := cmd.Flags()
	u.AddFlags(f)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if f.NFlag() == 0 {
			return errors.New("you must provide one or more flags when using this command")
		}
		resources, restart, err := u.Build(f)
		if err != nil {
			return err
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		var mu sync.Mutex
		var warnings []string
		err = a.each(cmd.Context(), args, func(ctx context.Context, name string) error {
			r, p := resources, restart
			res, err := c.ContainerUpdate(ctx, name, moby.ContainerUpdateOptions{Resources: &r, RestartPolicy: &p})
			mu.Lock()
			defer mu.Unlock()
			for _, w := range res.Warnings {
				if !slices.Contains(warnings, w) {
					warnings = append(warnings, w)
				}
			}
			return err
		}, nil)
		for _, w := range warnings {
			a.println(w)
		}
		return err
	}
	return cmd
}

package cli

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

type rmiOptions struct {
	force, noPrune bool
	platforms      []string
}

func rmiCommand(a *app) *cobra.Command {
	var o rmiOptions
	cmd := &cobra.Command{
		Use:               "rmi [OPTIONS] IMAGE [IMAGE...]",
		Args:              minArgs(1),
		ValidArgsFunction: completeImages(a, -1),
		RunE:              func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), a, args) },
	}
	f := cmd.Flags()
	f.BoolVarP(&o.force, "force", "f", false, "Remove the image even if stopped containers use it")
	f.BoolVar(&o.noPrune, "no-prune", false, "Keep parents that have no name")
	f.StringSliceVar(&o.platforms, "platform", nil, "Remove only this platform: OS[/ARCH[/VARIANT]]")
	return cmd
}

func (o *rmiOptions) run(ctx context.Context, a *app, names []string) error {
	opts := moby.ImageRemoveOptions{Force: o.force, PruneChildren: !o.noPrune}
	for _, s := range o.platforms {
		p, err := parsePlatform(s)
		if err != nil {
			return err
		}
		if p != nil {
			opts.Platforms = append(opts.Platforms, *p)
		}
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	var errs []error
	fatal := false
	for _, n := range names {
		res, err := c.ImageRemove(ctx, n, opts)
		if moby.IsErrConnectionFailed(err) {
			return err
		}
		if err != nil {
			fatal = fatal || !errdefs.IsNotFound(err)
			errs = append(errs, err)
			continue
		}
		for _, d := range res.Items {
			if d.Deleted != "" {
				a.println("Deleted:", d.Deleted)
			} else {
				a.println("Untagged:", d.Untagged)
			}
		}
	}
	err = errors.Join(errs...)
	if err != nil && o.force && !fatal {
		a.complain(err) // -f: gone is gone
		return nil
	}
	return err
}

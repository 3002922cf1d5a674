package cli

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/docker/go-units"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func systemPruneCommand(a *app) *cobra.Command {
	var o pruneOptions
	var volumes bool
	cmd := &cobra.Command{
		Use:               "prune [OPTIONS]",
		Short:             "Remove what nothing uses: containers, networks, images, build cache",
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.system(cmd.Context(), a, volumes)
		},
	}
	o.addFlags(cmd)
	f := cmd.Flags()
	f.BoolVarP(&o.all, "all", "a", false, "Remove every image that no container uses, not just dangling ones")
	f.BoolVar(&volumes, "volumes", false, "Remove anonymous volumes too")
	return cmd
}

// system removes everything that nothing uses.
func (o *pruneOptions) system(ctx context.Context, a *app, volumes bool) error {
	if _, ok := o.filter["until"]; ok && volumes {
		return errors.New(`ERROR: The "until" filter is not supported with "--volumes"`) //nolint:staticcheck // Docker's words.
	}
	if _, err := a.client(); err != nil { // the filters of the configuration are read with it
		return err
	}
	yes, err := o.agreed(ctx, a, o.systemWarning(a, volumes))
	if err != nil || !yes {
		return err
	}
	named := pruneOptions{filter: o.filter} // without all: volumes with a name stay
	steps := []func(context.Context, *app) (string, uint64, error){o.containers, o.networks}
	if volumes {
		steps = append(steps, named.volumes)
	}
	steps = append(steps, o.images, o.buildCache)
	var sum uint64
	for _, step := range steps {
		text, bytes, err := step(ctx, a)
		if err != nil {
			return err
		}
		sum += bytes
		if text != "" {
			a.println(text)
		}
	}
	a.println("Total reclaimed space:", units.HumanSize(float64(sum)))
	return nil
}

// systemWarning says what will go.
func (o *pruneOptions) systemWarning(a *app, volumes bool) string {
	what := []string{"all stopped containers", "all networks not used by at least one container"}
	if volumes {
		what = append(what, "all anonymous volumes not used by at least one container")
	}
	if o.all {
		what = append(what, "all images without at least one container associated to them", "all build cache")
	} else {
		what = append(what, "all dangling images", "unused build cache")
	}
	var b strings.Builder
	b.WriteString("WARNING! This will remove:\n")
	for _, w := range what {
		b.WriteString("  - " + w + "\n")
	}
	if lines := filterLines(o.filters(a)); len(lines) > 0 {
		b.WriteString("\n  Items to be pruned will be filtered with:\n")
		for _, l := range lines {
			b.WriteString("  - " + l + "\n")
		}
	}
	b.WriteString("\nAre you sure you want to continue?")
	return b.String()
}

func filterLines(f moby.Filters) []string {
	var lines []string
	for name, values := range f {
		for v := range values {
			lines = append(lines, name+"="+v)
		}
	}
	slices.Sort(lines)
	return lines
}

// buildCache removes what builds have left and tells what.
func (o *pruneOptions) buildCache(ctx context.Context, a *app) (string, uint64, error) {
	res, err := a.conn.BuildCachePrune(ctx, moby.BuildCachePruneOptions{All: o.all, Filters: o.filters(a)})
	if err != nil || len(res.Report.CachesDeleted) == 0 {
		return "", 0, err
	}
	return "Deleted build cache objects:\n" + strings.Join(res.Report.CachesDeleted, "\n") + "\n", res.Report.SpaceReclaimed, nil
}

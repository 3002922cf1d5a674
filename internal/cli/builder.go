package cli

import (
	"context"
	"errors"
	"strings"

	"github.com/docker/go-units"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func builderCommands(a *app) []*cobra.Command {
	return []*cobra.Command{builderPruneCommand(a)}
}

// cachePrune are the options of builder prune.
type cachePrune struct {
	pruneOptions
	keep, reserved, most, free string
}

func builderPruneCommand(a *app) *cobra.Command {
	var o cachePrune
	cmd := &cobra.Command{
		Use:               "prune [OPTIONS]",
		Short:             "Remove build cache",
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			what := "all dangling build cache"
			if o.all {
				what = "all build cache"
			}
			return o.prune(cmd.Context(), a, what, o.cache)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.force, "force", "f", false, "Do not ask")
	f.BoolVarP(&o.all, "all", "a", false, "Remove all that is not in use, not just what is dangling")
	f.Var(&o.filter, "filter", `Remove only what matches: until=24h, id=…, type=…, description=…, shared, private`)
	f.StringVar(&o.keep, "keep-storage", "", "Space that the cache may keep")
	f.StringVar(&o.reserved, "reserved-space", "", "Space that the cache may always keep")
	f.StringVar(&o.most, "max-used-space", "", "Space that the cache may use at most")
	f.StringVar(&o.free, "min-free-space", "", "Space of the disk that is to be free")
	return cmd
}

// cache removes parts of the cache and tells which, and how many bytes that gave
// back.
func (o *cachePrune) cache(ctx context.Context, a *app) (string, uint64, error) {
	opts := moby.BuildCachePruneOptions{All: o.all, Filters: o.filters(a)}
	if o.keep != "" && o.reserved != "" {
		return "", 0, errors.New("--keep-storage and --reserved-space say the same: give one of them")
	}
	for _, size := range []struct {
		flag, text string
		to         *int64
	}{{"keep-storage", o.keep, &opts.ReservedSpace}, {"reserved-space", o.reserved, &opts.ReservedSpace}, {"max-used-space", o.most, &opts.MaxUsedSpace}, {"min-free-space", o.free, &opts.MinFreeSpace}} {
		if size.text == "" {
			continue
		}
		n, err := units.RAMInBytes(size.text)
		if err != nil {
			return "", 0, errors.New("invalid argument " + `"` + size.text + `" for --` + size.flag + ": " + err.Error())
		}
		*size.to = n
	}
	res, err := a.conn.BuildCachePrune(ctx, opts)
	if err != nil || len(res.Report.CachesDeleted) == 0 {
		return "", 0, err
	}
	return "Deleted build cache objects:\n" + strings.Join(res.Report.CachesDeleted, "\n") + "\n", res.Report.SpaceReclaimed, nil
}

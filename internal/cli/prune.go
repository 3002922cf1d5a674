package cli

import (
	"bufio"
	"context"
	"maps"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/internal/cli/tty"
	"escale.dev/escale/internal/cli/verb"
)

type pruneOptions struct {
	all, force bool
	filter     filterFlag
}

func (o *pruneOptions) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVarP(&o.force, "force", "f", false, "Do not ask")
	f.Var(&o.filter, "filter", `Prune only what matches: until=TIME, label=KEY[=VALUE], label!=…`)
}

// filters adds those of the configuration to the command line's; what the
// command line says of a label wins.
func (o *pruneOptions) filters(a *app) moby.Filters {
	out := moby.Filters{}
	maps.Copy(out, o.filter)
	given := out.Clone()
	for _, f := range a.config.PruneFilters {
		name, value, ok := verb.CutFilter(f)
		opposite := map[string]string{"label": "label!", "label!": "label"}[name]
		if ok && !given[name][value] && !given[opposite][value] {
			out.Add(name, value)
		}
	}
	return out
}

func containerPruneCommand(a *app) *cobra.Command {
	var o pruneOptions
	cmd := &cobra.Command{
		Use:               "prune [OPTIONS]",
		Short:             "Remove all stopped containers",
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.prune(cmd.Context(), a, "all stopped containers", o.containers)
		},
	}
	o.addFlags(cmd)
	return cmd
}

// containers removes containers and tells which, and how many bytes that gave back.
func (o *pruneOptions) containers(ctx context.Context, a *app) (string, uint64, error) {
	res, err := a.conn.ContainerPrune(ctx, moby.ContainerPruneOptions{Filters: o.filters(a)})
	if err != nil || len(res.Report.ContainersDeleted) == 0 {
		return "", 0, err
	}
	return "Deleted Containers:\n" + strings.Join(res.Report.ContainersDeleted, "\n") + "\n", res.Report.SpaceReclaimed, nil
}

func imagePruneCommand(a *app) *cobra.Command {
	var o pruneOptions
	cmd := &cobra.Command{
		Use:               "prune [OPTIONS]",
		Short:             "Remove unused images",
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			what := "all dangling images"
			if o.all {
				what = "all images without at least one container associated to them"
			}
			return o.prune(cmd.Context(), a, what, o.images)
		},
	}
	o.addFlags(cmd)
	cmd.Flags().BoolVarP(&o.all, "all", "a", false, "Remove every image that no container uses, not just dangling ones")
	return cmd
}

// images removes images and tells which, and how many bytes that gave back.
func (o *pruneOptions) images(ctx context.Context, a *app) (string, uint64, error) {
	filters := o.filters(a).Clone().Add("dangling", strconv.FormatBool(!o.all))
	res, err := a.conn.ImagePrune(ctx, moby.ImagePruneOptions{Filters: filters})
	if err != nil || len(res.Report.ImagesDeleted) == 0 {
		return "", 0, err
	}
	var b strings.Builder
	b.WriteString("Deleted Images:\n")
	for _, d := range res.Report.ImagesDeleted {
		if d.Untagged != "" {
			b.WriteString("untagged: " + d.Untagged + "\n")
		} else {
			b.WriteString("deleted: " + d.Deleted + "\n")
		}
	}
	return b.String(), res.Report.SpaceReclaimed, nil
}

// agreed connects, and asks the question unless told not to.
func (o *pruneOptions) agreed(ctx context.Context, a *app, question string) (bool, error) {
	if _, err := a.client(); err != nil || o.force {
		return err == nil, err
	}
	return a.confirm(ctx, question)
}

// prune asks, unless told not to, and prints what was removed.
func (o *pruneOptions) prune(ctx context.Context, a *app, what string, do func(context.Context, *app) (string, uint64, error)) error {
	yes, err := o.agreed(ctx, a, "WARNING! This will remove "+what+".\nAre you sure you want to continue?")
	if err != nil || !yes {
		return err
	}
	text, bytes, err := do(ctx, a)
	if err != nil {
		return err
	}
	if text != "" {
		a.println(text)
	}
	a.println("Total reclaimed space:", units.HumanSize(float64(bytes)))
	return nil
}

// confirm asks on stdout and takes y or Y for a yes; anything else, the end of
// input too, is a no.
func (a *app) confirm(ctx context.Context, question string) (bool, error) {
	a.printf("%s [y/N] ", question)
	answer := make(chan bool, 1)
	go func() {
		line, err := bufio.NewReader(a.in).ReadString('\n')
		if err != nil && tty.IsTerminal(a.in) { // nobody has ended the line
			a.println()
		}
		answer <- strings.EqualFold(strings.TrimSpace(line), "y")
	}()
	select {
	case yes := <-answer:
		return yes, nil
	case <-ctx.Done():
		a.println()
		return false, ctx.Err()
	}
}

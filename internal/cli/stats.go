package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cli/table"
)

type statsOptions struct {
	all, noStream, noTrunc bool
	format                 string
}

func statsCommand(a *app) *cobra.Command {
	var o statsOptions
	cmd := &cobra.Command{
		Use: "stats [OPTIONS] [CONTAINER...]",
		Example: `escale stats
escale stats --no-stream --format '{{.Name}} {{.MemUsage}}' web`,
		ValidArgsFunction: completeContainers(a, runningContainers, -1),
		RunE:              func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), a, args) },
	}
	f := cmd.Flags()
	f.BoolVarP(&o.all, "all", "a", false, "Show stopped containers too")
	f.StringVar(&o.format, "format", "", formatHelp)
	f.BoolVar(&o.noStream, "no-stream", false, "Show the figures once and end")
	f.BoolVar(&o.noTrunc, "no-trunc", false, "Do not shorten IDs")
	return cmd
}

func (o *statsOptions) run(ctx context.Context, a *app, names []string) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	f := cmp.Or(o.format, a.config.StatsFormat, "table")
	if f == "table" {
		f = statsTable
	}
	format := table.Format(f)
	// A template with a mistake is told before anything is waited for.
	probe := &statsRow{s: &container.StatsResponse{}, trunc: true}
	if _, err := table.Uses(format, probe, func() bool { return false }); err != nil {
		return errors.New(strings.Replace(err.Error(), "failed to execute template", "template parsing error", 1)) // as the stock client says it here
	}
	if o.noStream {
		return o.once(ctx, a, c, names, format)
	}
	b := &board{a: a, c: c, o: o, format: format, follow: len(names) == 0}
	return b.show(ctx, names)
}

// listed gives the ids of the containers to show when none was named.
func (o *statsOptions) listed(ctx context.Context, c *client.Client) ([]string, error) {
	res, err := c.ContainerList(ctx, moby.ContainerListOptions{All: o.all})
	if err != nil {
		return nil, err
	}
	ids := make([]string, len(res.Items))
	for i := range res.Items {
		ids[i] = res.Items[i].ID
	}
	return ids, nil
}

// once prints one sample of each.
func (o *statsOptions) once(ctx context.Context, a *app, c *client.Client, names []string, format table.Format) error {
	listed := len(names) == 0
	if listed {
		var err error
		if names, err = o.listed(ctx, c); err != nil {
			return err
		}
	}
	rows := make([]*statsRow, len(names))
	errs := make([]error, len(names))
	slots := make(chan struct{}, 50)
	var all sync.WaitGroup
	for i, name := range names {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			errs[i] = samples(ctx, c, name, false, func(s *container.StatsResponse) {
				rows[i] = &statsRow{container: name, s: s, known: true, trunc: !o.noTrunc}
			})
			if listed && errdefs.IsNotFound(errs[i]) {
				errs[i] = nil // removed meanwhile
			}
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	var out []table.Row
	for _, r := range rows {
		if r != nil {
			out = append(out, r)
		}
	}
	return table.Write(a.out, format, &statsRow{}, out)
}

// samples calls f with each sample of a container, until there are no more.
func samples(ctx context.Context, c *client.Client, name string, stream bool, f func(*container.StatsResponse)) error {
	res, err := c.ContainerStats(ctx, name, moby.ContainerStatsOptions{Stream: stream, IncludePreviousSample: !stream})
	if err != nil {
		return err
	}
	defer res.Body.Close()
	d := json.NewDecoder(res.Body)
	for {
		s := new(container.StatsResponse)
		if err := d.Decode(s); err != nil {
			return nil // the engine has told all, or was stopped: what is shown last stays
		}
		f(s)
	}
}

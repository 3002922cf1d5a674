package cli

import (
	"context"

	"github.com/moby/moby/api/types/container"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/internal/cli/table"
	"escale.dev/escale/internal/cli/verb"
)

const (
	formatHelp  = verb.FormatHelp
	inspectHelp = verb.InspectHelp
	filterHelp  = verb.FilterHelp
)

type psOptions struct {
	all, latest, noTrunc, quiet, size bool
	last                              int
	format                            string
	filter                            filterFlag
}

func psCommand(a *app) *cobra.Command {
	var o psOptions
	cmd := &cobra.Command{
		Use: "ps [OPTIONS]",
		Example: `escale ps -a
escale ps -f status=exited -f label=app=web -q
escale ps --format 'table {{.Names}}\t{{.Status}}\t{{.Ports}}'`,
		Args:              cobra.ArbitraryArgs, // one may be an app's name
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) > 0 && a.isApp(cmd.Context(), args[0]):
				return a.appVerb(cmd, args[0], "ps")
			case len(args) > 0:
				return noArgs(cmd, args)
			}
			return o.run(cmd.Context(), a, cmd.Flags().Changed("size"))
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.all, "all", "a", false, "Show stopped containers too")
	f.VarP(&o.filter, "filter", "f", filterHelp)
	f.StringVar(&o.format, "format", "", formatHelp)
	f.IntVarP(&o.last, "last", "n", -1, "Show the last n containers made, in any state")
	f.BoolVarP(&o.latest, "latest", "l", false, "Show the container made last, in any state")
	f.BoolVar(&o.noTrunc, "no-trunc", false, "Do not shorten IDs and commands")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "Print only IDs")
	f.BoolVarP(&o.size, "size", "s", false, "Show the size of files")
	return cmd
}

func (o *psOptions) run(ctx context.Context, a *app, sizeGiven bool) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	format := o.format
	switch {
	case format == "":
		format = a.config.PsFormat
	case o.quiet:
		a.complain("WARNING: Ignoring custom format, because both --format and --quiet are set.")
	}
	list := moby.ContainerListOptions{All: o.all, Limit: o.last, Size: o.size, Filters: moby.Filters(o.filter)}
	if o.latest && o.last == -1 {
		list.Limit = 1
	}
	if format != "" {
		probe := &psRow{c: &container.Summary{}}
		used, err := table.Uses(table.Format(format), probe, func() bool { return probe.sizeAsked })
		if err != nil {
			return err
		}
		list.Size = list.Size || used && !o.quiet && !sizeGiven
	}
	res, err := c.ContainerList(ctx, list)
	if err != nil {
		return err
	}
	rows := make([]table.Row, len(res.Items))
	for i := range res.Items {
		rows[i] = &psRow{c: &res.Items[i], trunc: !o.noTrunc}
	}
	return table.Write(a.out, psFormat(format, o.quiet, list.Size), &psRow{}, rows)
}

func psFormat(format string, quiet, size bool) table.Format {
	const columns = `table {{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}`
	switch format {
	case "raw":
		if quiet {
			return `container_id: {{.ID}}`
		}
		raw := "container_id: {{.ID}}\nimage: {{.Image}}\ncommand: {{.Command}}\ncreated_at: {{.CreatedAt}}\n" +
			"state: {{- pad .State 1 0}}\nstatus: {{- pad .Status 1 0}}\nnames: {{.Names}}\n" +
			"labels: {{- pad .Labels 1 0}}\nports: {{- pad .Ports 1 0}}\n"
		if size {
			raw += "size: {{.Size}}\n"
		}
		return table.Format(raw)
	case "table", "":
		format = columns
		if size {
			format += `\t{{.Size}}`
		}
	}
	if quiet {
		return "{{.ID}}"
	}
	return table.Format(format)
}

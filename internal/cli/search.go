package cli

import (
	"cmp"
	"context"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/registry"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/internal/cli/table"
)

type searchOptions struct {
	filter  filterFlag
	format  string
	limit   int
	noTrunc bool
}

func searchCommand(a *app) *cobra.Command {
	var o searchOptions
	cmd := &cobra.Command{
		Use:               "search [OPTIONS] TERM",
		Args:              exactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), a, args[0]) },
	}
	f := cmd.Flags()
	f.VarP(&o.filter, "filter", "f", "Show only what fits: is-official=true, stars=N")
	f.StringVar(&o.format, "format", "", formatHelp)
	f.IntVar(&o.limit, "limit", 0, "Show this many at most")
	f.BoolVar(&o.noTrunc, "no-trunc", false, "Do not shorten descriptions")
	return cmd
}

func (o *searchOptions) run(ctx context.Context, a *app, term string) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	server := ""
	if first, _, ok := strings.Cut(term, "/"); ok && (strings.ContainsAny(first, ".:") || first == "localhost") {
		server = first
	}
	res, err := c.ImageSearch(ctx, term, moby.ImageSearchOptions{RegistryAuth: a.registryAuth(ctx, server), Filters: moby.Filters(o.filter), Limit: o.limit})
	if err != nil {
		return err
	}
	rows := make([]table.Row, len(res.Items))
	for i := range res.Items {
		rows[i] = &searchRow{r: &res.Items[i], trunc: !o.noTrunc}
	}
	format := table.Format(cmp.Or(o.format, "table"))
	if format == "table" {
		format = `table {{.Name}}\t{{.Description}}\t{{.StarCount}}\t{{.IsOfficial}}`
	}
	return table.Write(a.out, format, &searchRow{}, rows)
}

// searchRow is a repository that was found. Its methods are the fields of a template.
type searchRow struct {
	r     *registry.SearchResult
	trunc bool
}

// Headers gives the title of each column.
func (r *searchRow) Headers() map[string]string {
	return map[string]string{"Name": "NAME", "Description": "DESCRIPTION", "StarCount": "STARS", "IsOfficial": "OFFICIAL"}
}

// MarshalJSON gives every field by its name.
func (r *searchRow) MarshalJSON() ([]byte, error) { return table.MarshalRow(r) }

// Name is what to pull.
func (r *searchRow) Name() string { return r.r.Name }

// Description is what its owner says of it.
func (r *searchRow) Description() string {
	s := strings.ReplaceAll(strings.ReplaceAll(r.r.Description, "\n", " "), "\r", " ")
	if r.trunc {
		return table.Ellipsis(s, 45)
	}
	return s
}

// StarCount is how many people marked it.
func (r *searchRow) StarCount() string { return strconv.Itoa(r.r.StarCount) }

// IsOfficial marks what the registry's owner looks after.
func (r *searchRow) IsOfficial() string {
	if r.r.IsOfficial {
		return "[OK]"
	}
	return ""
}

package cli

import (
	"context"
	"slices"
	"strings"

	"escale.dev/escale/client"
	"github.com/moby/moby/api/types/plugin"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/internal/cli/table"
	"escale.dev/escale/internal/cli/verb"
)

type pluginLsOptions struct {
	verb.List
	noTrunc bool
}

func pluginLsCommand(a *app) *cobra.Command {
	var o pluginLsOptions
	cmd := o.Command("List plugins", "Print only ids", func(ctx context.Context) error { return o.run(ctx, a) })
	cmd.Flags().BoolVar(&o.noTrunc, "no-trunc", false, "Do not shorten ids and descriptions")
	return cmd
}

func (o *pluginLsOptions) run(ctx context.Context, a *app) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	res, err := c.PluginList(ctx, moby.PluginListOptions{Filters: moby.Filters(o.Filter)})
	if err != nil {
		return err
	}
	slices.SortFunc(res.Items, func(x, y plugin.Plugin) int { return strings.Compare(x.Name, y.Name) })
	rows := make([]table.Row, len(res.Items))
	for i := range res.Items {
		rows[i] = &pluginRow{&res.Items[i], o.noTrunc}
	}
	return table.Write(a.out, pluginsFormat(o.FormatOr(a.config.PluginsFormat), o.Quiet), &pluginRow{}, rows)
}

func pluginsFormat(format string, quiet bool) table.Format {
	switch {
	case format == "table" && quiet:
		return "{{.ID}}"
	case format == "table":
		return `table {{.ID}}\t{{.Name}}\t{{.Description}}\t{{.Enabled}}`
	case format == "raw" && quiet:
		return "plugin_id: {{.ID}}"
	case format == "raw":
		return "plugin_id: {{.ID}}\nname: {{.Name}}\ndescription: {{.Description}}\nenabled: {{.Enabled}}\n"
	}
	return table.Format(format)
}

// pluginRow is a plugin in a list. Its methods are the fields of a template.
type pluginRow struct {
	p    *plugin.Plugin
	full bool
}

// Headers gives the title of each column.
func (r *pluginRow) Headers() map[string]string {
	return map[string]string{"ID": "ID", "Name": "NAME", "Description": "DESCRIPTION", "Enabled": "ENABLED", "PluginReference": "IMAGE"}
}

// MarshalJSON gives every field by its name.
func (r *pluginRow) MarshalJSON() ([]byte, error) { return table.MarshalRow(r) }

// ID is the plugin's id.
func (r *pluginRow) ID() string {
	if r.full || len(r.p.ID) < 12 {
		return r.p.ID
	}
	return r.p.ID[:12]
}

// Name is the plugin's name here.
func (r *pluginRow) Name() string { return r.p.Name }

// Description is what its maker says of it.
func (r *pluginRow) Description() string {
	text := strings.ReplaceAll(strings.ReplaceAll(r.p.Config.Description, "\n", ""), "\r", "")
	if runes := []rune(text); !r.full && len(runes) > 45 {
		return string(runes[:44]) + "…"
	}
	return text
}

// Enabled tells whether it runs.
func (r *pluginRow) Enabled() bool { return r.p.Enabled }

// PluginReference is where it came from.
func (r *pluginRow) PluginReference() string { return r.p.PluginReference }

// completePlugins offers the names of plugins.
func completePlugins(a *app) completer {
	return completeListed(a, func(ctx context.Context, c *client.Client) ([]string, error) {
		res, err := c.PluginList(ctx, moby.PluginListOptions{})
		var names []string
		for i := range res.Items {
			names = append(names, res.Items[i].Name)
		}
		return names, err
	})
}

package cli

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/network"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/internal/cli/table"
	"escale.dev/escale/internal/cli/verb"
)

// networkCommands are those of the group network.
func networkCommands(a *app) []*cobra.Command {
	return []*cobra.Command{
		networkConnectCommand(a), networkCreateCommand(a), networkDisconnectCommand(a), networkInspectCommand(a),
		networkLsCommand(a), networkPruneCommand(a), networkRmCommand(a),
	}
}

func networkInspectCommand(a *app) *cobra.Command {
	cmd, _ := inspectOne(a, "network", completeNetworkNames(a))
	return cmd
}

func networkPruneCommand(a *app) *cobra.Command {
	var o pruneOptions
	cmd := &cobra.Command{
		Use:               "prune [OPTIONS]",
		Short:             "Remove networks that no container is on",
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			yes, err := o.agreed(ctx, a, "WARNING! This will remove all custom networks not used by at least one container.\nAre you sure you want to continue?")
			if err != nil || !yes {
				return err
			}
			text, _, err := o.networks(ctx, a)
			if text != "" {
				a.println(text)
			}
			return err
		},
	}
	o.addFlags(cmd)
	return cmd
}

// networks removes networks and tells which.
func (o *pruneOptions) networks(ctx context.Context, a *app) (string, uint64, error) {
	res, err := a.conn.NetworkPrune(ctx, moby.NetworkPruneOptions{Filters: o.filters(a)})
	if err != nil || len(res.Report.NetworksDeleted) == 0 {
		return "", 0, err
	}
	return "Deleted Networks:\n" + strings.Join(res.Report.NetworksDeleted, "\n") + "\n", 0, nil
}

type networkLsOptions struct {
	verb.List
	noTrunc bool
}

func networkLsCommand(a *app) *cobra.Command {
	var o networkLsOptions
	cmd := o.Command("List networks", "Print only IDs", func(ctx context.Context) error { return o.run(ctx, a) })
	cmd.Flags().BoolVar(&o.noTrunc, "no-trunc", false, "Do not shorten IDs")
	return cmd
}

func (o *networkLsOptions) run(ctx context.Context, a *app) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	res, err := c.NetworkList(ctx, moby.NetworkListOptions{Filters: moby.Filters(o.Filter)})
	if err != nil {
		return err
	}
	slices.SortFunc(res.Items, func(x, y network.Summary) int { return cmp.Compare(x.Name, y.Name) })
	rows := make([]table.Row, len(res.Items))
	for i := range res.Items {
		rows[i] = &networkRow{n: &res.Items[i].Network, trunc: !o.noTrunc}
	}
	return table.Write(a.out, networksFormat(o.FormatOr(a.config.NetworksFormat), o.Quiet), &networkRow{n: &network.Network{}}, rows)
}

func networksFormat(format string, quiet bool) table.Format {
	switch {
	case format == "table" && quiet:
		return "{{.ID}}"
	case format == "table":
		return `table {{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}`
	case format == "raw" && quiet:
		return "network_id: {{.ID}}"
	case format == "raw":
		return "network_id: {{.ID}}\nname: {{.Name}}\ndriver: {{.Driver}}\nscope: {{.Scope}}\n"
	}
	return table.Format(format)
}

// networkRow is a network in a list. Its methods are the fields of a template.
type networkRow struct {
	n     *network.Network
	trunc bool
}

// Headers gives the title of each column.
func (r *networkRow) Headers() map[string]string {
	return map[string]string{
		"ID": "NETWORK ID", "Name": "NAME", "Driver": "DRIVER", "Scope": "SCOPE", "IPv4": "IPV4", "IPv6": "IPV6",
		"Internal": "INTERNAL", "Labels": "LABELS", "CreatedAt": "CREATED AT",
	}
}

// MarshalJSON gives every field by its name.
func (r *networkRow) MarshalJSON() ([]byte, error) { return table.MarshalRow(r) }

// ID is the network's ID, short unless --no-trunc.
func (r *networkRow) ID() string { return shortID(r.n.ID, r.trunc) }

// Name is the network's name.
func (r *networkRow) Name() string { return r.n.Name }

// Driver is who makes it.
func (r *networkRow) Driver() string { return r.n.Driver }

// Scope is how far it reaches.
func (r *networkRow) Scope() string { return r.n.Scope }

// IPv4 tells whether it has addresses of version 4.
func (r *networkRow) IPv4() string { return strconv.FormatBool(r.n.EnableIPv4) }

// IPv6 tells whether it has addresses of version 6.
func (r *networkRow) IPv6() string { return strconv.FormatBool(r.n.EnableIPv6) }

// Internal tells whether it leads nowhere else.
func (r *networkRow) Internal() string { return strconv.FormatBool(r.n.Internal) }

// Labels lists the labels.
func (r *networkRow) Labels() string { return labelList(r.n.Labels) }

// Label is the value of one label.
func (r *networkRow) Label(name string) string { return r.n.Labels[name] }

// CreatedAt is when it was made.
func (r *networkRow) CreatedAt() string { return r.n.Created.String() }

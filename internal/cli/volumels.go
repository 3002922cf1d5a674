package cli

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strconv"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/volume"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/internal/cli/table"
	"escale.dev/escale/internal/cli/verb"
)

type volumeLsOptions struct {
	verb.List
	cluster bool
}

func volumeLsCommand(a *app) *cobra.Command {
	var o volumeLsOptions
	cmd := o.Command("List volumes", "Print only names", func(ctx context.Context) error {
		if o.cluster {
			return o.ofCluster(ctx, a)
		}
		return o.run(ctx, a)
	})
	cmd.Flags().BoolVar(&o.cluster, "cluster", false, "List the volumes of all nodes, and where they are")
	return cmd
}

// ofCluster lists the volumes of all nodes.
func (o *volumeLsOptions) ofCluster(ctx context.Context, a *app) error {
	if len(o.Filter) > 0 {
		return errors.New("conflicting options: --filter cannot be used with --cluster")
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	list, missing, err := c.ClusterVolumes(ctx)
	if err != nil {
		return err
	}
	rows := make([]table.Row, len(list))
	for i := range list {
		rows[i] = &placedRow{volumeRow{&list[i].Volume}, list[i].Node.Name}
	}
	format := volumesFormat(o.FormatOr(a.config.VolumesFormat), o.Quiet)
	if o.FormatOr(a.config.VolumesFormat) == "table" && !o.Quiet {
		format = `table {{.Driver}}\t{{.Name}}\t{{.Node}}`
	}
	if err := table.Write(a.out, format, &placedRow{}, rows); err != nil {
		return err
	}
	for _, name := range missing {
		a.complain("node " + name + " is not available: its volumes are not listed")
	}
	return nil
}

// placedRow is a volume of some node in a list.
type placedRow struct {
	volumeRow
	node string
}

// Headers gives the title of each column.
func (r *placedRow) Headers() map[string]string {
	h := r.volumeRow.Headers()
	h["Node"] = "NODE"
	return h
}

// MarshalJSON gives every field by its name.
func (r *placedRow) MarshalJSON() ([]byte, error) { return table.MarshalRow(r) }

// Node is the name of the node that it is on.
func (r *placedRow) Node() string { return r.node }

func (o *volumeLsOptions) run(ctx context.Context, a *app) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	res, err := c.VolumeList(ctx, moby.VolumeListOptions{Filters: moby.Filters(o.Filter)})
	if err != nil {
		return err
	}
	for _, w := range res.Warnings {
		a.complain(w)
	}
	slices.SortFunc(res.Items, func(x, y volume.Volume) int { return cmp.Compare(x.Name, y.Name) })
	rows := make([]table.Row, len(res.Items))
	for i := range res.Items {
		rows[i] = &volumeRow{&res.Items[i]}
	}
	return table.Write(a.out, volumesFormat(o.FormatOr(a.config.VolumesFormat), o.Quiet), &volumeRow{}, rows)
}

func volumesFormat(format string, quiet bool) table.Format {
	switch {
	case format == "table" && quiet:
		return "{{.Name}}"
	case format == "table":
		return `table {{.Driver}}\t{{.Name}}`
	case format == "raw" && quiet:
		return "name: {{.Name}}"
	case format == "raw":
		return "name: {{.Name}}\ndriver: {{.Driver}}\n"
	}
	return table.Format(format)
}

// volumeRow is a volume in a list. Its methods are the fields of a template.
type volumeRow struct{ v *volume.Volume }

// Headers gives the title of each column.
func (r *volumeRow) Headers() map[string]string {
	return map[string]string{
		"Name": "VOLUME NAME", "Driver": "DRIVER", "Scope": "SCOPE", "Mountpoint": "MOUNTPOINT", "Labels": "LABELS", "Links": "LINKS", "Size": "SIZE",
		"Group": "GROUP", "Availability": "AVAILABILITY", "Status": "STATUS",
	}
}

// MarshalJSON gives every field by its name.
func (r *volumeRow) MarshalJSON() ([]byte, error) { return table.MarshalRow(r) }

// Name is the volume's name.
func (r *volumeRow) Name() string { return r.v.Name }

// Driver is who keeps it.
func (r *volumeRow) Driver() string { return r.v.Driver }

// Scope is where it can be reached: local.
func (r *volumeRow) Scope() string { return r.v.Scope }

// Mountpoint is where its files are on the engine's machine.
func (r *volumeRow) Mountpoint() string { return r.v.Mountpoint }

// Labels lists the labels.
func (r *volumeRow) Labels() string { return labelList(r.v.Labels) }

// Label is the value of one label.
func (r *volumeRow) Label(name string) string { return r.v.Labels[name] }

// Links counts the containers that have it.
func (r *volumeRow) Links() string {
	if r.v.UsageData == nil {
		return "N/A"
	}
	return strconv.FormatInt(r.v.UsageData.RefCount, 10)
}

// Size is what its files take.
func (r *volumeRow) Size() string {
	if r.v.UsageData == nil {
		return "N/A"
	}
	return units.HumanSize(float64(r.v.UsageData.Size))
}

// Group is for volumes of a cluster.
func (r *volumeRow) Group() string {
	if r.v.ClusterVolume == nil {
		return "N/A"
	}
	return r.v.ClusterVolume.Spec.Group
}

// Availability is for volumes of a cluster.
func (r *volumeRow) Availability() string {
	if r.v.ClusterVolume == nil {
		return "N/A"
	}
	return string(r.v.ClusterVolume.Spec.Availability)
}

// Status is for volumes of a cluster.
func (r *volumeRow) Status() string {
	if r.v.ClusterVolume == nil {
		return "N/A"
	}
	if r.v.ClusterVolume.Info == nil || r.v.ClusterVolume.Info.VolumeID == "" {
		return "pending creation"
	}
	if len(r.v.ClusterVolume.PublishStatus) == 0 {
		return "created"
	}
	return "in use"
}

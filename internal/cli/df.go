package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/volume"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/internal/cli/table"
)

type dfOptions struct {
	verbose bool
	format  string
}

func dfCommand(a *app) *cobra.Command {
	var o dfOptions
	cmd := &cobra.Command{
		Use:               "df [OPTIONS]",
		Short:             "Show what takes the disk",
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), a) },
	}
	cmd.Flags().StringVar(&o.format, "format", "", formatHelp)
	cmd.Flags().BoolVarP(&o.verbose, "verbose", "v", false, "Show every image, container and volume")
	return cmd
}

func (o *dfOptions) run(ctx context.Context, a *app) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	res, err := c.DiskUsage(ctx, moby.DiskUsageOptions{Images: true, Containers: true, Volumes: true, BuildCache: true, Verbose: o.verbose})
	if err != nil {
		return err
	}
	if o.verbose {
		return o.details(a, &res)
	}
	return table.Write(a.out, dfFormat(o.format), &dfRow{}, dfRows(&res))
}

func dfFormat(format string) table.Format {
	switch format {
	case "", "table":
		return `table {{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}`
	case "raw":
		return "type: {{.Type}}\ntotal: {{.TotalCount}}\nactive: {{.Active}}\nsize: {{.Size}}\nreclaimable: {{.Reclaimable}}\n"
	}
	return table.Format(format)
}

func dfRows(u *moby.DiskUsageResult) []table.Row {
	i, c, v, b := &u.Images, &u.Containers, &u.Volumes, &u.BuildCache
	return []table.Row{
		&dfRow{"Images", i.TotalCount, i.ActiveCount, i.TotalSize, i.Reclaimable, true},
		&dfRow{"Containers", c.TotalCount, c.ActiveCount, c.TotalSize, c.Reclaimable, true},
		&dfRow{"Local Volumes", v.TotalCount, v.ActiveCount, v.TotalSize, v.Reclaimable, true},
		&dfRow{"Build Cache", b.TotalCount, b.ActiveCount, b.TotalSize, b.Reclaimable, false},
	}
}

// dfRow is what things of one kind take. Its methods are the fields of a
// template.
type dfRow struct {
	kind                             string
	total, active, size, reclaimable int64
	percent                          bool
}

// Headers gives the title of each column.
func (r *dfRow) Headers() map[string]string {
	return map[string]string{"Type": "TYPE", "TotalCount": "TOTAL", "Active": "ACTIVE", "Size": "SIZE", "Reclaimable": "RECLAIMABLE"}
}

// MarshalJSON gives every field by its name.
func (r *dfRow) MarshalJSON() ([]byte, error) { return table.MarshalRow(r) }

// Type is the kind.
func (r *dfRow) Type() string { return r.kind }

// TotalCount counts all.
func (r *dfRow) TotalCount() string { return strconv.FormatInt(r.total, 10) }

// Active counts those in use.
func (r *dfRow) Active() string { return strconv.FormatInt(r.active, 10) }

// Size is what they take together.
func (r *dfRow) Size() string { return units.HumanSize(float64(r.size)) }

// Reclaimable is what goes when those are removed that are not in use.
func (r *dfRow) Reclaimable() string {
	s := units.HumanSize(float64(r.reclaimable))
	if r.percent && r.size > 0 {
		s += fmt.Sprintf(" (%d%%)", r.reclaimable*100/r.size)
	}
	return s
}

// dfDetails is what a template sees of --verbose.
type dfDetails struct {
	Images, Containers, Volumes []table.Row
	BuildCache                  []table.Row
}

// details prints every thing, in four tables or through a template.
func (o *dfOptions) details(a *app, u *moby.DiskUsageResult) error {
	short := o.format == "" || strings.HasPrefix(o.format, "table")
	d := dfDetails{Containers: []table.Row{}, Volumes: []table.Row{}, BuildCache: []table.Row{}}
	d.Images = append([]table.Row{}, (&imagesOptions{noTrunc: !short}).rows(u.Images.Items, "")...)
	for i := range u.Containers.Items {
		c := &u.Containers.Items[i]
		c.SizeRootFs = 0 // only what is the container's own
		d.Containers = append(d.Containers, &psRow{c: c, trunc: short})
	}
	slices.SortFunc(u.Volumes.Items, func(x, y volume.Volume) int { return cmp.Compare(x.Name, y.Name) })
	for i := range u.Volumes.Items {
		d.Volumes = append(d.Volumes, &volumeRow{&u.Volumes.Items[i]})
	}
	for i := range u.BuildCache.Items {
		d.BuildCache = append(d.BuildCache, &cacheRow{&u.BuildCache.Items[i]})
	}
	if !short {
		return o.template(a.out, &d)
	}
	for _, t := range []struct {
		title, format string
		empty         table.Row
		rows          []table.Row
	}{
		{"Images space usage:", `table {{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{if .CreatedSince }}{{.CreatedSince}}{{else}}N/A{{end}}\t{{.Size}}\t{{.SharedSize}}\t{{.UniqueSize}}\t{{.Containers}}`, &imageRow{}, d.Images},
		{"\nContainers space usage:", `table {{.ID}}\t{{.Image}}\t{{.Command}}\t{{.LocalVolumes}}\t{{.Size}}\t{{.RunningFor}}\t{{.Status}}\t{{.Names}}`, &psRow{}, d.Containers},
		{"\nLocal Volumes space usage:", `table {{.Name}}\t{{.Links}}\t{{.Size}}`, &volumeRow{}, d.Volumes},
		{"\nBuild cache usage: " + units.HumanSize(float64(u.BuildCache.TotalSize)), `table {{.ID}}\t{{.CacheType}}\t{{.Size}}\t{{.CreatedSince}}\t{{.LastUsedSince}}\t{{.UsageCount}}\t{{.Shared}}`, &cacheRow{}, d.BuildCache},
	} {
		a.println(t.title + "\n")
		if err := table.Write(a.out, table.Format(t.format), t.empty, t.rows); err != nil {
			return err
		}
	}
	return nil
}

// template runs the format once, on everything.
func (o *dfOptions) template(w io.Writer, d *dfDetails) error {
	format := o.format
	if format == "json" {
		format = "{{json .}}"
	}
	tmpl, err := table.Parse(format)
	if err != nil {
		return &statusError{Code: 64, Text: "template parsing error: " + err.Error()}
	}
	if err := tmpl.Execute(w, d); err != nil {
		return fmt.Errorf("template parsing error: %w", err)
	}
	_, err = io.WriteString(w, "\n")
	return err
}

// cacheRow is a part of the build cache. Its methods are the fields of a template.
type cacheRow struct{ r *build.CacheRecord }

// Headers gives the title of each column.
func (r *cacheRow) Headers() map[string]string {
	return map[string]string{
		"ID": "CACHE ID", "CacheType": "CACHE TYPE", "Size": "SIZE", "CreatedSince": "CREATED", "LastUsedSince": "LAST USED",
		"UsageCount": "USAGE", "Shared": "SHARED", "InUse": "IN USE", "Description": "DESCRIPTION",
	}
}

// MarshalJSON gives every field by its name.
func (r *cacheRow) MarshalJSON() ([]byte, error) { return table.MarshalRow(r) }

// ID is the short id, with a star while it is in use.
func (r *cacheRow) ID() string {
	id := shortID(r.r.ID, true)
	if r.r.InUse {
		return id + "*"
	}
	return id
}

// CacheType is what it came from.
func (r *cacheRow) CacheType() string { return r.r.Type }

// Size is what it takes.
func (r *cacheRow) Size() string { return units.HumanSizeWithPrecision(float64(r.r.Size), 3) }

// CreatedSince is its age.
func (r *cacheRow) CreatedSince() string { return ago(r.r.CreatedAt.Unix()) }

// LastUsedSince is how long ago a build used it.
func (r *cacheRow) LastUsedSince() string {
	if r.r.LastUsedAt == nil {
		return ""
	}
	return ago(r.r.LastUsedAt.Unix())
}

// UsageCount counts the builds that used it.
func (r *cacheRow) UsageCount() string { return strconv.Itoa(r.r.UsageCount) }

// Shared tells whether others hold its content too.
func (r *cacheRow) Shared() string { return strconv.FormatBool(r.r.Shared) }

// InUse tells whether a build has it now.
func (r *cacheRow) InUse() string { return strconv.FormatBool(r.r.InUse) }

// Description is the step it came from.
func (r *cacheRow) Description() string { return r.r.Description }

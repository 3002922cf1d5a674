package cli

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/image"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/internal/cli/table"
)

type historyOptions struct {
	human, quiet, noTrunc bool
	format, platform      string
}

func historyCommand(a *app) *cobra.Command {
	var o historyOptions
	cmd := &cobra.Command{
		Use:               "history [OPTIONS] IMAGE",
		Args:              exactArgs(1),
		ValidArgsFunction: completeImages(a, 1),
		RunE:              func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), a, args[0]) },
	}
	f := cmd.Flags()
	f.StringVar(&o.format, "format", "", formatHelp)
	f.BoolVarP(&o.human, "human", "H", true, "Print sizes and dates for people")
	f.BoolVar(&o.noTrunc, "no-trunc", false, "Do not shorten IDs and commands")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "Print only IDs")
	f.StringVar(&o.platform, "platform", "", "Show the history of this platform: OS[/ARCH[/VARIANT]]")
	return orApp(a, cmd)
}

func (o *historyOptions) run(ctx context.Context, a *app, name string) error {
	p, err := parsePlatform(o.platform)
	if err != nil {
		return fmt.Errorf("invalid platform: %w", err)
	}
	var opts []moby.ImageHistoryOption
	if p != nil {
		opts = append(opts, moby.ImageHistoryWithPlatform(*p))
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	res, err := c.ImageHistory(ctx, name, opts...)
	if err != nil {
		return err
	}
	rows := make([]table.Row, len(res.Items))
	for i := range res.Items {
		rows[i] = &historyRow{h: &res.Items[i], trunc: !o.noTrunc, human: o.human}
	}
	format := table.Format(cmp.Or(o.format, "table"))
	if format == "table" {
		created := "CreatedSince"
		if !o.human {
			created = "CreatedAt"
		}
		format = table.Format(`table {{.ID}}\t{{.` + created + `}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}`)
		if o.quiet {
			format = "{{.ID}}"
		}
	}
	return table.Write(a.out, format, &historyRow{}, rows)
}

// historyRow is one step of an image's history. Its methods are the fields of
// a template.
type historyRow struct {
	h            *image.HistoryResponseItem
	trunc, human bool
}

// Headers gives the title of each column.
func (r *historyRow) Headers() map[string]string {
	return map[string]string{
		"ID": "IMAGE", "CreatedSince": "CREATED", "CreatedAt": "CREATED AT", "CreatedBy": "CREATED BY",
		"Size": "SIZE", "Comment": "COMMENT",
	}
}

// MarshalJSON gives every field by its name.
func (r *historyRow) MarshalJSON() ([]byte, error) { return table.MarshalRow(r) }

// ID is the image that the step made, or <missing>.
func (r *historyRow) ID() string { return shortID(r.h.ID, r.trunc) }

// CreatedAt is the time of the step.
func (r *historyRow) CreatedAt() string { return time.Unix(r.h.Created, 0).Format(time.RFC3339) }

// CreatedSince is how long ago that was; a time before 2000 is none.
func (r *historyRow) CreatedSince() string {
	switch {
	case !r.human:
		return r.CreatedAt()
	case r.h.Created <= 946684800:
		return "N/A"
	}
	return ago(r.h.Created)
}

// CreatedBy is the command of the step.
func (r *historyRow) CreatedBy() string {
	s := strings.ReplaceAll(r.h.CreatedBy, "\t", " ")
	if r.trunc {
		return table.Ellipsis(s, 45)
	}
	return s
}

// Size is what the step added.
func (r *historyRow) Size() string {
	if r.human {
		return units.HumanSizeWithPrecision(float64(r.h.Size), 3)
	}
	return strconv.FormatInt(r.h.Size, 10)
}

// Comment is what the maker noted.
func (r *historyRow) Comment() string { return r.h.Comment }

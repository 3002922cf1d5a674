package cli

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"time"

	"github.com/distribution/reference"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/image"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/internal/cli/table"
)

type imagesOptions struct {
	all, digests, noTrunc, quiet bool
	format                       string
	filter                       filterFlag
}

func imagesCommand(a *app) *cobra.Command {
	var o imagesOptions
	cmd := &cobra.Command{
		Use: "images [OPTIONS] [REPOSITORY[:TAG]]",
		Example: `escale images
escale images -f dangling=true -q
escale images --format '{{.Repository}}:{{.Tag}} {{.Size}}' debian`,
		Args:              maxArgs(1),
		ValidArgsFunction: completeImages(a, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.run(cmd.Context(), a, args, cmd.CalledAs() == "images")
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.all, "all", "a", false, "Show intermediate images too")
	f.BoolVar(&o.digests, "digests", false, "Show digests")
	f.VarP(&o.filter, "filter", "f", filterHelp)
	f.StringVar(&o.format, "format", "", formatHelp)
	f.BoolVar(&o.noTrunc, "no-trunc", false, "Do not shorten IDs")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "Print only IDs")
	return cmd
}

func (o *imagesOptions) run(ctx context.Context, a *app, args []string, hint bool) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	if len(args) > 0 {
		if err := o.filter.Set("reference=" + args[0]); err != nil {
			return err
		}
	}
	res, err := c.ImageList(ctx, moby.ImageListOptions{All: o.all, Filters: moby.Filters(o.filter)})
	if err != nil {
		return err
	}
	format := o.format
	if format == "" && !o.quiet {
		format = a.config.ImagesFormat
	}
	f := imagesFormat(cmp.Or(format, "table"), o.quiet, o.digests)
	if err := table.Write(a.out, f, &imageRow{}, o.rows(res.Items, f)); err != nil {
		return err
	}
	if len(args) > 0 && len(res.Items) == 0 && hint && isImageVerb(args[0]) {
		a.complainf("\nNo images found matching %q: did you mean \"%s image %[1]s\"?\n", args[0], a.name)
	}
	return nil
}

func isImageVerb(s string) bool {
	return slices.Contains([]string{"build", "history", "import", "inspect", "list", "load", "ls", "prune", "pull", "push", "rm", "save", "tag"}, s)
}

func imagesFormat(format string, quiet, digest bool) table.Format {
	switch format {
	case "table":
		if quiet {
			return "{{.ID}}"
		}
		d := ""
		if digest {
			d = `{{.Digest}}\t`
		}
		return table.Format(`table {{.Repository}}\t{{.Tag}}\t` + d + `{{.ID}}\t{{if .CreatedSince }}{{.CreatedSince}}{{else}}N/A{{end}}\t{{.Size}}`)
	case "raw":
		if quiet {
			return "image_id: {{.ID}}"
		}
		d := ""
		if digest {
			d = "digest: {{.Digest}}\n"
		}
		return table.Format("repository: {{.Repository}}\ntag: {{.Tag}}\n" + d + "image_id: {{.ID}}\ncreated_at: {{.CreatedAt}}\nvirtual_size: {{.Size}}\n")
	}
	f := table.Format(format)
	if f.IsTable() && digest && !f.Contains("{{.Digest}}") {
		f += "\t{{.Digest}}"
	}
	return f
}

// rows makes a line of each name of each image, and one of an image without
// names.
func (o *imagesOptions) rows(images []image.Summary, f table.Format) []table.Row {
	var rows []table.Row
	needDigest := o.digests || f.Contains("{{.Digest}}")
	for i := range images {
		img := &images[i]
		add := func(repo, tag, digest string) {
			rows = append(rows, &imageRow{i: img, trunc: !o.noTrunc, repo: repo, tag: tag, digest: digest})
		}
		if dangling(img) {
			add("<none>", "<none>", "<none>")
			continue
		}
		tagged := map[string]bool{}
		digests := map[string][]string{}
		var order []string
		for _, s := range img.RepoDigests {
			ref, err := reference.ParseNormalizedNamed(s)
			if d, ok := ref.(reference.Canonical); err == nil && ok {
				name := reference.FamiliarName(ref)
				if digests[name] == nil {
					order = append(order, name)
				}
				digests[name] = append(digests[name], d.Digest().String())
			}
		}
		for _, s := range img.RepoTags {
			ref, err := reference.ParseNormalizedNamed(s)
			t, ok := ref.(reference.NamedTagged)
			if err != nil || !ok {
				continue
			}
			name := reference.FamiliarName(ref)
			tagged[name] = true
			if !needDigest || len(digests[name]) == 0 {
				add(name, t.Tag(), "<none>")
				continue
			}
			for _, d := range digests[name] {
				add(name, t.Tag(), d)
			}
		}
		for _, name := range order {
			switch {
			case tagged[name]:
			case !o.digests:
				add(name, "<none>", "")
			default:
				for _, d := range digests[name] {
					add(name, "<none>", d)
				}
			}
		}
	}
	return rows
}

func dangling(img *image.Summary) bool {
	none := func(list []string, word string) bool { return len(list) == 0 || len(list) == 1 && list[0] == word }
	return none(img.RepoTags, "<none>:<none>") && none(img.RepoDigests, "<none>@<none>")
}

// imageRow is one name of an image in a list. Its methods are the fields of a
// template.
type imageRow struct {
	i                 *image.Summary
	trunc             bool
	repo, tag, digest string
}

// Headers gives the title of each column.
func (r *imageRow) Headers() map[string]string {
	return map[string]string{
		"ID": "IMAGE ID", "Repository": "REPOSITORY", "Tag": "TAG", "Digest": "DIGEST", "CreatedSince": "CREATED",
		"CreatedAt": "CREATED AT", "Size": "SIZE", "Containers": "CONTAINERS", "VirtualSize": "SIZE",
		"SharedSize": "SHARED SIZE", "UniqueSize": "UNIQUE SIZE",
	}
}

// MarshalJSON gives every field by its name.
func (r *imageRow) MarshalJSON() ([]byte, error) { return table.MarshalRow(r) }

// ID is the image's ID, short unless --no-trunc.
func (r *imageRow) ID() string { return shortID(r.i.ID, r.trunc) }

// Repository is the name without the tag.
func (r *imageRow) Repository() string { return r.repo }

// Tag is the tag, "<none>" for a name known by digest alone.
func (r *imageRow) Tag() string { return r.tag }

// Digest is the digest in the registry the image came from.
func (r *imageRow) Digest() string { return r.digest }

// CreatedSince is how long ago the image was made.
func (r *imageRow) CreatedSince() string {
	if time.Unix(r.i.Created, 0).IsZero() {
		return ""
	}
	return ago(r.i.Created)
}

// CreatedAt is the time the image was made.
func (r *imageRow) CreatedAt() string { return time.Unix(r.i.Created, 0).String() }

// Size is the size of all its layers.
func (r *imageRow) Size() string { return units.HumanSizeWithPrecision(float64(r.i.Size), 3) }

// VirtualSize is an older name of Size.
func (r *imageRow) VirtualSize() string { return units.HumanSize(float64(r.i.Size)) }

// Containers counts the containers of the image.
func (r *imageRow) Containers() string {
	if r.i.Containers == -1 {
		return "N/A"
	}
	return strconv.FormatInt(r.i.Containers, 10)
}

// SharedSize is the size of the layers that other images have too.
func (r *imageRow) SharedSize() string {
	if r.i.SharedSize == -1 {
		return "N/A"
	}
	return units.HumanSize(float64(r.i.SharedSize))
}

// UniqueSize is the size of the layers that no other image has.
func (r *imageRow) UniqueSize() string {
	if r.i.Size == -1 || r.i.SharedSize == -1 {
		return "N/A"
	}
	return units.HumanSize(float64(r.i.Size - r.i.SharedSize))
}

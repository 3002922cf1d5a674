package compose

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/events"
	moby "github.com/moby/moby/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cli"
	"escale.dev/escale/internal/cli/table"
	composefile "escale.dev/escale/internal/compose"
)

// columns writes a table.
func (s lists) columns(titles []string, rows func(line func(...string))) error {
	w := tabwriter.NewWriter(s.out, 4, 1, 4, ' ', 0)
	line := func(cells ...string) { fmt.Fprintln(w, strings.Join(cells, "\t")) }
	line(titles...)
	rows(line)
	return w.Flush()
}

// json writes a value in one line.
func (s lists) json(v any) error {
	b, err := json.Marshal(v)
	if err == nil {
		s.printf("%s\n", b)
	}
	return err
}

// listed is a project of ls.
type listed struct{ Name, Status, ConfigFiles string }

func lsCommand(s *session) *cobra.Command {
	var all, quiet bool
	var format string
	var filters []string
	cmd := command("ls [OPTIONS]", "List apps: those that the engine keeps, and other projects", func(ctx context.Context, _ []string) error {
		list, err := lists{s}.projects(ctx, all)
		if err != nil {
			return err
		}
		for _, f := range filters {
			key, value, ok := strings.Cut(f, "=")
			if !ok || key != "name" {
				return fmt.Errorf("invalid filter %q: name=VALUE wanted", f)
			}
			re, err := regexp.Compile(value)
			if err != nil {
				return fmt.Errorf("invalid filter %q: %w", f, err)
			}
			list = slices.DeleteFunc(list, func(l listed) bool { return !re.MatchString(l.Name) })
		}
		switch {
		case quiet:
			for _, l := range list {
				s.printf("%s\n", l.Name)
			}
			return nil
		case format == "json":
			return lists{s}.json(append([]listed{}, list...))
		case format != "table" && format != "":
			return fmt.Errorf("unsupported format %q: table or json wanted", format)
		}
		return lists{s}.columns([]string{"NAME", "STATUS", "CONFIG FILES"}, func(line func(...string)) {
			for _, l := range list {
				line(l.Name, l.Status, l.ConfigFiles)
			}
		})
	})
	cmd.Args = cobra.NoArgs
	f := cmd.Flags()
	f.BoolVarP(&all, "all", "a", false, "Those of which nothing runs, too")
	f.BoolVarP(&quiet, "quiet", "q", false, "Print only names")
	f.StringVar(&format, "format", "table", "Print as table or json")
	f.StringArrayVar(&filters, "filter", nil, "Show only what matches: name=VALUE")
	return cmd
}

// projects are the apps that the engine keeps, and all whose containers have labels.
func (s lists) projects(ctx context.Context, all bool) ([]listed, error) {
	c, err := s.client()
	if err != nil {
		return nil, err
	}
	res, err := c.ContainerList(ctx, moby.ContainerListOptions{All: all, Filters: moby.Filters{}.Add("label", composefile.LabelProject)})
	if err != nil {
		return nil, err
	}
	files, states := map[string][]string{}, map[string]map[string]int{}
	for i := range res.Items {
		l := res.Items[i].Labels
		name := l[composefile.LabelProject]
		if l[composefile.LabelConfigHash] == "" {
			continue
		}
		if states[name] == nil {
			states[name] = map[string]int{}
		}
		states[name][string(res.Items[i].State)]++
		for f := range strings.SplitSeq(l[composefile.LabelConfigFiles], ",") {
			if !slices.Contains(files[name], f) {
				files[name] = append(files[name], f)
			}
		}
	}
	words := map[string]string{}
	for name, counts := range states {
		var parts []string
		for _, state := range slices.Sorted(maps.Keys(counts)) {
			parts = append(parts, fmt.Sprintf("%s(%d)", state, counts[state]))
		}
		words[name] = strings.Join(parts, ", ")
	}
	apps, err := c.Apps(ctx)
	if err != nil && !errdefs.IsNotFound(err) {
		return nil, err
	}
	for _, a := range apps {
		files[a.Name] = a.Files
		words[a.Name] = strings.TrimPrefix(words[a.Name]+", "+kept(&a), ", ")
	}
	var out []listed
	for _, name := range slices.Sorted(maps.Keys(words)) {
		out = append(out, listed{name, words[name], strings.Join(files[name], ",")})
	}
	return out, nil
}

// kept says how an app of the engine stands.
func kept(a *client.App) string {
	switch {
	case a.Removed:
		return "going"
	case a.Phase == "steady":
		return "kept"
	}
	return a.Phase
}

type listedImage struct {
	ID, ContainerName, Repository, Tag, Platform string
	Size                                         int64
	LastTagTime                                  time.Time
}

func imagesCommand(s *session) *cobra.Command {
	var quiet bool
	var format string
	cmd := command("images [OPTIONS] [SERVICE...]", "List the images of containers", func(ctx context.Context, args []string) error {
		_, name, err := s.named(ctx, args...)
		if err != nil {
			return err
		}
		list, err := lists{s}.containerImages(ctx, name, args)
		if err != nil {
			return err
		}
		switch {
		case quiet:
			seen := map[string]bool{}
			for _, i := range list {
				if !seen[i.ID] {
					s.printf("%s\n", strings.TrimPrefix(i.ID, "sha256:"))
				}
				seen[i.ID] = true
			}
			return nil
		case format == "json":
			return lists{s}.json(append([]listedImage{}, list...))
		case format != "table" && format != "":
			return fmt.Errorf("unsupported format %q: table or json wanted", format)
		}
		return lists{s}.columns([]string{"CONTAINER", "REPOSITORY", "TAG", "PLATFORM", "IMAGE ID", "SIZE", "CREATED"}, func(line func(...string)) {
			for _, i := range list {
				id := strings.TrimPrefix(i.ID, "sha256:")
				line(i.ContainerName, cmp.Or(i.Repository, "<none>"), cmp.Or(i.Tag, "<none>"), i.Platform, id[:min(12, len(id))],
					units.HumanSizeWithPrecision(float64(i.Size), 3), units.HumanDuration(time.Since(i.LastTagTime))+" ago")
			}
		})
	})
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Print only IDs")
	cmd.Flags().StringVar(&format, "format", "table", "Print as table or json")
	return cmd
}

func (s lists) containerImages(ctx context.Context, name string, services []string) ([]listedImage, error) {
	list, err := s.containers(ctx, name, pick{services: services, stopped: true})
	if err != nil {
		return nil, err
	}
	c, err := s.client()
	if err != nil {
		return nil, err
	}
	var out []listedImage
	for i := range list {
		img, err := c.ImageInspect(ctx, list[i].ImageID)
		if errdefs.IsNotFound(err) {
			continue // it was removed under the container
		} else if err != nil {
			return nil, err
		}
		row := listedImage{
			ID: img.ID, ContainerName: nameOf(&list[i]), Size: img.Size, LastTagTime: img.Metadata.LastTagTime,
			Platform: platforms.Format(ocispec.Platform{OS: img.Os, Architecture: img.Architecture, Variant: img.Variant}),
		}
		if row.LastTagTime.IsZero() {
			row.LastTagTime, _ = time.Parse(time.RFC3339Nano, img.Created) // unknown stays unknown
		}
		if ref, err := reference.ParseNormalizedNamed(list[i].Image); err == nil && !strings.HasPrefix(list[i].Image, "sha256:") {
			row.Repository = reference.FamiliarName(ref)
			if tagged, ok := reference.TagNameOnly(ref).(reference.Tagged); ok {
				row.Tag = tagged.Tag()
			}
		}
		out = append(out, row)
	}
	slices.SortFunc(out, func(a, b listedImage) int { return cmp.Compare(a.ContainerName, b.ContainerName) })
	return out, nil
}

// volumeRow is a volume of a project.
type volumeRow struct{ driver, name, mountpoint, scope string }

// Headers gives the title of each column.
func (volumeRow) Headers() map[string]string {
	return map[string]string{"Driver": "DRIVER", "Name": "VOLUME NAME", "Mountpoint": "MOUNTPOINT", "Scope": "SCOPE"}
}

// Driver keeps it.
func (v volumeRow) Driver() string { return v.driver }

// Name is that in the engine.
func (v volumeRow) Name() string { return v.name }

// Mountpoint is where it is on the host.
func (v volumeRow) Mountpoint() string { return v.mountpoint }

// Scope is local or global.
func (v volumeRow) Scope() string { return v.scope }

// MarshalJSON gives all fields, by their names.
func (v volumeRow) MarshalJSON() ([]byte, error) { return table.MarshalRow(v) }

func volumesCommand(s *session) *cobra.Command {
	var quiet bool
	var format string
	cmd := command("volumes [OPTIONS] [SERVICE...]", "List volumes", func(ctx context.Context, args []string) error {
		_, name, err := s.named(ctx, args...)
		if err != nil {
			return err
		}
		c, err := s.client()
		if err != nil {
			return err
		}
		res, err := c.VolumeList(ctx, moby.VolumeListOptions{Filters: moby.Filters{}.Add("label", composefile.LabelProject+"="+name)})
		if err != nil {
			return err
		}
		used := map[string]bool{}
		if len(args) > 0 {
			list, err := s.containers(ctx, name, pick{services: args, stopped: true})
			if err != nil {
				return err
			}
			for i := range list {
				for _, m := range list[i].Mounts {
					used[m.Name] = true
				}
			}
		}
		var rows []table.Row
		for _, v := range res.Items {
			if len(args) > 0 && !used[v.Name] {
				continue
			}
			if quiet {
				s.printf("%s\n", v.Name)
			}
			rows = append(rows, volumeRow{v.Driver, v.Name, v.Mountpoint, v.Scope})
		}
		switch {
		case quiet:
			return nil
		case format == "table" || format == "":
			format = "table {{.Driver}}\t{{.Name}}"
		}
		return table.Write(s.out, table.Format(format), volumeRow{}, rows)
	})
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Print only names")
	cmd.Flags().StringVar(&format, "format", "table", "Print as a table, as json, or with a Go template")
	return cmd
}

func eventsCommand(s *session) *cobra.Command {
	var asJSON bool
	var since, until string
	cmd := command("events [OPTIONS] [SERVICE...]", "Show what happens to containers, as it happens", func(ctx context.Context, args []string) error {
		_, name, err := s.named(ctx, args...)
		if err != nil {
			return err
		}
		c, err := s.client()
		if err != nil {
			return err
		}
		f := moby.Filters{}.Add("label", composefile.LabelProject+"="+name).Add("type", "container")
		res := c.Events(ctx, moby.EventsListOptions{Since: since, Until: until, Filters: f})
		for {
			select {
			case e := <-res.Messages:
				if err := (lists{s}).event(&e, args, asJSON); err != nil {
					return err
				}
			case err := <-res.Err:
				if err != nil && err.Error() == "EOF" {
					return nil
				}
				return err
			}
		}
	})
	f := cmd.Flags()
	f.BoolVar(&asJSON, "json", false, "Print JSON, an object a line")
	f.StringVar(&since, "since", "", "Show what happened since a time, too")
	f.StringVar(&until, "until", "", "End at a time")
	return cmd
}

func (s lists) event(e *events.Message, services []string, asJSON bool) error {
	service := e.Actor.Attributes[composefile.LabelService]
	if service == "" || len(services) > 0 && !slices.Contains(services, service) {
		return nil
	}
	attributes := maps.Clone(e.Actor.Attributes)
	maps.DeleteFunc(attributes, func(k, _ string) bool { return strings.HasPrefix(k, "com.docker.compose.") })
	at := time.Unix(0, e.TimeNano)
	if asJSON {
		return s.json(map[string]any{"time": at, "type": "container", "service": service, "id": e.Actor.ID, "action": e.Action, "attributes": attributes})
	}
	var list []string
	for _, k := range slices.Sorted(maps.Keys(attributes)) {
		list = append(list, k+"="+attributes[k])
	}
	s.printf("%s container %s %s (%s)\n", at.Format("2006-01-02 15:04:05.000000"), e.Action, e.Actor.ID, strings.Join(list, ", "))
	return nil
}

func versionCommand(s *session) *cobra.Command {
	var format string
	var short bool
	cmd := command("version [OPTIONS]", "Show the version", func(context.Context, []string) error { return lists{s}.version(format, short) })
	cmd.Args = cobra.NoArgs
	cmd.Flags().StringVarP(&format, "format", "f", "pretty", "pretty or json")
	cmd.Flags().BoolVar(&short, "short", false, "Nothing but the version")
	return cmd
}

func (s lists) version(format string, short bool) error {
	switch {
	case short:
		s.printf("%s\n", cli.Version)
	case format == "json":
		return s.json(map[string]string{"version": cli.Version})
	case format != "pretty" && format != "":
		return fmt.Errorf("format %q: pretty or json wanted", format)
	default:
		s.printf("Escale Compose version %s\n", cli.Version)
	}
	return nil
}

// lists shows what is there.
type lists struct{ *session }

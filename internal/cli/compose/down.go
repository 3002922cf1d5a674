package compose

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cli/compose/progress"
	composefile "escale.dev/escale/internal/compose"
)

type downOptions struct {
	orphans, volumes bool
	stop             timeout
	images           string
}

func downCommand(s *session) *cobra.Command {
	var o downOptions
	cmd := command("down [OPTIONS] [SERVICES]", "Remove an app: its containers and networks", func(ctx context.Context, args []string) error {
		if o.images != "" && o.images != "all" && o.images != "local" {
			return &exit{exitUsage, fmt.Errorf("invalid value for --rmi: %q", o.images)}
		}
		return apps{s}.down(ctx, o, args)
	})
	o.stop.add(cmd)
	f := cmd.Flags()
	f.BoolVar(&o.orphans, "remove-orphans", boolEnv("COMPOSE_REMOVE_ORPHANS"), "Containers of services that the file does not have, too")
	f.BoolVarP(&o.volumes, "volumes", "v", false, "Remove the file's named volumes, and anonymous ones of containers, too")
	f.StringVar(&o.images, "rmi", "", "Remove images, too: local (those without a name in the file) or all")
	return cmd
}

// down takes a project away: the app, when the engine keeps one, and then what is left
// that bears the project's labels.
func (s apps) down(ctx context.Context, o downOptions, services []string) error {
	p, name, err := s.named(ctx, services...)
	if err != nil {
		return err
	}
	b := s.board("Running")
	defer b.Close()
	there, err := s.kept(ctx, name)
	if err != nil {
		return err
	}
	images, err := s.imagesToGo(ctx, p, name, services, o.images)
	if err != nil {
		return err
	}
	found := there
	switch {
	case there && len(services) > 0:
		err = s.drop(ctx, b, name, services)
	case there:
		err = s.removeApp(ctx, b, p, name, o)
	case o.volumes && len(services) == 0 && !s.flags.dry: // one that has gone may have left volumes on other nodes
		found, err = s.forget(ctx, name)
	}
	if err != nil {
		return err
	}
	if o.volumes && found && !s.flags.dry {
		s.owed(ctx, b, name)
	}
	rest, err := s.remains(ctx, b, p, name, o, services)
	if err != nil {
		return err
	}
	for _, image := range images {
		if err := s.untag(ctx, b, image); err != nil {
			return err
		}
	}
	if !found && !rest && len(images) == 0 {
		s.warnf("No resource found to remove for project %q.", name)
	}
	return nil
}

// removeApp has the engine remove an app, and follows it to the end. Its containers are
// stopped before, when they are to have a time of their own for it.
func (s apps) removeApp(ctx context.Context, b *progress.Board, p *types.Project, name string, o downOptions) error {
	c, err := s.client()
	if err != nil {
		return err
	}
	if t := o.stop.value(); t != nil {
		list, err := s.containers(ctx, name, pick{})
		if err != nil {
			return err
		}
		if err := s.apply(ctx, b, layers(list), true, s.stopping(p, t)); err != nil {
			return err
		}
	}
	if s.flags.dry {
		list, err := s.containers(ctx, name, pick{stopped: true})
		if err != nil {
			return err
		}
		return s.apply(ctx, b, layers(list), true, removing(false, false))
	}
	if err := c.AppRemove(ctx, name, o.volumes); err != nil {
		return err
	}
	return s.gone(ctx, b, c, name, "Removing", "Removed")
}

// forget has the volumes removed that an app has left behind in a cluster, and tells whether there
// were any.
func (s apps) forget(ctx context.Context, name string) (bool, error) {
	c, err := s.client()
	if err != nil {
		return false, err
	}
	if err = c.AppRemove(ctx, name, true); errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// owed tells of volumes that are not removed yet because their nodes are away.
func (s apps) owed(ctx context.Context, b *progress.Board, name string) {
	c, err := s.client()
	if err != nil {
		return
	}
	list, err := c.AppVolumes(ctx, name) // an engine that does not know the question removes what it can, too
	if err != nil {
		return
	}
	for _, v := range list {
		if v.Removed && v.Away {
			b.Set("Volume "+v.Name, progress.Warning, fmt.Sprintf("Not removed: node %s is away. It goes when the node is back", v.Node))
		}
	}
}

// gone follows an app until it is there no more.
func (s apps) gone(ctx context.Context, b *progress.Board, c *client.Client, name, doing, done string) error {
	seen := map[string]bool{}
	err := c.AppFollow(ctx, name, func(app *client.App) error {
		now := map[string]bool{}
		for _, sv := range app.Services {
			for _, t := range sv.Tasks {
				if !ended(&t) || t.Container != "" {
					now["Container "+t.Name] = true
					if t.Away != "" {
						b.Set("Container "+t.Name, progress.Working, doing+": waits for node "+t.Away+", which is away")
						seen["Container "+t.Name] = true
					}
				}
			}
		}
		for _, n := range app.Networks {
			now["Network "+n] = true
		}
		for id := range now {
			if !seen[id] {
				seen[id] = true
				b.Set(id, progress.Working, doing)
			}
		}
		for id, on := range seen {
			if on && !now[id] {
				seen[id] = false
				b.Set(id, progress.Done, done)
			}
		}
		return nil
	})
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	for id, on := range seen {
		if on {
			b.Set(id, progress.Done, done)
		}
	}
	return nil
}

// drop takes services out of an app.
func (s apps) drop(ctx context.Context, b *progress.Board, name string, services []string) error {
	c, err := s.client()
	if err != nil {
		return err
	}
	app, err := c.App(ctx, name)
	if err != nil {
		return err
	}
	left := slices.DeleteFunc(slices.Clone(app.Services), func(sv client.AppService) bool { return slices.Contains(services, sv.Name) })
	if len(left) == 0 {
		return s.removeApp(ctx, b, nil, name, downOptions{})
	}
	plan, err := c.AppPut(ctx, name, []byte(`{}`), client.AppPutOptions{Merge: true, Remove: services, DryRun: s.flags.dry})
	if err != nil {
		return err
	}
	if s.flags.dry {
		s.planned(plan)
		return nil
	}
	return s.until(ctx, b, plan, detached(0, false))
}

// remains removes what bears the project's labels and is no app's.
func (s apps) remains(ctx context.Context, b *progress.Board, p *types.Project, name string, o downOptions, services []string) (bool, error) {
	list, err := s.containers(ctx, name, pick{services: services, stopped: true, oneOff: true})
	if err != nil {
		return false, err
	}
	list = slices.DeleteFunc(list, func(x container.Summary) bool {
		known := p == nil
		if p != nil {
			_, known = p.AllServices()[serviceOf(&x)]
		}
		return !o.orphans && !known
	})
	running := slices.DeleteFunc(slices.Clone(list), func(x container.Summary) bool {
		return x.State != container.StateRunning && x.State != container.StatePaused
	})
	if err := s.apply(ctx, b, layers(running), true, s.stopping(p, o.stop.value())); err != nil {
		return false, err
	}
	if err := s.apply(ctx, b, layers(list), true, removing(o.volumes, true)); err != nil {
		return false, err
	}
	if len(services) > 0 {
		return len(list) > 0, nil
	}
	nets, err := s.removeNetworks(ctx, b, name)
	if err != nil {
		return false, err
	}
	vols := 0
	if o.volumes {
		if vols, err = s.removeVolumes(ctx, b, name); err != nil {
			return false, err
		}
	}
	return len(list)+nets+vols > 0, nil
}

func (s apps) removeNetworks(ctx context.Context, b *progress.Board, name string) (int, error) {
	c, err := s.client()
	if err != nil {
		return 0, err
	}
	res, err := c.NetworkList(ctx, moby.NetworkListOptions{Filters: moby.Filters{}.Add("label", composefile.LabelProject+"="+name)})
	if err != nil {
		return 0, err
	}
	for _, n := range res.Items {
		id := "Network " + n.Name
		b.Set(id, progress.Working, "Removing")
		if !s.flags.dry {
			_, err = c.NetworkRemove(ctx, n.ID, moby.NetworkRemoveOptions{})
		}
		switch {
		case err == nil || errdefs.IsNotFound(err):
			b.Set(id, progress.Done, "Removed")
		case strings.Contains(err.Error(), "active endpoints"):
			b.Set(id, progress.Warning, "Resource is still in use")
		default:
			b.Set(id, progress.Failed, "Error")
			return 0, err
		}
	}
	return len(res.Items), nil
}

func (s apps) removeVolumes(ctx context.Context, b *progress.Board, name string) (int, error) {
	c, err := s.client()
	if err != nil {
		return 0, err
	}
	res, err := c.VolumeList(ctx, moby.VolumeListOptions{Filters: moby.Filters{}.Add("label", composefile.LabelProject+"="+name)})
	if err != nil {
		return 0, err
	}
	for _, v := range res.Items {
		id := "Volume " + v.Name
		b.Set(id, progress.Working, "Removing")
		if !s.flags.dry {
			_, err = c.VolumeRemove(ctx, v.Name, moby.VolumeRemoveOptions{})
		}
		switch {
		case err == nil || errdefs.IsNotFound(err):
			b.Set(id, progress.Done, "Removed")
		case errdefs.IsConflict(err):
			b.Set(id, progress.Warning, "Resource is still in use")
		default:
			b.Set(id, progress.Failed, "Error")
			return 0, err
		}
	}
	return len(res.Items), nil
}

// imagesToGo are the images that --rmi means.
func (s apps) imagesToGo(ctx context.Context, p *types.Project, name string, services []string, which string) ([]string, error) {
	if which == "" {
		return nil, nil
	}
	var out []string
	add := func(image string) {
		if image != "" && !slices.Contains(out, image) {
			out = append(out, image)
		}
	}
	if p != nil {
		for _, sv := range p.AllServices() {
			if includes(services, sv.Name) && (which == "all" || sv.Image == "") {
				add(composefile.Image(p, &sv))
			}
		}
		slices.Sort(out)
		return out, nil
	}
	list, err := s.containers(ctx, name, pick{services: services, stopped: true})
	for i := range list {
		if which == "all" || list[i].Image == name+"-"+serviceOf(&list[i]) {
			add(list[i].Image)
		}
	}
	return out, err
}

func (s apps) untag(ctx context.Context, b *progress.Board, image string) error {
	c, err := s.client()
	if err != nil {
		return err
	}
	id := "Image " + image
	b.Set(id, progress.Working, "Removing")
	if !s.flags.dry {
		_, err = c.ImageRemove(ctx, image, moby.ImageRemoveOptions{PruneChildren: true})
	}
	switch {
	case err == nil:
		b.Set(id, progress.Done, "Removed")
	case errdefs.IsNotFound(err):
		b.Set(id, progress.Warning, "No resource found to remove")
	case errdefs.IsConflict(err):
		b.Set(id, progress.Warning, "Resource is still in use")
	default:
		b.Set(id, progress.Failed, "Error")
		return err
	}
	return nil
}

// appName is the app that an argument names, or that of the file here.
func (s apps) appName(ctx context.Context, args []string) (string, error) {
	if len(args) > 0 {
		return args[0], nil
	}
	_, name, err := s.named(ctx)
	if err != nil && strings.Contains(err.Error(), "no configuration file provided") {
		err = errors.New("which app? name it, or come where its compose file is")
	}
	return cmp.Or(name), err
}

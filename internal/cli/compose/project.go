package compose

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	composefile "escale.dev/escale/internal/compose"
)

// options are those of a load, as the global flags say.
func (s *session) options(services ...string) composefile.Options {
	g := s.flags
	return composefile.Options{
		Files: g.files, Name: g.name, Dir: g.dir, EnvFiles: g.envFiles, Profiles: g.profiles, Env: s.env, Services: services, Unused: g.all,
	}
}

// project reads the project: of the services with what they depend on, or of all.
func (s *session) project(ctx context.Context, services ...string) (*types.Project, error) {
	return load(ctx, s.options(services...))
}

func load(ctx context.Context, o composefile.Options) (*types.Project, error) {
	p, err := composefile.Load(ctx, o)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, &exit{exitFile, err}
	case err != nil && strings.Contains(err.Error(), "no configuration file provided"):
		return nil, &exit{1, fmt.Errorf("%w: is there a compose.yaml here? -f names another", err)}
	case err != nil && !strings.Contains(err.Error(), "no such service"):
		return nil, &exit{exitParse, err}
	}
	return p, err
}

// named gives the project's name, and the project when there is a file to read it
// from: what concerns containers that are there needs none when -p names it.
func (s *session) named(ctx context.Context, services ...string) (*types.Project, string, error) {
	if s.engine.ByName && s.flags.name != "" && len(s.flags.files) == 0 {
		return nil, s.flags.name, nil
	}
	p, err := s.project(ctx)
	if err != nil {
		name := cmp.Or(s.flags.name, s.variable("COMPOSE_PROJECT_NAME"))
		if name != "" && len(s.flags.files) == 0 && strings.Contains(err.Error(), "no configuration file provided") {
			return nil, name, nil
		}
		return nil, "", err
	}
	for _, name := range services {
		_, on := p.Services[name]
		_, off := p.DisabledServices[name]
		if !on && !off {
			return nil, "", fmt.Errorf("no such service: %s", name)
		}
	}
	return p, p.Name, nil
}

func (s *session) variable(name string) string {
	for _, kv := range slices.Backward(s.env) {
		if k, v, ok := strings.Cut(kv, "="); ok && k == name {
			return v
		}
	}
	return ""
}

// pick says which containers of a project are meant.
type pick struct {
	services []string
	stopped  bool // those, too
	oneOff   bool // those that run made, too
	only     bool // no others than those
	index    int  // the one of this number; 0: all
}

// containers lists containers of a project, by service and number.
func (s *session) containers(ctx context.Context, project string, o pick) ([]container.Summary, error) {
	c, err := s.client()
	if err != nil {
		return nil, err
	}
	f := moby.Filters{}.Add("label", composefile.LabelProject+"="+project)
	res, err := c.ContainerList(ctx, moby.ContainerListOptions{All: o.stopped, Filters: f})
	if err != nil {
		return nil, err
	}
	far, err := s.far(ctx, project, o.stopped, res.Items)
	if err != nil {
		return nil, err
	}
	out := slices.DeleteFunc(append(res.Items, far...), func(c container.Summary) bool {
		one := strings.EqualFold(c.Labels[composefile.LabelOneOff], "true")
		switch {
		case c.Labels[composefile.LabelService] == "", one && !o.oneOff && !o.only, !one && o.only:
			return true
		case o.index > 0 && number(&c) != o.index:
			return true
		}
		return len(o.services) > 0 && !slices.Contains(o.services, c.Labels[composefile.LabelService])
	})
	slices.SortFunc(out, func(a, b container.Summary) int {
		return cmp.Or(cmp.Compare(serviceOf(&a), serviceOf(&b)), number(&a)-number(&b), cmp.Compare(nameOf(&a), nameOf(&b)))
	})
	return out, nil
}

// one gives a running container of a service: that of the index, else the first.
func (s *session) one(ctx context.Context, service string, index int, stopped bool) (*container.Summary, error) {
	_, name, err := s.named(ctx, service)
	if err != nil {
		return nil, err
	}
	list, err := s.containers(ctx, name, pick{services: []string{service}, index: index, stopped: stopped})
	switch {
	case err != nil:
		return nil, err
	case len(list) > 0:
		return &list[0], nil
	case index > 0:
		return nil, fmt.Errorf("service %q is not running container #%d", service, index)
	}
	return nil, fmt.Errorf("service %q is not running: %s up starts it", service, s.engine.Name)
}

func serviceOf(c *container.Summary) string { return c.Labels[composefile.LabelService] }

func number(c *container.Summary) int {
	n, _ := strconv.Atoi(c.Labels[composefile.LabelNumber]) // one-offs may have none
	return n
}

func nameOf(c *container.Summary) string {
	if len(c.Names) == 0 {
		return c.ID
	}
	return strings.TrimPrefix(c.Names[0], "/")
}

// needs are the services that a container's service depends on, by its label.
func needs(c *container.Summary) map[string]bool {
	out := map[string]bool{}
	for part := range strings.SplitSeq(c.Labels[composefile.LabelDependsOn], ",") {
		fields := strings.Split(part, ":")
		if fields[0] != "" {
			out[fields[0]] = len(fields) > 2 && fields[2] == "true"
		}
	}
	return out
}

// layers puts containers into rows: those of a row depend on rows before it only. What
// depends in a circle stands in the last.
func layers(list []container.Summary) [][]container.Summary {
	left, deps := map[string][]container.Summary{}, map[string]map[string]bool{}
	for _, c := range list {
		name := serviceOf(&c)
		left[name] = append(left[name], c)
		if deps[name] == nil {
			deps[name] = map[string]bool{}
		}
		maps.Copy(deps[name], needs(&c))
	}
	var out [][]container.Summary
	for len(left) > 0 {
		var row []string
		for _, name := range slices.Sorted(maps.Keys(left)) {
			waits := false
			for need := range deps[name] {
				_, there := left[need]
				waits = waits || there && need != name
			}
			if !waits {
				row = append(row, name)
			}
		}
		if len(row) == 0 {
			row = slices.Sorted(maps.Keys(left))
		}
		var cs []container.Summary
		for _, name := range row {
			cs = append(cs, left[name]...)
			delete(left, name)
		}
		out = append(out, cs)
	}
	return out
}

// kept tells of the app when the engine keeps one of the name, nil when not.
func (s apps) kept(ctx context.Context, name string) (bool, error) {
	c, err := s.client()
	if err != nil {
		return false, err
	}
	_, err = c.App(ctx, name)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// completeServices offers the names of services.
func (s *session) completeServices(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if err := s.settle(); err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	p, name, err := s.named(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names := map[string]bool{}
	if p != nil {
		for _, n := range p.ServiceNames() {
			names[n] = true
		}
	} else if list, err := s.containers(cmd.Context(), name, pick{stopped: true}); err == nil {
		for i := range list {
			names[serviceOf(&list[i])] = true
		}
	}
	out := slices.DeleteFunc(slices.Sorted(maps.Keys(names)), func(n string) bool { return slices.Contains(args, n) })
	return out, cobra.ShellCompDirectiveNoFileComp
}

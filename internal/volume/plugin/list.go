package plugin

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"escale.dev/escale/internal/plugin"
	"escale.dev/escale/internal/volume"
)

// discover asks all plugins for a volume, and notes whose it is.
func (s *Store) discover(ctx context.Context, name string) (volume.Volume, error) {
	var (
		mu    sync.Mutex
		found *told
		by    driver
	)
	s.cfg.Plugins.Ask(ctx, plugin.VolumeDriver, func(ctx context.Context, p *plugin.Plugin) error {
		v, err := driver{p}.get(ctx, name, plugin.How{Once: true})
		mu.Lock()
		defer mu.Unlock()
		if v != nil && v.Name == name && (found == nil || p.Name < by.Name) {
			found, by = v, driver{p}
		}
		return err
	})
	if found == nil {
		return volume.Volume{}, volume.ErrNone(name)
	}
	e, err := s.keep(record{Name: name, Driver: by.Name, Scope: by.scope(ctx), CreatedAt: found.createdAt()}, "")
	if err != nil {
		return volume.Volume{}, err
	}
	out := s.view(e)
	fill(&out, by, found)
	return out, nil
}

// List gives what is known here and what plugins tell besides. Warnings name the
// plugins that could not be asked; their volumes are listed all the same.
func (s *Store) List(ctx context.Context) ([]volume.Volume, []string) {
	ctx, end := s.bound(ctx)
	defer end()
	var mu sync.Mutex
	all := map[string]volume.Volume{}
	heard := map[string]bool{}
	failed := s.cfg.Plugins.Ask(ctx, plugin.VolumeDriver, func(ctx context.Context, p *plugin.Plugin) error {
		list, err := driver{p}.list(ctx)
		if err != nil {
			return err
		}
		scope := driver{p}.scope(ctx)
		mu.Lock()
		defer mu.Unlock()
		heard[p.Name] = true
		for _, v := range list {
			one := volume.Volume{Name: v.Name, Driver: p.Name, Scope: scope}
			fill(&one, driver{p}, &v)
			one.Status = nil
			all[v.Name] = one
		}
		return nil
	})
	return s.merge(all, heard), warnings(failed, s.drivers())
}

// merge adds what is noted here to what plugins told.
func (s *Store) merge(all map[string]volume.Volume, heard map[string]bool) []volume.Volume {
	s.mu.Lock()
	known := slices.Collect(maps.Values(s.byName))
	s.mu.Unlock()
	for _, e := range known {
		v := s.view(e)
		fresh, ok := all[v.Name]
		switch {
		case ok && fresh.Driver == v.Driver:
			if fresh.Path != "" {
				v.Path = fresh.Path
			}
			if !fresh.CreatedAt.IsZero() {
				v.CreatedAt = fresh.CreatedAt
			}
		case !ok && heard[v.Driver] && len(v.Users) == 0:
			continue // removed by the plugin
		}
		all[v.Name] = v
	}
	return slices.Collect(maps.Values(all))
}

// drivers are those of the volumes that are known.
func (s *Store) drivers() map[string]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]bool{}
	for _, e := range s.byName {
		out[e.rec.Driver] = true
	}
	return out
}

// Uses tells whether a volume of a plugin is known.
func (s *Store) Uses(driver string) bool { return s.drivers()[driver] }

// warnings tell of plugins that could not be asked for their volumes: of those
// that are known for some, or that answered with an error.
func warnings(failed map[string]error, known map[string]bool) []string {
	var out []string
	for name, err := range failed {
		if known[name] || isRemote(err) {
			out = append(out, fmt.Sprintf("list %s: %s", name, err))
		}
	}
	slices.Sort(out)
	return out
}

func isRemote(err error) bool {
	var remote *plugin.RemoteError
	return errors.As(err, &remote)
}

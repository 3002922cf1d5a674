package compose

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/containerd/errdefs"
	moby "github.com/moby/moby/client"
)

// externals refuses services on networks and volumes of others that are not there, before
// anything is made. In a cluster another node may have them: there the node tells.
func (s apps) externals(ctx context.Context, p *types.Project, services []string) error {
	if s.node(ctx) != "" {
		return nil
	}
	c, err := s.client()
	if err != nil {
		return err
	}
	slices.Sort(services)
	for _, name := range services {
		sv := p.Services[name]
		for _, key := range slices.Sorted(maps.Keys(sv.Networks)) {
			n := p.Networks[key]
			if !n.External {
				continue
			}
			if _, err := c.NetworkInspect(ctx, n.Name, moby.NetworkInspectOptions{}); errdefs.IsNotFound(err) {
				return fmt.Errorf("network %s declared as external, but could not be found", n.Name)
			} else if err != nil {
				return err
			}
		}
	}
	for _, name := range services {
		for _, m := range p.Services[name].Volumes {
			v, known := p.Volumes[m.Source]
			if m.Type != types.VolumeTypeVolume || !known || !bool(v.External) {
				continue
			}
			if _, err := c.VolumeInspect(ctx, v.Name, moby.VolumeInspectOptions{}); errdefs.IsNotFound(err) {
				return fmt.Errorf("external volume %q not found", v.Name)
			} else if err != nil {
				return err
			}
		}
	}
	return nil
}

package deploy

import (
	"errors"
	"fmt"

	"github.com/docker/cli/cli/compose/types"
	"github.com/moby/moby/api/types/mount"
)

// mounts are those of a service; volumes are those of the files.
func (n namespace) mounts(asked []types.ServiceVolumeConfig, volumes map[string]types.VolumeConfig) ([]mount.Mount, error) {
	var list []mount.Mount
	for i := range asked {
		m, err := n.mount(&asked[i], volumes)
		if err != nil {
			return nil, err
		}
		list = append(list, m)
	}
	return list, nil
}

// mixed refuses options of another type than a mount has.
func mixed(v *types.ServiceVolumeConfig, kind string) error {
	for _, o := range []struct {
		name, of string
		given    bool
	}{
		{"image", "image", v.Image != nil}, {"tmpfs", "tmpfs", v.Tmpfs != nil}, {"bind", "bind", v.Bind != nil},
		{"volume", "volume", v.Volume != nil}, {"cluster", "cluster", v.Cluster != nil},
	} {
		if !o.given || o.of == kind || kind == "npipe" && o.of == "bind" {
			continue
		}
		name := o.name
		if kind == "volume" && name == "image" {
			name = "images"
		}
		return fmt.Errorf("%s options are incompatible with type %s", name, kind)
	}
	return nil
}

func (n namespace) mount(v *types.ServiceVolumeConfig, volumes map[string]types.VolumeConfig) (mount.Mount, error) {
	kind := v.Type
	if kind == "" {
		kind = "volume"
	}
	m := mount.Mount{Type: mount.Type(v.Type), Target: v.Target, ReadOnly: v.ReadOnly, Source: v.Source, Consistency: mount.Consistency(v.Consistency)}
	switch {
	case kind == "tmpfs" && v.Source != "":
		return m, errors.New("invalid tmpfs source, source must be empty")
	case kind != "tmpfs" && kind != "volume" && v.Source == "":
		return m, fmt.Errorf("invalid %s source, source cannot be empty", kind)
	}
	if err := mixed(v, kind); err != nil {
		return m, err
	}
	switch kind {
	case "volume":
		return m, n.volume(&m, v, volumes)
	case "cluster":
		x, ok := volumes[v.Source]
		if !ok {
			return m, fmt.Errorf("undefined volume %q", v.Source)
		}
		m.Source, m.ClusterOptions = n.scope(v.Source, x.Name), &mount.ClusterOptions{}
	case "image":
		if v.Image != nil {
			m.ImageOptions = &mount.ImageOptions{Subpath: v.Image.Subpath}
		}
	case "bind", "npipe":
		if v.Bind != nil {
			m.BindOptions = &mount.BindOptions{Propagation: mount.Propagation(v.Bind.Propagation)}
		}
	case "tmpfs":
		if v.Tmpfs != nil {
			m.TmpfsOptions = &mount.TmpfsOptions{SizeBytes: v.Tmpfs.Size}
		}
	default:
		return m, errors.New("volume type must be volume, bind, tmpfs, npipe, or cluster")
	}
	return m, nil
}

// volume fills in a mount of a named volume of the files, or of one without a name.
func (n namespace) volume(m *mount.Mount, v *types.ServiceVolumeConfig, volumes map[string]types.VolumeConfig) error {
	if v.Source == "" {
		return nil
	}
	x, ok := volumes[v.Source]
	if !ok {
		return fmt.Errorf("undefined volume %q", v.Source)
	}
	m.Source, m.VolumeOptions = n.scope(v.Source, x.Name), &mount.VolumeOptions{}
	if v.Volume != nil {
		m.VolumeOptions.NoCopy, m.VolumeOptions.Subpath = v.Volume.NoCopy, v.Volume.Subpath
	}
	if x.External.External {
		return nil
	}
	m.VolumeOptions.Labels = n.labels(x.Labels)
	if x.Driver != "" || x.DriverOpts != nil {
		m.VolumeOptions.DriverConfig = &mount.Driver{Name: x.Driver, Options: x.DriverOpts}
	}
	return nil
}

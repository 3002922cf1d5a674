package container

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sort"
	"strings"

	"escale.dev/escale/internal/sys/pin"
	"escale.dev/escale/internal/volume"
	"github.com/moby/moby/api/types/mount"
)

// mountSet collects mount points by destination; what comes later in Docker's
// order (volumes-from, binds, mounts, the image's volumes) yields or is refused.
type mountSet struct {
	points map[string]Mount
	asked  map[string]bool // destinations the client named itself
	others map[string]bool // those of other containers
	before map[string]string
}

// mounts resolves mount points and holds the volumes among them.
type mounts struct{ *core }

// resolve turns binds, mounts, volumes-from and volumes of the image into
// the record's mount points, and acquires the volumes among them. Of those that nobody
// named, before has the ones to be taken over, by destination.
func (m mounts) resolve(ctx context.Context, rec *Record, before map[string]string) error {
	set := mountSet{before: before, points: map[string]Mount{}, asked: map[string]bool{}, others: map[string]bool{}}
	if err := m.volumesFrom(rec, set); err != nil {
		return err
	}
	for _, spec := range rec.HostConfig.Binds {
		p, err := parseBind(spec)
		if err != nil {
			return err
		}
		if p.Type == mount.TypeVolume {
			p.Driver = rec.HostConfig.VolumeDriver
		}
		if _, tmpfs := rec.HostConfig.Tmpfs[p.Destination]; tmpfs || set.asked[p.Destination] {
			return kindf(errInvalid, "Duplicate mount point: %s", p.Destination)
		}
		set.ask(p)
	}
	for i := range rec.HostConfig.Mounts {
		mt := &rec.HostConfig.Mounts[i]
		p, err := parseMount(mt)
		if err != nil {
			return err
		}
		if set.asked[p.Destination] {
			return kindf(errInvalid, "Duplicate mount point: %s", mt.Target)
		}
		set.ask(p)
		delete(rec.Inherited, p.Destination)
	}
	for dst := range rec.HostConfig.Tmpfs {
		dst = filepath.Clean(dst)
		set.asked[dst] = true
		delete(set.points, dst) // the tmpfs lies over it
	}
	for dst := range rec.Config.Volumes {
		if dst = filepath.Join("/", dst); dst == "/" {
			return kindf(errInvalid, "invalid volume specification: '%s': invalid mount config for type \"volume\": invalid specification: destination can't be '/'", dst)
		}
		if _, taken := set.points[dst]; !taken && !set.asked[dst] {
			set.points[dst] = Mount{Type: mount.TypeVolume, Destination: dst, RW: true, Driver: rec.HostConfig.VolumeDriver}
		}
	}
	return m.take(ctx, rec, set)
}

// take writes the mount points into the record, in the order of their
// destinations, and acquires what they need.
func (m mounts) take(ctx context.Context, rec *Record, set mountSet) error {
	points := make([]Mount, 0, len(set.points))
	for _, p := range set.points {
		points = append(points, p)
	}
	sort.Slice(points, func(i, j int) bool { return points[i].Destination < points[j].Destination })
	unnamed, err := m.name(ctx, rec, points, set)
	if err != nil {
		return err
	}
	for _, p := range points {
		switch p.Type {
		case mount.TypeVolume:
			if set.others[p.Destination] && !set.asked[p.Destination] {
				rec.Others = append(rec.Others, p.Destination)
			}
			if err := m.acquire(ctx, rec, &p, set, unnamed[p.Destination]); err != nil {
				return err
			}
		case mount.TypeBind:
			if pin.Plain(p.Source) {
				rec.PlainBinds = append(rec.PlainBinds, p.Destination)
			}
		case mount.TypeImage:
			ref := p.Name
			if p.Source != "" { // another container's: the same image, whatever the name means now
				ref = p.Source
			}
			img, err := m.cfg.Images.Get(ctx, ref)
			if err != nil {
				return err
			}
			p.Source = img.ID
			if err := m.cfg.Rootfs.Prepare(ctx, imageRoot(rec.ID, len(rec.Mounts)), img.ID); err != nil {
				return err
			}
		}
		rec.Mounts = append(rec.Mounts, p)
	}
	return nil
}

// name gives names to the volumes that nobody gave one, and tells which these are, by
// destination. They are written down before there is one of them: an engine that is killed before the
// container has a record takes them away again.
func (m mounts) name(ctx context.Context, rec *Record, points []Mount, set mountSet) (map[string]bool, error) {
	unnamed, names := map[string]bool{}, []string(nil)
	for i := range points {
		p := &points[i]
		if p.Type != mount.TypeVolume || p.Name != "" {
			continue
		}
		if name := set.before[p.Destination]; name != "" {
			if _, err := m.cfg.Volumes.Get(ctx, name); err == nil { // else it has gone meanwhile
				p.Name = name
				continue
			}
		}
		p.Name, unnamed[p.Destination] = volume.NewName(), true
		names = append(names, p.Name)
	}
	if len(names) == 0 {
		return nil, nil
	}
	return unnamed, m.store.announce(rec.ID, names)
}

// imageRoot names the root file system of the image that is the i-th mount
// point of a container.
func imageRoot(id ID, i int) string { return fmt.Sprintf("%s.%d", id, i) }

// rootOwner is the container that a root file system belongs to.
func rootOwner(root string) string {
	owner, _, _ := strings.Cut(root, ".")
	return owner
}

// dropImages removes the root file systems of the images that were mounted.
func (m mounts) dropImages(ctx context.Context, rec *Record) error {
	var errs []error
	for i, p := range rec.Mounts {
		if p.Type == mount.TypeImage {
			errs = append(errs, m.cfg.Rootfs.Remove(ctx, imageRoot(rec.ID, i)))
		}
	}
	return errors.Join(errs...)
}

// ask adds a mount point that the client named.
func (s mountSet) ask(p Mount) {
	s.asked[p.Destination] = true
	s.points[p.Destination] = p
}

// volumesFrom takes over the mounts of other containers.
func (m mounts) volumesFrom(rec *Record, set mountSet) error {
	for _, spec := range rec.HostConfig.VolumesFrom {
		if spec == "" {
			return kindf(errInvalid, "volumes-from specification cannot be an empty string")
		}
		name, mode, _ := strings.Cut(spec, ":")
		words, ok := readMode(mode)
		if !ok || words["propagation"] != "" || words["copy"] != "" {
			return kindf(errInvalid, "invalid mode: %s", mode)
		}
		other, err := m.store.find(name)
		if err != nil {
			return err
		}
		v := other.view()
		specs := mountSpecs(&v.Record)
		for _, p := range v.Mounts {
			p.RW, p.Mode = p.RW && words["access"] != "ro", ""
			set.points[p.Destination] = p
			set.others[p.Destination] = true
			if mt := specs[p.Destination]; mt != nil {
				if rec.Inherited == nil {
					rec.Inherited = map[string]mount.Mount{}
				}
				rec.Inherited[p.Destination] = *mt
			}
		}
	}
	return nil
}

// mountSpecs are, by destination, the mounts that --mount gave a container or
// one whose volumes it has.
func mountSpecs(rec *Record) map[string]*mount.Mount {
	out := map[string]*mount.Mount{}
	for dst, mt := range rec.Inherited {
		out[dst] = &mt
	}
	for i := range rec.HostConfig.Mounts {
		mt := &rec.HostConfig.Mounts[i]
		out[filepath.Clean(mt.Target)] = mt
	}
	return out
}

// acquire makes or finds the volume of a mount point and holds it for the container.
func (m mounts) acquire(ctx context.Context, rec *Record, p *Mount, set mountSet, unnamed bool) error {
	r := volume.Request{Name: p.Name, Driver: p.Driver, Unnamed: unnamed}
	if unnamed {
		r.Driver = cmp.Or(r.Driver, volume.Local) // no plugin is asked for the name
	}
	if mt := mountSpecs(rec)[p.Destination]; mt != nil && mt.VolumeOptions != nil {
		r.Labels = mt.VolumeOptions.Labels
		if d := mt.VolumeOptions.DriverConfig; d != nil {
			r.Options = d.Options
		}
	}
	v, err := m.cfg.Volumes.Acquire(ctx, r, string(rec.ID))
	if err != nil {
		return err
	}
	p.Name, p.Driver, p.Source = v.Name, v.Driver, v.Path
	if v.Driver == volume.Local && len(v.Options) == 0 && !noCopy(rec, *p) {
		rec.Filled = append(rec.Filled, p.Destination)
	}
	if v.Driver == volume.Local && p.Mode == "" && set.asked[p.Destination] {
		p.Mode = "z" // as Docker shows what it would relabel
	}
	return nil
}

// release lets go of the container's volumes.
func (m mounts) release(rec *Record) {
	for _, p := range rec.Mounts {
		if p.Type == mount.TypeVolume {
			m.cfg.Volumes.Release(p.Name, string(rec.ID))
		}
	}
}

// removeAnonymous removes the volumes that were made for this container alone.
func (m mounts) removeAnonymous(rec *Record) {
	for _, p := range rec.Mounts {
		if anonymous(rec, &p) {
			if err := m.cfg.Volumes.Remove(m.ctx, p.Name, true); err != nil {
				m.log.Debug("anonymous volume stays", "volume", p.Name, "reason", err)
			}
		}
	}
}

// anonymous tells whether a mount point is a volume that nobody gave a name.
func anonymous(rec *Record, p *Mount) bool {
	return p.Type == mount.TypeVolume && len(p.Name) == 64 && !namedByClient(rec, p.Destination)
}

// namedByClient tells whether the client gave the volume at dst a name.
func namedByClient(rec *Record, dst string) bool {
	for _, spec := range rec.HostConfig.Binds {
		if p, err := parseBind(spec); err == nil && p.Destination == dst && p.Name != "" {
			return true
		}
	}
	for i := range rec.HostConfig.Mounts {
		if mt := &rec.HostConfig.Mounts[i]; filepath.Clean(mt.Target) == dst && mt.Source != "" {
			return true
		}
	}
	return false
}

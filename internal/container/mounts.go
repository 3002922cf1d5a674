package container

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"

	"escale.dev/escale/internal/volume"
	"github.com/moby/moby/api/types/mount"
)

var volumeNameRule = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

// mountSet collects mount points by destination; what comes later in Docker's
// order (volumes-from, binds, mounts, the image's volumes) yields or is refused.
type mountSet struct {
	points map[string]Mount
	asked  map[string]bool // destinations the client named itself
}

// mounts resolves mount points and holds the volumes among them.
type mounts struct{ *core }

// resolve turns binds, mounts, volumes-from and volumes of the image into
// the record's mount points, and acquires the volumes among them.
func (m mounts) resolve(ctx context.Context, rec *Record) error {
	set := mountSet{points: map[string]Mount{}, asked: map[string]bool{}}
	if err := m.volumesFrom(rec, set); err != nil {
		return err
	}
	for _, spec := range rec.HostConfig.Binds {
		p, err := parseBind(spec)
		if err != nil {
			return err
		}
		if err := set.ask(p); err != nil {
			return err
		}
	}
	for i := range rec.HostConfig.Mounts {
		p, err := parseMount(&rec.HostConfig.Mounts[i])
		if err != nil {
			return err
		}
		if err := set.ask(p); err != nil {
			return err
		}
	}
	for dst := range rec.HostConfig.Tmpfs {
		if dst = filepath.Clean(dst); set.asked[dst] {
			return kindf(errInvalid, "Duplicate mount point: %s", dst)
		}
		set.asked[dst] = true
		delete(set.points, dst)
	}
	for dst := range rec.Config.Volumes {
		dst = filepath.Clean(dst)
		if !filepath.IsAbs(dst) || dst == "/" {
			return kindf(errInvalid, "invalid volume specification: '%s': invalid mount config for type \"volume\": invalid specification: destination can't be '/'", dst)
		}
		if _, taken := set.points[dst]; !taken && !set.asked[dst] {
			set.points[dst] = Mount{Type: mount.TypeVolume, Destination: dst, RW: true, Driver: "local"}
		}
	}
	for _, p := range set.points {
		if p.Type == mount.TypeVolume {
			if err := m.acquire(ctx, rec, &p); err != nil {
				return err
			}
		}
		rec.Mounts = append(rec.Mounts, p)
	}
	sort.Slice(rec.Mounts, func(i, j int) bool { return rec.Mounts[i].Destination < rec.Mounts[j].Destination })
	return nil
}

// ask adds a mount point that the client named; the same destination twice is refused.
func (s mountSet) ask(p Mount) error {
	if s.asked[p.Destination] {
		return kindf(errInvalid, "Duplicate mount point: %s", p.Destination)
	}
	s.asked[p.Destination] = true
	if p.Type == mount.TypeTmpfs {
		delete(s.points, p.Destination) // made by the specification, not shown as a mount of ours
	}
	s.points[p.Destination] = p
	return nil
}

// volumesFrom takes over the mounts of other containers.
func (m mounts) volumesFrom(rec *Record, set mountSet) error {
	for _, spec := range rec.HostConfig.VolumesFrom {
		name, mode, _ := strings.Cut(spec, ":")
		if mode != "" && mode != "ro" && mode != "rw" && mode != "z" && mode != "Z" {
			return kindf(errInvalid, "invalid mode for volumes-from: %s", mode)
		}
		other, err := m.store.find(name)
		if err != nil {
			return err
		}
		for _, p := range other.view().Mounts {
			p.RW = p.RW && mode != "ro"
			set.points[p.Destination] = p
		}
	}
	return nil
}

// acquire makes or finds the volume of a mount point and holds it for the container.
func (m mounts) acquire(ctx context.Context, rec *Record, p *Mount) error {
	r := volume.Request{Name: p.Name, Driver: p.Driver}
	for i := range rec.HostConfig.Mounts {
		mt := &rec.HostConfig.Mounts[i]
		if o := mt.VolumeOptions; o != nil && filepath.Clean(mt.Target) == p.Destination {
			r.Labels = o.Labels
			if o.DriverConfig != nil {
				r.Options = o.DriverConfig.Options
			}
		}
	}
	v, err := m.cfg.Volumes.Acquire(ctx, r, string(rec.ID))
	if err != nil {
		return err
	}
	p.Name, p.Source = v.Name, v.Path
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
		if p.Type == mount.TypeVolume && len(p.Name) == 64 && !namedByClient(rec, p.Destination) {
			if err := m.cfg.Volumes.Remove(m.ctx, p.Name, true); err != nil {
				m.log.Debug("anonymous volume stays", "volume", p.Name, "reason", err)
			}
		}
	}
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

// parseBind reads one -v specification: SOURCE:DESTINATION[:MODE] or DESTINATION.
func parseBind(spec string) (Mount, error) {
	bad := func(why string) (Mount, error) {
		return Mount{}, kindf(errInvalid, "invalid volume specification: '%s'%s", spec, why)
	}
	parts := strings.Split(spec, ":")
	p := Mount{RW: true}
	switch {
	case spec == "" || len(parts) > 3:
		return bad("")
	case len(parts) == 1:
		p.Type, p.Destination, p.Driver = mount.TypeVolume, parts[0], "local"
	default:
		src := parts[0]
		p.Destination = parts[1]
		if src == "" {
			return bad("")
		}
		if filepath.IsAbs(src) {
			p.Type, p.Source, p.Propagation = mount.TypeBind, filepath.Clean(src), mount.PropagationRPrivate
		} else {
			if !volumeNameRule.MatchString(src) {
				return Mount{}, kindf(errInvalid, "create %s: %q includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path", src, src)
			}
			p.Type, p.Name, p.Driver = mount.TypeVolume, src, "local"
		}
	}
	if !filepath.IsAbs(p.Destination) {
		return bad(": invalid mount config for type \"" + string(p.Type) + "\": invalid mount path: '" + p.Destination + "' mount path must be absolute")
	}
	if p.Destination = filepath.Clean(p.Destination); p.Destination == "/" {
		return bad(": invalid mount config for type \"" + string(p.Type) + "\": invalid specification: destination can't be '/'")
	}
	if len(parts) == 3 {
		if !setMode(&p, parts[2]) {
			return Mount{}, kindf(errInvalid, "invalid mode: %s", parts[2])
		}
	}
	return p, nil
}

// setMode applies the third part of a -v specification; false: not one that Docker knows.
func setMode(p *Mount, mode string) bool {
	p.Mode = mode
	seen := map[string]bool{}
	for _, word := range strings.Split(mode, ",") {
		kind := word
		switch word {
		case "ro", "rw":
			p.RW, kind = word == "rw", "access"
		case "z", "Z":
			kind = "label" // SELinux relabelling: the kernels we meet have none
		case "nocopy", "copy":
			if p.Type != mount.TypeVolume {
				return false
			}
			kind = "copy"
		case "consistent", "cached", "delegated", "default":
			kind = "consistency"
		default:
			if p.Type != mount.TypeBind || !slices.Contains(mount.Propagations, mount.Propagation(word)) {
				return false
			}
			p.Propagation, kind = mount.Propagation(word), "propagation"
		}
		if seen[kind] {
			return false
		}
		seen[kind] = true
	}
	return true
}

// parseMount reads one --mount.
func parseMount(mt *mount.Mount) (Mount, error) {
	bad := func(why string) (Mount, error) {
		return Mount{}, kindf(errInvalid, "invalid mount config for type %q: %s", mt.Type, why)
	}
	if mt.Target == "" {
		return bad("field Target must not be empty")
	}
	dst := filepath.Clean(mt.Target)
	if !filepath.IsAbs(dst) {
		return bad("invalid mount path: '" + mt.Target + "' mount path must be absolute")
	}
	if dst == "/" {
		return bad("invalid specification: destination can't be '/'")
	}
	p := Mount{Type: mt.Type, Destination: dst, RW: !mt.ReadOnly}
	switch mt.Type {
	case mount.TypeBind:
		if mt.Source == "" {
			return bad("field Source must not be empty")
		}
		if !filepath.IsAbs(mt.Source) {
			return bad("invalid mount path: '" + mt.Source + "' mount path must be absolute")
		}
		p.Source, p.Propagation = filepath.Clean(mt.Source), mount.PropagationRPrivate
		if o := mt.BindOptions; o != nil && o.Propagation != "" {
			p.Propagation = o.Propagation
		}
		if _, err := os.Stat(p.Source); err != nil {
			if o := mt.BindOptions; o == nil || !o.CreateMountpoint {
				return bad("bind source path does not exist: " + p.Source)
			}
		}
	case mount.TypeVolume:
		p.Name, p.Driver = mt.Source, "local"
		if p.Name != "" && !volumeNameRule.MatchString(p.Name) {
			return bad("invalid volume name: " + p.Name)
		}
		if o := mt.VolumeOptions; o != nil && o.DriverConfig != nil && o.DriverConfig.Name != "" && o.DriverConfig.Name != "local" {
			return bad("error looking up volume plugin " + o.DriverConfig.Name + ": plugin \"" + o.DriverConfig.Name + "\" not found")
		}
	case mount.TypeTmpfs:
		if mt.Source != "" {
			return bad("field Source must not be specified")
		}
	default:
		return bad("mount type unknown")
	}
	return p, nil
}

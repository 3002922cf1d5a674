package container

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"escale.dev/escale/internal/runtime/oci"
	"escale.dev/escale/internal/sys/pin"
	"github.com/moby/moby/api/types/mount"
)

// pinDir holds what the mounts of a container are made from while it starts:
// the runtime gets these paths instead of those that somebody could change
// between our look and its mount.
func (m *core) pinDir(id ID, generation uint64) string {
	return filepath.Join(m.runDir(id, generation), "mounts")
}

// mounts are the mount points as the specification wants them.
func (s *start) mounts() ([]oci.Mount, error) {
	asked := mountSpecs(&s.rec)
	var out []oci.Mount
	for i, p := range s.rec.Mounts {
		mt := asked[p.Destination]
		om := oci.Mount{Type: oci.Bind, Source: p.Source, Destination: p.Destination, ReadOnly: !p.RW, Propagation: string(p.Propagation)}
		if p.Type == mount.TypeBind && mt != nil && mt.BindOptions != nil {
			om.NonRecursive = mt.BindOptions.NonRecursive
			om.ReadOnlyNonRecursive = mt.BindOptions.ReadOnlyNonRecursive
			om.ReadOnlyForceRecursive = mt.BindOptions.ReadOnlyForceRecursive
		}
		if p.Type == mount.TypeTmpfs {
			om = oci.Mount{Type: oci.Tmpfs, Destination: p.Destination, ReadOnly: !p.RW, Options: tmpfsOptions(mt)}
		} else if err := s.pin(i, &om, mt); err != nil {
			return nil, err
		}
		out = append(out, om)
	}
	return out, nil
}

// pin takes hold of the source of the i-th mount point and binds it in the run
// directory, so that it is what the runtime mounts.
func (s *start) pin(i int, om *oci.Mount, mt *mount.Mount) error {
	dir := s.m.pinDir(s.e.id, s.run.generation)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	target := filepath.Join(dir, fmt.Sprintf("%04d", i)) // none begins another
	p := s.rec.Mounts[i]
	sub := ""
	switch {
	case p.Type == mount.TypeImage:
		root := target + "-image"
		if err := os.Mkdir(root, 0o700); err != nil {
			return err
		}
		if err := s.m.cfg.Rootfs.Mount(s.m.ctx, imageRoot(s.e.id, i), root); err != nil {
			return err
		}
		om.Source = root
		if mt != nil && mt.ImageOptions != nil {
			sub = mt.ImageOptions.Subpath
		}
	case p.Type == mount.TypeVolume && mt != nil && mt.VolumeOptions != nil:
		sub = mt.VolumeOptions.Subpath
	}
	f, err := s.source(p, om.Source, sub)
	if err != nil {
		return err
	}
	defer f.Close()
	prop := mount.Propagation(om.Propagation)
	if prop == mount.PropagationShared || prop == mount.PropagationRShared {
		return nil // a copy of ours would tell the source's peers of its own end
	}
	if err := pin.Bind(f, target, pin.How{
		NonRecursive: om.NonRecursive,
		Slave:        prop == mount.PropagationSlave || prop == mount.PropagationRSlave,
	}); err != nil {
		return err
	}
	om.From = target
	if s.pinned == nil {
		s.pinned = map[string]string{}
	}
	s.pinned[target] = om.Source
	return nil
}

// source opens what a mount point is made from.
func (s *start) source(p Mount, path, sub string) (*os.File, error) {
	if p.Type == mount.TypeBind && slices.Contains(s.rec.PlainBinds, p.Destination) {
		created := s.creates(p)
		f, err := pin.Walk(path, created)
		if errors.Is(err, os.ErrNotExist) && !created {
			return nil, noSource(path)
		}
		if err != nil {
			return nil, sourceError(path, err)
		}
		return f, nil
	}
	f, err := pin.Open(path)
	if err != nil {
		return nil, sourceError(path, err)
	}
	if sub == "" {
		return f, nil
	}
	defer f.Close()
	below, err := pin.Below(f, sub)
	if err != nil {
		return nil, kindf(errInvalid, "cannot access path %s: %s", filepath.Join(path, sub), cause(err))
	}
	return below, nil
}

// creates tells whether the source of a bind is made where it is missing: those of -v are, those of
// --mount only when they ask for it.
func (s *start) creates(p Mount) bool {
	mt := mountSpecs(&s.rec)[p.Destination]
	return mt == nil || mt.BindOptions != nil && mt.BindOptions.CreateMountpoint
}

func noSource(path string) error {
	return kindf(errInvalid, "invalid mount config for type \"bind\": bind source path does not exist: %s", path)
}

// sourceError is the refusal of a bind's source.
func sourceError(path string, err error) error {
	var pe *os.PathError
	if errors.Is(err, pin.ErrLink) && errors.As(err, &pe) {
		return kindf(errInvalid, "bind source %s: %s has become a symbolic link since the container was created", path, pe.Path)
	}
	return kindf(errInvalid, "error while creating mount source path '%s': %s", path, cause(err))
}

// cause is an error of the kernel without the path.
func cause(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

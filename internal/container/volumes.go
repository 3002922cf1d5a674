package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/continuity/fs"
	securejoin "github.com/cyphar/filepath-securejoin"
	"github.com/moby/moby/api/types/mount"
)

// volumes makes what the mount points need on the host: directories of binds
// that are not there, and, at the first start, what the image has where an
// empty volume is mounted.
func (s *start) volumes(context.Context) error {
	for _, p := range s.rec.Mounts {
		switch p.Type {
		case mount.TypeBind:
			if err := os.MkdirAll(p.Source, 0o755); err != nil && !errors.Is(err, os.ErrExist) && !isFile(p.Source) {
				return kindf(errInvalid, "error while creating mount source path '%s': %s", p.Source, err)
			}
		case mount.TypeVolume:
			if s.run.generation > 1 || noCopy(&s.rec, p) {
				continue
			}
			if err := s.copyUp(p); err != nil {
				return fmt.Errorf("volume %s: copying from the image: %w", p.Name, err)
			}
		}
	}
	return nil
}

func isFile(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// noCopy tells whether the client wants the volume as it is.
func noCopy(rec *Record, p Mount) bool {
	for _, word := range strings.Split(p.Mode, ",") {
		if word == "nocopy" {
			return true
		}
	}
	for i := range rec.HostConfig.Mounts {
		mt := &rec.HostConfig.Mounts[i]
		if mt.Target == p.Destination && mt.VolumeOptions != nil && (mt.VolumeOptions.NoCopy || mt.VolumeOptions.Subpath != "") {
			return true
		}
	}
	return false
}

// copyUp fills an empty volume with what the image has at its destination. The
// way there is followed inside the root only.
func (s *start) copyUp(p Mount) error {
	held, err := os.ReadDir(p.Source)
	if err != nil || len(held) > 0 {
		return err
	}
	src, err := securejoin.SecureJoin(s.rootfs(), p.Destination)
	if err != nil {
		return err
	}
	info, err := os.Stat(src)
	if errors.Is(err, os.ErrNotExist) || (err == nil && !info.IsDir()) {
		return nil
	}
	if err != nil {
		return err
	}
	return fs.CopyDir(p.Source, src)
}

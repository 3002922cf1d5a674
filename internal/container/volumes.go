package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"escale.dev/escale/internal/events"
	securejoin "github.com/cyphar/filepath-securejoin"
	apievents "github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"
)

// volumes makes what the mount points need on the host: directories of binds
// that are not there, what the options of volumes name, and, at the first start,
// what the image has where an empty volume is mounted.
func (s *start) volumes(ctx context.Context) error {
	s.undo.add(func() { s.m.mounts.unmount(&s.rec, s.rec.Mounts, false) })
	plain := s.rec.PlainBinds
	s.rec.Mounts = slices.Clone(s.rec.Mounts)
	for i := range s.rec.Mounts {
		p := &s.rec.Mounts[i]
		switch {
		case p.Type == mount.TypeBind && !slices.Contains(plain, p.Destination):
			// Those without a link on the way are made as they are walked.
			if !s.creates(*p) {
				if _, err := os.Stat(p.Source); errors.Is(err, os.ErrNotExist) {
					return noSource(p.Source)
				}
			} else if err := os.MkdirAll(p.Source, 0o755); err != nil && !isFile(p.Source) {
				return kindf(errInvalid, "error while creating mount source path '%s': %s", p.Source, err)
			}
		case p.Type == mount.TypeVolume:
			if err := s.m.mounts.mount(ctx, &s.rec, p); err != nil {
				return err
			}
			if err := s.copyUp(*p); err != nil {
				return fmt.Errorf("volume %s: copying from the image: %w", p.Name, err)
			}
		}
	}
	return nil
}

// mount mounts a volume for the container, notes where, and tells so.
func (m mounts) mount(ctx context.Context, rec *Record, p *Mount) error {
	path, err := m.cfg.Volumes.Mount(ctx, p.Name, string(rec.ID))
	if err != nil {
		return err
	}
	if err := m.settle(ctx, p.Name, path); err != nil {
		return fmt.Errorf("volume %s: %w", p.Name, err)
	}
	p.Source = path
	m.tell(apievents.ActionMount, p, map[string]string{
		"container": string(rec.ID), "destination": p.Destination, "propagation": string(p.Propagation), "read/write": strconv.FormatBool(p.RW),
	})
	return nil
}

// unmount ends that for the volumes among points; with told their users hear of it.
func (m mounts) unmount(rec *Record, points []Mount, told bool) error {
	var errs []error
	for i := range points {
		p := &points[i]
		if p.Type != mount.TypeVolume {
			continue
		}
		if err := m.cfg.Volumes.Unmount(p.Name, string(rec.ID)); err != nil {
			errs = append(errs, fmt.Errorf("volume %s: %w", p.Name, err))
		} else if told {
			m.tell(apievents.ActionUnmount, p, map[string]string{"container": string(rec.ID)})
		}
	}
	return errors.Join(errs...)
}

// tell publishes an event of a volume.
func (m mounts) tell(action apievents.Action, p *Mount, attributes map[string]string) {
	attributes["driver"] = p.Driver
	m.cfg.Events.Publish(events.Message{
		Type: apievents.VolumeEventType, Action: action, Actor: apievents.Actor{ID: p.Name, Attributes: attributes},
	})
}

func isFile(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// noCopy tells whether the volume is wanted as it is.
func noCopy(rec *Record, p Mount) bool {
	if slices.Contains(rec.Others, p.Destination) {
		return true
	}
	for _, word := range strings.Split(p.Mode, ",") {
		if word == "nocopy" {
			return true
		}
	}
	mt := mountSpecs(rec)[p.Destination]
	return mt != nil && mt.VolumeOptions != nil && (mt.VolumeOptions.NoCopy || mt.VolumeOptions.Subpath != "")
}

// copyUp fills an empty volume with what the image has at its destination, at the
// container's first start, unless that was done when it was made, or when an engine was
// killed that did so. The way there is followed inside the root only.
func (s *start) copyUp(p Mount) error {
	defer s.m.filling.lock(p.Name)()
	if noCopy(&s.rec, p) {
		return settleFill(p.Source, fillWhole)
	}
	first := s.run.generation == 1 && !slices.Contains(s.rec.Filled, p.Destination)
	return fill(p.Source, func() (string, error) { return securejoin.SecureJoin(s.rootfs(), p.Destination) }, first)
}

package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"escale.dev/escale/internal/container/archive"
	securejoin "github.com/cyphar/filepath-securejoin"
	"github.com/moby/moby/api/types/mount"
	"golang.org/x/sys/unix"
)

// equip makes what a new container has besides the image before it first starts: its
// working directory, and in its empty volumes what the image has in their places. A
// volume that the client gave no name is refused where the image has a file. The root
// file system is mounted only if something has to be made in it or copied out of it. It
// blocks for the disk. What an engine that is killed here leaves in a volume is begun
// anew by whoever comes next; the rest has no record, and is collected.
func (m creator) equip(ctx context.Context, rec *Record) (err error) {
	r := &newRoot{m: m.core, rec: rec}
	defer func() { err = errors.Join(err, r.close()) }()
	if err := r.workingDir(ctx); err != nil {
		return err
	}
	for i := range rec.Mounts {
		p := &rec.Mounts[i]
		if p.Type != mount.TypeVolume {
			continue
		}
		if unnamed(rec, p.Destination) {
			if found, err := r.find(ctx, p.Destination); err != nil {
				return err
			} else if found == archive.File {
				return fmt.Errorf("cannot mount volume over existing file, file exists %s", p.Destination)
			}
		}
		if !slices.Contains(rec.Filled, p.Destination) {
			continue
		}
		if err := r.fill(ctx, p); err != nil {
			return fmt.Errorf("volume %s: copying from the image: %w", p.Name, err)
		}
	}
	return nil
}

// unnamed tells whether a mount point is there for a path alone, given by the client or
// the image.
func unnamed(rec *Record, dst string) bool {
	if slices.Contains(rec.Others, dst) || namedByClient(rec, dst) {
		return false
	}
	for path := range rec.Config.Volumes {
		if filepath.Join("/", path) == dst {
			return true
		}
	}
	return false
}

// newRoot is the root file system of a container that is being made: the image's layers
// as far as they tell enough, else a mount without a name, which ends with the engine.
type newRoot struct {
	m      *core
	rec    *Record
	layers []string // the topmost first; nil: not asked yet, or not known
	asked  bool
	root   *os.File // nil: not mounted
}

// workingDir makes the working directory where the image has none, with those above it.
func (r *newRoot) workingDir(ctx context.Context) error {
	dir := r.rec.Config.WorkingDir
	if dir == "" || filepath.Join("/", dir) == "/" {
		return nil
	}
	found, err := r.find(ctx, dir)
	if err != nil || found == archive.Directory {
		return err
	}
	if found == archive.File {
		return fmt.Errorf("Cannot mkdir: %s is not a directory", dir)
	}
	if err := r.open(ctx); err != nil {
		return err
	}
	made, err := archive.Place(r.root, dir, true)
	if err != nil {
		return fmt.Errorf("making the working directory: %w", err)
	}
	return made.Close()
}

// fill gives a volume what the image has in its place, if it is empty.
func (r *newRoot) fill(ctx context.Context, p *Mount) error {
	defer r.m.filling.lock(p.Name)()
	if err := r.m.settle(ctx, p.Name, p.Source); err != nil {
		return err
	}
	return fill(p.Source, func() (string, error) {
		found, err := r.find(ctx, p.Destination)
		if err != nil {
			return "", err
		}
		if found != archive.Directory {
			return "", fs.ErrNotExist
		}
		if err := r.open(ctx); err != nil {
			return "", err
		}
		return r.path(p.Destination)
	}, true)
}

// find tells what is at a path, links followed.
func (r *newRoot) find(ctx context.Context, name string) (archive.Found, error) {
	if r.root == nil && !r.asked {
		r.asked = true
		_, layers, err := r.m.cfg.Rootfs.Layers(ctx, string(r.rec.ID))
		if err != nil {
			return archive.Nothing, err
		}
		r.layers = layers
	}
	if r.root == nil && len(r.layers) > 0 {
		found, err := archive.Find(r.layers, name)
		if err != nil || found != archive.Unsure {
			return found, err
		}
	}
	if err := r.open(ctx); err != nil {
		return archive.Nothing, err
	}
	path, err := r.path(name)
	if err != nil {
		return archive.Nothing, err
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return archive.Nothing, nil
	case err != nil:
		return archive.Nothing, err
	case info.IsDir():
		return archive.Directory, nil
	}
	return archive.File, nil
}

// path is where something is on the host while the root is mounted. Nobody else has
// that mount: no link can change between the look and the use.
func (r *newRoot) path(name string) (string, error) {
	return securejoin.SecureJoin(fmt.Sprintf("/proc/self/fd/%d", r.root.Fd()), name)
}

func (r *newRoot) open(ctx context.Context) (err error) {
	if r.root == nil {
		r.root, err = r.m.detachedRoot(ctx, r.rec)
	}
	return err
}

// close takes the mount down.
func (r *newRoot) close() error {
	if r.root == nil {
		return nil
	}
	return r.root.Close()
}

package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"escale.dev/escale/internal/sys/du"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// containerPrefix begins the names of containers' snapshots and leases.
const containerPrefix = "container/"

// Roots keeps the root file systems of containers: one snapshot each, on top of
// its image's layers, with a lease of its own, so that it lives on when the
// image is removed by force. It is safe for concurrent use.
type Roots struct {
	s    *Store
	dir  string // where the overlay snapshotter keeps its directories
	init string // version of the init layer of new ones; empty: they have none

	mu     sync.Mutex
	chains map[string]chain // by container

	mounter *mounter
}

// chain is what a container's root stands on.
type chain struct {
	layers []digest.Digest // topmost first
	init   string          // version of the init layer below them; empty: there is none
}

// labelInit names the version of a root's init layer. Those made by engines that knew
// none lack it, and have in their own layer what it holds.
const labelInit = "escale.init"

func rootKey(containerID string) string { return containerPrefix + containerID }

// load reads which containers have a root file system.
func (r *Roots) load(ctx context.Context) error {
	parents := map[string]string{}
	var tops []snapshots.Info
	err := r.s.snaps.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		parents[i.Name] = i.Parent
		if strings.HasPrefix(i.Name, containerPrefix) {
			tops = append(tops, i)
		}
		return nil
	})
	for _, t := range tops {
		c := chain{init: t.Labels[labelInit]}
		for p := t.Parent; p != ""; p = parents[p] {
			c.layers = append(c.layers, digest.Digest(p))
		}
		r.chains[strings.TrimPrefix(t.Name, containerPrefix)] = c
	}
	return err
}

// inUse marks the layers that containers keep.
func (r *Roots) inUse(layers map[digest.Digest]bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.chains {
		for _, l := range c.layers {
			layers[l] = true
		}
	}
}

// Prepare makes a container's root file system from an image, which is given
// by its full id. It is on the disk when Prepare returns: two commits, no
// mount. Kinds: NotFound (no such image), AlreadyExists.
func (r *Roots) Prepare(ctx context.Context, containerID, imageID string) error {
	rec, err := r.s.lookup(imageID)
	if err != nil {
		return err
	}
	key := rootKey(containerID)
	err = r.s.update(ctx, func(ctx context.Context, _ *bolt.Tx) error {
		l, err := r.s.leases.Create(ctx, leases.WithID(key))
		if err != nil {
			return err
		}
		var opts []snapshots.Opt
		if r.init != "" {
			opts = append(opts, snapshots.WithLabels(map[string]string{labelInit: r.init}))
		}
		_, err = r.s.snaps.Prepare(leases.WithLease(ctx, l.ID), key, rec.chain().String(), opts...)
		return err
	})
	if err != nil {
		return fmt.Errorf("root file system of container %s: %w", short(containerID), err)
	}
	c := chain{layers: make([]digest.Digest, 0, len(rec.Layers)), init: r.init}
	if rec.Snapshot != "" {
		c.layers = append(c.layers, rec.chain())
	}
	for _, l := range slices.Backward(rec.Layers) {
		c.layers = append(c.layers, l.ChainID)
	}
	r.mu.Lock()
	r.chains[containerID] = c
	r.mu.Unlock()
	return nil
}

// Remove drops a container's root file system, which must not be mounted any
// more. That there is none is fine. The directory goes in the background, but on
// a disk that is about to be full: there what the container wrote goes first,
// since even the note of the removal may need the room.
func (r *Roots) Remove(ctx context.Context, containerID string) error {
	key := rootKey(containerID)
	if r.s.space() != nil {
		if err := r.emptyUpper(ctx, containerID); err != nil && !errdefs.IsNotFound(err) {
			r.s.log.Warn("emptying a root file system", "container", short(containerID), "error", err)
		}
	}
	err := r.s.update(ctx, func(ctx context.Context, _ *bolt.Tx) error {
		err := r.s.leases.Delete(ctx, leases.Lease{ID: key})
		if err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		if err := r.s.snaps.Remove(ctx, key); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("root file system of container %s: %w", short(containerID), err)
	}
	r.mu.Lock()
	delete(r.chains, containerID)
	r.mu.Unlock()
	r.s.gc.kick(false)
	return nil
}

// Keep removes the root file systems of all containers but these: what a
// killed engine had prepared and not recorded.
func (r *Roots) Keep(ctx context.Context, containerIDs []string) error {
	all, err := r.Containers(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range all {
		if !slices.Contains(containerIDs, id) {
			errs = append(errs, r.Remove(ctx, id))
		}
	}
	return errors.Join(errs...)
}

// Containers lists the containers that have a root file system, sorted.
func (r *Roots) Containers(context.Context) ([]string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]string, 0, len(r.chains))
	for id := range r.chains {
		out = append(out, id)
	}
	slices.Sort(out)
	return out, nil
}

// Mounts tells how a container's root file system is mounted, in absolute
// paths: with many layers that is more than mount(2) takes, see Mount. Kind:
// NotFound.
func (r *Roots) Mounts(ctx context.Context, containerID string) ([]mount.Mount, error) {
	mounts, err := r.s.snaps.Mounts(r.s.namespace(ctx), rootKey(containerID))
	r.mu.Lock()
	version := r.chains[containerID].init
	r.mu.Unlock()
	if err != nil || version == "" {
		return mounts, err
	}
	return onInit(mounts, initDir(filepath.Dir(r.dir), version)), nil
}

// Layers tells where what a container wrote lies, and the layers below it, the
// topmost first and the init layer, if it has one, last. Kind: NotFound.
func (r *Roots) Layers(ctx context.Context, containerID string) (upper string, lowers []string, err error) {
	mounts, err := r.Mounts(ctx, containerID)
	if err != nil {
		return "", nil, fmt.Errorf("root file system of container %s: %w", short(containerID), err)
	}
	for _, o := range relative(mounts[0].Options, r.dir) { // the data root may have colons in its name
		if dirs, ok := strings.CutPrefix(o, "lowerdir="); ok {
			lowers = strings.Split(dirs, ":")
		}
	}
	for i := range lowers {
		lowers[i] = filepath.Join(r.dir, lowers[i])
	}
	return upperDir(mounts[0]), lowers, nil
}

// Mount mounts a container's root file system on the directory target, with as
// many layers as there are. Kind: NotFound.
func (r *Roots) Mount(ctx context.Context, containerID, target string) error {
	mounts, err := r.Mounts(ctx, containerID)
	if err != nil {
		return fmt.Errorf("root file system of container %s: %w", short(containerID), err)
	}
	if target, err = filepath.Abs(target); err != nil {
		return err
	}
	for _, m := range mounts {
		if err := r.mounter.mount(r.dir, m, target); err != nil {
			return fmt.Errorf("root file system of container %s: %w", short(containerID), err)
		}
	}
	return nil
}

// Unmount takes the mount off target. That there is none is fine. The kernel
// may write a good deal to the disk before it returns.
func (r *Roots) Unmount(target string) error {
	err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err == nil || err == unix.EINVAL || err == unix.ENOENT {
		return nil
	}
	return &os.PathError{Op: "unmount", Path: target, Err: err}
}

// Size tells the bytes of the files that a container wrote, and those together
// with its image's. It walks what the container wrote. Kind: NotFound.
func (r *Roots) Size(ctx context.Context, containerID string) (rw, rootfs int64, err error) {
	mounts, err := r.Mounts(ctx, containerID)
	if err != nil {
		return 0, 0, fmt.Errorf("root file system of container %s: %w", short(containerID), err)
	}
	if rw, err = du.Size(ctx, upperDir(mounts[0])); err != nil {
		return 0, 0, err
	}
	r.mu.Lock()
	layers := r.chains[containerID].layers
	r.mu.Unlock()
	rootfs = rw
	for _, l := range layers {
		info, err := r.s.snaps.Stat(r.s.namespace(ctx), l.String())
		if err != nil {
			return 0, 0, err
		}
		size, err := sizeOf(info)
		if err != nil {
			return 0, 0, err
		}
		rootfs += size
	}
	return rw, rootfs, nil
}

// upperDir is where what is written through a mount lands.
func upperDir(m mount.Mount) string {
	for _, o := range m.Options {
		if upper, ok := strings.CutPrefix(o, "upperdir="); ok {
			return upper
		}
	}
	return m.Source
}

// emptyUpper deletes what a container wrote. Kind: NotFound.
func (r *Roots) emptyUpper(ctx context.Context, containerID string) error {
	mounts, err := r.Mounts(ctx, containerID)
	if err != nil {
		return err
	}
	return empty(upperDir(mounts[0]))
}

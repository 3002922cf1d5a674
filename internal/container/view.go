package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"

	"escale.dev/escale/internal/container/archive"
	"github.com/moby/moby/api/types/mount"
	"golang.org/x/sys/unix"
)

// mountedView is the root of a container that does not run, mounted where only its
// holder sees it: whatever kills the engine, the kernel takes it down.
type mountedView struct {
	root *os.File
	quit chan struct{} // ends the thread that holds the mounts; nil: there is none
	done func()        // undoes what was mounted for it
	gone chan struct{}
}

// close takes the mounts down and waits for it.
func (v *mountedView) close() {
	v.root.Close()
	if v.quit != nil {
		close(v.quit)
		<-v.gone
	}
	if v.done != nil {
		v.done()
	}
}

// rootfsDir is where the root of a run is mounted.
func (m *core) rootfsDir(id ID, generation uint64) string {
	return filepath.Join(m.runDir(id, generation), "rootfs")
}

// cloneMount copies the mount at dir, without what is mounted in it, to where
// no name leads. Closing the file ends it.
func cloneMount(dir string) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, &os.PathError{Op: "open_tree", Path: dir, Err: err}
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// mount gives the root of a container that does not run, its op lock held. The
// way leads through the directory of its last run, so that an engine that is
// killed here leaves what the next one's sweep knows.
func (f Files) mount(ctx context.Context, e *entry, mounted bool) (*mountedView, error) {
	rec := e.view().Record
	rec.Mounts = f.m.withHostFiles(&rec)
	root, err := f.m.detachedRoot(ctx, &rec)
	if err != nil {
		return nil, err
	}
	if !mounted || (len(rec.Mounts) == 0 && !rec.HostConfig.ReadonlyRootfs) {
		return &mountedView{root: root}, nil
	}
	done, err := f.mountVolumes(ctx, &rec)
	if err != nil {
		root.Close()
		return nil, err
	}
	v := &mountedView{root: root, quit: make(chan struct{}), gone: make(chan struct{}), done: done}
	ready := make(chan error)
	go func() {
		defer close(v.gone)
		// Never unlocked: the thread ends here, and its namespace with it.
		goruntime.LockOSThread()
		err := furnish(root, f.m.cfg.RunDir, &rec)
		ready <- err
		<-v.quit
		unix.Unmount(f.m.cfg.RunDir, unix.MNT_DETACH) // ends with the namespace anyhow, this way at once
	}()
	if err := <-ready; err != nil {
		v.close()
		return nil, err
	}
	return v, nil
}

// mountVolumes mounts the volumes of a container that does not run, beside those
// for whom they may be mounted already.
func (f Files) mountVolumes(ctx context.Context, rec *Record) (undo func(), err error) {
	user := string(rec.ID) + "/files"
	var undos undoStack
	rec.Mounts = slices.Clone(rec.Mounts)
	for i := range rec.Mounts {
		p := &rec.Mounts[i]
		if p.Type != mount.TypeVolume {
			continue
		}
		if p.Source, err = f.m.cfg.Volumes.Mount(ctx, p.Name, user); err != nil {
			undos.run()
			return nil, err
		}
		undos.add(func() {
			if err := f.m.cfg.Volumes.Unmount(p.Name, user); err != nil {
				f.m.log.Warn("unmounting volume", "volume", p.Name, "error", err)
			}
		})
	}
	return undos.run, nil
}

// withHostFiles adds the files in /etc that the last start wrote to the mount
// points, as far as nothing else is there.
func (m *core) withHostFiles(rec *Record) []Mount {
	all := slices.Clone(rec.Mounts)
	files := m.hostFilesOf(rec.ID)
	for _, p := range []Mount{
		{Source: files.hostname, Destination: "/etc/hostname"},
		{Source: files.hosts, Destination: "/etc/hosts"},
		{Source: files.resolv, Destination: "/etc/resolv.conf"},
	} {
		taken := slices.ContainsFunc(rec.Mounts, func(o Mount) bool { return o.Destination == p.Destination })
		if _, err := os.Stat(p.Source); err != nil || taken {
			continue
		}
		p.Type, p.RW = mount.TypeBind, true
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b Mount) int { return strings.Compare(a.Destination, b.Destination) })
	return all
}

// detachedRoot mounts the root file system and keeps only a nameless copy.
func (m *core) detachedRoot(ctx context.Context, rec *Record) (_ *os.File, err error) {
	generation := rec.State.Generation
	dir := m.rootfsDir(rec.ID, generation)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	defer func() {
		if e := m.unmountRun(rec.ID, generation); e != nil {
			err = errors.Join(err, e)
			return // what is still mounted must not be deleted
		}
		m.removeRunDir(rec.ID, generation)
	}()
	if err := m.cfg.Rootfs.Mount(ctx, string(rec.ID), dir); err != nil {
		return nil, err
	}
	return cloneMount(dir)
}

// furnish gives the calling thread a mount namespace of its own, puts root into
// it at a directory, and the container's volumes and binds into root.
func furnish(root *os.File, at string, rec *Record) error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mount namespace: %w", err)
	}
	if err := unix.MoveMount(int(root.Fd()), "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mounting the root file system: %w", err)
	}
	for _, p := range rec.Mounts { // sorted: what is mounted on comes first
		if err := furnishOne(root, &p); err != nil {
			return fmt.Errorf("mounting %s: %w", p.Destination, err)
		}
	}
	if rec.HostConfig.ReadonlyRootfs {
		return setReadOnly(int(root.Fd()), 0)
	}
	return nil
}

// furnishOne mounts one volume or bind. One whose source is not there, as
// before a first start, is left out.
func furnishOne(root *os.File, p *Mount) error {
	if p.Type != mount.TypeBind && p.Type != mount.TypeVolume {
		return nil
	}
	info, err := os.Stat(p.Source)
	if err != nil {
		return nil
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, p.Source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	target, err := archive.Place(root, p.Destination, info.IsDir())
	if err != nil {
		return err
	}
	defer target.Close()
	if !p.RW {
		if err := setReadOnly(tree, unix.AT_RECURSIVE); err != nil {
			return err
		}
	}
	return unix.MoveMount(tree, "", int(target.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

func setReadOnly(fd int, flags uint) error {
	return unix.MountSetattr(fd, "", flags|unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
}

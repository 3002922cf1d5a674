package container

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"math"
	"os"
	"strings"
	"syscall"

	"escale.dev/escale/internal/container/archive"
	"escale.dev/escale/internal/image/layer"
	"github.com/moby/moby/api/types/container"
	apievents "github.com/moby/moby/api/types/events"
	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"
)

// Files moves files in and out of containers. A running one is seen as its
// first process sees it; of one that does not run the root is mounted for the
// while, with its volumes and binds, and nothing else is done to the container
// meanwhile; a client that stands still is given up for who wants to. It is a part of Manager, see Manager.Files.
type Files struct{ m *runner }

// WriteFiles says how files are put into a container.
type WriteFiles struct {
	NoOverwriteDirNonDir bool // refuse a directory where there is something else, and the reverse
	CopyUIDGID           bool // they belong to the container's user, not to whom the archive says
}

// Stat tells what path is in the container. A link is not followed; where it
// leads to is told.
func (f Files) Stat(ctx context.Context, ref, path string) (st container.PathStat, err error) {
	err = f.with(ctx, ref, true, func(_ *entry, root *os.File, _ *opLock) error {
		st, err = archive.Stat(root, path)
		return err
	})
	return st, fileError(err, ref, path)
}

// Read writes path as a tar archive. open is called before the first byte.
func (f Files) Read(ctx context.Context, ref, path string, open func(container.PathStat) (io.Writer, error)) error {
	var out transfer
	defer out.finish()
	return fileError(f.with(ctx, ref, true, func(e *entry, root *os.File, held *opLock) error {
		err := archive.Read(ctx, root, path, func(st container.PathStat) (io.Writer, error) {
			w, err := open(st)
			out.lock, out.w = held, w
			return &out, err
		})
		if err == nil {
			f.m.publish(e, apievents.ActionArchivePath, nil)
		}
		return err
	}), ref, path)
}

// Write puts a tar archive, compressed or not, into the directory at path.
func (f Files) Write(ctx context.Context, ref, path string, r io.Reader, o WriteFiles) error {
	in := transfer{r: r}
	defer in.finish()
	return fileError(f.with(ctx, ref, true, func(e *entry, root *os.File, held *opLock) error {
		in.lock = held
		opts := archive.WriteOptions{NoOverwriteDirNonDir: o.NoOverwriteDirNonDir}
		if name := e.view().Config.User; o.CopyUIDGID && name != "" {
			owner, err := lookupOwner(root, name)
			if err != nil {
				return err
			}
			opts.Owner = owner
		}
		plain, _, err := layer.Decompress(ctx, &in, math.MaxInt64)
		if err != nil {
			return kindf(errInvalid, "reading the archive: %s", err)
		}
		defer plain.Close()
		if err := archive.Write(ctx, root, path, plain, opts); err != nil {
			return err
		}
		f.m.publish(e, apievents.ActionExtractToDir, nil)
		return nil
	}), ref, path)
}

// lookupOwner finds a user of the container by its own passwd and group.
func lookupOwner(root *os.File, name string) (*archive.Owner, error) {
	passwd, err := archive.Open(root, "/etc/passwd")
	if err == nil {
		defer passwd.Close()
	}
	group, groupErr := archive.Open(root, "/etc/group")
	if groupErr == nil {
		defer group.Close()
	}
	u, err := user.GetExecUser(name, nil, reader(passwd), reader(group))
	if err != nil {
		return nil, kindf(errInvalid, "user %q of the container: %s", name, err)
	}
	return &archive.Owner{UID: u.Uid, GID: u.Gid}, nil
}

// reader is f, nothing for a file that is not there.
func reader(f *os.File) io.Reader {
	if f == nil {
		return strings.NewReader("")
	}
	return io.LimitReader(f, 16<<20)
}

// Changes compares the container with its image.
func (f Files) Changes(ctx context.Context, ref string) ([]container.FilesystemChange, error) {
	e, err := f.m.store.find(ref)
	if err != nil {
		return nil, err
	}
	upper, lowers, err := f.m.cfg.Rootfs.Layers(ctx, string(e.id))
	if err != nil {
		return nil, err
	}
	return archive.Changes(ctx, upper, lowers, placed(e.view().Mounts))
}

// Export writes the container's root as a tar archive, without what is mounted in it.
func (f Files) Export(ctx context.Context, ref string, w io.Writer) error {
	out := transfer{w: w}
	defer out.finish()
	return f.with(ctx, ref, false, func(e *entry, root *os.File, held *opLock) error {
		out.lock = held
		err := archive.Export(ctx, root, &out)
		if err == nil {
			f.m.publish(e, apievents.ActionExport, nil)
		}
		return err
	})
}

// fileError gives an error about a path Docker's words.
func fileError(err error, ref, path string) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errNotFound): // the container
		return err
	case errors.Is(err, fs.ErrNotExist):
		return kindf(errNotFound, "Could not find the file %s in container %s", path, ref)
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.ENAMETOOLONG), errors.Is(err, syscall.EINVAL) && strings.ContainsRune(path, 0):
		return kindf(errInvalid, "%s", err)
	}
	return err
}

// with calls do with the root of a container: with everything that is mounted
// in it, or bare. held is its op lock where that is held meanwhile.
func (f Files) with(ctx context.Context, ref string, mounted bool, do func(e *entry, root *os.File, held *opLock) error) error {
	e, err := f.m.store.find(ref)
	if err != nil {
		return err
	}
	root, err := f.live(e, mounted)
	if err != nil {
		return err
	}
	if root != nil {
		defer root.Close()
		return do(e, root, nil)
	}
	if err := e.op.lock(ctx); err != nil {
		return err
	}
	// It may have been started, or removed, while the lock was awaited.
	if root, err = f.live(e, mounted); root != nil || err != nil {
		e.op.unlock()
		if err != nil {
			return err
		}
		defer root.Close()
		return do(e, root, nil)
	}
	defer e.op.unlock()
	e.mu.Lock()
	removed := e.removed
	e.mu.Unlock()
	if removed {
		return errNoSuch(ref)
	}
	if err := f.m.waitReaped(ctx, e); err != nil {
		return err
	}
	v, err := f.mount(ctx, e, mounted)
	if err != nil {
		return err
	}
	defer v.close()
	return do(e, v.root, e.op)
}

// live opens the root of a running container; nil when it does not run.
func (f Files) live(e *entry, mounted bool) (*os.File, error) {
	for {
		st := e.state()
		if !st.Running() {
			return nil, nil
		}
		root, err := f.openRoot(e, &st, mounted)
		// The pid must still have been the container's when its root was open.
		if now := e.state(); now.Running() && now.Generation == st.Generation {
			if pidStart(st.Pid) == st.PidStart {
				return root, err
			}
			// It has just ended; the exit is on its way here.
			if root != nil {
				root.Close()
			}
			if err := f.awaitEnd(e, st.Generation); err != nil {
				return nil, err
			}
			continue
		}
		if root != nil {
			root.Close()
		}
	}
}

// awaitEnd waits until the end of a run whose process is gone is recorded.
func (f Files) awaitEnd(e *entry, generation uint64) error {
	e.mu.Lock()
	r := e.run
	e.mu.Unlock()
	if r == nil || r.generation != generation {
		return nil
	}
	select {
	case <-r.ended:
		return nil
	case <-f.m.ctx.Done():
		return f.m.ctx.Err()
	}
}

// openRoot opens a running container's root: as its process has it, or the bare mount.
func (f Files) openRoot(e *entry, st *State, mounted bool) (*os.File, error) {
	if mounted {
		return os.OpenFile("/proc/"+uitoa(uint64(st.Pid))+"/root", unix.O_PATH|unix.O_DIRECTORY, 0)
	}
	return f.m.openBareRoot(e, st)
}

package server

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// moveTries bounds how often a directory that a collection has just removed is
// made again.
const moveTries = 8

// tell is for tests.
func (d *disk) tell(op, name string) {
	if d.watch != nil {
		d.watch(op, name)
	}
}

// settled gives the file of a path when none is on its way there. Who sees a
// file relies on it, and is answered for that: so nobody sees one that a power
// cut may take.
func (d *disk) settled(ctx context.Context, p string) (string, error) {
	name, err := d.file(p)
	if err != nil {
		return "", err
	}
	d.mu.Lock()
	coming := d.moving[name]
	d.mu.Unlock()
	if coming == nil {
		return name, nil
	}
	select {
	case <-coming:
		return name, nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// coming says that a file is on its way to name, alone; arrived ends it.
func (d *disk) coming(ctx context.Context, name string) (arrived func(), err error) {
	for {
		d.mu.Lock()
		other := d.moving[name]
		if other == nil {
			done := make(chan struct{})
			d.moving[name] = done
			d.mu.Unlock()
			return func() {
				d.mu.Lock()
				delete(d.moving, name)
				d.mu.Unlock()
				close(done)
			}, nil
		}
		d.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// within does something in a directory that is made if need be, again when a
// collection has removed it in between.
func (d *disk) within(dir string, do func() error) (err error) {
	for range moveTries {
		if err = d.mkdir(dir); err == nil {
			err = do()
		}
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return err
}

// mkdir makes a directory with those above it, and remembers which are new.
func (d *disk) mkdir(dir string) error {
	d.mu.Lock()
	for p := dir; p != d.root && len(p) > len(d.root); p = filepath.Dir(p) {
		if _, err := os.Lstat(p); err == nil {
			break
		}
		if !transient(strings.TrimPrefix(p, d.root) + "/") {
			d.made++
			d.fresh[p] = d.made
		}
		d.tell("mkdir", p)
	}
	d.mu.Unlock()
	return os.MkdirAll(dir, 0o700)
}

// Move puts a file in another's place.
func (d *disk) Move(ctx context.Context, from, to string) error {
	src, err := d.file(from)
	if err != nil {
		return err
	}
	dst, err := d.file(to)
	if err != nil {
		return err
	}
	if _, err := os.Stat(src); err != nil {
		return notFound(from, err)
	}
	arrived, err := d.coming(ctx, dst)
	if err != nil {
		return err
	}
	defer arrived()
	if err := d.within(filepath.Dir(dst), func() error { return os.Rename(src, dst) }); err != nil {
		return err
	}
	d.tell("rename", dst)
	if transient(to) {
		return nil
	}
	return d.syncUp(filepath.Dir(dst))
}

// syncUp brings the entries of a directory to the disk, and those above that
// lead to it where they are new.
func (d *disk) syncUp(dir string) error {
	d.mu.Lock()
	made := d.fresh[dir]
	d.mu.Unlock()
	if err := d.syncDir(dir); err != nil || made == 0 {
		return err
	}
	if err := d.syncUp(filepath.Dir(dir)); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fresh[dir] == made { // else it was removed and made again
		delete(d.fresh, dir)
	}
	return nil
}

func (d *disk) syncDir(name string) error {
	f, err := os.Open(name)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed since
		}
		return err
	}
	defer f.Close()
	d.tell("sync", name)
	return f.Sync()
}

// Delete removes a file, or a directory with all in it. It is gone as one: a
// registry that is killed amid it leaves no half.
func (d *disk) Delete(_ context.Context, p string) error {
	finish, err := d.discard(p)
	if err != nil {
		return err
	}
	if !transient(p) {
		name, _ := d.file(p) // discard has seen it
		if err := d.syncDir(filepath.Dir(name)); err != nil {
			return err
		}
	}
	return finish()
}

// discard takes a path out of sight. Finish gives the space back, which can take
// its time; until the next start it is not given back otherwise.
func (d *disk) discard(p string) (finish func() error, err error) {
	name, err := d.file(p)
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat(name); err != nil {
		return nil, notFound(p, err)
	}
	d.tell("remove", name)
	away := filepath.Join(d.root, "tmp", rand.Text())
	if err := d.within(filepath.Dir(away), func() error {
		if err := os.Rename(name, away); err != nil {
			if _, gone := os.Lstat(name); gone != nil {
				return notFound(p, gone)
			}
			return err
		}
		return nil
	}); err != nil {
		return nil, err
	}
	return func() error { return os.RemoveAll(away) }, nil
}

// removeEmpty removes a directory with nothing in it; another it leaves. Who is
// about to put something there makes it again.
func (d *disk) removeEmpty(p string) error {
	name, err := d.file(p)
	if err != nil {
		return err
	}
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	return nil
}

// use sets the time of a file.
func (d *disk) use(p string, now time.Time) error {
	name, err := d.file(p)
	if err != nil {
		return err
	}
	return os.Chtimes(name, time.Time{}, now)
}

// sync brings everything to the disk.
func (d *disk) sync() error {
	f, err := os.Open(d.root)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

// diskWriter writes a file.
type diskWriter struct {
	disk   *disk
	f      *os.File
	size   int64
	closed bool
	synced bool
}

// Write writes at the end.
func (w *diskWriter) Write(b []byte) (int, error) {
	n, err := w.f.Write(b)
	w.size += int64(n)
	w.synced = false
	return n, err
}

// Size is that of the file.
func (w *diskWriter) Size() int64 { return w.size }

// Close closes the file. What was written stays, for who resumes it.
func (w *diskWriter) Close() error {
	if w.closed {
		return nil
	}
	w.closed = true
	return w.f.Close()
}

// Cancel removes the file.
func (w *diskWriter) Cancel(context.Context) error {
	return errors.Join(w.Close(), os.Remove(w.f.Name()))
}

// Commit brings the file to the disk.
func (w *diskWriter) Commit(context.Context) error {
	if w.synced || w.closed {
		return nil
	}
	w.synced = true
	w.disk.tell("sync", w.f.Name())
	return w.f.Sync()
}

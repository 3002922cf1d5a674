package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"escale.dev/escale/internal/sys/nobind"
	"golang.org/x/sys/unix"
)

// Folder binds network namespaces to files, their handles, so that they live on
// without a process. The handles are mounts, and lie in a mount namespace that
// holds nothing else and no process: whoever makes a mount namespace copies all
// mounts of the one he is in, and a thousand handles cost each start of a
// container a third of its time.
//
// The mount namespace lives by a mount of its own, in the directory ".mnt" beside
// the folder, until Destroy. The folder's path is a symbolic link into the process
// that has it open: below it handles can be opened by name, by others too, while
// that process lives. Of several that have it open the link leads to the last that made
// a handle or opened it.
// Sources: mount_namespaces(7), pivot_root(2), namespaces(7).
type Folder struct {
	dir    string
	root   *os.File // of the mount namespace
	thread *thread  // in the mount namespace

	linking sync.Mutex
}

// OpenFolder takes up the folder at a path, or makes it. The error is that of the
// system call which was refused; nothing is left then that was not there before.
func OpenFolder(dir string) (*Folder, error) {
	f := &Folder{dir: dir}
	if err := f.open(); err != nil {
		return nil, fmt.Errorf("folder of network namespaces %q: %w", dir, errors.Join(err, f.Close()))
	}
	return f, nil
}

func (f *Folder) pin() string { return filepath.Join(f.dir+".mnt", "ns") }

func (f *Folder) open() (err error) {
	if err := nobind.Prepare(filepath.Dir(f.pin())); err != nil {
		return err
	}
	there, err := os.Open(f.pin())
	switch {
	case err == nil:
		f.thread, err = start(func() error { return join(there) })
		there.Close()
	case errors.Is(err, fs.ErrNotExist):
		err = fs.ErrInvalid
	}
	if errors.Is(err, fs.ErrInvalid) || errors.Is(err, unix.EINVAL) { // a file alone: it was never bound
		err = f.make()
	}
	if err != nil {
		return err
	}
	if err := f.thread.Do(func() (err error) { f.root, err = os.OpenFile("/", unix.O_PATH|unix.O_DIRECTORY, 0); return err }); err != nil {
		return err
	}
	return f.link()
}

// join takes the calling thread into a mount namespace.
func join(ns *os.File) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("mount namespace %q: %w", ns.Name(), err)
	}
	return nil
}

// make makes the mount namespace and lets it live by a mount.
func (f *Folder) make() error {
	file, err := os.OpenFile(f.pin(), os.O_CREATE, 0o400)
	if err != nil {
		return err
	}
	file.Close()
	// The kernel binds mount namespaces that are younger than the caller's only,
	// and numbers them on each processor apart (6.18): where the caller's is not
	// the machine's first, one made on another processor may seem older than it.
	var cpus unix.CPUSet
	if err = unix.SchedGetaffinity(0, &cpus); err != nil {
		return err
	}
	for cpu := range len(cpus) * 64 {
		if !cpus.IsSet(cpu) {
			continue
		}
		if err = f.makeOn(cpu, &cpus); !errors.Is(err, unix.EINVAL) {
			break
		}
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.pin()))
	}
	return nil
}

// makeOn is make on one processor; the thread goes on with those it may have.
func (f *Folder) makeOn(cpu int, allowed *unix.CPUSet) error {
	var own string
	t, err := start(func() error {
		var one unix.CPUSet
		one.Set(cpu)
		if err := unix.SchedSetaffinity(0, &one); err != nil {
			return err
		}
		if err := seclude(filepath.Dir(f.pin())); err != nil {
			return err
		}
		own = fmt.Sprintf("/proc/%d/task/%d/ns/mnt", os.Getpid(), unix.Gettid())
		return unix.SchedSetaffinity(0, allowed)
	})
	if err != nil {
		return err
	}
	if err := unix.Mount(own, f.pin(), "", unix.MS_BIND, ""); err != nil {
		t.end()
		return fmt.Errorf("bind the mount namespace: %w", err)
	}
	f.thread = t
	return nil
}

// seclude takes the calling thread into a new mount namespace in which there is
// nothing but an empty file system. dir is any directory.
func seclude(dir string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("netns", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700,size=1m"); err != nil {
		return fmt.Errorf("tmpfs: %w", err)
	}
	if err := unix.Chdir(dir); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil { // the old root, which lies upon the new
		return fmt.Errorf("unmount the old root: %w", err)
	}
	return unix.Chdir("/")
}

// target is where the folder's path has to lead.
func (f *Folder) target() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.root.Fd()) }

// relink puts right a path that does not lead into this process (any more): what is
// told to others would not be found.
func (f *Folder) relink() error {
	if to, err := os.Readlink(f.dir); err == nil && to == f.target() {
		return nil
	}
	f.linking.Lock()
	defer f.linking.Unlock()
	return f.link()
}

// link makes the folder's path lead into this process.
func (f *Folder) link() error {
	if err := f.replace(); err != nil {
		return err
	}
	next := f.dir + ".new"
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(f.target(), next); err != nil {
		return err
	}
	return os.Rename(next, f.dir)
}

// replace takes over a directory at the folder's path, which engines before this
// one mounted on itself and bound handles in: those are bound here. A directory with
// anything else in it stays as it is.
func (f *Folder) replace() error {
	if st, err := os.Lstat(f.dir); err != nil || !st.IsDir() {
		return nil // link tells what is wrong with it
	}
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(f.dir, e.Name())
		if !Bound(path) {
			continue
		}
		ns, err := os.Open(path)
		if err != nil {
			return err
		}
		err = f.thread.Do(func() error { return bind(ns, "/"+e.Name()) })
		ns.Close()
		if err != nil && !errors.Is(err, fs.ErrExist) { // there already: this was cut off
			return err
		}
		if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %q: %w", path, err)
		}
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return nobind.Release(f.dir)
}

// Close lets go of the folder; what is bound in it stays. Idempotent.
func (f *Folder) Close() error {
	if f.thread != nil {
		f.thread.end()
	}
	if f.root == nil {
		return nil
	}
	if err := f.root.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// Destroy lets go of the folder and of all that is bound in it. Idempotent.
func (f *Folder) Destroy() error {
	err := f.Close()
	if e := unix.Unmount(f.pin(), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); e != nil && e != unix.EINVAL && e != unix.ENOENT {
		return errors.Join(err, fmt.Errorf("unmount %q: %w", f.pin(), e))
	}
	for _, path := range []string{f.pin(), f.dir + ".new", f.dir} {
		if e := os.Remove(path); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return errors.Join(err, nobind.Release(filepath.Dir(f.pin())))
}

// Path is where the handle of a name can be opened.
func (f *Folder) Path(name string) string { return filepath.Join(f.dir, name) }

// New makes a network namespace and binds it, as Bind does. On an error nothing is left
// behind. Blocks for about half a millisecond: the kernel sets up a whole network stack.
func (f *Folder) New(name string) (*Handle, error) {
	h, err := New()
	if err == nil {
		err = f.Bind(h, name)
	}
	if err != nil {
		if h != nil {
			h.Close()
		}
		return nil, err
	}
	return h, nil
}

// Bind binds a namespace to a name, which must be new (fs.ErrExist) and without a slash.
// On an error the folder is as it was.
func (f *Folder) Bind(h *Handle, name string) error {
	if err := f.relink(); err != nil {
		return fmt.Errorf("folder of network namespaces %q: %w", f.dir, err)
	}
	if err := f.thread.Do(func() error { return bind(h.file, "/"+name) }); err != nil {
		return fmt.Errorf("network namespace %q: %w", f.Path(name), err)
	}
	return nil
}

// bind mounts a namespace on a new file at path.
func bind(ns *os.File, path string) error {
	file, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	file.Close()
	// The namespace has no name here: there is no /proc.
	tree, err := unix.OpenTree(int(ns.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err == nil {
		err = unix.MoveMount(tree, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH)
		unix.Close(tree)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("bind: %w", err), os.Remove(path))
	}
	return nil
}

// Remove lets go of the namespace bound to a name and removes the file, whether
// or not a namespace is bound there. Idempotent. The kernel takes the namespace
// down in the background once nothing else uses it.
func (f *Folder) Remove(name string) error {
	err := f.thread.Do(func() error {
		err := unix.Unmount("/"+name, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount: %w", err)
		}
		if err := os.Remove("/" + name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("network namespace %q: %w", f.Path(name), err)
	}
	return nil
}

// List gives the names in the folder.
func (f *Folder) List() (names []string, err error) {
	err = f.thread.Do(func() error {
		entries, err := os.ReadDir("/")
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return err
	})
	return names, err
}

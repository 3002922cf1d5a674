// Package netns makes network namespaces and runs code in them.
//
// A namespace belongs to a thread, and Go moves goroutines between threads, so
// each Handle owns one thread that has entered the namespace: Do runs there, and
// Close ends the thread. No other thread of the process ever changes its
// namespace. A namespace outlives its Handle when it was bound to a file.
package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// self names the namespace of the calling thread; see namespaces(7).
const self = "/proc/thread-self/ns/net"

// Handle is a network namespace with a thread of its own in it.
type Handle struct {
	file  *os.File
	calls chan func()
	done  chan struct{}
	once  sync.Once
}

// New makes a network namespace. With a path it is also bound to that file, so
// that it lives on without a process; the file must not exist, and its folder
// should have been prepared with nobind.Prepare. On an error nothing is left behind.
// Blocks for about half a millisecond: the kernel sets up a whole network stack.
func New(path string) (*Handle, error) {
	h, err := start(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		if path == "" {
			return nil
		}
		return bind(path)
	})
	if err != nil {
		return nil, fmt.Errorf("network namespace %q: %w", path, err)
	}
	return h, nil
}

// Open enters the namespace that a file names (a bound handle, or
// /proc/<pid>/ns/net). Its error is fs.ErrNotExist when there is no such file
// and EINVAL when the file is none of a network namespace.
func Open(path string) (*Handle, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h, err := start(func() error { return unix.Setns(int(f.Fd()), unix.CLONE_NEWNET) })
	if err != nil {
		return nil, fmt.Errorf("network namespace %q: %w", path, err)
	}
	return h, nil
}

// start runs enter on a fresh thread and keeps that thread for Do.
func start(enter func() error) (*Handle, error) {
	h := &Handle{calls: make(chan func()), done: make(chan struct{})}
	started := make(chan error, 1)
	go h.run(enter, started)
	if err := <-started; err != nil {
		return nil, err
	}
	return h, nil
}

// run is the life of the handle's thread. It returns without unlocking the
// thread, so that the runtime ends the thread instead of using it again.
func (h *Handle) run(enter func() error, started chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == os.Getpid() {
		// The first thread cannot end, and /proc/self shows its namespaces: it
		// has to stay clean. It stays locked here until the goroutine that takes
		// over has a thread of its own.
		locked := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(locked)
			h.serve(enter, started)
		}()
		<-locked
		runtime.UnlockOSThread()
		return
	}
	h.serve(enter, started)
}

// serve enters the namespace and works off the calls of Do.
func (h *Handle) serve(enter func() error, started chan<- error) {
	defer close(h.done)
	if err := enter(); err != nil {
		started <- err
		return
	}
	f, err := os.Open(self)
	if err != nil {
		started <- err
		return
	}
	h.file = f
	started <- nil
	for fn := range h.calls {
		fn()
	}
}

// Do runs fn on the thread in the namespace and returns its error. Sockets that
// fn opens stay in the namespace wherever they are used later. Goroutines that
// fn starts are not in the namespace.
func (h *Handle) Do(fn func() error) error {
	errs := make(chan error, 1)
	h.calls <- func() { errs <- fn() }
	return <-errs
}

// Fd is the descriptor of the namespace, valid until Close.
func (h *Handle) Fd() int { return int(h.file.Fd()) }

// Close ends the handle's thread and its descriptor; the namespace goes with
// them unless something else holds it. Idempotent; Do must not be called after it.
func (h *Handle) Close() error {
	var err error
	h.once.Do(func() {
		close(h.calls)
		<-h.done
		err = h.file.Close()
	})
	return err
}

// bind mounts the calling thread's namespace on a new file at path.
func bind(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Mount(self, path, "", unix.MS_BIND, ""); err != nil {
		return errors.Join(fmt.Errorf("bind: %w", err), os.Remove(path))
	}
	return nil
}

// Remove lets go of the namespace bound to path and removes the file, whether
// or not a namespace is bound there. Idempotent. The kernel takes the namespace
// down in the background once nothing else uses it.
func Remove(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %q: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Bound reports whether a network namespace is bound to the file at path: a
// file that was made and never bound is none.
func Bound(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// List gives the names of the files in a folder of handles; none when there is
// no such folder.
func List(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

// Lock takes the lock of the calling process' network namespace: a flock on the
// namespace itself, so that programs which share a network, and only they,
// exclude each other. It blocks until the lock is free; the kernel frees it
// when its holder ends.
func Lock() (unlock func(), err error) {
	f, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock of the network namespace: %w", err)
	}
	return func() { f.Close() }, nil
}

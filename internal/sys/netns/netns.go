// Package netns makes network namespaces and runs code in them.
//
// A namespace belongs to a thread, and Go moves goroutines between threads, so
// each Handle owns one thread that has entered the namespace: Do runs there, and
// Close ends the thread. No other thread of the process ever changes its
// namespace. A namespace outlives its Handle when it is bound in a Folder.
package netns

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// self names the namespace of the calling thread; see namespaces(7).
const self = "/proc/thread-self/ns/net"

// Handle is a network namespace with a thread of its own in it.
type Handle struct {
	*thread
	file *os.File
}

// New makes a network namespace that ends with its Handle. Blocks for about half
// a millisecond: the kernel sets up a whole network stack.
func New() (*Handle, error) {
	h, err := enter(unshare)
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	return h, nil
}

func unshare() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	return nil
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
	h, err := enter(func() error { return unix.Setns(int(f.Fd()), unix.CLONE_NEWNET) })
	if err != nil {
		return nil, fmt.Errorf("network namespace %q: %w", path, err)
	}
	return h, nil
}

// enter makes a Handle of the namespace that in takes its thread to.
func enter(in func() error) (*Handle, error) {
	h := &Handle{}
	t, err := start(func() (err error) {
		if err = in(); err == nil {
			h.file, err = os.Open(self)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	h.thread = t
	return h, nil
}

// Fd is the descriptor of the namespace, valid until Close.
func (h *Handle) Fd() int { return int(h.file.Fd()) }

// Close ends the handle's thread and its descriptor; the namespace goes with
// them unless something else holds it. Idempotent.
func (h *Handle) Close() error {
	h.end()
	if err := h.file.Close(); !errors.Is(err, os.ErrClosed) {
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

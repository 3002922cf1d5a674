package container

import (
	"fmt"
	"os"
	goruntime "runtime"
	"sync"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// bareRoot is the root file system of a run as a mount without a name: what the
// container has mounted in it does not show. A thousand roots that are mounted
// where all can see them are copied into the mount namespace of each new
// container, and read by its runtime, line by line; so the name goes as soon as
// the container's process has a mount of its own.
//
// While this is held the kernel does not take the file system down, which may
// write a good deal to the disk: not the end of the process waits for it, but reap.
type bareRoot struct {
	mu     sync.Mutex
	file   *os.File // nil: not taken yet
	closed bool
}

// take makes the copy unless it is there: of the mount at dir, or, where that has
// gone, of the root of the process' mount namespace. Called with mu held.
func (b *bareRoot) take(dir string, st *State) (err error) {
	if b.closed {
		return os.ErrClosed
	}
	if b.file != nil {
		return nil
	}
	if isMounted(dir) {
		b.file, err = cloneMount(dir)
	} else {
		b.file, err = cloneRootOf(st.Pid, st.PidStart)
	}
	return err
}

// open gives the caller a descriptor of the root of its own.
func (b *bareRoot) open(dir string, st *State) (*os.File, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.take(dir, st); err != nil {
		return nil, err
	}
	fd, err := unix.FcntlInt(b.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// hide takes the copy and then the name, by unmount. Without a copy the name stays.
func (b *bareRoot) hide(dir string, st *State, unmount func(string) error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.take(dir, st); err != nil || !isMounted(dir) {
		return err
	}
	return unmount(dir)
}

// close lets go of the root for good. The kernel may write much before it returns.
func (b *bareRoot) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.file != nil {
		b.file.Close()
	}
	b.file, b.closed = nil, true
}

// isMounted tells whether another file system than its parent's is at dir.
func isMounted(dir string) bool {
	mounted, sure, err := mountinfo.MountedFast(dir)
	return err == nil && sure && mounted
}

// cloneRootOf copies the root mount of a process' mount namespace, without what is
// mounted in it: also one that has changed its own root shows the container's.
func cloneRootOf(pid int, start uint64) (root *os.File, err error) {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	if pidStart(pid) != start { // the descriptor is open: else it is another's
		return nil, fmt.Errorf("process %d: %w", pid, os.ErrProcessDone)
	}
	onLostThread(func() {
		if err = unix.Unshare(unix.CLONE_FS); err != nil {
			return
		}
		if err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
			return
		}
		root, err = cloneMount("/")
	})
	if err != nil {
		return nil, fmt.Errorf("root of process %d: %w", pid, err)
	}
	return root, nil
}

// onLostThread runs f on a thread that ends with it, whatever f made of it. The
// first thread cannot end, and /proc/self is its: it is passed over.
func onLostThread(f func()) {
	done := make(chan struct{})
	go func() {
		goruntime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			locked := make(chan struct{})
			go func() {
				goruntime.LockOSThread()
				close(locked)
				f()
				close(done)
			}()
			<-locked // this thread is taken until then
			goruntime.UnlockOSThread()
			return
		}
		f()
		close(done)
	}()
	<-done
}

// openBareRoot opens the root of the run that st tells of; os.ErrClosed when it is over.
func (m *core) openBareRoot(e *entry, st *State) (*os.File, error) {
	e.mu.Lock()
	r := e.run
	e.mu.Unlock()
	if r == nil || r.generation != st.Generation {
		return nil, os.ErrClosed
	}
	return r.root.open(m.rootfsDir(e.id, st.Generation), st)
}

// hideRoot takes the root of a run out of sight. That it stays is no harm but to
// the speed of others, so that this only tells.
func (m *runner) hideRoot(e *entry, r *run) {
	st := e.state()
	if !st.Running() || st.Generation != r.generation {
		return
	}
	if err := r.root.hide(m.rootfsDir(e.id, r.generation), &st, m.cfg.Rootfs.Unmount); err != nil {
		m.log.Debug("a root stays in sight", "container", e.id.Short(), "error", err)
	}
}

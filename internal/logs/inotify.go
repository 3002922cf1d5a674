package logs

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// watch wakes one reader when something happened in a directory.
type watch struct {
	wake chan struct{} // capacity 1: events between two looks are one
	w    *watcher
	wd   int32

	mu   sync.Mutex
	dead bool
}

// gone reports whether the directory was removed.
func (d *watch) gone() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.dead
}

// watcher is one inotify instance and the goroutine that reads it. All readers of a
// process share it, because the kernel gives a user only 128 instances
// (inotify(7), max_user_instances). It lives while somebody follows.
type watcher struct {
	f    *os.File
	dirs map[int32]map[*watch]struct{} // by watch descriptor; guarded by shared.mu
}

var shared struct {
	mu sync.Mutex
	w  *watcher // nil: nobody follows
}

const watchMask = unix.IN_MODIFY | unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM |
	unix.IN_DELETE | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR

func watchDir(dir string) (*watch, error) {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.w == nil {
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
		if err != nil {
			return nil, fmt.Errorf("inotify: %w (see fs.inotify.max_user_instances)", err)
		}
		shared.w = &watcher{f: os.NewFile(uintptr(fd), "inotify"), dirs: map[int32]map[*watch]struct{}{}}
		go shared.w.run()
	}
	w := shared.w
	wd, err := w.add(dir)
	if err != nil {
		w.closeIfIdle()
		if errors.Is(err, syscall.ENOSPC) {
			return nil, fmt.Errorf("inotify: %w (see fs.inotify.max_user_watches)", err)
		}
		return nil, &os.PathError{Op: "inotify_add_watch", Path: dir, Err: err}
	}
	d := &watch{wake: make(chan struct{}, 1), w: w, wd: int32(wd)}
	if w.dirs[d.wd] == nil {
		w.dirs[d.wd] = map[*watch]struct{}{}
	}
	w.dirs[d.wd][d] = struct{}{}
	return d, nil
}

func (w *watcher) add(dir string) (wd int, err error) {
	raw, err := w.f.SyscallConn()
	if err != nil {
		return 0, err
	}
	cerr := raw.Control(func(fd uintptr) { wd, err = unix.InotifyAddWatch(int(fd), dir, watchMask) })
	return wd, errors.Join(err, cerr)
}

func (d *watch) close() {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if _, ok := d.w.dirs[d.wd][d]; !ok {
		return
	}
	delete(d.w.dirs[d.wd], d)
	if len(d.w.dirs[d.wd]) > 0 {
		return
	}
	delete(d.w.dirs, d.wd)
	if raw, err := d.w.f.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _, _ = unix.InotifyRmWatch(int(fd), uint32(d.wd)) }) // may be gone already
	}
	d.w.closeIfIdle()
}

// closeIfIdle ends the instance with its last watch; shared.mu is held.
func (w *watcher) closeIfIdle() {
	if len(w.dirs) == 0 && shared.w == w {
		shared.w = nil
		_ = w.f.Close() // ends run
	}
}

// run reads events until the instance is closed.
func (w *watcher) run() {
	buf := make([]byte, 16<<10)
	for {
		n, err := w.f.Read(buf)
		if err != nil {
			return
		}
		shared.mu.Lock()
		for p := buf[:n]; len(p) >= unix.SizeofInotifyEvent; {
			e := (*unix.InotifyEvent)(unsafe.Pointer(&p[0]))
			w.tell(e.Wd, e.Mask)
			p = p[min(len(p), unix.SizeofInotifyEvent+int(e.Len)):]
		}
		shared.mu.Unlock()
	}
}

// tell wakes those an event is for; shared.mu is held.
func (w *watcher) tell(wd int32, mask uint32) {
	if mask&unix.IN_Q_OVERFLOW != 0 {
		for _, watches := range w.dirs {
			wakeAll(watches)
		}
		return
	}
	if mask&(unix.IN_IGNORED|unix.IN_MOVE_SELF|unix.IN_DELETE_SELF) != 0 {
		for d := range w.dirs[wd] {
			d.mu.Lock()
			d.dead = true
			d.mu.Unlock()
		}
	}
	wakeAll(w.dirs[wd])
}

func wakeAll(watches map[*watch]struct{}) {
	for d := range watches {
		select {
		case d.wake <- struct{}{}:
		default:
		}
	}
}

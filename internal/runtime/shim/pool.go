package shim

import (
	"time"

	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/sys/ready"
)

// How monitors are kept ready.
const (
	poolSize  = 1
	poolPause = 10 * time.Millisecond  // after a start: the container's first steps, and who waits for them, go first
	poolDelay = 100 * time.Millisecond // after a launch that is not followed by a start
	poolRest  = 30 * time.Second       // without a launch: then none are kept
	poolEnd   = 2 * time.Second        // for one that was killed to be gone
)

// blank is a monitor that has no container yet: the two descriptors of its connection and
// its process are all that the engine has of it. It ends with the connection, and thus with the engine.
type blank struct {
	conn    *conn
	child   *child
	program program
	over    chan struct{} // closed once its process is gone and collected
}

// keep has monitors kept ready: a launch need not wait for a process to be made.
func (r *Runtime) keep(c ready.Config[*blank]) {
	c.End = (*blank).end
	c.Make = func() (*blank, error) {
		b, err := r.spawn()
		if err != nil {
			r.log.Debug("no monitor is kept ready", "error", err)
		}
		return b, err
	}
	r.pool = ready.New(c)
}

// ready gives a monitor that was kept ready, lives, and is of the program on the disk; nil
// when there is none.
func (r *Runtime) ready() *blank {
	now := programAt(r.cfg.ShimPath)
	for {
		b, ok := r.pool.Take()
		if !ok {
			return nil
		}
		if b.program == now && now != (program{}) && b.conn.ended() == nil {
			return b
		}
		go b.end() // it has nothing to wait for
	}
}

// end kills the monitor and blocks until it is gone, with all that it was given; no
// longer than poolEnd.
func (b *blank) end() {
	b.conn.close(errClosed)
	b.child.kill()
	select {
	case <-b.over:
	case <-time.After(poolEnd): // frozen
	}
}

// program is what tells one version of the monitors' program on the disk from another.
type program struct {
	dev, ino uint64
	size     int64
	mtime    unix.Timespec
}

// programAt is the program at path, the zero one when there is none.
func programAt(path string) program {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return program{}
	}
	return program{dev: uint64(st.Dev), ino: st.Ino, size: st.Size, mtime: st.Mtim}
}

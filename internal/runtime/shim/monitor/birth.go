package monitor

import (
	"syscall"

	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime/shim/wire"
)

// birth is the start of the container's process where the engine does all but have it for
// a child. The child is collected only when that is over.
type birth struct {
	m      *Monitor
	pid    int     // 0: nothing is being started
	c      *conn   // the engine's: nobody else sees it through
	failed *waiter // is told how the child, which was killed, has ended
}

// fork starts the child. What comes along is in wire.Fork's order.
func (b *birth) fork(r waiter, msg wire.Message) {
	fds := r.c.fds
	r.c.fds = nil
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd) // the child has its own
		}
	}()
	m, p := b.m, b.m.init
	least := 2
	if msg.Bool(wire.TagInCgroup) {
		least++
	}
	args := msg.Texts(wire.TagArg)
	switch {
	case p.state != wire.StateConfigured:
		r.refuse(wire.KindConflict, "already started")
		return
	case len(fds) < least || uint64(len(fds)) != msg.Uint(wire.TagNumber) || len(args) == 0:
		r.refuse(wire.KindInvalid, itoa(int64(len(fds)))+" descriptors have come")
		return
	}
	attr := &syscall.SysProcAttr{Cloneflags: uintptr(msg.Uint(wire.TagFlags))}
	rest := fds[2:]
	if msg.Bool(wire.TagInCgroup) {
		attr.UseCgroupFD, attr.CgroupFD = true, rest[len(rest)-1]
		rest = rest[:len(rest)-1]
	}
	var files []uintptr
	for _, fd := range p.child {
		if fd == m.null {
			fd = fds[1]
		}
		files = append(files, uintptr(fd))
	}
	for _, fd := range rest {
		files = append(files, uintptr(fd))
	}
	// The program comes last, or moving the others to their places might take its own.
	files = append(files, uintptr(fds[0]))
	pid, err := syscall.ForkExec("/proc/self/fd/"+itoa(int64(len(files)-1)), args, &syscall.ProcAttr{Env: msg.Texts(wire.TagEnv), Files: files, Sys: attr})
	if err != nil {
		r.refuse(wire.KindInternal, err.Error())
		return
	}
	p.handedOver()
	p.state = wire.StateStarting
	b.c, b.pid = r.c, pid
	r.ok(func(w *wire.Writer) { w.Uint(wire.TagPid, uint64(pid)) })
}

// of says whether c is the engine's that has a start under way.
func (b *birth) of(c *conn) bool { return b.pid != 0 && b.c == c && b.failed == nil }

// terminal takes what came along.
func (b *birth) terminal(r waiter) {
	fds := r.c.fds
	r.c.fds = nil
	if !b.of(r.c) || !b.m.init.terminal || len(fds) != 1 {
		for _, fd := range fds {
			_ = unix.Close(fd) // nobody's
		}
		r.refuse(wire.KindConflict, "no terminal is waited for")
		return
	}
	b.m.init.setTerminal(fds[0])
	r.ok(nil)
}

// ran is told when the child is the container's program, or has been it.
func (b *birth) ran(r waiter) {
	if !b.of(r.c) {
		r.refuse(wire.KindConflict, "nothing is being started")
		return
	}
	pid := b.pid
	b.pid, b.c = 0, nil
	b.m.runs(b.m.init, r, pid)
	b.m.reaper.wait()
}

// fail ends a start.
func (b *birth) fail(r waiter) {
	switch {
	case b.m.init.state == wire.StateConfigured:
		r.ok(nil)
		b.m.never(b.m.init)
	case b.of(r.c):
		b.kill(r)
	default:
		r.refuse(wire.KindConflict, "nothing is being started")
	}
}

// orphaned ends a start of which nobody will hear any more.
func (b *birth) orphaned(c *conn) {
	if b.of(c) {
		b.kill(waiter{c: c})
	}
}

func (b *birth) kill(r waiter) {
	b.failed = &r
	_ = unix.Kill(b.pid, unix.SIGKILL) // it is our child, and not collected
	b.m.reaper.wait()
}

// over collects the child of a start that has failed. It is false as long as there is
// a child that must not be collected: others wait so long, too.
func (b *birth) over() bool {
	if b.pid == 0 || b.failed == nil {
		return b.pid == 0
	}
	var ws unix.WaitStatus
	if pid, err := unix.Wait4(b.pid, &ws, unix.WNOHANG, nil); pid != b.pid && err != unix.ECHILD {
		b.m.reaper.wait()
		return false
	}
	r := *b.failed
	b.pid, b.c, b.failed = 0, nil, nil
	r.ok(func(w *wire.Writer) { w.Uint(wire.TagNumber, uint64(ws)) })
	b.m.never(b.m.init)
	return true
}

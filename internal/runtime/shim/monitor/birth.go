package monitor

import (
	"syscall"

	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime/shim/wire"
)

// birth is the start of the container's process where the engine does all but have it for
// a child. The child is collected only when it is over.
type birth struct {
	c    *conn // the engine's: nobody else sees it through
	pid  int
	fail *waiter // is told how the child, which was killed, has ended
}

// fork starts the child. What comes along is in wire.Fork's order.
func (m *Monitor) fork(r waiter, msg wire.Message) {
	fds := r.c.fds
	r.c.fds = nil
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd) // the child has its own
		}
	}()
	p := m.init
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
	m.birth = &birth{c: r.c, pid: pid}
	r.ok(func(w *wire.Writer) { w.Uint(wire.TagPid, uint64(pid)) })
}

// takeTerminal takes what came along.
func (m *Monitor) takeTerminal(r waiter) {
	fds := r.c.fds
	r.c.fds = nil
	if m.birth == nil || m.birth.c != r.c || !m.init.terminal || len(fds) != 1 {
		for _, fd := range fds {
			_ = unix.Close(fd) // nobody's
		}
		r.refuse(wire.KindConflict, "no terminal is waited for")
		return
	}
	m.init.setTerminal(fds[0])
	r.ok(nil)
}

// forked is told when the child is the container's program, or has been it.
func (m *Monitor) forked(r waiter) {
	b := m.birth
	if b == nil || b.c != r.c || b.fail != nil {
		r.refuse(wire.KindConflict, "nothing is being started")
		return
	}
	m.birth = nil
	m.runs(m.init, r, b.pid)
	m.reaper.wait()
}

// fail ends a start.
func (m *Monitor) fail(r waiter) {
	b := m.birth
	switch {
	case b == nil && m.init.state == wire.StateConfigured:
		r.ok(nil)
		m.never(m.init)
	case b == nil || b.c != r.c || b.fail != nil:
		r.refuse(wire.KindConflict, "nothing is being started")
	default:
		b.end(r)
		m.reaper.wait()
	}
}

func (b *birth) end(r waiter) {
	b.fail = &r
	_ = unix.Kill(b.pid, unix.SIGKILL) // it is our child, and not collected
}

// orphaned ends a start of which nobody will hear any more.
func (m *Monitor) orphaned(c *conn) {
	if m.birth != nil && m.birth.c == c && m.birth.fail == nil {
		m.birth.end(waiter{c: c})
		m.reaper.wait()
	}
}

// birthOver collects the child of a start that has failed. It is false as long as
// that child must not be collected: others wait so long, too.
func (m *Monitor) birthOver() bool {
	b := m.birth
	if b.fail == nil {
		return false
	}
	var ws unix.WaitStatus
	pid, err := unix.Wait4(b.pid, &ws, unix.WNOHANG, nil)
	if pid != b.pid && err != unix.ECHILD {
		m.reaper.wait()
		return false
	}
	m.birth = nil
	b.fail.ok(func(w *wire.Writer) { w.Uint(wire.TagNumber, uint64(ws)) })
	m.never(m.init)
	return true
}

package monitor

import "golang.org/x/sys/unix"

// reaper waits for children on a thread of its own, since no descriptor tells
// of any child's end. It only notices: the loop collects the child, so that
// while the loop handles a request no pid it knows can become another's.
type reaper struct {
	wake [2]int // the loop → the thread: there are children to wait for
	told [2]int // the thread → the loop: one has ended, or none is there
	busy bool
}

func newReaper(l *loop, f func()) (*reaper, error) {
	r := &reaper{}
	if err := unix.Pipe2(r.wake[:], unix.O_CLOEXEC); err != nil {
		return nil, err
	}
	if err := unix.Pipe2(r.told[:], unix.O_CLOEXEC); err != nil {
		return nil, err
	}
	l.watch(r.told[0], unix.EPOLLIN, handlerFunc(func(uint32) {
		var b [1]byte
		_, _ = unix.Read(r.told[0], b[:]) // it is there
		r.busy = false
		f()
	}))
	go r.run()
	return r, nil
}

func (r *reaper) run() {
	b := make([]byte, 1)
	var info unix.Siginfo
	for {
		if n, err := unix.Read(r.wake[0], b); n != 1 && err != unix.EINTR {
			return
		} else if n != 1 {
			continue
		}
		for unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
		}
		_, _ = unix.Write(r.told[1], b) // the pipe lives as long as we
	}
}

// wait has the thread wait, unless it does already.
func (r *reaper) wait() {
	if !r.busy {
		r.busy = true
		_, _ = unix.Write(r.wake[1], []byte{0}) // the pipe lives as long as we
	}
}

// death is the end of a child.
type death struct {
	pid    int
	status unix.WaitStatus
	at     unix.Timespec
}

// code is the exit code as a shell tells it.
func (d death) code() int {
	if d.status.Signaled() {
		return 128 + int(d.status.Signal())
	}
	return d.status.ExitStatus()
}

// reap collects all children that have ended.
func (m *Monitor) reap() {
	if !m.birth.over() {
		return
	}
	var list []death
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if pid <= 0 {
			if err == nil {
				m.reaper.wait() // for those still there
			}
			break
		}
		list = append(list, death{pid, ws, now()})
	}
	// A runtime and the process that it has started may be in the list in any
	// order; the process goes first, so that it is known when the runtime tells of it.
	var returned []death
	for _, d := range list {
		if m.callOf(d.pid) != nil {
			returned = append(returned, d)
		} else {
			m.ended(d)
		}
	}
	for _, d := range returned {
		m.returned(m.callOf(d.pid), d)
	}
	if len(m.calls) == 0 {
		m.strays = nil
	}
	m.leave()
}

func (m *Monitor) ended(d death) {
	if m.init != nil && m.init.pid == d.pid && m.init.state == stateRunning {
		m.init.finish(d)
		return
	}
	for _, p := range m.execs {
		if p.pid == d.pid && p.state == stateRunning {
			p.finish(d)
			return
		}
	}
	if m.ahead != nil && m.ahead.pid == d.pid {
		m.dismiss() // the number may be another's from now on
		return
	}
	// The process of a runtime that has not returned yet, or a stranger.
	if len(m.calls) > 0 {
		m.strays = append(m.strays, d)
	}
}

func (m *Monitor) callOf(pid int) *call {
	for _, c := range m.calls {
		if c.pid == pid {
			return c
		}
	}
	return nil
}

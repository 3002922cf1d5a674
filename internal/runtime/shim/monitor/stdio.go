package monitor

import (
	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/logs/format"
)

// source is the reading end of a process' output.
type source struct {
	p      *process
	fd     int // -1 after its end
	stream byte
	name   string // "stdout" or "stderr"
	split  format.Splitter
	orphan bool // its process has ended: what still comes is thrown away
}

func (s *source) ready(uint32) {
	n, end := s.read()
	switch {
	case s.orphan:
	case n > 0:
		s.p.deliver(s, n)
	}
	if end {
		s.close()
	}
}

// read fills the monitor's buffer. A terminal whose other side is closed gives
// an error, which is its end.
func (s *source) read() (n int, end bool) {
	n, err := unix.Read(s.fd, s.p.m.buf[header:])
	if err == unix.EAGAIN || err == unix.EINTR {
		return 0, false
	}
	return max(n, 0), n <= 0
}

// drain takes all that the process has left behind, and no more: another one
// that writes on must not hold up the news of the end.
func (s *source) drain() {
	if s.fd < 0 {
		return
	}
	bound := 1 << 20
	if n, err := unix.FcntlInt(uintptr(s.fd), unix.F_GETPIPE_SZ, 0); err == nil && n > bound {
		bound = n
	}
	for bound > 0 {
		n, end := s.read()
		if n > 0 {
			s.p.send(s, n)
			bound -= n
			continue
		}
		if end {
			s.close()
		}
		break
	}
	s.orphan = true
}

func (s *source) watch() {
	if s.fd >= 0 {
		s.p.m.loop.watch(s.fd, unix.EPOLLIN, s)
	}
}

func (s *source) pause() { s.p.m.loop.pause(s.fd) }

func (s *source) close() {
	s.p.m.loop.close(s.fd)
	s.fd = -1
}

// sink is the writing end of a process' input. It holds at most one read of one
// client; while it does, no client is read from.
type sink struct {
	p       *process
	fd      int // -1 after its end
	pending []byte
	closing bool // after what is pending
}

// write takes b; what the process does not take at once is kept.
func (k *sink) write(b []byte) {
	if k.fd < 0 {
		return
	}
	n, err := writeAll(k.fd, b)
	switch {
	case err == nil:
	case err == unix.EAGAIN:
		k.pending = append(k.pending[:0], b[n:]...)
		k.p.m.loop.watch(k.fd, unix.EPOLLOUT, k)
	default: // the process has closed its input
		k.close()
	}
}

// full says that nothing can be taken now.
func (k *sink) full() bool { return len(k.pending) > 0 || k.fd < 0 }

func (k *sink) ready(uint32) {
	n, err := writeAll(k.fd, k.pending)
	k.pending = k.pending[:copy(k.pending, k.pending[n:])]
	switch {
	case err != nil && err != unix.EAGAIN, len(k.pending) == 0 && k.closing:
		k.close()
	case len(k.pending) == 0:
		k.p.m.loop.pause(k.fd)
	default:
		return
	}
	k.p.feed()
}

// end closes the input after all that was taken.
func (k *sink) end() {
	if len(k.pending) > 0 {
		k.closing = true
		return
	}
	k.close()
}

func (k *sink) close() {
	k.p.m.loop.close(k.fd)
	k.fd, k.pending = -1, nil
}

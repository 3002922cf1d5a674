package monitor

import "golang.org/x/sys/unix"

// handler takes the events of one descriptor.
type handler interface{ ready(events uint32) }

// handlerFunc makes a function a handler.
type handlerFunc func(events uint32)

func (f handlerFunc) ready(events uint32) { f(events) }

// loop waits for descriptors. One goroutine runs it and calls every handler, so
// nothing in a monitor needs a lock.
type loop struct {
	ep    int
	slots []slot // by descriptor
	turn  int32
	stop  bool
	rest  func() // called once, when nothing happens for restAfter; nil: never
}

// restAfter is in milliseconds. Who is needed at once is asked sooner.
const restAfter = 3

type slot struct {
	h      handler
	turn   int32 // tells this use of the number from an earlier one
	events uint32
	armed  bool
}

func newLoop() (*loop, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	return &loop{ep: ep}, err
}

// watch lets h have the events of fd, or changes which ones. Errors and hang-ups
// are always told.
func (l *loop) watch(fd int, events uint32, h handler) {
	for fd >= len(l.slots) {
		l.slots = append(l.slots, slot{})
	}
	s := &l.slots[fd]
	op := unix.EPOLL_CTL_MOD
	if !s.armed {
		l.turn++
		s.turn = l.turn
		op = unix.EPOLL_CTL_ADD
	} else if s.events == events {
		s.h = h
		return
	}
	s.h, s.events, s.armed = h, events, true
	ev := unix.EpollEvent{Events: events, Fd: int32(fd), Pad: s.turn}
	if err := unix.EpollCtl(l.ep, op, fd, &ev); err != nil {
		fatal("epoll_ctl: ", err)
	}
}

// pause stops all events of fd, hang-ups too.
func (l *loop) pause(fd int) {
	if fd >= 0 && fd < len(l.slots) && l.slots[fd].armed {
		_ = unix.EpollCtl(l.ep, unix.EPOLL_CTL_DEL, fd, nil) // it is in the set
		l.slots[fd] = slot{}
	}
}

// close forgets fd and closes it.
func (l *loop) close(fd int) {
	if fd >= 0 {
		l.pause(fd)
		_ = unix.Close(fd) // nothing to do about an error
	}
}

func (l *loop) run() {
	events := make([]unix.EpollEvent, 32)
	for !l.stop {
		patience := -1
		if l.rest != nil {
			patience = restAfter
		}
		n, err := unix.EpollWait(l.ep, events, patience)
		if err == unix.EINTR {
			continue
		}
		if n == 0 && l.rest != nil {
			rest := l.rest
			l.rest = nil
			rest()
		}
		if err != nil {
			fatal("epoll_wait: ", err)
		}
		for _, ev := range events[:n] {
			// A handler before this one may have closed the descriptor, and a new
			// one may have taken its number.
			if s := l.slots[ev.Fd]; s.armed && s.turn == ev.Pad {
				s.h.ready(ev.Events)
			}
		}
	}
}

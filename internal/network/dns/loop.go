package dns

import (
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// turn is how many questions, or connections, of one container are taken up
	// before the others have their turn.
	turn = 32

	// pauseWithoutFiles is how long no connection is accepted after the process
	// had no descriptor left for one.
	pauseWithoutFiles = 100 * time.Millisecond
)

// loop waits for the sockets of all containers, in one goroutine. It waits in the
// kernel with a thread of its own: the way through the Go runtime's poller would be as
// long as the rest of an answer.
type loop struct {
	log  *slog.Logger
	ep   int // an epoll instance
	wake int // an eventfd in it, with the key 0, that ends the goroutine
	done chan struct{}
	buf  []byte // of the goroutine

	life sync.RWMutex // held for reading while ep is used by others than the goroutine

	mu    sync.Mutex
	socks map[int32]sock // by what epoll gives back; a number is not used again soon
	next  int32
}

type sock struct {
	b   *box
	tcp bool
}

func newLoop(log *slog.Logger) (*loop, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create", err)
	}
	l := &loop{log: log, ep: ep, done: make(chan struct{}), buf: make([]byte, 64<<10), socks: map[int32]sock{}}
	if l.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		unix.Close(ep)
		return nil, os.NewSyscallError("eventfd", err)
	}
	if err := l.ctl(unix.EPOLL_CTL_ADD, l.wake, &unix.EpollEvent{Events: unix.EPOLLIN}); err != nil {
		unix.Close(l.wake)
		unix.Close(ep)
		return nil, err
	}
	go l.run()
	return l, nil
}

// ctl changes what the epoll instance waits for.
func (l *loop) ctl(op, fd int, ev *unix.EpollEvent) error {
	l.life.RLock()
	defer l.life.RUnlock()
	if l.ep < 0 {
		return os.ErrClosed
	}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(l.ep, op, fd, ev))
}

// add begins to wait for a container's sockets.
func (l *loop) add(b *box) error {
	for i, s := range []sock{{b, false}, {b, true}} {
		l.mu.Lock()
		for taken := true; taken || l.next == 0; _, taken = l.socks[l.next] {
			l.next++
		}
		key := l.next
		b.keys[i], l.socks[key] = key, s
		l.mu.Unlock()
		if err := l.ctl(unix.EPOLL_CTL_ADD, s.fd(), &unix.EpollEvent{Events: unix.EPOLLIN, Fd: key}); err != nil {
			l.remove(b)
			return err
		}
	}
	return nil
}

// remove stops waiting for a container's sockets, which are still open. Others
// hold copies, so the kernel would not do it when ours are closed.
func (l *loop) remove(b *box) {
	l.mu.Lock()
	for _, key := range b.keys {
		if l.socks[key].b == b {
			delete(l.socks, key)
		}
	}
	l.mu.Unlock()
	b.mu.RLock()
	defer b.mu.RUnlock()
	for _, fd := range []int{b.udp, b.tcp} {
		if fd >= 0 {
			_ = l.ctl(unix.EPOLL_CTL_DEL, fd, nil) // it was not waited for yet, or the loop has ended
		}
	}
}

func (s sock) fd() int {
	if s.tcp {
		return s.b.tcp
	}
	return s.b.udp
}

// close ends the goroutine and waits for it.
func (l *loop) close() error {
	_, err := unix.Write(l.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	if err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	<-l.done
	l.life.Lock()
	defer l.life.Unlock()
	unix.Close(l.wake)
	unix.Close(l.ep)
	l.ep = -1
	return nil
}

func (l *loop) run() {
	defer close(l.done)
	events := make([]unix.EpollEvent, 64)
	for {
		n, err := unix.EpollWait(l.ep, events, -1)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			l.log.Error("names are not answered any more", "error", err)
			return
		}
		for _, ev := range events[:n] {
			if ev.Fd == 0 {
				return // close
			}
			l.ready(ev.Fd)
		}
	}
}

// ready takes up what has come on one socket.
func (l *loop) ready(key int32) {
	l.mu.Lock()
	s, ok := l.socks[key]
	l.mu.Unlock()
	if !ok {
		return // forgotten meanwhile
	}
	s.b.mu.RLock()
	defer s.b.mu.RUnlock()
	if s.b.udp < 0 {
		return
	}
	if s.tcp {
		l.accept(s.b, key)
		return
	}
	for range turn {
		n, from, err := unix.Recvfrom(s.b.udp, l.buf, unix.MSG_DONTWAIT)
		if err != nil {
			return // nothing more; an error of the socket was told by this
		}
		s.b.datagram(l.buf[:n], from)
	}
}

// accept takes up connections. Called with b.mu held for reading.
func (l *loop) accept(b *box, key int32) {
	for range turn {
		fd, _, err := unix.Accept4(b.tcp, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		if err == unix.EMFILE || err == unix.ENFILE || err == unix.ENOBUFS || err == unix.ENOMEM {
			l.pause(b, key)
			return
		}
		if err == unix.ECONNABORTED || err == unix.EINTR {
			continue
		}
		if err != nil {
			return
		}
		if b.conns.Add(1) > maxConns {
			b.conns.Add(-1)
			unix.Close(fd)
			continue
		}
		go b.stream(os.NewFile(uintptr(fd), "dns"))
	}
}

// pause lets connections wait until there may be descriptors again: they would
// be told of without end.
func (l *loop) pause(b *box, key int32) {
	fd := b.tcp
	if l.ctl(unix.EPOLL_CTL_MOD, fd, &unix.EpollEvent{Fd: key}) != nil {
		return
	}
	time.AfterFunc(pauseWithoutFiles, func() {
		b.mu.RLock()
		defer b.mu.RUnlock()
		if b.tcp >= 0 {
			_ = l.ctl(unix.EPOLL_CTL_MOD, b.tcp, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: key}) // forgotten meanwhile
		}
	})
}

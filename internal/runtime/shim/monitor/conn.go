package monitor

import (
	"os"

	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime/shim/wire"
)

// maxUnsent is how many bytes of answers may wait for a peer that does not read.
const maxUnsent = 1 << 20

// conn is a connection that speaks the protocol, until Attach makes it a client.
type conn struct {
	m     *Monitor
	fd    int // -1 after its end
	in    []byte
	out   []byte
	hello bool
	fds   []int // came along with what is in in
}

func (m *Monitor) newConn(fd int) {
	m.conns++
	m.control++
	c := &conn{m: m, fd: fd}
	m.loop.watch(fd, unix.EPOLLIN, c)
}

func (c *conn) ready(events uint32) {
	if events&unix.EPOLLOUT != 0 {
		c.send(nil)
	}
	if c.fd >= 0 && events&unix.EPOLLIN != 0 {
		c.read()
	} else if c.fd >= 0 && events&(unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		c.close()
	}
}

func (c *conn) read() {
	n, err := c.receive()
	if err == unix.EAGAIN || err == unix.EINTR {
		return
	}
	if n <= 0 || err != nil {
		c.close()
		return
	}
	c.in = append(c.in, c.m.buf[:n]...)
	used := 0
	for c.fd >= 0 {
		msg, n, err := wire.Next(c.in[used:])
		if err != nil {
			c.close()
			return
		}
		if n == 0 {
			break
		}
		used += n
		if msg.Type == wire.Attach && c.hello {
			if used != len(c.in) { // input must wait for our answer
				c.close()
				return
			}
			c.attach(msg)
			continue
		}
		c.take(msg)
	}
	if c.in = c.in[:copy(c.in, c.in[used:])]; len(c.in) == 0 && cap(c.in) > 4096 {
		c.in = nil // launch messages are long, and the only long ones
	}
}

// receive reads what has come, and the descriptors that came along.
func (c *conn) receive() (int, error) {
	var oob [rightsSpace]byte
	n, oobn, flags, _, err := unix.Recvmsg(c.fd, c.m.buf[:], oob[:], unix.MSG_CMSG_CLOEXEC)
	if err != nil || oobn == 0 {
		return n, err
	}
	list, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return n, err
	}
	for i := range list {
		if fds, err := unix.ParseUnixRights(&list[i]); err == nil {
			c.fds = append(c.fds, fds...)
		}
	}
	if flags&unix.MSG_CTRUNC != 0 {
		return n, unix.EMFILE // some were lost
	}
	return n, nil
}

// keep takes over the descriptors that came along.
func (c *conn) keep(r waiter) {
	if c.m.leaving {
		r.refuse(wire.KindNotFound, "container is not running")
		return
	}
	c.m.held = append(c.m.held, c.fds...)
	c.fds = nil
	r.ok(nil)
}

// close ends the connection. Before the start, a container whose engine is gone
// is nobody's.
func (c *conn) close() {
	m := c.m
	if len(c.out) > 0 {
		m.unsent--
	}
	m.loop.close(c.fd)
	for _, fd := range c.fds {
		_ = unix.Close(fd)
	}
	c.fd, c.out, c.fds = -1, nil, nil
	m.conns--
	m.control--
	m.birth.orphaned(c)
	if m.control == 0 && (m.init == nil || m.init.state == wire.StateConfigured) {
		m.abandon()
	}
	m.leave()
}

// send writes b after what is still unsent.
func (c *conn) send(b []byte) {
	if c.fd < 0 {
		return
	}
	waited := len(c.out) > 0
	if waited {
		c.out = append(c.out, b...)
		b = c.out
	}
	n, err := 0, error(nil)
	for n < len(b) && err == nil {
		var k int
		if k, err = unix.SendmsgN(c.fd, b[n:], nil, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT); err == unix.EINTR {
			k, err = 0, nil
		}
		n += max(k, 0)
	}
	if err != nil && err != unix.EAGAIN || len(b)-n > maxUnsent {
		c.close()
		return
	}
	c.out = append(c.out[:0], b[n:]...)
	switch {
	case len(c.out) > 0:
		if !waited {
			c.m.unsent++
		}
		c.m.loop.watch(c.fd, unix.EPOLLIN|unix.EPOLLOUT, c)
	case waited:
		c.m.unsent--
		c.m.loop.watch(c.fd, unix.EPOLLIN, c)
		c.m.leave()
	}
}

// take does what a message asks.
func (c *conn) take(msg wire.Message) {
	if msg.Type == wire.Hello {
		c.hello = true
		w := &c.m.w
		w.Reset()
		w.Begin(wire.Hello)
		w.Uint(wire.TagVersion, wire.Version)
		w.End()
		c.send(w.Data())
		return
	}
	if !c.hello {
		c.close()
		return
	}
	r := waiter{c, msg.Uint(wire.TagRequest)}
	switch msg.Type {
	case wire.Config, wire.Become:
		c.config(r, msg)
	case wire.Hold:
		c.keep(r)
	case wire.Start, wire.Fork, wire.Terminal, wire.Ran, wire.Fail, wire.Exec, wire.Signal, wire.Resize, wire.Wait, wire.Status, wire.Held:
		if c.m.init == nil {
			r.refuse(wire.KindConflict, "not configured")
			return
		}
		c.request(r, msg)
	default:
		r.refuse(wire.KindUnsupported, "unknown request "+itoa(int64(msg.Type)))
	}
}

func (c *conn) config(r waiter, msg wire.Message) {
	if c.m.init != nil {
		r.refuse(wire.KindConflict, "already configured")
		return
	}
	var err error
	c.m.loop.rest = nil
	if msg.Type == wire.Become {
		err = c.m.become(msg)
	}
	if err == nil {
		err = c.m.configure(msg)
	}
	if err != nil {
		r.refuse(wire.KindInternal, err.Error())
		c.m.release()
		c.m.leave()
		return
	}
	r.ok(nil)
}

func (c *conn) request(r waiter, msg wire.Message) {
	m, id := c.m, msg.Text(wire.TagProcess)
	p := m.find(id)
	switch msg.Type {
	case wire.Start:
		m.start(r)
		return
	case wire.Fork:
		m.birth.fork(r, msg)
		return
	case wire.Terminal:
		m.birth.terminal(r)
		return
	case wire.Ran:
		m.birth.ran(r)
		return
	case wire.Fail:
		m.birth.fail(r)
		return
	case wire.Exec:
		m.exec(r, msg)
		return
	case wire.Status:
		m.status(r)
		return
	case wire.Held:
		c.lend(r)
		return
	case wire.Wait:
		if p == nil || p.state == wire.StateEnded {
			if res, ok := m.recall(id); ok {
				r.exit(res)
				return
			}
			if p != nil && id == "" && m.ran {
				r.exit(p.end)
				return
			}
			r.refuse(wire.KindNotFound, "no such process")
			return
		}
		p.waiters = append(p.waiters, r)
		return
	}
	if p == nil || p.state == wire.StateEnded {
		r.refuse(wire.KindNotFound, "process has ended")
		return
	}
	if msg.Type == wire.Resize {
		if !p.terminal && p.state != stateAwaited {
			r.refuse(wire.KindInvalid, "process has no terminal")
			return
		}
		p.resize(uint16(msg.Uint(wire.TagRows)), uint16(msg.Uint(wire.TagCols)))
		r.ok(nil)
		return
	}
	if p.state != stateRunning {
		r.refuse(wire.KindConflict, "process is not running")
		return
	}
	sig := unix.Signal(msg.Uint(wire.TagNumber))
	switch err := unix.Kill(p.pid, sig); err {
	case nil:
		p.killed = p.killed || sig == unix.SIGKILL
		r.ok(nil)
	case unix.ESRCH:
		r.refuse(wire.KindNotFound, "process has ended")
	case unix.EINVAL:
		r.refuse(wire.KindInvalid, "no such signal")
	default:
		r.refuse(wire.KindInternal, err.Error())
	}
}

func (m *Monitor) status(r waiter) {
	r.ok(func(w *wire.Writer) {
		w.Text(wire.TagID, m.cfg.id)
		w.Uint(wire.TagGeneration, m.cfg.generation)
		w.Uint(wire.TagMonitor, uint64(os.Getpid()))
		w.Uint(wire.TagState, uint64(m.init.state))
		w.Uint(wire.TagPid, uint64(m.init.pid))
		w.Uint(wire.TagStartTime, uint64(m.init.start))
		for _, p := range m.execs {
			if p.state == stateRunning {
				w.Text(wire.TagProcess, p.id)
			}
		}
	})
}

// rights is how many descriptors go with one message; the kernel takes 253, which
// need rightsSpace bytes.
const (
	rights      = 200
	rightsSpace = 16 + 253*4 + 4
)

// lend sends copies of the held descriptors. A peer that has not read so much is
// not waited for.
func (c *conn) lend(r waiter) {
	all := c.m.lendable()
	held := all
	for first := true; first || len(held) > 0; first = false {
		if len(c.out) > 0 {
			c.close()
			return
		}
		n := len(held)
		if n > rights {
			n = rights
		}
		w := &c.m.w
		w.Reset()
		w.Begin(wire.OK)
		w.Uint(wire.TagRequest, r.id)
		w.Uint(wire.TagNumber, uint64(len(all)))
		w.End()
		var oob []byte
		if n > 0 {
			oob = unix.UnixRights(held[:n]...)
		}
		if k, err := unix.SendmsgN(c.fd, w.Data(), oob, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT); err != nil || k != len(w.Data()) {
			c.close()
			return
		}
		held = held[n:]
	}
}

// attach turns the connection into a client of a process, which it may precede.
func (c *conn) attach(msg wire.Message) {
	m, r, id := c.m, waiter{c, msg.Uint(wire.TagRequest)}, msg.Text(wire.TagProcess)
	if m.init == nil || m.init.state == wire.StateEnded {
		r.refuse(wire.KindNotFound, "container is not running")
		return
	}
	p := m.find(id)
	if _, ended := m.recall(id); p == nil && ended {
		r.refuse(wire.KindNotFound, "process has ended")
		return
	}
	if p == nil {
		p = &process{m: m, id: id}
		m.execs = append(m.execs, p)
	}
	r.ok(nil)
	if c.fd < 0 || len(c.out) > 0 {
		if c.fd >= 0 {
			c.close() // it must read our answer before anything else
		}
		return
	}
	cl := &client{m: m, p: p, fd: c.fd, stdin: msg.Bool(wire.TagStdin)}
	cl.out[1], cl.out[2] = msg.Bool(wire.TagStdout), msg.Bool(wire.TagStderr)
	c.fd = -1
	m.control--
	m.clients++
	p.clients = append(p.clients, cl)
	cl.arm()
}

// waiter is a request that is to be answered.
type waiter struct {
	c  *conn
	id uint64
}

func (r waiter) answer(t wire.Type, f func(*wire.Writer)) {
	if r.c.fd < 0 {
		return
	}
	w := &r.c.m.w
	w.Reset()
	w.Begin(t)
	w.Uint(wire.TagRequest, r.id)
	if f != nil {
		f(w)
	}
	w.End()
	r.c.send(w.Data())
}

func (r waiter) ok(f func(*wire.Writer)) { r.answer(wire.OK, f) }

func (r waiter) refuse(kind uint64, text string) {
	r.answer(wire.Error, func(w *wire.Writer) {
		w.Uint(wire.TagKind, kind)
		w.Text(wire.TagText, text)
	})
}

func (r waiter) exit(e result) {
	r.ok(func(w *wire.Writer) {
		w.Uint(wire.TagCode, uint64(e.code))
		w.Uint(wire.TagSeconds, uint64(e.at.Sec))
		w.Uint(wire.TagNanos, uint64(e.at.Nsec))
		w.Bool(wire.TagOOM, e.oom)
	})
}

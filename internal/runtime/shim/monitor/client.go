package monitor

import (
	"golang.org/x/sys/unix"
)

const (
	// header is the length of the frame header that precedes output which comes
	// from more than a terminal: stream, three zeros, length big-endian.
	header = 8

	// behindAt is how many bytes may wait for a client before its process is no
	// longer read from.
	behindAt = 128 << 10
)

// client is an attached connection: the process' output to it, input from it.
type client struct {
	m      *Monitor
	p      *process // nil after its end
	fd     int
	stdin  bool
	out    [3]bool // by stream
	wait   []byte  // output that waits for the client
	sent   int     // how much of wait is gone
	eof    bool    // no more input comes
	gone   bool    // hung up; only its last input is still wanted
	moved  int64   // when wait last got shorter, by uptime
	closed bool
}

func (c *client) behind() bool { return len(c.wait)-c.sent >= behindAt }

// send passes n bytes in the monitor's buffer on.
func (c *client) send(stream byte, n int) {
	if !c.out[stream] || c.gone {
		return
	}
	b := c.m.buf[header : header+n]
	if !c.p.terminal {
		b = c.m.buf[:header+n]
		b[0], b[1], b[2], b[3] = stream, 0, 0, 0
		b[4], b[5], b[6], b[7] = byte(n>>24), byte(n>>16), byte(n>>8), byte(n)
	}
	if len(c.wait) == 0 {
		k, ok := c.put(b)
		if !ok {
			return
		}
		b = b[k:]
		c.moved = 0
	}
	if len(b) == 0 {
		return
	}
	if c.moved == 0 {
		c.moved = uptime()
	}
	if c.sent > 0 {
		c.wait = c.wait[:copy(c.wait, c.wait[c.sent:])]
		c.sent = 0
	}
	c.wait = append(c.wait, b...)
	c.arm()
}

// put writes what the connection takes at once. ok is false when the client is
// gone, and dropped.
func (c *client) put(b []byte) (n int, ok bool) {
	for n < len(b) {
		k, err := unix.SendmsgN(c.fd, b[n:], nil, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return n, true
		case err != nil:
			c.hangUp()
			return n, false
		default:
			n += k
		}
	}
	return n, true
}

// arm tells the loop what this client can use now.
func (c *client) arm() {
	if c.gone || c.closed {
		return
	}
	var events uint32
	if len(c.wait) > 0 {
		events |= unix.EPOLLOUT
	}
	if c.wantsInput() {
		events |= unix.EPOLLIN
	}
	c.m.loop.watch(c.fd, events, c)
}

// wantsInput says whether something sent by the client could be used now.
func (c *client) wantsInput() bool {
	return c.p != nil && c.stdin && !c.eof && c.p.in != nil && !c.p.in.full()
}

func (c *client) ready(events uint32) {
	if events&unix.EPOLLOUT != 0 && len(c.wait) > 0 && !c.flush() {
		return
	}
	if events&(unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		c.hangUp()
		return
	}
	if events&unix.EPOLLIN != 0 && c.wantsInput() {
		c.read()
	}
	if !c.closed {
		c.arm()
	}
}

// flush sends what waits; false when the client has been dropped.
func (c *client) flush() bool {
	n, ok := c.put(c.wait[c.sent:])
	if !ok {
		return false
	}
	if n > 0 {
		c.moved = uptime()
	}
	wasBehind := c.behind()
	c.sent += n
	if c.sent == len(c.wait) {
		c.wait, c.sent = c.wait[:0], 0
		if c.p == nil {
			c.close()
			return false
		}
	}
	if wasBehind && !c.behind() && c.p != nil {
		c.p.flow()
	}
	return true
}

// read passes one piece of input to the process.
func (c *client) read() {
	n, err := unix.Read(c.fd, c.m.input[:])
	switch {
	case n > 0:
		c.p.in.write(c.m.input[:n])
	case err == unix.EAGAIN || err == unix.EINTR:
	default:
		c.eof = true
		c.p.inputEnded()
	}
}

// feed is called when the process takes input again.
func (c *client) feed() {
	if !c.gone {
		c.arm()
		return
	}
	// No event tells of what a client sent before it hung up.
	for c.wantsInput() {
		c.read()
	}
	if c.eof || c.p.in == nil || c.p.in.fd < 0 {
		c.close()
	}
}

// hangUp drops a client that has gone: at once its output, and itself when the
// process has taken all the input it had sent.
func (c *client) hangUp() {
	if c.closed || c.gone {
		return
	}
	c.gone = true
	wasBehind := c.behind()
	c.wait, c.sent = nil, 0
	c.m.loop.pause(c.fd)
	p := c.p
	if p != nil && p.in != nil && c.stdin && !c.eof {
		c.feed()
	} else {
		c.close()
	}
	if p != nil && wasBehind {
		p.flow()
	}
}

// finish is called when the process has ended and all its output was sent or
// waits: the client goes when it has taken it.
func (c *client) finish() {
	c.detach()
	if c.gone || len(c.wait) == 0 {
		c.close()
		return
	}
	c.arm()
	c.m.grace.begin(c)
}

// detach takes the client from its process.
func (c *client) detach() {
	if c.p == nil {
		return
	}
	for i, o := range c.p.clients {
		if o == c {
			c.p.clients = append(c.p.clients[:i], c.p.clients[i+1:]...)
			break
		}
	}
	if c.p.state == stateAwaited && len(c.p.clients) == 0 {
		c.m.forget(c.p) // the exec may never be asked for
	}
	c.p = nil
}

// close ends the connection in a way that the client reads all that was sent
// and then an end, not an error: input that nobody took is thrown away first.
func (c *client) close() {
	if c.closed {
		return
	}
	c.closed = true
	if c.p != nil && c.stdin && !c.eof {
		c.eof = true
		c.p.inputEnded()
	}
	c.detach()
	_ = unix.Shutdown(c.fd, unix.SHUT_RDWR) // it may be gone
	for {
		n, err := unix.Read(c.fd, c.m.input[:])
		if n <= 0 && err != unix.EINTR {
			break
		}
	}
	c.m.loop.close(c.fd)
	c.wait = nil
	c.m.grace.end(c)
	c.m.clients--
	c.m.conns--
	c.m.leave()
}

// grace bounds how long clients may stall after their process has ended.
type grace struct {
	m    *Monitor
	fd   int // a timer, -1 while nobody is waited for
	list []*client
}

func (g *grace) begin(c *client) {
	c.moved = uptime()
	g.list = append(g.list, c)
	if g.fd >= 0 {
		return
	}
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		c.close() // rather than wait for ever
		return
	}
	g.fd = fd
	g.m.loop.watch(fd, unix.EPOLLIN, handlerFunc(func(uint32) { g.expire() }))
	g.arm()
}

// arm sets the timer to when the first may expire.
func (g *grace) arm() {
	first := int64(1) << 40
	for _, c := range g.list {
		first = min(first, c.moved)
	}
	at := unix.ItimerSpec{Value: unix.Timespec{Sec: first + g.m.cfg.grace + 1}}
	_ = unix.TimerfdSettime(g.fd, unix.TFD_TIMER_ABSTIME, &at, nil) // the time is valid
}

func (g *grace) expire() {
	var b [8]byte
	_, _ = unix.Read(g.fd, b[:]) // it may have been set anew
	late := uptime() - g.m.cfg.grace
	for i := 0; i < len(g.list); {
		if c := g.list[i]; c.moved < late {
			c.close() // takes it from the list
		} else {
			i++
		}
	}
	if g.fd >= 0 {
		g.arm()
	}
}

func (g *grace) end(c *client) {
	for i, o := range g.list {
		if o == c {
			g.list = append(g.list[:i], g.list[i+1:]...)
			if len(g.list) == 0 {
				g.m.loop.close(g.fd)
				g.fd = -1
			}
			return
		}
	}
}

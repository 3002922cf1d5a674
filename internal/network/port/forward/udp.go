package forward

import (
	"container/list"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// idle is how long a flow of datagrams is remembered after the last one.
	idle = 90 * time.Second
	// maxFlows bounds the flows through one port; the one that was silent for longest
	// makes room.
	maxFlows = 1024
	// largest is what fits into a datagram.
	largest = 65535
	// queued is how much may wait in a socket, in bytes.
	queued = 208 << 10
)

// udp serves one socket.
type udp struct {
	c       *net.UDPConn
	targets *targets
	log     *slog.Logger
	idle    time.Duration

	mu    sync.Mutex
	ended bool
	flows map[client]*flow
	order *list.List // of *flow, the one used last in front
}

// client is who sends, and to which of the host's addresses.
type client struct {
	from netip.AddrPort
	at   netip.Addr
	link int // by which it came, which link-local addresses need
}

// flow is a client and the socket that speaks for it to a container.
type flow struct {
	client
	to     netip.AddrPort
	server *net.UDPConn
	last   time.Time
	place  *list.Element
	link   *link
}

// serveUDP serves the bound socket until stop is called.
func serveUDP(held *os.File, to *targets, log *slog.Logger) (stop func(), err error) {
	stop, _, err = newUDP(held, to, log, idle)
	return stop, err
}

func newUDP(held *os.File, to *targets, log *slog.Logger, idle time.Duration) (stop func(), u *udp, err error) {
	if err := control(held, func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1) }); err != nil {
		return nil, nil, os.NewSyscallError("setsockopt", err)
	}
	pc, err := net.FilePacketConn(held)
	if err != nil {
		return nil, nil, err
	}
	u = &udp{c: pc.(*net.UDPConn), targets: to, log: log, idle: idle, flows: map[client]*flow{}, order: list.New()}
	_ = u.c.SetReadBuffer(queued) // it was made with none
	go u.receive()
	return u.stop, u, nil
}

func (u *udp) stop() {
	u.mu.Lock()
	u.ended = true
	u.mu.Unlock()
	if !u.targets.leaving() {
		_ = u.c.SetReadBuffer(0) // nobody reads any more
	}
	u.c.Close()
	u.targets.endAll()
}

func (u *udp) receive() {
	buf, oob := make([]byte, largest), make([]byte, 128)
	for {
		n, oobn, _, from, err := u.c.ReadMsgUDPAddrPort(buf, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // what ICMP says of a client
		}
		at, ok := arrived(oob[:oobn])
		if !ok {
			continue
		}
		f := u.flow(client{from: from, at: at.Addr, link: at.link})
		if f != nil {
			_, _ = f.server.Write(buf[:n]) // lost as datagrams may be
		}
	}
}

type arrival struct {
	netip.Addr
	link int
}

// arrived reads to which address a datagram came: a struct in6_pktinfo.
func arrived(oob []byte) (arrival, bool) {
	list, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return arrival{}, false
	}
	for _, m := range list {
		if m.Header.Level != unix.IPPROTO_IPV6 || m.Header.Type != unix.IPV6_PKTINFO || len(m.Data) < unix.SizeofInet6Pktinfo {
			continue
		}
		return arrival{netip.AddrFrom16([16]byte(m.Data[:16])), int(binary.NativeEndian.Uint32(m.Data[16:]))}, true
	}
	return arrival{}, false
}

// flow finds or makes the flow of a client; nil when nobody takes it.
func (u *udp) flow(c client) *flow {
	u.mu.Lock()
	defer u.mu.Unlock()
	if f, ok := u.flows[c]; ok {
		if u.targets.in(f.to) {
			f.last = time.Now()
			u.order.MoveToFront(f.place)
			return f
		}
		u.drop(f) // its container is out of rotation: datagrams know no end
	}
	to, ok := u.targets.next()
	if !ok || u.ended {
		return nil
	}
	if len(u.flows) >= maxFlows {
		u.drop(u.order.Back().Value.(*flow))
	}
	server, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		u.log.Debug("forwarder of datagrams", "to", to, "error", err)
		return nil
	}
	f := &flow{client: c, to: to, server: server, last: time.Now()}
	if f.link = u.targets.begin(to, func() { server.Close() }); f.link == nil {
		server.Close()
		return nil
	}
	f.place = u.order.PushFront(f)
	u.flows[c] = f
	go u.answer(f)
	return f
}

// drop forgets a flow. Called with mu held.
func (u *udp) drop(f *flow) {
	if u.flows[f.client] == f {
		delete(u.flows, f.client)
		u.order.Remove(f.place)
	}
	f.server.Close()
	u.targets.done(f.to, f.link)
}

// answer takes back what the container says, from the address to which the client
// spoke, until the flow is silent for long.
func (u *udp) answer(f *flow) {
	buf := make([]byte, largest)
	source := pktinfo(f.client)
	for {
		u.mu.Lock()
		deadline := f.last.Add(u.idle)
		u.mu.Unlock()
		_ = f.server.SetReadDeadline(deadline)
		n, err := f.server.Read(buf)
		switch {
		case err == nil:
			u.mu.Lock()
			f.last = time.Now()
			u.mu.Unlock()
			_, _, _ = u.c.WriteMsgUDPAddrPort(buf[:n], source, f.from)
		case errors.Is(err, os.ErrDeadlineExceeded):
			u.mu.Lock()
			if time.Since(f.last) >= u.idle {
				u.drop(f)
			}
			u.mu.Unlock()
		case errors.Is(err, net.ErrClosed):
			u.mu.Lock()
			u.drop(f)
			u.mu.Unlock()
			return
		}
		// Anything else is what ICMP says of the container, which may listen later.
	}
}

// pktinfo makes an answer leave from the address to which the client spoke.
func pktinfo(c client) []byte {
	info := unix.Inet6Pktinfo{Addr: c.at.As16()}
	if c.at.IsLinkLocalUnicast() {
		info.Ifindex = uint32(c.link)
	}
	return unix.PktInfo6(&info)
}

// Package forward passes on what comes to published ports where the kernel cannot
// translate: from an IPv6 address of the host to a container that has IPv4 only,
// and from ::1 to any. It accepts on the sockets that hold the ports, so while the
// engine is away connections wait in their backlog.
//
// The container sees the host's address on its bridge, not the client's.
package forward

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Port is a published port: what comes to Host is passed on to To.
type Port struct {
	Proto uint8 // IPPROTO_TCP or IPPROTO_UDP
	Host  netip.AddrPort
	To    netip.AddrPort
}

type spot struct {
	proto uint8
	host  netip.AddrPort
}

func (p Port) spot() spot { return spot{p.Proto, p.Host} }

// Forwarder passes on what comes to ports. Its methods may be called from several
// goroutines and do not block.
type Forwarder struct {
	log *slog.Logger

	mu     sync.Mutex
	closed bool
	doors  map[spot]*door
}

// New makes a Forwarder without ports.
func New(log *slog.Logger) *Forwarder { return &Forwarder{log: log, doors: map[spot]*door{}} }

// door is one socket and where it leads.
type door struct {
	targets *targets
	stop    func()
}

// Add passes on what comes to the socket held, of which a copy is made. A second
// port with the same Host shares it: each new connection goes to the next. After
// Close it does nothing.
func (f *Forwarder) Add(p Port, held *os.File) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil // the next engine's
	}
	if d, ok := f.doors[p.spot()]; ok {
		d.targets.add(p.To)
		return nil
	}
	if held == nil {
		return fmt.Errorf("forwarder of %s: nothing holds the port", p.Host)
	}
	d := &door{targets: newTargets(p.To)}
	var err error
	if p.Proto == unix.IPPROTO_UDP {
		d.stop, err = serveUDP(held, d.targets, f.log)
	} else {
		d.stop, err = serveTCP(held, d.targets, f.log)
	}
	if err != nil {
		return fmt.Errorf("forwarder of %s: %w", p.Host, err)
	}
	f.doors[p.spot()] = d
	return nil
}

// Rest takes a port out of rotation: nothing new goes there, what is under way
// goes on. Add puts it back. The socket is kept, and refuses when nobody is left.
func (f *Forwarder) Rest(p Port) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if d, ok := f.doors[p.spot()]; ok {
		d.targets.rest(p.To)
	}
}

// Remove ends what goes to p.To. When it was the last, the socket refuses what
// comes until its holder closes it. Idempotent.
func (f *Forwarder) Remove(p Port) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, ok := f.doors[p.spot()]
	if !ok {
		return
	}
	if d.targets.remove(p.To) {
		d.stop()
		delete(f.doors, p.spot())
	}
}

// Close stops to accept. What comes waits for the next engine; connections that
// are under way end.
func (f *Forwarder) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for s, d := range f.doors {
		d.targets.leave()
		d.stop()
		delete(f.doors, s)
	}
}

// Len is how many sockets are served.
func (f *Forwarder) Len() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.doors)
}

// targets are the places to which a socket leads.
type targets struct {
	mu       sync.Mutex
	known    map[netip.AddrPort]map[*link]bool // with the connections to each
	rotation []netip.AddrPort
	turn     int
	left     bool // the engine goes: the socket is to stay as it is
}

// link is something under way to a target.
type link struct{ end func() }

func newTargets(to netip.AddrPort) *targets {
	t := &targets{known: map[netip.AddrPort]map[*link]bool{}}
	t.add(to)
	return t
}

func (t *targets) add(to netip.AddrPort) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.known[to] == nil {
		t.known[to] = map[*link]bool{}
	}
	for _, r := range t.rotation {
		if r == to {
			return
		}
	}
	t.rotation = append(t.rotation, to)
}

func (t *targets) rest(to netip.AddrPort) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.out(to)
}

func (t *targets) out(to netip.AddrPort) {
	for i, r := range t.rotation {
		if r == to {
			t.rotation = append(t.rotation[:i:i], t.rotation[i+1:]...)
			return
		}
	}
}

// remove ends all that goes to a target, and tells whether none is left.
func (t *targets) remove(to netip.AddrPort) (last bool) {
	t.mu.Lock()
	t.out(to)
	links := t.known[to]
	delete(t.known, to)
	last = len(t.known) == 0
	t.mu.Unlock()
	for l := range links {
		l.end()
	}
	return last
}

// leave says that the socket will be served by another engine.
func (t *targets) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.left = true
}

func (t *targets) leaving() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.left
}

// next is where the next connection goes; false: nowhere.
func (t *targets) next() (netip.AddrPort, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.rotation) == 0 {
		return netip.AddrPort{}, false
	}
	t.turn++
	return t.rotation[t.turn%len(t.rotation)], true
}

// in tells whether new things may go to a target.
func (t *targets) in(to netip.AddrPort) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range t.rotation {
		if r == to {
			return true
		}
	}
	return false
}

// endAll ends all that is under way.
func (t *targets) endAll() {
	t.mu.Lock()
	var all []*link
	for _, links := range t.known {
		for l := range links {
			all = append(all, l)
		}
	}
	t.mu.Unlock()
	for _, l := range all {
		l.end()
	}
}

// begin notes something under way; nil when the target was removed meanwhile.
func (t *targets) begin(to netip.AddrPort, end func()) *link {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.known[to] == nil {
		return nil
	}
	l := &link{end: end}
	t.known[to][l] = true
	return l
}

func (t *targets) done(to netip.AddrPort, l *link) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.known[to], l)
}

// control runs fn with the descriptor of a file.
func control(f syscall.Conn, fn func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return errors.Join(raw.Control(func(fd uintptr) { err = fn(int(fd)) }), err)
}

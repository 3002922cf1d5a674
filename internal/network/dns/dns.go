// Package dns is the name server that containers on user-defined networks see at
// 127.0.0.11. It answers for the names on a container's networks itself and
// forwards other questions to upstream servers.
//
// Its sockets lie in the containers' network namespaces, on ports that the kernel
// chose: a container may listen on port 53 of every address itself. nftables in
// the namespace leads what is sent to 127.0.0.11:53 there. One goroutine waits
// for all of them; only what is forwarded or comes by TCP has goroutines of its own.
//
// Sources: RFC 1035, RFC 6891 (EDNS), RFC 7766 (TCP), RFC 5452 (forged answers).
package dns

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"escale.dev/escale/internal/sys/netns"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Address is where containers ask, at port 53.
var Address = netip.AddrFrom4([4]byte{127, 0, 0, 11})

const (
	// ttl of answers, in seconds. Containers come and go: who keeps an answer for
	// long asks the wrong one.
	ttl = 5

	// maxServers is how many upstream servers are asked, as resolvers do.
	maxServers = 3

	// maxAsking is how many questions of one container may be with upstream
	// servers at once, maxAskingAll those of all; what is more is refused.
	maxAsking    = 1024
	maxAskingAll = 8192

	// maxConns is how many TCP connections a container may have.
	maxConns = 128
)

// Names answers for the names one container can see. Methods are called for each
// question, from several goroutines, and must not block.
type Names interface {
	// Addrs gives the addresses of a name, all of them of either family. The name
	// is in small letters and has no dot at its end. known is false when it is
	// not one of the networks': then it is forwarded. The slice is only read.
	Addrs(name string) (addrs []netip.Addr, known bool)

	// Name is the reverse: the name ("web.mynet") of an address on the container's
	// networks.
	Name(a netip.Addr) (name string, known bool)

	// External tells whether names outside may be asked for from the host.
	External() bool
}

// Upstream is where names that are none of the networks' are asked for. Nothing in
// it may be changed once it was given away.
type Upstream struct {
	Servers []Server        // in this order; the first three count
	Now     func() []Server // if it is not nil, it tells the servers for each question; it must not block
	Search  []string
	Options []string // as the client or the host gives them: with "ndots" among them names without a dot are not forwarded
}

// Server is an upstream server.
type Server struct {
	Addr        netip.AddrPort
	InContainer bool // asked from the container's namespace, not from the host's
}

// Resolver serves any number of containers. Its methods may be called from several
// goroutines.
type Resolver struct {
	log    *slog.Logger
	health health
	asking atomic.Int32 // questions that are with upstream servers

	timeout time.Duration // of one upstream server
	hedge   time.Duration // after which the next is asked as well
	idle    time.Duration // of a client's TCP connection

	mu     sync.Mutex
	loop   *loop // nil before the first Serve and after Close
	boxes  map[string]*box
	closed bool
}

// New makes a Resolver. It does no I/O; a nil logger is silent.
func New(log *slog.Logger) *Resolver {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Resolver{log: log, timeout: 4 * time.Second, hedge: time.Second, idle: 10 * time.Second, boxes: map[string]*box{}}
}

// box is one container.
type box struct {
	r      *Resolver
	names  Names
	up     atomic.Pointer[Upstream]
	ctx    context.Context // ends with Forget
	cancel context.CancelFunc
	asking atomic.Int32
	conns  atomic.Int32

	mu       sync.RWMutex // held for reading while the descriptors are used
	udp, tcp int          // our own; -1 once forgotten
	id       string
	keys     [2]int32 // of the sockets, in the loop
}

// Serve answers for a container on sockets that Listen or Held gave, until
// Forget. The files stay the caller's: copies are kept. A container that is served
// already is served on the new sockets instead. InvalidArgument when the files are
// none of ours.
func (r *Resolver) Serve(container string, files []*os.File, names Names, up Upstream) error {
	b := &box{r: r, names: names, id: container, udp: -1, tcp: -1}
	if err := b.take(files); err != nil {
		b.close()
		return fmt.Errorf("name server of container %s: %w", container, err)
	}
	b.up.Store(&up)
	// detached: it ends with Forget, not with the call that began it.
	b.ctx, b.cancel = context.WithCancel(context.Background())
	r.mu.Lock()
	old, l, err := r.boxes[container], r.loop, r.enlist(b)
	if err == nil {
		r.boxes[container] = b
	}
	r.mu.Unlock()
	if err != nil {
		b.cancel()
		b.close()
		return fmt.Errorf("name server of container %s: %w", container, err)
	}
	if old != nil {
		old.end(l)
	}
	return nil
}

// enlist lets the loop wait for a container's sockets. Called with mu held.
func (r *Resolver) enlist(b *box) (err error) {
	if r.closed {
		return os.ErrClosed
	}
	if r.loop == nil {
		if r.loop, err = newLoop(r.log); err != nil {
			return err
		}
	}
	return r.loop.add(b)
}

// take copies the descriptors of the sockets.
func (b *box) take(files []*os.File) error {
	for _, f := range files {
		rc, err := f.SyscallConn()
		if err != nil {
			return err
		}
		if e := rc.Control(func(fd uintptr) { err = b.takeOne(int(fd)) }); e != nil {
			return e
		}
		if err != nil {
			return err
		}
	}
	if b.udp < 0 || b.tcp < 0 {
		return fmt.Errorf("a UDP and a TCP socket at %s wanted: %w", Address, errdefs.ErrInvalidArgument)
	}
	return nil
}

func (b *box) takeOne(fd int) error {
	kind, _, ok := socket(fd)
	if !ok {
		return nil
	}
	slot := &b.udp
	if kind == unix.SOCK_STREAM {
		slot = &b.tcp
	}
	if *slot >= 0 {
		return nil
	}
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("dup", err)
	}
	*slot = own
	return os.NewSyscallError("fcntl", unix.SetNonblock(own, true))
}

// close closes the copies of the descriptors. Idempotent.
func (b *box) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, fd := range []*int{&b.udp, &b.tcp} {
		if *fd >= 0 {
			unix.Close(*fd)
		}
		*fd = -1
	}
}

// Update changes where a container's questions are forwarded to. One that is not
// served is none to change.
func (r *Resolver) Update(container string, up Upstream) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if b := r.boxes[container]; b != nil {
		b.up.Store(&up)
	}
}

// Forget ends Serve: questions under way stay without an answer. Idempotent. What
// others hold of the sockets stays open.
func (r *Resolver) Forget(container string) {
	r.mu.Lock()
	b := r.boxes[container]
	delete(r.boxes, container)
	l := r.loop
	r.mu.Unlock()
	if b != nil {
		b.end(l)
	}
}

func (b *box) end(l *loop) {
	b.cancel()
	l.remove(b)
	b.close()
	b.r.health.drop(b)
}

// Close forgets all containers and ends the goroutine that waits for them.
// Nothing can be served afterwards. Idempotent.
func (r *Resolver) Close() error {
	r.mu.Lock()
	boxes, l := r.boxes, r.loop
	r.boxes, r.loop, r.closed = map[string]*box{}, nil, true
	r.mu.Unlock()
	for _, b := range boxes {
		b.end(l)
	}
	if l == nil {
		return nil
	}
	return l.close()
}

// namespace opens the network namespace that the container's sockets are in.
func (b *box) namespace() (*netns.Handle, error) {
	b.mu.RLock()
	if b.udp < 0 {
		b.mu.RUnlock()
		return nil, os.ErrClosed
	}
	ns, err := unix.IoctlRetInt(b.udp, unix.SIOCGSKNS)
	b.mu.RUnlock()
	if err != nil {
		return nil, os.NewSyscallError("ioctl SIOCGSKNS", err)
	}
	defer unix.Close(ns)
	return netns.Open(fmt.Sprintf("/proc/self/fd/%d", ns))
}

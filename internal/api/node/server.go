// Package node is what nodes and managers say to each other: gRPC over mutual TLS on port
// 2377. The Server is a manager's: it lets machines join who have a token, renews
// certificates, and hands nodes to the dispatcher when it leads. The Member is a node's.
// Protobuf stops here, and every certificate is looked at here: at each handshake, each call,
// and each message of a stream.
package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"escale.dev/escale/internal/api/node/wire"
	"escale.dev/escale/internal/cluster/ca"
	"escale.dev/escale/internal/cluster/dispatch"
	"escale.dev/escale/internal/cluster/store/address"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
)

// Cluster is what a Server asks of the cluster. Its methods do not block, but for those
// that say so.
type Cluster interface {
	// Authority is what signs. Unavailable when its key is not here.
	Authority() (*ca.Authority, error)
	// Expiry is how long certificates of nodes are valid.
	Expiry() time.Duration
	// Secrets are the parts of the tokens after the digest.
	Secrets() (worker, manager string)
	// Role is what a node's certificate is to say. NotFound when it is none of the cluster's, or was removed.
	Role(node string) (ca.Role, error)
	// Admit takes a node in, durably, and gives its id. It blocks.
	Admit(ctx context.Context, role ca.Role, availability string) (string, error)
	// Managers are those that nodes may call.
	Managers() []dispatch.Manager
	// Barred are the ids of nodes that were removed, whose certificates may be valid still.
	Barred() []string
	// Enlist makes place for a manager among those that keep the store, durably. It blocks.
	Enlist(ctx context.Context, node, addr, store string) (Seat, error)
	// Attach and Detach are address.Attach and address.Detach. They block.
	Attach(ctx context.Context, g address.Guest) (netip.Prefix, error)
	Detach(ctx context.Context, node string, gone func(endpoint string) bool) error
	// Changed is closed when something of the above has changed, or ctx has ended.
	Changed(ctx context.Context) (<-chan struct{}, error)
}

// Server answers nodes.
type Server struct {
	wire.UnimplementedJoinServer
	wire.UnimplementedNodeServer
	keeper *ca.Keeper
	c      Cluster
	log    *slog.Logger
	joins  *rate.Limiter

	mu      sync.Mutex
	d       *dispatch.Dispatcher // nil: this manager does not lead
	leader  string               // id of who leads, as this manager knows; "": nobody
	term    uint64               // by which
	changed chan struct{}        // closed when one of these has
}

// The most that is taken: bytes of a message, streams of a connection, and calls a second of
// those who are no nodes.
const (
	maxMessage = 4 << 20
	maxStreams = 16
	maxJoins   = 100
)

// New makes a Server; nothing happens before Serve.
func New(keeper *ca.Keeper, c Cluster, log *slog.Logger) *Server {
	return &Server{keeper: keeper, c: c, log: log, joins: rate.NewLimiter(maxJoins, 2*maxJoins), changed: make(chan struct{})}
}

// Lead hands nodes to a dispatcher from now on; nil: this manager does not lead any more.
func (s *Server) Lead(d *dispatch.Dispatcher) {
	s.set(func() { s.d = d })
	s.tell()
}

// Follow tells who leads, as this manager knows: another is asked for by nodes that miss theirs.
func (s *Server) Follow(leader string, term uint64) {
	s.set(func() { s.leader, s.term = leader, term })
}

func (s *Server) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	close(s.changed)
	s.changed = make(chan struct{})
}

// How long nodes are kept waiting at most: for a leader later than the one they miss, and by one that
// has just become it.
const (
	held  = 2 * time.Second
	ready = 500 * time.Millisecond
)

// until waits until something is so of who leads, or ctx ends.
func (s *Server) until(ctx context.Context, is func() bool) {
	for {
		s.mu.Lock()
		so, changed := is(), s.changed
		s.mu.Unlock()
		if so {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// begins tells whether this manager leads, and is not ready to serve nodes yet. Called with the lock held.
func (s *Server) begins() bool { return s.d == nil && s.leader == s.keeper.Identity().Node }

func (s *Server) dispatcher() *dispatch.Dispatcher {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.d
}

// Serve answers on a listener until ctx ends, and blocks. It closes the listener.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	g := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(s.keeper.Server(func(p ca.Peer) error { _, err := s.c.Role(p.Node); return err }))),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxConcurrentStreams(maxStreams), grpc.ConnectionTimeout(10*time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: time.Minute}),
	)
	wire.RegisterJoinServer(g, s)
	wire.RegisterNodeServer(g, s)
	ctx, cancel := context.WithCancel(ctx)
	var parts sync.WaitGroup
	defer parts.Wait()
	defer cancel()
	parts.Go(func() { s.watch(ctx) })
	defer g.Stop() // also when the listener fails: nobody is left connected
	defer context.AfterFunc(ctx, g.Stop)()
	err := g.Serve(l)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// watch tells nodes what has changed of the cluster.
func (s *Server) watch(ctx context.Context) {
	for {
		changed, err := s.c.Changed(ctx)
		if err != nil {
			return // the store is closed
		}
		s.tell()
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

func (s *Server) tell() {
	if d := s.dispatcher(); d != nil {
		d.Tell(s.cluster())
	}
}

// cluster is what nodes are to know.
func (s *Server) cluster() dispatch.Cluster {
	out := dispatch.Cluster{Managers: s.c.Managers(), Barred: s.c.Barred()}
	if a, err := s.c.Authority(); err == nil {
		out.Roots, out.Issuer = a.Trusted(), a.Issuer()
	}
	s.mu.Lock()
	leader, term := s.leader, s.term
	s.mu.Unlock()
	if slices.ContainsFunc(out.Managers, func(m dispatch.Manager) bool { return m.Node == leader }) {
		out.Term = term
		for i := range out.Managers { // the store says it a moment later
			out.Managers[i].Leader = out.Managers[i].Node == leader
		}
	}
	return out
}

func (s *Server) clusterJSON() []byte {
	c := s.cluster()
	c.Serves = s.dispatcher() != nil
	b, err := json.Marshal(c)
	if err != nil {
		panic(err) // the type has nothing that cannot be encoded
	}
	return b
}

// caller is the node that calls, if it still is one. Unauthenticated without a certificate or
// with one that is not valid any more, PermissionDenied when the node was removed.
func (s *Server) caller(ctx context.Context) (ca.Peer, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return ca.Peer{}, fmt.Errorf("nobody calls: %w", errdefs.ErrUnauthenticated)
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return ca.Peer{}, fmt.Errorf("a call without TLS: %w", errdefs.ErrUnauthenticated)
	}
	who, err := s.keeper.PeerOf(info.State)
	if err != nil {
		return who, err
	}
	return who, s.still(who)
}

// still tells whether a node that has shown its certificate may go on.
func (s *Server) still(who ca.Peer) error {
	if time.Now().After(who.Expires) {
		return fmt.Errorf("node %s: its certificate has expired: %w", who.Node, errdefs.ErrUnauthenticated)
	}
	if _, err := s.c.Role(who.Node); err != nil {
		return fmt.Errorf("node %s is not of this cluster: %w", who.Node, errdefs.ErrPermissionDenied)
	}
	return nil
}

// answer gives an error the form in which it travels.
func answer[T any](out T, err error) (T, error) {
	if err != nil {
		var none T
		return none, errgrpc.ToGRPC(err)
	}
	return out, nil
}

// Leader implements wire.NodeServer.
func (s *Server) Leader(ctx context.Context, r *wire.LeaderRequest) (*wire.LeaderReply, error) {
	_, err := s.caller(ctx)
	if after := r.GetAfter(); after > 0 && err == nil {
		wait, cancel := context.WithTimeout(ctx, held)
		s.until(wait, func() bool { return s.leader != "" && s.term > after && !s.begins() })
		cancel()
		_, err = s.caller(ctx) // it may have been removed meanwhile
	}
	return answer(&wire.LeaderReply{Cluster: s.clusterJSON()}, err)
}

// Dispatch implements wire.NodeServer.
func (s *Server) Dispatch(stream wire.Node_DispatchServer) error {
	who, err := s.caller(stream.Context())
	if err != nil {
		return errgrpc.ToGRPC(err)
	}
	link := &serverLink{s: s, stream: stream, who: who}
	wait, cancel := context.WithTimeout(stream.Context(), ready)
	s.until(wait, func() bool { return !s.begins() })
	cancel()
	d := s.dispatcher()
	if d == nil {
		c := s.cluster()
		if _, err = link.Receive(); err == nil {
			err = link.Send(dispatch.Down{Cluster: &c, Refused: true})
		}
		return errgrpc.ToGRPC(err)
	}
	err = d.Serve(stream.Context(), who.Node, link)
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return errgrpc.ToGRPC(err)
}

// serverLink is a node's stream.
type serverLink struct {
	s      *Server
	stream wire.Node_DispatchServer
	who    ca.Peer
}

// Receive implements dispatch.Server.
func (l *serverLink) Receive() (up dispatch.Up, err error) {
	m, err := l.stream.Recv()
	if err != nil {
		return up, err
	}
	if err := l.s.still(l.who); err != nil {
		return up, err
	}
	if err := json.Unmarshal(m.GetJson(), &up); err != nil {
		return up, fmt.Errorf("message of node %s: %w: %w", l.who.Node, err, errdefs.ErrInvalidArgument)
	}
	return up, nil
}

// Send implements dispatch.Server.
func (l *serverLink) Send(d dispatch.Down) error {
	if err := l.s.still(l.who); err != nil {
		return err
	}
	b, err := json.Marshal(d)
	if err != nil {
		return err
	}
	return l.stream.Send(&wire.Message{Json: b})
}

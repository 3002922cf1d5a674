package node

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"escale.dev/escale/internal/api/node/wire"
	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/ca"
	"escale.dev/escale/internal/cluster/dispatch"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// maxDown is the most that a node takes at once, in bytes: a batch, or one large object.
const maxDown = 16 << 20

// dial connects with a manager; nothing is sent before the first call.
func dial(addr string, c *tls.Config) (*grpc.ClientConn, error) {
	// "passthrough": names are looked up by the dialer, each time anew.
	return grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(credentials.NewTLS(c)), grpc.WithNoProxy(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxDown)))
}

// Joined is what becomes of a machine that has joined.
type Joined struct {
	Keeper   *ca.Keeper
	Managers []dispatch.Manager
}

// Join makes this machine a node: the manager at addr has to have the root that the token
// names. The identity is kept at path. It blocks. InvalidArgument for a token that is none,
// or not the cluster's; FailedPrecondition for a manager of another root; Unavailable when
// nobody answers.
func Join(ctx context.Context, addr, token, availability, path string) (*Joined, error) {
	t, err := ca.ParseToken(token)
	if err != nil {
		return nil, err
	}
	root, err := fetchRoot(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("manager %s: %w", addr, err)
	}
	if !t.Names(root) {
		return nil, fmt.Errorf("remote CA does not match fingerprint. Expected: %s: %w", t.Digest, errdefs.ErrFailedPrecondition)
	}
	config, err := ca.Joining(root)
	if err != nil {
		return nil, err
	}
	conn, err := dial(addr, config)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	key, csr, err := ca.NewRequest()
	if err != nil {
		return nil, err
	}
	got, err := wire.NewJoinClient(conn).Join(ctx, &wire.JoinRequest{Protocol: dispatch.Protocol, Token: token, Csr: csr, Availability: availability})
	if err != nil {
		return nil, fmt.Errorf("manager %s: %w", addr, errgrpc.ToNative(err))
	}
	var c dispatch.Cluster
	if err := json.Unmarshal(got.GetCluster(), &c); err != nil {
		return nil, fmt.Errorf("manager %s: %w: %w", addr, err, errdefs.ErrInvalidArgument)
	}
	k, err := ca.Keep(path, key, got.GetChain(), got.GetRoots())
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(c.Managers, func(m dispatch.Manager) bool { return m.Addr == addr }) {
		c.Managers = append(c.Managers, dispatch.Manager{Addr: addr})
	}
	return &Joined{Keeper: k, Managers: c.Managers}, nil
}

// fetchRoot asks whoever answers for the root of the cluster: it is to be compared with a token.
func fetchRoot(ctx context.Context, addr string) ([]byte, error) {
	conn, err := dial(addr, &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}) // nothing is told to it
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	r, err := wire.NewJoinClient(conn).Root(ctx, &wire.RootRequest{})
	return r.GetCertificate(), errgrpc.ToNative(err)
}

// Member is a node's part: its connections with managers, and its certificate, which it
// renews in time, when it is to be signed by another root, and when the node's role changes.
type Member struct {
	keeper *ca.Keeper
	log    *slog.Logger
	early  chan struct{} // it may have to renew before its time
	able   chan struct{} // it may be able to renew now

	mu     sync.Mutex
	issuer string // that managers want
	sign   Signer // nil: managers are asked
}

// Signer signs the next certificate of the node, and gives its chain and the roots that are
// to be trusted, PEM.
type Signer func(csr []byte) (chain, roots []byte, err error)

// SetSigner lets a manager sign for itself (Server.Sign) before it asks others; nil: it does
// not any more. Certificates of managers who were all off for long have all expired.
func (m *Member) SetSigner(f Signer) {
	m.mu.Lock()
	m.sign = f
	m.mu.Unlock()
	select {
	case m.able <- struct{}{}:
	default:
	}
}

// NewMember makes a Member; nothing happens before Run.
func NewMember(keeper *ca.Keeper, log *slog.Logger) *Member {
	return &Member{keeper: keeper, log: log, early: make(chan struct{}, 1), able: make(chan struct{}, 1)}
}

// Dial is a dispatch.Config's: the connection's first message is still to be sent.
func (m *Member) Dial(ctx context.Context, addr string) (dispatch.Client, error) {
	conn, err := dial(addr, m.keeper.Client(ca.Manager))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	stream, err := wire.NewNodeClient(conn).Dispatch(ctx)
	if err != nil {
		cancel()
		return nil, errors.Join(errgrpc.ToNative(err), conn.Close())
	}
	return &clientLink{stream, conn, cancel}, nil
}

// Ask is a dispatch.Config's.
func (m *Member) Ask(ctx context.Context, addr string, after uint64) (c dispatch.Cluster, err error) {
	ctx, cancel := context.WithTimeout(ctx, held+patience/2)
	defer cancel()
	conn, err := dial(addr, m.keeper.Client(ca.Manager))
	if err != nil {
		return c, err
	}
	defer conn.Close()
	got, err := wire.NewNodeClient(conn).Leader(ctx, &wire.LeaderRequest{After: after})
	if err != nil {
		return c, fmt.Errorf("manager %s: %w", addr, errgrpc.ToNative(err))
	}
	if err := json.Unmarshal(got.GetCluster(), &c); err != nil {
		return c, fmt.Errorf("manager %s: %w: %w", addr, err, errdefs.ErrInvalidArgument)
	}
	return c, nil
}

// clientLink is a stream with a manager.
type clientLink struct {
	stream wire.Node_DispatchClient
	conn   *grpc.ClientConn
	cancel context.CancelFunc
}

// Send implements dispatch.Client.
func (l *clientLink) Send(up dispatch.Up) error {
	b, err := json.Marshal(up)
	if err != nil {
		return err
	}
	return errgrpc.ToNative(l.stream.Send(&wire.Message{Json: b}))
}

// Receive implements dispatch.Client.
func (l *clientLink) Receive() (d dispatch.Down, err error) {
	m, err := l.stream.Recv()
	if err != nil {
		return d, errgrpc.ToNative(err)
	}
	if err := json.Unmarshal(m.GetJson(), &d); err != nil {
		return d, fmt.Errorf("message of the manager: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return d, nil
}

// Close implements dispatch.Client.
func (l *clientLink) Close() error {
	l.cancel()
	return l.conn.Close()
}

// Told is a dispatch.Config's: whom the cluster trusts, and who is to have signed.
func (m *Member) Told(c dispatch.Cluster) {
	if len(c.Roots) > 0 {
		if err := m.keeper.Trust(c.Roots); err != nil {
			m.log.Error("the roots that managers trust are not taken over", "error", err)
		}
	}
	if c.Issuer != "" {
		m.mu.Lock()
		m.issuer = c.Issuer
		m.mu.Unlock()
		m.look()
	}
}

// look has Run compare the certificate with what it is to be.
func (m *Member) look() {
	select {
	case m.early <- struct{}{}:
	default:
	}
}

// Pauses between attempts to renew.
const (
	renewPause = 2 * time.Second
	renewSlow  = time.Minute
	// lookAgain is for a clock that is set, or stands still while the machine sleeps.
	lookAgain = time.Hour
)

// Run renews the certificate until ctx ends, and blocks. Of r it learns which managers there
// are and what role the node has.
func (m *Member) Run(ctx context.Context, r *dispatch.Remote) error {
	roles, err := r.Watch(r.View().Revision(), cluster.KindNode)
	if err != nil && !errdefs.IsOutOfRange(err) {
		return err
	}
	go func() { // it ends with ctx
		for err := err; ctx.Err() == nil; {
			if errdefs.IsOutOfRange(err) {
				roles, err = r.Watch(r.View().Revision(), cluster.KindNode)
			} else if _, err = roles.Next(ctx); err != nil && !errdefs.IsOutOfRange(err) {
				return
			}
			m.look()
		}
	}()
	at := m.keeper.Identity().RenewAt()
	pause := renewPause
	for {
		if wait := time.Until(at); wait > 0 && !m.due(r.View()) {
			select {
			case <-time.After(min(wait, lookAgain)):
			case <-m.early:
			case <-ctx.Done():
				return nil
			}
			continue
		}
		err := m.renew(ctx, r.Managers())
		if err == nil {
			at, pause = m.keeper.Identity().RenewAt(), renewPause
			m.log.Info("the node has a new certificate", "role", m.keeper.Identity().Role, "until", m.keeper.Identity().Expires)
			if !m.due(r.View()) {
				continue
			}
			err = fmt.Errorf("it is not what it is to be yet: %w", errdefs.ErrUnavailable)
		}
		if ctx.Err() != nil {
			return nil
		}
		m.log.Warn("the certificate of the node is not renewed: trying again", "error", err)
		select {
		case <-time.After(pause):
		case <-m.able:
		case <-ctx.Done():
			return nil
		}
		pause = min(2*pause, renewSlow)
	}
}

// due tells whether the certificate is not what it is to be.
func (m *Member) due(v store.View) bool {
	id := m.keeper.Identity()
	m.mu.Lock()
	issuer := m.issuer
	m.mu.Unlock()
	if issuer != "" && issuer != id.Issuer {
		return true
	}
	n, err := store.Find[*cluster.Node](v, id.Node)
	return err == nil && roleOf(n) != id.Role
}

// renew gets the next certificate: of this manager itself, or of one that it asks after the
// other.
func (m *Member) renew(ctx context.Context, managers []dispatch.Manager) error {
	key, csr, err := ca.NewRequest()
	if err != nil {
		return err
	}
	m.mu.Lock()
	sign := m.sign
	m.mu.Unlock()
	if sign != nil {
		chain, roots, err := sign(csr)
		if err == nil {
			return m.keeper.Set(key, chain, roots)
		}
		m.log.Warn("this manager cannot sign for itself: others are asked", "error", err)
	}
	err = fmt.Errorf("no manager is known: %w", errdefs.ErrUnavailable)
	for _, to := range managers {
		if to.Addr == "" {
			continue
		}
		var got *wire.Certificate
		if got, err = m.ask(ctx, to.Addr, csr); err == nil {
			return m.keeper.Set(key, got.GetChain(), got.GetRoots())
		}
	}
	return err
}

// patience is how long a manager has to answer.
const patience = 10 * time.Second

func (m *Member) ask(ctx context.Context, addr string, csr []byte) (*wire.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := dial(addr, m.keeper.Client(ca.Manager))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	got, err := wire.NewNodeClient(conn).Renew(ctx, &wire.RenewRequest{Protocol: dispatch.Protocol, Csr: csr})
	if err != nil {
		return nil, fmt.Errorf("manager %s: %w", addr, errgrpc.ToNative(err))
	}
	return got, nil
}

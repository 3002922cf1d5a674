// Package etcd is the store of a cluster: objects in etcd, whose server runs beside every
// manager (package child). One key, the head, counts commits; every commit compares it, and
// so all managers see the same commits in the same order, each in an image of its own from
// which it answers. How, and why so, is in docs/decisions/0020.
package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/seal"
	"github.com/containerd/errdefs"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// Config is what a Store is made of.
type Config struct {
	Socket string // of the server on this machine
	Name   string // of this manager, one of a kind: the node's id
	Prefix string // of all keys; "" is "escale"
	// Seal gives what seals what is written, asked each time: it may get new keys. Nil, or
	// one that gives nil, leaves it as it is.
	Seal func() *seal.Ring
	// Patience is how long a commit may wait for the cluster; 0 is 5 s, longer than it takes
	// managers to choose a leader.
	Patience time.Duration
	// Lease is how long a leader that says nothing stays one, at least; 0 is 3 s.
	Lease time.Duration
	// Prefer tells whether this manager should lead (package child: its server is the one
	// through which all writes go), and what is closed when that may have changed, or the server
	// through which they go. Nil: whoever comes first leads, and writes wait for an answer for long.
	Prefer func() (bool, <-chan struct{})
	// TLS is how other members are asked whether they are there, asked each time: certificates
	// are renewed. Nil, or one that gives nil: without TLS.
	TLS func() *tls.Config
	Log *slog.Logger
}

// Defaults of a Config.
const (
	defaultPrefix   = "escale"
	defaultPatience = 5 * time.Second
	defaultLease    = 3 * time.Second
)

// maxMessage is the largest message to or from the server: a request of its limit and a
// little around it, and a page of a listing.
const maxMessage = 64 << 20

// Store is a store in etcd.
type Store struct {
	cfg    Config
	log    *slog.Logger
	keys   keys
	client *clientv3.Client
	state  *store.State

	requests chan request
	closing  chan struct{}
	once     sync.Once
	written  chan struct{} // closed when nothing is written any more
	followed sync.WaitGroup
	cancel   context.CancelFunc // of what follows
	err      error              // of closing
	full     chan struct{}      // a write was refused for want of place
	letGo    int64              // etcd's revision up to which what was overwritten was let go; of keep only
	looked   chan struct{}      // closed when the database was looked at
	room     atomic.Int64       // bytes that may be written until nothing new is made

	mu      sync.Mutex // who stages, applies or resets; and of looked
	at      position
	moved   chan struct{} // closed when at has changed
	lists   int           // how often all was read
	pending string        // the batch that is being written, of which it is not known whether it was
	landed  bool          // it was
	yields  time.Time     // until then others may commit first
}

// position is how far a Store has followed the cluster.
type position struct {
	seen int64  // etcd's revision
	head int64  // etcd's revision of the head
	from string // whose objects were carried over
}

var _ store.Store = (*Store)(nil)

// Open opens the store of a cluster, and reads all of it. It blocks until the server
// answers, which one that was just started does not before most members are there. Kinds: Unavailable when it does not before ctx ends, or objects are being carried
// over; FailedPrecondition when what is there is of a later format or sealed with a key that
// is not here; DataLoss when it is damaged.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.Prefix == "" {
		cfg.Prefix = defaultPrefix
	}
	if cfg.Patience == 0 {
		cfg.Patience = defaultPatience
	}
	if cfg.Lease == 0 {
		cfg.Lease = defaultLease
	}
	client, err := connect(cfg)
	if err != nil {
		return nil, err
	}
	life, cancel := context.WithCancel(context.WithoutCancel(ctx)) // detached: it lives until Close
	s := &Store{
		cfg: cfg, log: cfg.Log, keys: keys{prefix: cfg.Prefix, seal: cfg.Seal}, client: client, state: store.NewState(), cancel: cancel,
		requests: make(chan request), closing: make(chan struct{}), written: make(chan struct{}), moved: make(chan struct{}), full: make(chan struct{}, 1), looked: make(chan struct{}),
	}
	s.room.Store(math.MaxInt64) // until it is known
	if err := s.begin(ctx); err != nil {
		cancel()
		return nil, errors.Join(fmt.Errorf("cluster's store: %w", kindOf(err)), client.Close())
	}
	s.followed.Go(func() { s.follow(life) })
	s.followed.Go(func() { s.keep(life) })
	go s.write(life)
	return s, nil
}

// begin reads all that there is, once this manager has a vote.
func (s *Store) begin(ctx context.Context) error {
	for {
		err := s.list(ctx, true)
		if !errors.Is(err, errLearner) {
			return err
		}
		select {
		case <-time.After(again):
		case <-ctx.Done():
			return err
		}
	}
}

// errLearner is said of a member that answers only few questions.
var errLearner = fmt.Errorf("this manager has not learnt all yet: %w", errdefs.ErrUnavailable)

// connect makes a client of the server on this machine. It does not wait for it.
func connect(cfg Config) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Endpoints: []string{"unix://" + cfg.Socket}, Logger: zap.NewNop(),
		MaxCallSendMsgSize: maxMessage, MaxCallRecvMsgSize: maxMessage,
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{ // the server may be starting again
			Backoff: backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, Jitter: 0.2, MaxDelay: 500 * time.Millisecond},
		})},
	})
}

// View implements store.Store. It answers also while the cluster does not.
func (s *Store) View() store.View { return s.state.View() }

// Watch implements store.Store.
func (s *Store) Watch(after uint64, kinds ...cluster.Kind) (*store.Watch, error) {
	return s.state.Watch(after, kinds...)
}

// Commit implements store.Store. Unavailable also when the cluster does not answer in
// time: then it was done, or never will be, and a later View tells which.
func (s *Store) Commit(ctx context.Context, changes ...store.Change) (uint64, error) {
	return s.commit(ctx, nil, changes)
}

// Close implements store.Store. Commits under way are brought to their end.
func (s *Store) Close() error {
	s.once.Do(func() {
		close(s.closing)
		<-s.written
		s.cancel()
		s.followed.Wait()
		s.state.Close()
		s.err = s.client.Close()
	})
	return s.err
}

// errClosed is what a closed store says.
func errClosed() error { return fmt.Errorf("store is closed: %w", errdefs.ErrUnavailable) }

package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// fence is what a leader's commits compare: the key that says who leads, as it was when
// this one began to.
type fence struct {
	rev  int64
	term uint64
}

// error is what a commit of one is told who does not lead any more.
func (f *fence) error() error {
	return fmt.Errorf("this manager does not lead any more (term %d): %w", f.term, errdefs.ErrFailedPrecondition)
}

// Leading is who leads.
type Leading struct {
	Name string // of the manager; "" is nobody
	// Term grows with each leader, and is never given twice: not by a cluster that was made
	// of a backup either, for it is no less than the seconds since 1970.
	Term uint64
}

// standing is who leads, and by which keys that is known.
type standing struct {
	Leading
	rev      int64 // of the leader's key, 0 when there is none
	last     uint64
	lastRev  int64 // of the term's key
	revision int64 // of etcd, at which all this was so
}

// Leader is a manager's leadership, from when it began until it is lost.
type Leader struct {
	s     *Store
	fence *fence
	lease clientv3.LeaseID
	once  sync.Once
	lost  chan struct{}
}

// Term is that of the leadership.
func (l *Leader) Term() uint64 { return l.fence.term }

// Done is closed when the leadership is lost or resigned.
func (l *Leader) Done() <-chan struct{} { return l.lost }

// Store is the store by which the leader acts: its commits are refused with
// FailedPrecondition once the leadership is lost, also when this manager has not heard
// of that. Close resigns.
func (l *Leader) Store() LeaderStore { return led{l.s, l} }

// LeaderStore is a store with the term of the leadership by which it writes.
type LeaderStore interface {
	store.Store
	Term() uint64
}

// Resign ends the leadership, so that another can begin at once.
func (l *Leader) Resign(ctx context.Context) error {
	l.lose()
	_, err := l.s.client.Revoke(ctx, l.lease)
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return nil
	}
	return kindOf(err)
}

func (l *Leader) lose() { l.once.Do(func() { close(l.lost) }) }

// led is a leader's store.
type led struct {
	*Store
	l *Leader
}

// Term is that of the leadership: what a leader asks of nodes bears it.
func (f led) Term() uint64 { return f.l.Term() }

// Commit implements store.Store.
func (f led) Commit(ctx context.Context, changes ...store.Change) (uint64, error) {
	select {
	case <-f.l.lost:
		return 0, f.l.fence.error()
	default:
	}
	at, err := f.commit(ctx, f.l.fence, changes)
	if errdefs.IsFailedPrecondition(err) {
		f.l.lose()
	}
	return at, err
}

// Close implements store.Store.
func (f led) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), f.cfg.Patience) // detached: an end has no caller
	defer cancel()
	return f.l.Resign(ctx)
}

// Leading blocks until another leads than is given, as far as the server on this machine knows, and
// tells who. Give none to be told who leads now. Kinds: Unavailable when the store is closed; else
// that of ctx.
func (s *Store) Leading(ctx context.Context, unlike Leading) (Leading, error) {
	for {
		is, err := s.standing(ctx, clientv3.WithSerializable())
		if err == nil && is.Leading != unlike {
			return is.Leading, nil
		}
		if err := s.wait(ctx, is, nil, 0); err != nil {
			return Leading{}, err
		}
	}
}

// headStart is for the manager that should lead, before the others try.
const headStart = 300 * time.Millisecond

// Lead blocks until this manager leads. It does when nobody else does, or when it is to
// be preferred: then at once. Kinds: Unavailable when the store is closed; else that of
// ctx.
func (s *Store) Lead(ctx context.Context) (*Leader, error) {
	waited := false
	for {
		prefer, changed := false, (<-chan struct{})(nil)
		if s.cfg.Prefer != nil {
			prefer, changed = s.cfg.Prefer()
		}
		is, err := s.standing(ctx, clientv3.WithSerializable()) // claim compares
		pause := time.Duration(0)
		switch {
		case err != nil:
			pause = again
		case is.rev == 0 && !prefer && changed != nil && !waited:
			waited, pause = true, headStart
		case is.rev == 0 || prefer || is.Name == s.cfg.Name: // its own is of an engine that has ended
			waited = false
			l, err := s.claim(ctx, is)
			if err == nil {
				return l, nil
			}
			s.log.Debug("leading was not possible", "error", err)
			pause = again
		default:
			waited = false
		}
		if err := s.wait(ctx, is, changed, pause); err != nil {
			return nil, err
		}
	}
}

// standing asks who leads: the cluster, or with WithSerializable the server on this machine, which
// may not know it yet and answers also while the members choose.
func (s *Store) standing(ctx context.Context, options ...clientv3.OpOption) (standing, error) {
	ctx, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	r, err := s.client.Txn(ctx).Then(clientv3.OpGet(s.keys.leader(), options...), clientv3.OpGet(s.keys.term(), options...)).Commit()
	if err != nil {
		return standing{}, kindOf(err)
	}
	is := standing{revision: r.Header.Revision}
	if kvs := r.Responses[0].GetResponseRange().Kvs; len(kvs) > 0 {
		is.rev = kvs[0].ModRevision
		if err := json.Unmarshal(kvs[0].Value, &is.Leading); err != nil {
			return is, fmt.Errorf("who leads: %w: %w", err, errdefs.ErrDataLoss)
		}
	}
	if kvs := r.Responses[1].GetResponseRange().Kvs; len(kvs) > 0 {
		is.lastRev = kvs[0].ModRevision
		if is.last, err = strconv.ParseUint(string(kvs[0].Value), 10, 64); err != nil {
			return is, fmt.Errorf("the last term: %w: %w", err, errdefs.ErrDataLoss)
		}
	}
	return is, nil
}

// wait blocks until who leads may have changed, changed is closed or, if there is one, the
// pause is over.
func (s *Store) wait(ctx context.Context, is standing, changed <-chan struct{}, pause time.Duration) error {
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	var over <-chan time.Time
	if pause == 0 && is.revision == 0 {
		pause = again // it is not known from when on to watch
	}
	if pause > 0 {
		over = time.After(pause)
	}
	var news clientv3.WatchChan
	if is.revision > 0 {
		news = s.client.Watch(watching, s.keys.leader(), clientv3.WithRev(is.revision+1))
	}
	select {
	case <-news: // also when the watch has ended: who waits asks again
	case <-changed:
	case <-over:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s.closing:
		return errClosed()
	}
	return nil
}

// claim begins to lead, if all is as it was known, and waits until what was committed
// before is here: or the leader would decide on what is not so any more.
func (s *Store) claim(ctx context.Context, is standing) (*Leader, error) {
	ctx, cancel := context.WithTimeout(ctx, attempt)
	defer cancel()
	seconds := int64((s.cfg.Lease + time.Second - 1) / time.Second)
	began := time.Now()
	lease, err := s.client.Grant(ctx, seconds)
	if err != nil {
		return nil, kindOf(err)
	}
	term := max(is.last+1, uint64(time.Now().Unix()))
	value, err := json.Marshal(Leading{Name: s.cfg.Name, Term: term})
	if err != nil {
		return nil, err
	}
	r, err := s.client.Txn(ctx).If(
		clientv3.Compare(clientv3.ModRevision(s.keys.leader()), "=", is.rev),
		clientv3.Compare(clientv3.ModRevision(s.keys.term()), "=", is.lastRev),
	).Then(
		clientv3.OpPut(s.keys.leader(), string(value), clientv3.WithLease(lease.ID)),
		clientv3.OpPut(s.keys.term(), strconv.FormatUint(term, 10)),
		clientv3.OpGet(s.keys.head(), clientv3.WithKeysOnly()),
	).Commit()
	if err == nil && !r.Succeeded {
		err = fmt.Errorf("somebody else leads: %w", errdefs.ErrFailedPrecondition)
	}
	l := &Leader{s: s, fence: &fence{term: term}, lease: lease.ID, lost: make(chan struct{})}
	if err == nil {
		l.fence.rev = r.Header.Revision
		go l.keep(began, time.Duration(lease.TTL)*time.Second)
		go l.listen()
		if kvs := r.Responses[2].GetResponseRange().Kvs; len(kvs) > 0 {
			err = l.reach(ctx, kvs[0].ModRevision)
		}
	}
	if err != nil {
		// What may have been written goes with its lease.
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), attempt) // detached: it is an undo
		defer cancel()
		_ = l.Resign(undo) // or the lease ends by itself
		return nil, kindOf(err)
	}
	return l, nil
}

// reach blocks until what was committed with one of etcd's revisions of the head is here.
// Unavailable when ctx ends before, or the store is closed.
func (l *Leader) reach(ctx context.Context, head int64) error {
	for s := l.s; ; {
		s.mu.Lock()
		at, moved := s.at, s.moved
		s.mu.Unlock()
		if at.head >= head {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("what was committed before is not here yet: %w", errdefs.ErrUnavailable)
		case <-s.closing:
			return errClosed()
		}
	}
}

// keep keeps the lease alive, until the leadership is lost: at the latest when the lease
// has ended.
func (l *Leader) keep(alive time.Time, lease time.Duration) {
	defer l.lose()
	for {
		select {
		case <-time.After(lease / 3):
		case <-l.lost:
			return
		case <-l.s.closing:
			return
		}
		begin := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), lease/3) // detached: as long as it leads
		_, err := l.s.client.KeepAliveOnce(ctx, l.lease)
		cancel()
		switch {
		case err == nil:
			alive = begin
		case errors.Is(err, rpctypes.ErrLeaseNotFound), time.Since(alive) > lease:
			l.s.log.Warn("this manager does not lead any more", "term", l.fence.term, "error", err)
			return
		}
	}
}

// listen loses the leadership when another has begun to lead.
func (l *Leader) listen() {
	ctx, cancel := context.WithCancel(context.Background()) // detached: as long as it leads
	defer cancel()
	stop := context.AfterFunc(ctx, l.lose)
	defer stop()
	go func() {
		select {
		case <-l.lost:
		case <-l.s.closing:
		}
		cancel()
	}()
	for ctx.Err() == nil {
		is, err := l.s.standing(ctx, clientv3.WithSerializable()) // it knows of its own claim, and is watched from there
		if err == nil && is.rev != l.fence.rev {
			l.lose()
			return
		}
		_ = l.s.wait(ctx, is, nil, 0) // it ends with ctx
	}
}

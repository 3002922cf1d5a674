package etcd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Limits of what is written at once: etcd takes 128 operations, of which one is the head's.
const (
	together = 256 // commits
	maxOps   = 127
	maxBytes = 1 << 20 // of several commits; one alone may have more
)

// Waits. A commit that loses to others that often says so, and they yield for a moment:
// or a manager far from the one through which writes go would never have its turn.
const (
	losses  = 3
	yield   = 50 * time.Millisecond
	attempt = 2 * time.Second // until one attempt is given up and another made
	nap     = 50 * time.Millisecond
)

// request is a commit that waits.
type request struct {
	fence    *fence
	changes  []store.Change
	given    []cluster.Meta // of the changes' objects, as they were given
	deadline time.Time
	alone    bool // it was too much together with others
	done     chan answer
}

type answer struct {
	revision uint64
	err      error
}

// reset gives the objects back their revisions and times, for another attempt or because
// nothing came of it. They keep their ids: a second Commit cannot do again what was done.
func (r request) reset() {
	for i, c := range r.changes {
		m := c.Object.Base()
		m.Revision, m.CreatedAt, m.UpdatedAt = r.given[i].Revision, r.given[i].CreatedAt, r.given[i].UpdatedAt
	}
}

// refuse answers that nothing came of it.
func (r request) refuse(err error) {
	r.reset()
	r.done <- answer{err: err}
}

// commit does what Commit says, for who leads if there is a fence.
func (s *Store) commit(ctx context.Context, f *fence, changes []store.Change) (uint64, error) {
	if err := ctx.Err(); err != nil {
		return 0, context.Cause(ctx)
	}
	if len(changes) == 0 {
		return s.state.Revision(), nil
	}
	if makes(changes) && !s.roomy(ctx) {
		return 0, fmt.Errorf("the cluster's store is nearly full: remove something, or give it a larger quota: %w", errdefs.ErrUnavailable)
	}
	r := request{fence: f, changes: changes, deadline: time.Now().Add(s.cfg.Patience), done: make(chan answer, 1)}
	for _, c := range changes {
		r.given = append(r.given, *c.Object.Base())
	}
	patience := time.NewTimer(s.cfg.Patience)
	defer patience.Stop()
	select {
	case s.requests <- r:
		a := <-r.done
		return a.revision, a.err
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	case <-patience.C:
		return 0, fmt.Errorf("the cluster's store does not answer: %w", errdefs.ErrUnavailable)
	case <-s.closing:
		return 0, errClosed()
	}
}

// makes tells whether changes make something and remove nothing.
func makes(changes []store.Change) bool {
	made := false
	for _, c := range changes {
		switch c.Op {
		case store.OpCreate:
			made = true
		case store.OpDelete:
			return false
		}
	}
	return made
}

// write does the commits that wait, together, until the store is closed.
func (s *Store) write(ctx context.Context) {
	defer close(s.written)
	var waiting []request
	for {
		if len(waiting) == 0 {
			select {
			case r := <-s.requests:
				waiting = append(waiting, r)
			case <-s.closing:
				return
			}
		}
	more:
		for len(waiting) < together {
			select {
			case r := <-s.requests:
				waiting = append(waiting, r)
			default:
				break more
			}
		}
		waiting = s.round(ctx, waiting)
	}
}

// round writes some of the commits that wait, answers them, and gives the others. In the
// end all are answered, because the time of each ends.
func (s *Store) round(ctx context.Context, waiting []request) []request {
	deadline := waiting[0].deadline
	for lost := 0; ; lost++ {
		s.yield(ctx)
		s.mu.Lock()
		b, rest := s.stage(waiting)
		if b.empty() {
			b.staged.Abort()
			s.mu.Unlock()
			b.drop(nil)
			return rest
		}
		out := s.send(ctx, b, deadline)
		if out.err == nil && out.rev > 0 {
			b.staged.Apply()
			if s.room.Add(-int64(b.bytes)) < 0 {
				s.wantRoom()
			}
			s.move(position{seen: out.rev, head: out.rev, from: s.at.from}, "")
		} else {
			b.staged.Abort()
		}
		s.mu.Unlock()
		switch {
		case out.moved == 0 && out.err == nil:
			b.drop(nil)
			return rest
		case errdefs.IsInvalidArgument(out.err) && len(b.members) > 1:
			for _, m := range b.members {
				m.alone = true
				rest = append(rest, m.request)
			}
			return rest
		case out.err != nil:
			b.drop(out.err)
			return rest
		}
		// Somebody else has committed something: what these decided on is not what is there.
		landed, err := s.resolve(ctx, b, out, deadline)
		switch {
		case landed:
			b.drop(nil)
			return rest
		case err != nil:
			b.drop(err)
			return rest
		}
		if lost >= losses {
			s.takeTurn(ctx, deadline)
		}
	}
}

// resolve waits until what others have committed is here, and tells whether the batch was
// among it: an attempt of which no answer came may have been done.
func (s *Store) resolve(ctx context.Context, b *batch, out outcome, deadline time.Time) (landed bool, err error) {
	defer func() {
		s.mu.Lock()
		s.pending = ""
		s.mu.Unlock()
	}()
	timeout := time.NewTimer(time.Until(deadline))
	defer timeout.Stop()
	for {
		s.mu.Lock()
		at, moved, landed, lists := s.at, s.moved, s.landed, s.lists
		s.mu.Unlock()
		switch {
		case landed:
			return true, nil
		case at.head >= out.moved && out.doubt && lists != b.lists:
			return false, errDoubt() // what happened meanwhile is not kept
		case at.head >= out.moved && out.fenced:
			return false, b.fence.error()
		case at.head >= out.moved:
			return false, nil
		}
		select {
		case <-moved:
		case <-timeout.C:
			return false, errDoubt()
		case <-ctx.Done():
			return false, errClosed()
		}
	}
}

// errDoubt is said of a commit of which it is not known whether it was done.
func errDoubt() error {
	return fmt.Errorf("the cluster's store does not answer: whether this was done is seen when it does again: %w", errdefs.ErrUnavailable)
}

// yield waits while others have asked for their turn.
func (s *Store) yield(ctx context.Context) {
	s.mu.Lock()
	until, moved := time.Until(s.yields), s.moved
	s.yields = time.Time{}
	s.mu.Unlock()
	if until <= 0 {
		return
	}
	select {
	case <-time.After(until):
	case <-moved:
	case <-ctx.Done():
	}
}

// takeTurn asks others to let this store's commits through.
func (s *Store) takeTurn(ctx context.Context, deadline time.Time) {
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	_, _ = s.client.Put(ctx, s.keys.turn(), s.cfg.Name) // it was worth a try
	time.Sleep(time.Duration(rand.Int64N(int64(5 * time.Millisecond))))
}

// outcome is what became of an attempt to write.
type outcome struct {
	rev    int64 // etcd's, when it was done
	moved  int64 // etcd's of a head that is newer than the batch's base
	fenced bool  // who wrote does not lead any more
	doubt  bool  // there was an attempt of which no answer came
	err    error // it was not done, or errDoubt
}

// send writes a batch: until there is an answer, or the deadline has come. Writing again
// does no harm: it compares the head, which the first that succeeds changes. Called with
// mu held.
func (s *Store) send(ctx context.Context, b *batch, deadline time.Time) (out outcome) {
	s.pending, s.landed, b.lists = b.head.Batch, false, s.lists
	txn := func() (*clientv3.TxnResponse, error) {
		ctx, cancel := context.WithDeadline(ctx, earlier(deadline, time.Now().Add(attempt)))
		defer cancel()
		untilRerouted(ctx, cancel, s.cfg.Prefer)
		compare := []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(s.keys.head()), "=", s.at.head)}
		if b.fence != nil {
			compare = append(compare, clientv3.Compare(clientv3.ModRevision(s.keys.leader()), "=", b.fence.rev))
		}
		return s.client.Txn(ctx).If(compare...).Then(b.ops...).Else(clientv3.OpGet(s.keys.head()), clientv3.OpGet(s.keys.leader())).Commit()
	}
	for {
		r, err := txn()
		switch {
		case err == nil && r.Succeeded:
			if len(b.head.Commits) > 0 {
				out.rev = r.Header.Revision
			}
			return out
		case err == nil:
			return s.refused(b, r.Responses, out)
		case definite(err):
			out.err = fmt.Errorf("cluster's store: %w", kindOf(err))
			return out
		case errors.Is(err, rpctypes.ErrNoSpace):
			if out, ok := s.noSpace(ctx, b, out, deadline); ok {
				return out
			}
		}
		out.doubt = true
		if time.Until(deadline) <= 0 || ctx.Err() != nil {
			out.err = errDoubt()
			return out
		}
		time.Sleep(min(nap, max(0, time.Until(deadline))))
	}
}

// untilRerouted cancels an attempt when writes begin to go through another server, until ctx ends:
// what was on its way through one that was lost is answered by nobody.
func untilRerouted(ctx context.Context, cancel context.CancelFunc, prefer func() (bool, <-chan struct{})) {
	if prefer == nil {
		return
	}
	_, changed := prefer()
	go func() {
		select {
		case <-changed:
			cancel()
		case <-ctx.Done():
		}
	}()
}

// noSpace finds out whether a batch was written of which was said that there is no place: that
// is also said of the last one for which there was. ok is false when there is no answer.
func (s *Store) noSpace(ctx context.Context, b *batch, out outcome, deadline time.Time) (_ outcome, ok bool) {
	s.wantRoom()
	ctx, cancel := context.WithDeadline(ctx, earlier(deadline, time.Now().Add(attempt)))
	defer cancel()
	r, err := s.client.Get(ctx, s.keys.head())
	if err != nil {
		return out, false
	}
	if len(r.Kvs) > 0 {
		h, err := parseHead(r.Kvs[0].Value)
		switch {
		case err != nil:
			out.err = fmt.Errorf("cluster's store: %w", err)
			return out, true
		case h.Batch == b.head.Batch:
			out.rev = r.Kvs[0].ModRevision
			return out, true
		case r.Kvs[0].ModRevision != s.at.head:
			out.moved, out.doubt = r.Kvs[0].ModRevision, true
			return out, true
		}
	}
	out.err = fmt.Errorf("cluster's store: %w", kindOf(rpctypes.ErrNoSpace))
	return out, true
}

// refused tells why a batch was not written: from what the head and the leader are.
func (s *Store) refused(b *batch, answers []*etcdserverpb.ResponseOp, out outcome) outcome {
	if kvs := answers[0].GetResponseRange().Kvs; len(kvs) > 0 {
		h, err := parseHead(kvs[0].Value)
		switch {
		case err != nil:
			out.err = fmt.Errorf("cluster's store: %w", err)
			return out
		case h.Batch == b.head.Batch:
			out.rev = kvs[0].ModRevision // an attempt of which no answer came
			return out
		case kvs[0].ModRevision != s.at.head:
			out.moved = kvs[0].ModRevision
		}
	}
	if b.fence != nil {
		kvs := answers[1].GetResponseRange().Kvs
		out.fenced = len(kvs) == 0 || kvs[0].ModRevision != b.fence.rev
	}
	switch {
	case out.fenced && (out.moved == 0 || !out.doubt):
		out.moved, out.err = 0, b.fence.error()
	case out.moved == 0:
		out.err = fmt.Errorf("cluster's store: its head is not there any more: %w", errdefs.ErrDataLoss)
	}
	return out
}

// definite tells of an error whether what was asked was not done, and never will be.
func definite(err error) bool {
	switch status.Code(err) {
	case codes.InvalidArgument, codes.PermissionDenied, codes.Unimplemented, codes.OutOfRange, codes.FailedPrecondition:
		return true
	case codes.ResourceExhausted:
		return !errors.Is(err, rpctypes.ErrNoSpace)
	}
	return false
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

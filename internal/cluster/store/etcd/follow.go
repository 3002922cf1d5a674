package etcd

import (
	"context"
	"fmt"
	"time"

	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// page is how many keys are read at once.
const page = 500

// again is the pause before what could not be read is read again.
const again = 200 * time.Millisecond

// list reads all that there is and puts it in the place of what is known. Strictly: what
// the cluster knows; else, and when it does not answer, what the server on this machine
// does, which may be a little older, and is followed from there.
func (s *Store) list(ctx context.Context, strictly bool) error {
	got, err := read(ctx, s, strictly)
	if err != nil {
		return err
	}
	return s.take(got)
}

// listing is all that there is at a position.
type listing struct {
	at     position
	head   head
	writes []store.Write
}

// read reads all that there is, as list does.
func read(ctx context.Context, s *Store, strictly bool) (l listing, err error) {
	var options []clientv3.OpOption
	strict := ctx
	if strictly {
		var cancel context.CancelFunc
		strict, cancel = context.WithTimeout(ctx, s.cfg.Patience)
		defer cancel()
	} else {
		options = append(options, clientv3.WithSerializable())
	}
	first, err := s.client.Get(strict, s.keys.head(), options...)
	if err != nil {
		if status, err := s.client.Status(ctx, s.client.Endpoints()[0]); err == nil && status.IsLearner {
			return l, errLearner
		}
		if strictly && ctx.Err() == nil {
			s.log.Warn("the cluster's store does not answer for the cluster: what this manager knows is used", "error", err)
			return read(ctx, s, false)
		}
		return l, err
	}
	l.at.seen = first.Header.Revision
	if len(first.Kvs) > 0 {
		l.at.head = first.Kvs[0].ModRevision
		if l.head, err = parseHead(first.Kvs[0].Value); err != nil {
			return l, err
		}
		l.at.from = l.head.Carried
	}
	if l.head.Carrying != "" {
		return l, errCarrying
	}
	l.writes, err = objects(ctx, s, l.at.seen)
	return l, err
}

// take puts what was read in the place of what is known, unless that is newer by now: by
// a commit of this store's own, which there is only when nothing was missing.
func (s *Store) take(l listing) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at.seen > l.at.seen {
		return nil
	}
	if err := s.state.Reset(l.head.Revision, l.writes); err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrDataLoss)
	}
	s.lists++
	s.move(l.at, l.head.Batch)
	return nil
}

// errCarrying is said while there is no store yet.
var errCarrying = fmt.Errorf("objects are being carried over: %w", errdefs.ErrUnavailable)

// objects reads all objects as they were at one of etcd's revisions.
func objects(ctx context.Context, s *Store, rev int64) ([]store.Write, error) {
	var out []store.Write
	key, end := s.keys.objects(), clientv3.GetPrefixRangeEnd(s.keys.objects())
	for {
		// This revision is here: the server has told of it.
		got, err := s.client.Get(ctx, key, clientv3.WithRange(end), clientv3.WithRev(rev), clientv3.WithLimit(page), clientv3.WithSerializable())
		if err != nil {
			return nil, err
		}
		for _, kv := range got.Kvs {
			w, ok, err := s.keys.read(kv)
			if err != nil {
				return nil, err
			}
			if ok {
				out = append(out, w)
			}
		}
		if !got.More {
			return out, nil
		}
		key = string(got.Kvs[len(got.Kvs)-1].Key) + "\x00"
	}
}

// move notes how far the cluster was followed. Called with mu held.
func (s *Store) move(at position, batch string) {
	s.at = at
	if batch != "" && batch == s.pending {
		s.landed = true
	}
	close(s.moved)
	s.moved = make(chan struct{})
}

// Current waits until a store has all that the cluster had committed when it was called. It blocks.
// Unavailable when the cluster does not answer before ctx ends.
func Current(ctx context.Context, s *Store) error {
	got, err := s.client.Get(ctx, s.keys.head()) // what most members know
	if err != nil {
		return fmt.Errorf("cluster's store: %w", kindOf(err))
	}
	for {
		s.mu.Lock()
		at, moved := s.at, s.moved
		s.mu.Unlock()
		if len(got.Kvs) == 0 || at.head >= got.Kvs[0].ModRevision {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("cluster's store: it is not read yet: %w", errdefs.ErrUnavailable)
		case <-s.closing:
			return errClosed()
		}
	}
}

// follow applies what others commit, until ctx ends.
func (s *Store) follow(ctx context.Context) {
	said := ""
	for ctx.Err() == nil {
		err := s.watch(ctx)
		for ctx.Err() == nil && err != nil {
			// Some of what happened is not kept, or did not fit: all is read anew, and
			// who watches is told that it was.
			if err.Error() != said {
				said = err.Error()
				s.log.Warn("the cluster's store is read anew", "because", err)
			}
			if err = s.list(ctx, false); err != nil {
				select {
				case <-time.After(again):
				case <-ctx.Done():
				}
			}
		}
	}
}

// watch applies what others commit, until ctx ends or something cannot be applied.
func (s *Store) watch(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.mu.Lock()
	from := s.at.seen + 1
	s.mu.Unlock()
	// The client takes a watch up again by itself when the server was away.
	for r := range s.client.Watch(ctx, s.keys.all(), clientv3.WithPrefix(), clientv3.WithRev(from)) {
		if err := r.Err(); err != nil {
			return err
		}
		for events := r.Events; len(events) > 0; {
			n := 1
			for n < len(events) && events[n].Kv.ModRevision == events[0].Kv.ModRevision {
				n++
			}
			if err := s.apply(events[:n]); err != nil {
				return err
			}
			events = events[n:]
		}
	}
	return ctx.Err()
}

// apply applies what one transaction of etcd's has written.
func (s *Store) apply(events []*clientv3.Event) error {
	rev := events[0].Kv.ModRevision
	s.mu.Lock()
	defer s.mu.Unlock()
	if rev <= s.at.seen {
		return nil // a commit of this store's own
	}
	objects := map[string]*mvccpb.KeyValue{}
	var raw []byte
	for _, e := range events {
		switch {
		case e.Type == clientv3.EventTypeDelete: // the head tells of it
		case string(e.Kv.Key) == s.keys.head():
			raw = e.Kv.Value
		case string(e.Kv.Key) == s.keys.turn():
			if string(e.Kv.Value) != s.cfg.Name {
				s.yields = time.Now().Add(yield)
			}
		default:
			objects[string(e.Kv.Key)] = e.Kv
		}
	}
	if raw == nil {
		if len(objects) > 0 {
			return fmt.Errorf("objects were written without their head: %w", errdefs.ErrDataLoss)
		}
		s.move(position{seen: rev, head: s.at.head, from: s.at.from}, "")
		return nil
	}
	h, err := parseHead(raw)
	if err != nil {
		return err
	}
	if h.Carrying != "" {
		return errCarrying
	}
	g := s.state.Stage()
	for _, c := range h.Commits {
		var writes []store.Write
		if writes, err = s.keys.writes(c, objects); err == nil {
			err = g.Replay(c.Revision, writes)
		}
		if err != nil {
			g.Abort()
			return err
		}
	}
	if _, at := g.Writes(); at != h.Revision {
		g.Abort()
		return fmt.Errorf("commits up to %d led to %d: %w", h.Revision, at, errdefs.ErrDataLoss)
	}
	g.Apply()
	s.yields = time.Time{}
	s.move(position{seen: rev, head: rev, from: h.Carried}, h.Batch)
	return nil
}

// writes are those of one commit, of the objects that were written with it.
func (k keys) writes(c done, objects map[string]*mvccpb.KeyValue) (out []store.Write, err error) {
	for _, n := range c.Writes {
		if n[:min(1, len(n))] == removed {
			if w, ok := named(n[1:]); ok {
				out = append(out, w)
			}
			continue
		}
		kv := objects[k.object(n)]
		if kv == nil {
			return nil, fmt.Errorf("commit %d: %s was not written: %w", c.Revision, n, errdefs.ErrDataLoss)
		}
		w, ok, err := k.read(kv)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, w)
		}
	}
	return out, nil
}

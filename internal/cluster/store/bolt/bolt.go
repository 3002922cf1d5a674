// Package bolt is the store of a single host: a file of go.etcd.io/bbolt, read once
// when it is opened. Commits that come at once are made durable together.
package bolt

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// Store is a store in a file.
type Store struct {
	db    *bbolt.DB
	state *store.State

	requests chan request
	closing  chan struct{}
	once     sync.Once
	ended    chan struct{}
	err      error // of closing
	swollen  error // see Swollen
}

type request struct {
	changes []store.Change
	done    chan answer
}

type answer struct {
	revision uint64
	err      error
}

var _ store.Store = (*Store)(nil)

// The buckets and keys of the file (docs/formats.md).
var (
	about       = []byte("about")
	formatKey   = []byte("format")
	revisionKey = []byte("revision")
)

// together is how many commits are made durable at once, at most.
const together = 256

// Open opens the store of a file, which is made when it is not there. It blocks for
// the disk. Kinds: FailedPrecondition when the file is of a later format, Unavailable
// when somebody else has it open, DataLoss when it is no store or damaged.
func Open(path string) (*Store, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	db, err := bbolt.Open(path, 0o600, options())
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("store %s: somebody else has it open: %w", path, errdefs.ErrUnavailable)
	case err != nil:
		return nil, fmt.Errorf("store %s: %w: %w", path, err, errdefs.ErrDataLoss)
	}
	s := &Store{db: db, state: store.NewState(), requests: make(chan request), closing: make(chan struct{}), ended: make(chan struct{})}
	content, err := s.read()
	if err == nil {
		err = s.shrink(content)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("store %s: %w", path, err), s.db.Close())
	}
	go s.write()
	return s, nil
}

func options() *bbolt.Options {
	return &bbolt.Options{Timeout: time.Second, FreelistType: bbolt.FreelistMapType, NoFreelistSync: true}
}

// shrink has the store in a smaller file when most of the present one is not in use. One
// that cannot be made smaller serves as it is, and Swollen tells why.
func (s *Store) shrink(content int64) error {
	s.swollen = tidy(s.db.Path())
	big, err := bloated(s.db.Path(), content)
	if err != nil || !big {
		return err
	}
	before := s.db
	s.db, err = compact(before)
	if s.db == before {
		s.swollen = errors.Join(s.swollen, err)
		return nil
	}
	return err
}

// Swollen says why the file could not be made smaller, or what was begun of a smaller one not
// be removed, when it was opened; nil: there was nothing to do, or it is done.
func (s *Store) Swollen() error { return s.swollen }

// read makes the buckets of a new file, or reads those of an old one, and counts the
// bytes of what is in them.
func (s *Store) read() (content int64, err error) {
	err = s.db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(about)
		if err != nil {
			return err
		}
		format, revision := number(b.Get(formatKey)), number(b.Get(revisionKey))
		if format > store.Format {
			return fmt.Errorf("its format is %d, this version of Escale knows %d; downgrading is not possible: %w", format, store.Format, errdefs.ErrFailedPrecondition)
		}
		if err := b.Put(formatKey, bytesOf(store.Format)); err != nil {
			return err
		}
		var all []store.Write
		for _, k := range cluster.Kinds() {
			b, err := tx.CreateBucketIfNotExists([]byte(k))
			if err != nil {
				return err
			}
			err = b.ForEach(func(id, raw []byte) error {
				all = append(all, store.Write{Kind: k, ID: string(id), Raw: append([]byte(nil), raw...)})
				content += int64(len(id) + len(raw))
				return nil
			})
			if err != nil {
				return err
			}
		}
		if err := s.state.Fill(revision, all); err != nil {
			return fmt.Errorf("%w: %w", err, errdefs.ErrDataLoss)
		}
		return nil
	})
	return content, err
}

func number(b []byte) uint64 {
	if len(b) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

func bytesOf(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// View implements store.Store.
func (s *Store) View() store.View { return s.state.View() }

// Watch implements store.Store.
func (s *Store) Watch(after uint64, kinds ...cluster.Kind) (*store.Watch, error) {
	return s.state.Watch(after, kinds...)
}

// Commit implements store.Store. Once it has been taken in hand it is brought to its
// end, whatever becomes of ctx.
func (s *Store) Commit(ctx context.Context, changes ...store.Change) (uint64, error) {
	r := request{changes, make(chan answer, 1)}
	select {
	case s.requests <- r:
		a := <-r.done
		return a.revision, a.err
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	case <-s.closing:
		return 0, fmt.Errorf("store is closed: %w", errdefs.ErrUnavailable)
	}
}

// write does the commits that wait, together, until the store is closed.
func (s *Store) write() {
	defer close(s.ended)
	for {
		var round []request
		select {
		case r := <-s.requests:
			round = append(round, r)
		case <-s.closing:
			return
		}
	more:
		for len(round) < together {
			select {
			case r := <-s.requests:
				round = append(round, r)
			default:
				break more
			}
		}
		s.commit(round)
	}
}

// commit does some commits and answers all of them.
func (s *Store) commit(round []request) {
	g := s.state.Stage()
	answers := make([]answer, len(round))
	for i, r := range round {
		answers[i].revision, answers[i].err = g.Add(r.changes)
	}
	writes, revision := g.Writes()
	var err error
	if len(writes) > 0 {
		err = s.db.Update(func(tx *bbolt.Tx) error { return put(tx, writes, revision) })
	}
	if err == nil {
		g.Apply()
	} else {
		g.Abort()
		err = fmt.Errorf("store cannot be written: %w: %w", err, errdefs.ErrUnavailable)
	}
	for i, r := range round {
		if answers[i].err == nil && err != nil {
			answers[i] = answer{err: err}
		}
		r.done <- answers[i]
	}
}

func put(tx *bbolt.Tx, writes []store.Write, revision uint64) error {
	for _, w := range writes {
		b := tx.Bucket([]byte(w.Kind))
		var err error
		if w.Raw == nil {
			err = b.Delete([]byte(w.ID))
		} else {
			err = b.Put([]byte(w.ID), w.Raw)
		}
		if err != nil {
			return err
		}
	}
	return tx.Bucket(about).Put(revisionKey, bytesOf(revision))
}

// Close implements store.Store. Commits under way are brought to their end.
func (s *Store) Close() error {
	s.once.Do(func() {
		close(s.closing)
		<-s.ended
		s.state.Close()
		s.err = s.db.Close()
	})
	return s.err
}

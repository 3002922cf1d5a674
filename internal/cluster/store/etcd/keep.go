package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// How often the database is looked at, and when it is made smaller: what was overwritten is
// let go every few minutes by the server itself (package child), but leaves holes.
const (
	looking   = 5 * time.Second
	worth     = 64 << 20 // bytes of holes, and more of them than of what is in use
	fullParts = 10       // of the quota: when nine are in use, nothing new is made
)

// Sizes are those of the database on this machine, in bytes.
type Sizes struct {
	File, Used, Quota int64
	Full              bool // the quota was reached: writes are refused
}

// Sizes asks for those of the database. Unavailable.
func (s *Store) Sizes(ctx context.Context) (Sizes, error) {
	is, _, err := s.sizes(ctx)
	return is, err
}

// sizes asks the server on this machine, which need not ask others; also at which of etcd's
// revisions it is.
func (s *Store) sizes(ctx context.Context) (Sizes, int64, error) {
	r, err := s.client.Status(ctx, s.client.Endpoints()[0])
	if err != nil {
		return Sizes{}, 0, fmt.Errorf("cluster's store: %w", kindOf(err))
	}
	full := slices.ContainsFunc(r.Errors, func(e string) bool { return strings.Contains(e, etcdserverpb.AlarmType_NOSPACE.String()) })
	return Sizes{File: r.DbSize, Used: r.DbSizeInUse, Quota: r.DbSizeQuota, Full: full}, r.Header.Revision, nil
}

// keep keeps the database from filling up with what nobody needs, until ctx ends.
func (s *Store) keep(ctx context.Context) {
	said := ""
	for ctx.Err() == nil {
		err := s.look(ctx)
		if err != nil && ctx.Err() == nil && err.Error() != said {
			said = err.Error()
			s.log.Warn("the database of the cluster's store was not looked after", "error", err)
		}
		select {
		case <-time.After(looking):
		case <-s.full:
		case <-ctx.Done():
		}
	}
}

// look looks at the database, and does what it needs.
func (s *Store) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	is, rev, err := s.sizes(ctx)
	if err != nil {
		return err
	}
	switch {
	case is.Full:
		err = s.empty(ctx, rev)
	case is.Used > is.Quota/fullParts*(fullParts-2) && rev != s.letGo:
		s.letGo = rev // it may be what was overwritten
		_, err = s.client.Compact(ctx, rev, clientv3.WithCompactPhysical())
		time.Sleep(counted)
	case is.File-is.Used > worth && is.File > 2*is.Used:
		err = s.shrink(ctx)
	}
	if is, err2 := s.Sizes(ctx); err2 == nil {
		s.room.Store(is.Quota/fullParts*(fullParts-1) - is.Used)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.looked)
	s.looked = make(chan struct{})
	return err
}

// counted is when the server has counted what was let go.
const counted = 250 * time.Millisecond

// roomy tells whether something new may be made. When there seems to be no place, it is
// looked for first.
func (s *Store) roomy(ctx context.Context) bool {
	if s.room.Load() >= 0 {
		return true
	}
	s.mu.Lock()
	looked := s.looked
	s.mu.Unlock()
	s.wantRoom()
	select {
	case <-looked:
	case <-time.After(attempt):
	case <-s.closing:
	case <-ctx.Done():
	}
	return s.room.Load() >= 0
}

// wantRoom has the database looked at now.
func (s *Store) wantRoom() {
	select {
	case s.full <- struct{}{}:
	default:
	}
}

// empty makes place in a database that has reached its quota: what was overwritten is let
// go now, and the file made smaller; then writes are possible again.
func (s *Store) empty(ctx context.Context, rev int64) error {
	s.log.Warn("the cluster's store has reached its quota: what was overwritten is let go")
	if _, err := s.client.Compact(ctx, rev, clientv3.WithCompactPhysical()); err != nil {
		s.log.Debug("letting go", "error", err) // others do the same, and one comes first
	}
	if _, err := s.client.Defragment(ctx, s.client.Endpoints()[0]); err != nil {
		return kindOf(err)
	}
	is, err := s.Sizes(ctx)
	if err != nil {
		return err
	}
	if is.File > is.Quota/100*98 { // what is removed is written first, too
		return errors.New("it is full: remove something, or give it a larger quota")
	}
	own, err := s.client.Status(ctx, s.client.Endpoints()[0])
	if err != nil {
		return kindOf(err)
	}
	alarms, err := s.client.AlarmList(ctx)
	if err != nil {
		return kindOf(err)
	}
	for _, a := range alarms.Alarms {
		if a.MemberID != own.Header.MemberId {
			continue // its own manager looks after it
		}
		if _, err := s.client.AlarmDisarm(ctx, (*clientv3.AlarmMember)(a)); err != nil {
			return kindOf(err)
		}
	}
	s.log.Info("the cluster's store has place again", "used", is.Used, "quota", is.Quota)
	return nil
}

// shrink makes the file smaller, which stands still meanwhile: of one member at a time.
func (s *Store) shrink(ctx context.Context) error {
	lease, err := s.client.Grant(ctx, int64(time.Minute/time.Second))
	if err != nil {
		return kindOf(err)
	}
	defer func() {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), attempt) // detached: it is an undo
		defer cancel()
		_, _ = s.client.Revoke(undo, lease.ID) // or it ends by itself
	}()
	r, err := s.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(s.keys.shrink()), "=", 0)).Then(clientv3.OpPut(s.keys.shrink(), s.cfg.Name, clientv3.WithLease(lease.ID))).Commit()
	if err != nil || !r.Succeeded {
		return kindOf(err)
	}
	_, err = s.client.Defragment(ctx, s.client.Endpoints()[0])
	return kindOf(err)
}

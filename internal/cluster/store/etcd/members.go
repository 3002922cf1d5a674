package etcd

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Member is a manager, as a keeper of the cluster's store.
type Member struct {
	ID        uint64
	Name      string // the node's id; "" while it has not come
	URL       string // on which the other members reach it
	Learner   bool   // it has no vote yet
	Leads     bool   // all writes go through it
	Reachable bool   // it answered just now
}

// probing is how long a member may take to answer.
const probing = time.Second

// Members are all members as this manager knows them, also when the cluster does not
// answer. It asks each whether it is there, which takes a second at most. Unavailable
// when the server on this machine does not answer.
func (s *Store) Members(ctx context.Context) ([]Member, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Patience)
	defer cancel()
	list, err := s.client.MemberList(ctx, clientv3.WithSerializable())
	if err != nil {
		return nil, fmt.Errorf("cluster's store: %w", kindOf(err))
	}
	status, err := s.client.Status(ctx, s.client.Endpoints()[0])
	if err != nil {
		return nil, fmt.Errorf("cluster's store: %w", kindOf(err))
	}
	probe := &http.Transport{DisableKeepAlives: true}
	if s.cfg.TLS != nil {
		probe.TLSClientConfig = s.cfg.TLS()
	}
	client := &http.Client{Timeout: probing, Transport: probe}
	out := make([]Member, len(list.Members))
	var probes sync.WaitGroup
	for i, m := range list.Members {
		out[i] = Member{ID: m.ID, Name: m.Name, URL: urlOf(m), Learner: m.IsLearner, Leads: m.ID == status.Leader}
		probes.Go(func() { out[i].Reachable = answers(ctx, client, out[i].URL) })
	}
	probes.Wait()
	return out, nil
}

// answers tells whether a member does.
func answers(ctx context.Context, client *http.Client, url string) bool {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/version", nil)
	if err != nil {
		return false
	}
	got, err := client.Do(r)
	if err != nil {
		return false
	}
	_ = got.Body.Close() // nothing is read of it
	return got.StatusCode == http.StatusOK
}

func urlOf(m *etcdserverpb.Member) string {
	if len(m.PeerURLs) == 0 {
		return ""
	}
	return m.PeerURLs[0]
}

// Joining is what a new member's server is told (package child).
type Joining struct {
	ID      uint64
	Cluster string
}

// Add makes place for a member, which learns what there is when it comes, and has no vote
// until it is promoted. Asked again for one that has not come, it gives the same place. It
// blocks for some seconds after another has come or gone. Kinds: AlreadyExists when the name or URL is another's; Unavailable while another learns,
// or when too many members are away; InvalidArgument.
func (s *Store) Add(ctx context.Context, name, url string) (Joining, error) {
	if name == "" || strings.ContainsAny(name, "=,") {
		return Joining{}, fmt.Errorf("manager %q: no name for one: %w", name, errdefs.ErrInvalidArgument)
	}
	asking, cancel := context.WithTimeout(ctx, s.cfg.Patience)
	defer cancel()
	list, err := s.client.MemberList(asking)
	if err != nil {
		return Joining{}, fmt.Errorf("manager %s: %w", name, kindOf(err))
	}
	members, id := list.Members, uint64(0)
	for _, m := range members {
		switch {
		case urlOf(m) == url && m.IsLearner && (m.Name == "" || m.Name == name):
			id = m.ID // it was asked before
		case m.Name == name || urlOf(m) == url:
			return Joining{}, fmt.Errorf("manager %s: a manager of its name or address (%s) is in the cluster; remove that first: %w", name, url, errdefs.ErrAlreadyExists)
		}
	}
	if id == 0 {
		var got *clientv3.MemberAddResponse
		err := settled(ctx, func(ctx context.Context) (err error) {
			got, err = s.client.MemberAddAsLearner(ctx, []string{url})
			return err
		})
		if err != nil {
			return Joining{}, fmt.Errorf("manager %s: %w", name, memberKind(err))
		}
		id, members = got.Member.ID, got.Members
	}
	var all []string
	for _, m := range members {
		n := m.Name
		if m.ID == id {
			n = name
		}
		if n == "" {
			n = strconv.FormatUint(m.ID, 16)
		}
		all = append(all, n+"="+urlOf(m))
	}
	return Joining{ID: id, Cluster: strings.Join(all, ",")}, nil
}

// Promote gives a member its vote. It blocks until that has learnt what there is. Kinds:
// NotFound; Unavailable when ctx ends before.
func (s *Store) Promote(ctx context.Context, id uint64) error {
	for {
		_, err := s.client.MemberPromote(ctx, id)
		switch {
		case err == nil || errors.Is(err, rpctypes.ErrMemberNotLearner):
			return nil
		case errors.Is(err, rpctypes.ErrMemberNotFound) || ctx.Err() != nil:
			return fmt.Errorf("manager %x: %w", id, memberKind(err))
		}
		select {
		case <-time.After(again):
		case <-ctx.Done():
			return fmt.Errorf("manager %x: it has not learnt all yet: %w: %w", id, err, errdefs.ErrUnavailable)
		}
	}
}

// Remove removes a member, whose server ends. It blocks for some seconds after another has
// come or gone. Kinds: NotFound; FailedPrecondition when those
// that remain would be no majority of living members, or none.
func (s *Store) Remove(ctx context.Context, id uint64) error {
	err := settled(ctx, func(ctx context.Context) error {
		_, err := s.client.MemberRemove(ctx, id)
		return err
	})
	if err != nil {
		return fmt.Errorf("manager %x: %w", id, memberKind(err))
	}
	return nil
}

// settling is a little more than the time for which members must have talked with each other
// until the server lets them be changed.
const settling = 8 * time.Second

// settled does what changes members, once they have settled after the change before.
func settled(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, settling)
	defer cancel()
	var last error
	for {
		err := f(ctx)
		switch {
		case errors.Is(err, rpctypes.ErrUnhealthy):
			last = err
		case last != nil && ctx.Err() != nil:
			return last // which says more
		default:
			return err
		}
		select {
		case <-time.After(again):
		case <-ctx.Done():
			return last
		}
	}
}

// memberKind gives errors of changes of members their kinds.
func memberKind(err error) error {
	switch {
	case errors.Is(err, rpctypes.ErrMemberNotFound):
		return fmt.Errorf("no such manager: %w", errdefs.ErrNotFound)
	case errors.Is(err, rpctypes.ErrPeerURLExist), errors.Is(err, rpctypes.ErrMemberExist):
		return fmt.Errorf("%w: %w", err, errdefs.ErrAlreadyExists)
	case errors.Is(err, rpctypes.ErrTooManyLearners):
		return fmt.Errorf("another manager is joining: %w", errdefs.ErrUnavailable)
	case errors.Is(err, rpctypes.ErrMemberNotEnoughStarted), errors.Is(err, rpctypes.ErrUnhealthy):
		return fmt.Errorf("too few managers would remain for a majority: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	return kindOf(err)
}

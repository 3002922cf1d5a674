package loop

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/mem"
	"github.com/containerd/errdefs"
)

// counter is a loop that counts services up to a number, one each second.
type counter struct{ to uint64 }

func (counter) Name() string          { return "counter" }
func (counter) Kinds() []cluster.Kind { return []cluster.Kind{cluster.KindService} }
func (counter) Keys(_ store.View, e store.Event) []string {
	if e.New == nil {
		return nil
	}
	return []string{e.New.Base().ID}
}
func (counter) All(v store.View) (out []string) {
	for _, s := range store.List[*cluster.Service](v) {
		out = append(out, s.ID)
	}
	return out
}

func (c counter) Decide(v store.View, key string, now time.Time) (d Decision) {
	s, err := store.Find[*cluster.Service](v, key)
	if err != nil || s.Spec.Number >= c.to {
		return d
	}
	if next := s.Status.Due; now.Before(next) {
		d.Again = next
		return d
	}
	s = store.Copy(s)
	s.Spec.Number++
	s.Status.Due = now.Add(time.Second)
	d.Changes = append(d.Changes, store.Update(s))
	return d
}

func service(i int) *cluster.Service {
	return &cluster.Service{Meta: cluster.Meta{Name: fmt.Sprint("s", i)}}
}

// Loops see what is there, what comes, and what time brings, and stop counting.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := mem.New(store.NewState())
		defer s.Close()
		if _, err := s.Commit(t.Context(), store.Create(service(0))); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- Run(ctx, s, slog.New(slog.DiscardHandler), counter{5}, counter{5}) }() // two of them get into each other's way
		synctest.Wait()
		if _, err := s.Commit(t.Context(), store.Create(service(1))); err != nil {
			t.Fatal(err)
		}
		number := func(name string) uint64 {
			o, err := store.Named[*cluster.Service](s.View(), name)
			if err != nil {
				t.Fatal(err)
			}
			return o.Spec.Number
		}
		synctest.Wait()
		for i := range uint64(7) {
			if want := min(i+1, 5); number("s0") != want || number("s1") != want {
				t.Errorf("after %d s: %d and %d, want %d", i, number("s0"), number("s1"), want)
			}
			time.Sleep(time.Second)
			synctest.Wait()
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// A loop that was slower than the changes looks at everything; one whose store is
// closed ends and says so; what the store refuses for good ends all loops.
func TestRunTroubles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sick{Store: mem.New(store.NewState())}
		ended := make(chan error)
		go func() { ended <- Run(t.Context(), s, slog.New(slog.DiscardHandler), counter{1}) }()
		synctest.Wait()
		// The watch is behind by more than is kept before it is read again.
		s.failing(fmt.Errorf("disk: %w", errdefs.ErrUnavailable))
		o := service(0)
		if _, err := s.Store.Commit(t.Context(), store.Create(o)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		s.failing(nil)
		time.Sleep(2 * patience)
		synctest.Wait()
		if got, err := store.Find[*cluster.Service](s.View(), o.ID); err != nil || got.Spec.Number != 1 {
			t.Errorf("after a store that could not be written: %+v, %v", got, err)
		}
		s.failing(errdefs.ErrInvalidArgument)
		if _, err := s.Store.Commit(t.Context(), store.Create(service(1))); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("it ended with %v", err)
		}
		go func() { ended <- Run(t.Context(), s, slog.New(slog.DiscardHandler), counter{0}) }()
		synctest.Wait()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; !errdefs.IsUnavailable(err) {
			t.Errorf("of a closed store it said %v", err)
		}
	})
}

// sick is a store that cannot be written.
type sick struct {
	store.Store

	mu   sync.Mutex
	fail error
}

func (s *sick) failing(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = err
}

func (s *sick) Commit(ctx context.Context, c ...store.Change) (uint64, error) {
	s.mu.Lock()
	fail := s.fail
	s.mu.Unlock()
	if fail != nil {
		return 0, fail
	}
	return s.Store.Commit(ctx, c...)
}

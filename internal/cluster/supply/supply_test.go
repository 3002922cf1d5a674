package supply

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/mem"
	"github.com/containerd/errdefs"
)

// engine has networks and volumes that are made up.
type engine struct {
	removed []string
	wrong   map[string]error
}

func (e *engine) remove(name string) error {
	e.removed = append(e.removed, name)
	return e.wrong[name]
}

func (e *engine) RemoveNetwork(_ context.Context, n *cluster.Network) error {
	return e.remove(n.Spec.Name)
}
func (e *engine) RemoveVolume(_ context.Context, v cluster.VolumeSpec) error { return e.remove(v.Name) }

// works runs a test beside a worker.
func works(t *testing.T, e *engine, f func(s *mem.Store, commit func(...store.Change))) {
	synctest.Test(t, func(t *testing.T) {
		s := mem.New(store.NewState())
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- New(s, e, slog.New(slog.DiscardHandler)).Run(ctx) }()
		synctest.Wait()
		f(s, func(changes ...store.Change) {
			t.Helper()
			if _, err := s.Commit(t.Context(), changes...); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		})
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func network(name string, f func(*cluster.NetworkSpec)) *cluster.Network {
	n := &cluster.Network{Meta: cluster.Meta{Name: name}, Spec: cluster.NetworkSpec{Name: name}}
	f(&n.Spec)
	return n
}

// What is to be removed goes, the engine's first; what is another's or in use stays.
func TestWorker(t *testing.T) {
	e := &engine{wrong: map[string]error{"used": errdefs.ErrConflict, "gone": errdefs.ErrNotFound}}
	works(t, e, func(s *mem.Store, commit func(...store.Change)) {
		removed := func(s *cluster.NetworkSpec) { s.Removed = true }
		commit(
			store.Create(network("stays", func(*cluster.NetworkSpec) {})),
			store.Create(network("used", removed)), store.Create(network("gone", removed)),
			store.Create(network("theirs", func(s *cluster.NetworkSpec) { s.Removed, s.External = true, true })),
			store.Create(&cluster.Volume{Meta: cluster.Meta{Name: "data"}, Spec: cluster.VolumeSpec{Name: "data", Removed: true}}),
		)
		if slices.Sort(e.removed); !slices.Equal(e.removed, []string{"data", "gone", "used"}) {
			t.Errorf("removed %v", e.removed)
		}
		left := store.List[*cluster.Network](s.View())
		if len(left) != 1 || left[0].Name != "stays" || len(store.List[*cluster.Volume](s.View())) != 0 {
			t.Errorf("left: %v, %v", left, store.List[*cluster.Volume](s.View()))
		}
		n := store.Copy(left[0])
		n.Spec.Removed = true
		commit(store.Update(n))
		if len(store.List[*cluster.Network](s.View())) != 0 {
			t.Error("what was marked later is left")
		}
	})
}

// What cannot be removed now is tried again, and its object stays until then.
func TestWorkerTriesAgain(t *testing.T) {
	e := &engine{wrong: map[string]error{"net": errors.New("no answer")}}
	works(t, e, func(s *mem.Store, commit func(...store.Change)) {
		commit(store.Create(network("net", func(s *cluster.NetworkSpec) { s.Removed = true })))
		time.Sleep(3500 * time.Millisecond)
		if len(e.removed) != 4 || len(store.List[*cluster.Network](s.View())) != 1 {
			t.Errorf("tried %d times", len(e.removed))
		}
		delete(e.wrong, "net")
		time.Sleep(time.Second)
		synctest.Wait()
		if len(store.List[*cluster.Network](s.View())) != 0 {
			t.Error("it is left")
		}
	})
}

// A volume of before that containers still use is tried until they have ended.
func TestOwedVolume(t *testing.T) {
	e := &engine{wrong: map[string]error{"data": errdefs.ErrConflict}}
	works(t, e, func(s *mem.Store, commit func(...store.Change)) {
		commit(store.Create(&cluster.Volume{Meta: cluster.Meta{Name: "data@1"}, Spec: cluster.VolumeSpec{Name: "data", Removed: true}, Status: cluster.VolumeStatus{Owed: true}}))
		time.Sleep(2500 * time.Millisecond)
		if len(e.removed) != 3 || len(store.List[*cluster.Volume](s.View())) != 1 {
			t.Errorf("tried %d times", len(e.removed))
		}
		delete(e.wrong, "data")
		time.Sleep(time.Second)
		synctest.Wait()
		if len(store.List[*cluster.Volume](s.View())) != 0 {
			t.Error("it is left")
		}
	})
}

// onNode is a store as a node has it: objects are others' to remove.
type onNode struct{ *mem.Store }

func (onNode) Commit(context.Context, ...store.Change) (uint64, error) {
	return 0, errdefs.ErrPermissionDenied
}

// A node removes a volume once: one that is made under its name, before its object goes, is another.
func TestRemovedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, e := mem.New(store.NewState()), &engine{wrong: map[string]error{"none": errdefs.ErrNotFound, "used": errdefs.ErrConflict}}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- New(onNode{s}, e, slog.New(slog.DiscardHandler)).Run(ctx) }()
		commit := func(changes ...store.Change) {
			t.Helper()
			if _, err := s.Commit(t.Context(), changes...); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		volume := func(name string) *cluster.Volume {
			return &cluster.Volume{Meta: cluster.Meta{Name: name + "@1"}, Spec: cluster.VolumeSpec{Name: name, Removed: true}, Status: cluster.VolumeStatus{Owed: true}}
		}
		data := volume("data")
		commit(store.Create(data), store.Create(volume("none")), store.Create(volume("used")))
		commit(store.Create(network("other", func(*cluster.NetworkSpec) {})))
		delete(e.wrong, "used")
		time.Sleep(2 * patience)
		synctest.Wait()
		count := map[string]int{}
		for _, name := range e.removed {
			count[name]++
		}
		if count["data"] != 1 || count["none"] != 1 || count["used"] < 2 {
			t.Errorf("removed %v", count)
		}
		e.removed = nil
		commit(store.Delete(data))
		commit(store.Create(volume("data")))
		if !slices.Equal(e.removed, []string{"data"}) {
			t.Errorf("of the next one of the name: %v", e.removed)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

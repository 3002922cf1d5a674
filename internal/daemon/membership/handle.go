package membership

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/mem"
	"github.com/containerd/errdefs"
)

// handle is a store.Store that stands for the one that counts now. Who watches it is told
// that the watch has ended when another one takes its place.
type handle struct {
	now  atomic.Pointer[held]
	gate sync.RWMutex // commits hold it together, who exchanges the store alone
}

type held struct{ store.Store }

var _ store.Store = (*handle)(nil)

// set exchanges the store. It waits for the commits that are under way.
func (h *handle) set(s store.Store) {
	h.gate.Lock()
	defer h.gate.Unlock()
	h.now.Store(&held{s})
}

// shut keeps commits waiting until set is called, with the store that answers them then; nil
// is the same as before. It waits for those under way.
func (h *handle) shut() (set func(store.Store)) {
	h.gate.Lock()
	done := false
	return func(s store.Store) {
		if done {
			return
		}
		done = true
		if s != nil {
			h.now.Store(&held{s})
		}
		h.gate.Unlock()
	}
}

// View implements store.Store.
func (h *handle) View() store.View { return h.now.Load().View() }

// Watch implements store.Store.
func (h *handle) Watch(after uint64, kinds ...cluster.Kind) (*store.Watch, error) {
	return h.now.Load().Watch(after, kinds...)
}

// Commit implements store.Store.
func (h *handle) Commit(ctx context.Context, changes ...store.Change) (uint64, error) {
	h.gate.RLock()
	defer h.gate.RUnlock()
	return h.now.Load().Commit(ctx, changes...)
}

// Close implements store.Store: that of the Membership closes what is behind it.
func (*handle) Close() error { return nil }

// nothing is a store of which nobody is to expect anything but to be told why.
type nothing struct {
	*mem.Store
	why error
}

// nothingYet stands for the cluster's store on a node that has none of its own, or not yet:
// it has the node alone, which says so to who reads it.
func nothingYet(node string, manager bool, why string) store.Store {
	s := mem.New(store.NewState())
	n := &cluster.Node{Meta: cluster.Meta{ID: node}, Spec: cluster.NodeSpec{Manager: manager}, Status: cluster.NodeStatus{Message: why}}
	_, _ = s.Commit(context.Background(), store.Create(n)) // detached: an empty store in memory takes it at once
	return nothing{s, fmt.Errorf("%s: %w", why, errdefs.ErrUnavailable)}
}

// Commit implements store.Store.
func (n nothing) Commit(context.Context, ...store.Change) (uint64, error) { return 0, n.why }

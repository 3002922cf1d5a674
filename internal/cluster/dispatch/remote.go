package dispatch

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"sync"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
)

// Client is the node's end of a connection with a manager. Receive and Send are called by
// one goroutine each; they block, until Close at the latest.
type Client interface {
	Send(Up) error
	Receive() (Down, error)
	Close() error
}

// Config is what a Remote needs.
type Config struct {
	Node string // id
	Path string // of the file that keeps the node's view; "" keeps none
	Log  *slog.Logger

	// Dial connects with a manager, at host:port. It blocks.
	Dial func(ctx context.Context, addr string) (Client, error)
	// Ask asks a manager who leads. It may block for seconds, until one does by a later term than is
	// given. Nil: nobody is asked, and a leader who does not answer is missed only after Dead.
	Ask func(ctx context.Context, addr string, after uint64) (Cluster, error)
	// Managers are those to begin with; later ones come from managers.
	Managers []Manager
	// Describe is what the node says of itself: the host's name and its status.
	Describe func() (string, cluster.NodeStatus)
	// Told is called with what managers say of the cluster; nil is nobody.
	Told func(Cluster)
}

// Remote is a node's part of the cluster's store. View and Watch answer from memory, with or
// without a manager; Commit writes what became of the node's own tasks, and what the node says
// of itself. Revisions of views are the node's own; those of its tasks are the cluster's.
type Remote struct {
	cfg   Config
	log   *slog.Logger
	state *store.State
	dirty chan struct{} // what is kept is not what is

	silent string          // address of the manager that fell silent last; of Run alone
	life   context.Context // of Run
	asking sync.WaitGroup
	finds  chan struct{} // a search has found somebody

	mu       sync.Mutex
	prints   map[Ref]uint64
	term     uint64 // the highest seen
	managers []Manager
	barred   map[string]bool // nodes that were removed
	whole    bool            // the view is all that the node is to have, or was once
	ready    chan struct{}
	link     *link     // nil while cut off
	err      error     // why
	heard    time.Time // of a leader, last; zero: never

	searching *search
	found     uint64 // the term that was found last
	foundAt   time.Time
	at        string // address of the manager that is asked or followed
}

var _ store.Store = (*Remote)(nil)

// Open makes a Remote from what was kept; a file that cannot be read is as none. Nothing is
// sent before Run.
func Open(cfg Config) (*Remote, error) {
	r := &Remote{
		cfg: cfg, log: cfg.Log, state: store.NewState(), dirty: make(chan struct{}, 1), prints: map[Ref]uint64{}, barred: map[string]bool{},
		managers: cfg.Managers, ready: make(chan struct{}), finds: make(chan struct{}, 1),
	}
	return r, r.load()
}

// View implements store.Store.
func (r *Remote) View() store.View { return r.state.View() }

// Watch implements store.Store.
func (r *Remote) Watch(after uint64, kinds ...cluster.Kind) (*store.Watch, error) {
	return r.state.Watch(after, kinds...)
}

// Close implements store.Store. Who has called Run ends that first.
func (r *Remote) Close() error {
	r.state.Close()
	return r.save()
}

// Ready blocks until there is a view to rely on: the last one that was kept, or the first
// one of a manager. Before that nothing may be concluded from what is not in it.
func (r *Remote) Ready(ctx context.Context) error {
	select {
	case <-r.ready:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Connected tells whether a manager who leads is at the other end.
func (r *Remote) Connected() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.link != nil
}

// Silence is how long nothing was heard of who leads; ok is false when nothing ever was.
func (r *Remote) Silence() (d time.Duration, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Since(r.heard), !r.heard.IsZero()
}

// Err is why no leader is connected: what was tried last came to. It is nil while one is,
// and before anything was tried; PermissionDenied when a leader has said that the node was
// removed from the cluster.
func (r *Remote) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// failed notes why no leader is connected. That the node was removed is not forgotten for
// a reason that says less.
func (r *Remote) failed(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !errdefs.IsPermissionDenied(r.err) || errdefs.IsPermissionDenied(err) {
		r.err = err
	}
}

// Managers are those that are known, the leader first.
func (r *Remote) Managers() []Manager {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Manager(nil), r.managers...)
}

// Barred tells whether a node was removed from the cluster, as far as this one was told.
func (r *Remote) Barred(node string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.barred[node]
}

// bar takes over which nodes were removed, from who leads.
func (r *Remote) bar(nodes []string) {
	is := map[string]bool{}
	for _, n := range nodes {
		is[n] = true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !maps.Equal(is, r.barred) {
		r.barred = is
		r.soil()
	}
}

var errCut = fmt.Errorf("no manager can be reached: %w", errdefs.ErrUnavailable)

// Commit implements store.Store: it returns once a manager has it durably, and the node has
// seen it. PermissionDenied for anything but the status of the node's own tasks, whether clients
// have stopped them (Halted), and the status of the node itself;
// Unavailable while no manager can be reached, and when it is not known whether one has it.
func (r *Remote) Commit(ctx context.Context, changes ...store.Change) (uint64, error) {
	up, err := r.up(changes)
	if err != nil {
		return 0, err
	}
	if len(up.Reports) == 0 && up.Node == nil {
		return r.state.Revision(), nil
	}
	r.mu.Lock()
	l := r.link
	r.mu.Unlock()
	if l == nil {
		return 0, errCut
	}
	a, err := l.ask(ctx, up)
	if err == nil {
		err = a.error()
	}
	if err != nil {
		return 0, err
	}
	v := r.state.View()
	for _, c := range changes {
		if t, ok := c.Object.(*cluster.Task); ok && c.Op == store.OpUpdate {
			if is, err := store.Find[*cluster.Task](v, t.ID); err == nil {
				*t = *store.Copy(is)
			}
		}
	}
	return v.Revision(), nil
}

// up is what a commit says. Conflict when it rests on what is not any more.
func (r *Remote) up(changes []store.Change) (up Up, err error) {
	v := r.state.View()
	for _, c := range changes {
		k, m := c.Object.Kind(), c.Object.Base()
		is, _ := store.Raw(v, k, m.ID)
		switch {
		case c.Op == store.OpUpdate || c.Op == store.OpUnchanged:
			if is == nil {
				return up, fmt.Errorf("%s %s: not found: %w", k, m.ID, errdefs.ErrNotFound)
			}
			if is.Base().Revision != m.Revision {
				return up, fmt.Errorf("%s %s: was changed meanwhile: %w", k, m.ID, errdefs.ErrConflict)
			}
			if c.Op == store.OpUnchanged {
				continue
			}
		default:
			return up, fmt.Errorf("%s %s: only a manager makes and removes objects: %w", k, m.ID, errdefs.ErrPermissionDenied)
		}
		switch o := c.Object.(type) {
		case *cluster.Task:
			was := store.Copy(is.(*cluster.Task))
			report := Report{Task: m.ID}
			if was.Halted != o.Halted {
				halted := o.Halted // the object is its owner's to change
				report.Halted = &halted
			}
			if report.Halted == nil || !reflect.DeepEqual(was.Status, o.Status) {
				report.Status, err = json.Marshal(o.Status)
			}
			was.Status, was.Halted = o.Status, o.Halted
			if o.Node != r.cfg.Node || !same(was, o) {
				return up, fmt.Errorf("task %s: a node writes nothing of a task but the status of its own: %w", m.ID, errdefs.ErrPermissionDenied)
			}
			up.Reports = append(up.Reports, report)
		case *cluster.Node:
			was := store.Copy(is.(*cluster.Node))
			was.Status = o.Status
			if o.ID != r.cfg.Node || !same(was, o) {
				return up, fmt.Errorf("node %s: a node writes nothing but its own status: %w", m.ID, errdefs.ErrPermissionDenied)
			}
			up.Node, err = json.Marshal(o.Status)
		default:
			return up, fmt.Errorf("%s %s: a node does not write it: %w", k, m.ID, errdefs.ErrPermissionDenied)
		}
		if err != nil {
			return up, err
		}
	}
	if len(up.Reports) > store.MaxChanges {
		return up, fmt.Errorf("%d changes at once, %d are possible: %w", len(changes), store.MaxChanges, errdefs.ErrInvalidArgument)
	}
	return up, nil
}

// same tells whether two objects are written alike.
func same(a, b cluster.Object) bool {
	x, err1 := json.Marshal(a)
	y, err2 := json.Marshal(b)
	return err1 == nil && err2 == nil && bytes.Equal(x, y)
}

// take puts what a manager has sent into the view: messages that belong together, all at
// once. FailedPrecondition when it comes of a term that is over.
func (r *Remote) take(list []Down) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	g := r.state.Stage()
	v := r.state.View()
	writes, prints := map[Ref]json.RawMessage{}, map[Ref]uint64{}
	var order []Ref
	put := func(ref Ref, raw json.RawMessage) {
		if _, twice := writes[ref]; !twice {
			order = append(order, ref)
		}
		writes[ref] = raw
	}
	synced := false
	for _, d := range list {
		if d.Term < r.term {
			g.Abort()
			return fmt.Errorf("message of term %d, and %d has begun: %w", d.Term, r.term, errdefs.ErrFailedPrecondition)
		}
		r.term, synced = d.Term, synced || d.Synced
		for _, o := range d.Objects {
			ref, err := check(o)
			if err != nil {
				g.Abort()
				return err
			}
			prints[ref] = o.Print
			put(ref, o.Raw)
		}
		for _, ref := range d.Gone {
			prints[ref] = 0
			put(ref, nil)
		}
	}
	var out []store.Write
	for _, ref := range order {
		if is, _ := store.Raw(v, ref.Kind, ref.ID); is != nil || writes[ref] != nil {
			out = append(out, store.Write{Kind: ref.Kind, ID: ref.ID, Raw: writes[ref]})
		}
	}
	if len(out) > 0 {
		if err := g.Replay(r.state.Revision()+1, out); err != nil {
			g.Abort()
			return err
		}
		g.Apply()
	} else {
		g.Abort()
	}
	for ref, p := range prints {
		if r.prints[ref] = p; p == 0 {
			delete(r.prints, ref)
		}
	}
	if synced && !r.whole {
		r.whole = true
		close(r.ready)
	}
	if len(order) > 0 || synced {
		r.soil()
	}
	return nil
}

// check reads what an object is. InvalidArgument.
func check(o Object) (Ref, error) {
	is := o.Kind.New()
	if is == nil {
		return Ref{}, fmt.Errorf("%q is no kind of object: %w", o.Kind, errdefs.ErrInvalidArgument)
	}
	if err := json.Unmarshal(o.Raw, is); err != nil {
		return Ref{}, fmt.Errorf("%s: %w: %w", o.Kind, err, errdefs.ErrInvalidArgument)
	}
	if is.Base().ID == "" {
		return Ref{}, fmt.Errorf("%s without an id: %w", o.Kind, errdefs.ErrInvalidArgument)
	}
	return Ref{o.Kind, is.Base().ID}, nil
}

// soil has what is kept written anew.
func (r *Remote) soil() {
	select {
	case r.dirty <- struct{}{}:
	default:
	}
}

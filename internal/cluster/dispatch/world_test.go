package dispatch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/mem"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// refusing is a store whose leader does not lead any more once that is set.
type refusing struct {
	store.Store
	over atomic.Bool
}

func (s *refusing) Commit(ctx context.Context, changes ...store.Change) (uint64, error) {
	if s.over.Load() {
		return 0, fmt.Errorf("this manager does not lead any more (term 1): %w", errdefs.ErrFailedPrecondition)
	}
	return s.Store.Commit(ctx, changes...)
}

// world is a cluster's store with managers beside it, and nodes.
type world struct {
	*testing.T
	s *refusing

	mu     sync.Mutex
	lead   string // address of who leads
	term   uint64
	d      *Dispatcher
	stop   context.CancelFunc
	wires  map[string]*wire  // by node: the connection that it has
	deaf   map[string]bool   // nodes that reach nobody
	frozen string            // address of a manager that stands still
	before func(*Dispatcher) // of the next who lead, before they run
	dials  int
	mute   map[string]bool // addresses of managers that take connections and say nothing
	sent   map[string]int  // objects, by node
	bytes  int
	msgs   int
}

func newWorld(t *testing.T) *world {
	w := &world{T: t, s: &refusing{Store: mem.New(store.NewState())}, wires: map[string]*wire{}, deaf: map[string]bool{}, mute: map[string]bool{}, sent: map[string]int{}}
	t.Cleanup(func() { w.elect("", 0); _ = w.s.Close() })
	return w
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// elect lets a manager lead, from then on; "" nobody.
func (w *world) elect(addr string, term uint64) {
	w.mu.Lock()
	if w.stop != nil {
		w.stop()
	}
	w.lead, w.term, w.d, w.stop = addr, max(term, w.term), nil, nil
	if addr == "" {
		w.mu.Unlock()
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	d := New(w.s, term, quiet)
	d.Tell(w.managers())
	if w.before != nil {
		w.before(d)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := d.Run(ctx); err != nil {
			w.Error(err)
		}
	}()
	w.d, w.stop = d, func() { cancel(); <-done }
	w.mu.Unlock()
	synctest.Wait() // until it serves
}

func (w *world) managers() Cluster {
	var c Cluster
	for _, a := range []string{"a:1", "c:1", "b:1"} {
		c.Managers = append(c.Managers, Manager{Node: a, Addr: a, Leader: a == w.lead})
	}
	return c
}

// ask is a manager's answer to a node that misses its leader: held back for two seconds at most.
func (w *world) ask(ctx context.Context, node, addr string, after uint64) (Cluster, error) {
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		w.mu.Lock()
		deaf, silent, c := w.deaf[node], w.mute[addr] || w.frozen == addr, w.managers()
		if c.Term = w.term; w.lead == "" {
			c.Term = 0
		}
		w.mu.Unlock()
		switch {
		case ctx.Err() != nil:
			return c, context.Cause(ctx)
		case deaf:
			return c, errWire
		case !silent && (c.Term > after || time.Since(begin) > 2*time.Second):
			return c, nil
		}
	}
}

var errWire = errors.New("the wire is cut")

// wire connects a node with a manager.
type wire struct {
	up   chan []byte
	down chan []byte
	ctx  context.Context
	cut  context.CancelCauseFunc
	w    *world
	node string
	addr string
}

// frozen blocks while the manager stands still.
func (l *wire) frozen() {
	for {
		l.w.mu.Lock()
		stands := l.w.frozen == l.addr
		l.w.mu.Unlock()
		if !stands {
			return
		}
		select {
		case <-l.ctx.Done():
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func put[T any](l *wire, to chan []byte, v T) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	l.w.mu.Lock()
	l.w.bytes += len(b)
	l.w.msgs++
	l.w.mu.Unlock()
	select {
	case to <- b:
		return nil
	case <-l.ctx.Done():
		return context.Cause(l.ctx)
	}
}

func get[T any](l *wire, from chan []byte) (v T, err error) {
	select {
	case b := <-from:
		return v, json.Unmarshal(b, &v)
	case <-l.ctx.Done():
		return v, context.Cause(l.ctx)
	}
}

type nodeEnd struct{ *wire }

func (l nodeEnd) Send(u Up) error        { return put(l.wire, l.up, u) }
func (l nodeEnd) Receive() (Down, error) { return get[Down](l.wire, l.down) }
func (l nodeEnd) Close() error           { l.cut(errWire); return nil }

type managerEnd struct{ *wire }

func (l managerEnd) Receive() (Up, error) { return get[Up](l.wire, l.up) }
func (l managerEnd) Send(d Down) error {
	l.frozen()
	l.w.mu.Lock()
	l.w.sent[l.node] += len(d.Objects)
	l.w.mu.Unlock()
	return put(l.wire, l.down, d)
}

// dial connects a node with a manager.
func (w *world) dial(node, addr string) (Client, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.deaf[node] {
		return nil, errWire
	}
	w.dials++
	ctx, cancel := context.WithCancelCause(context.Background())
	l := &wire{up: make(chan []byte, 16), down: make(chan []byte, 16), ctx: ctx, cut: cancel, w: w, node: node, addr: addr}
	w.wires[node] = l
	d, lead := w.d, w.lead
	if w.mute[addr] {
		return nodeEnd{l}, nil
	}
	go func() {
		if d == nil || addr != lead {
			c := w.managers()
			_ = managerEnd{l}.Send(Down{Cluster: &c, Refused: true})
			return
		}
		err := d.Serve(ctx, node, managerEnd{l})
		l.frozen()
		cancel(err) // why it ended concerns the node
	}()
	return nodeEnd{l}, nil
}

// cut ends a node's connection; it may come back.
func (w *world) cut(node string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if l := w.wires[node]; l != nil {
		l.cut(errWire)
	}
}

// silence keeps a node from reaching anybody, or lets it.
func (w *world) silence(node string, deaf bool) {
	w.mu.Lock()
	w.deaf[node] = deaf
	w.mu.Unlock()
	if deaf {
		w.cut(node)
	}
}

// node starts a node's Remote. It ends with stop, or with the test.
func (w *world) node(id, path string) (r *Remote, stop func()) {
	w.Helper()
	r, err := Open(Config{
		Node: id, Path: path, Log: quiet, Managers: []Manager{{Addr: "b:1"}, {Addr: "a:1"}},
		Dial: func(_ context.Context, addr string) (Client, error) { return w.dial(id, addr) },
		Ask: func(ctx context.Context, addr string, after uint64) (Cluster, error) {
			return w.ask(ctx, id, addr, after)
		},
		Describe: func() (string, cluster.NodeStatus) { return "host-" + id, cluster.NodeStatus{Addr: "10.0.0." + id[1:]} },
	})
	if err != nil {
		w.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := r.Run(ctx); err != nil {
			w.Error(err)
		}
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		<-done
		if err := r.Close(); err != nil {
			w.Error(err)
		}
	})
	w.Cleanup(stop)
	return r, stop
}

// commit writes what somebody else has changed.
func (w *world) commit(changes ...store.Change) {
	w.Helper()
	if _, err := w.s.Commit(w.Context(), changes...); err != nil {
		w.Fatal(err)
	}
}

// machines makes node objects.
func (w *world) machines(ids ...string) {
	w.Helper()
	for _, id := range ids {
		w.commit(store.Create(&cluster.Node{Meta: cluster.Meta{ID: id, Name: id}}))
	}
}

// service makes one on a network of its own.
func (w *world) service(name string, f ...func(*cluster.Service)) *cluster.Service {
	w.Helper()
	s := &cluster.Service{Meta: cluster.Meta{ID: name, Name: name}, Spec: cluster.ServiceSpec{
		Networks: []cluster.Attachment{{Network: "net-" + name}}, Task: cluster.TaskSpec{Container: &container.Config{Env: []string{"PASSWORD=of-" + name}}},
	}}
	for _, f := range f {
		f(s)
	}
	w.commit(store.Create(s))
	if _, err := store.Named[*cluster.Network](w.s.View(), "net-"+name); err != nil {
		w.commit(store.Create(&cluster.Network{Meta: cluster.Meta{Name: "net-" + name}, Spec: cluster.NetworkSpec{
			Name: "net-" + name, Create: &network.CreateRequest{Driver: "overlay"},
		}}))
	}
	return s
}

// task makes one of a service on a node.
func (w *world) task(id string, s *cluster.Service, node string, f ...func(*cluster.Task)) {
	w.Helper()
	t := s.First(1, "")
	t.ID, t.Node, t.Status.State = id, node, cluster.TaskAssigned
	for _, f := range f {
		f(t)
	}
	w.commit(store.Create(t))
}

// settle lets all that is under way come to its end.
func settle() {
	time.Sleep(50 * time.Millisecond)
	synctest.Wait()
}

func has[T cluster.Object](r *Remote, id string) bool {
	_, err := store.Find[T](r.View(), id)
	return err == nil
}

package dispatch

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
)

// Dispatcher is the leader's: it lives as long as the leadership does.
type Dispatcher struct {
	s     store.Store
	term  uint64
	log   *slog.Logger
	begun time.Time
	jobs  chan job
	ready chan struct{} // closed once Run has looked at everything, or has ended
	begin func()        // closes it

	mu       sync.Mutex
	x        *index // nil until Run has begun, and when it has ended
	subs     map[string]map[*session]struct{}
	sessions map[string]*session
	seen     map[string]time.Duration // when nodes were heard of last, since begun
	down     map[string]bool          // a job about it is under way
	grace    time.Duration            // since begun, for nodes to come
	awaited  map[string]bool          // nodes that have not come since
	came     time.Duration            // when the last of them did, since begun
	waiting  map[*session]struct{}    // those that have acks to send
	cluster  *Cluster
}

// New makes a Dispatcher for a term of leadership; the store refuses what it writes once
// that is over. Nothing happens before Run.
func New(s store.Store, term uint64, log *slog.Logger) *Dispatcher {
	ready := make(chan struct{})
	return &Dispatcher{
		ready: ready, begin: sync.OnceFunc(func() { close(ready) }), s: s, term: term, log: log, begun: time.Now(), jobs: make(chan job, 256), subs: map[string]map[*session]struct{}{},
		sessions: map[string]*session{}, seen: map[string]time.Duration{}, down: map[string]bool{}, waiting: map[*session]struct{}{},
		grace: Grace, awaited: map[string]bool{},
	}
}

// Succeed tells, before Run, for how long this manager had heard nothing of the leader before it:
// nodes that died with that one have been silent for as long. Of a time that is not known nothing is told.
func (d *Dispatcher) Succeed(silence time.Duration) { d.grace = min(max(Dead-silence, Come), Dead) }

// Tell gives all nodes what they need to know of the cluster, now and when they come.
func (d *Dispatcher) Tell(c Cluster) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cluster != nil && reflect.DeepEqual(*d.cluster, c) {
		return
	}
	d.cluster = &c
	for _, s := range d.sessions {
		s.rouse()
	}
}

// errOver ends sessions when the leadership is over.
var errOver = fmt.Errorf("this manager does not lead any more: %w", errdefs.ErrUnavailable)

// Run serves nodes until ctx ends, and blocks: then it gives nil. Unavailable when the store
// is closed before.
func (d *Dispatcher) Run(ctx context.Context) error {
	running, cancel := context.WithCancel(ctx)
	var parts sync.WaitGroup
	parts.Go(func() { d.write(running) })
	parts.Go(func() { d.watchHealth(running) })
	err := d.follow(running)
	cancel()
	d.begin()
	d.mu.Lock()
	d.x = nil
	for _, s := range d.sessions {
		s.end(errOver)
	}
	d.mu.Unlock()
	parts.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// follow keeps the index as the store is, and rouses whom changes concern.
func (d *Dispatcher) follow(ctx context.Context) error {
	for {
		v := d.s.View()
		w, err := d.s.Watch(v.Revision())
		if errdefs.IsOutOfRange(err) {
			continue // between the two lines above much was written
		}
		if err != nil {
			return err
		}
		d.anew(v)
		d.begin()
		for {
			list, err := w.Next(ctx)
			if errdefs.IsOutOfRange(err) {
				d.log.Warn("the dispatcher was slower than the changes: it looks at everything anew")
				break
			}
			if err != nil {
				return err
			}
			d.note(list)
		}
	}
}

// anew makes the index of a view; nodes that are connected are compared with it.
func (d *Dispatcher) anew(v store.View) {
	x := newIndex(v)
	d.mu.Lock()
	defer d.mu.Unlock()
	first := d.x == nil
	d.x = x
	for id, s := range d.sessions {
		d.leave(s)
		s.begin()
		if !d.member(id) {
			s.end(errRemoved(id))
		}
	}
	if !first {
		maps.DeleteFunc(d.seen, func(id string, _ time.Duration) bool { return !d.member(id) })
		return
	}
	for _, n := range store.List[*cluster.Node](v) {
		d.seen[n.ID], d.awaited[n.ID] = time.Since(d.begun)+d.grace-Dead, true
	}
}

// begin looks at everything.
func (s *session) begin() {
	s.look, s.synced, s.on, s.peers = true, false, map[Ref][]string{}, map[string]int{}
	for r := range s.sent {
		s.dirty[r] = true
	}
	s.rouse()
}

// note takes over commits.
func (d *Dispatcher) note(list []store.Commit) {
	v := d.s.View()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.x.see(v)
	done := map[Ref]bool{}
	for _, c := range list {
		for _, e := range c.Events {
			o := e.New
			if o == nil {
				o = e.Old
			}
			r := Ref{o.Kind(), o.Base().ID}
			if done[r] {
				continue // it was looked at as it is in the view
			}
			done[r] = true
			d.changed(r)
		}
	}
	for s := range d.waiting {
		s.rouse()
	}
}

// changed has sessions look at an object.
func (d *Dispatcher) changed(r Ref) {
	was := d.x.places[r]
	for _, topic := range d.x.set(r) {
		look := strings.HasPrefix(topic, "tasks:") || r.Kind == cluster.KindSecret || r.Kind == cluster.KindConfig || r.Kind == cluster.KindNetwork
		for s := range d.subs[topic] {
			s.dirty[r] = true
			s.look = s.look || look
			s.rouse()
		}
	}
	if r.Kind == cluster.KindService && !slices.Equal(was.shared, d.x.places[r].shared) {
		for _, t := range store.List[*cluster.Task](d.x.view, store.Owner(r.ID)) { // it may be published now
			d.again(Ref{cluster.KindTask, t.ID})
		}
	}
	if r.Kind == cluster.KindNode && !d.member(r.ID) {
		if s := d.sessions[r.ID]; s != nil {
			s.end(errRemoved(r.ID))
		}
		delete(d.seen, r.ID)
	}
}

// member tells whether a node is one of the cluster's. Called with the lock held.
func (d *Dispatcher) member(node string) bool {
	return d.x != nil && d.x.form(Ref{cluster.KindNode, node}) != nil
}

// errRemoved is what a node is told that is none of the cluster's any more.
func errRemoved(node string) error {
	return fmt.Errorf("node %s was removed from the cluster: %w", node, errdefs.ErrPermissionDenied)
}

// again looks at a task that has not changed itself.
func (d *Dispatcher) again(r Ref) {
	was := d.x.places[r]
	for _, topic := range d.x.set(r) {
		if topic == was.own {
			continue
		}
		for s := range d.subs[topic] {
			s.dirty[r] = true
			s.rouse()
		}
	}
}

// Serve is a node's session: it blocks until ctx, the connection or the leadership ends.
// Who calls it knows that the node is who it says. The error says why it has ended.
func (d *Dispatcher) Serve(ctx context.Context, node string, link Server) error {
	first, err := link.Receive()
	if err != nil {
		return err
	}
	if first.Hello == nil || first.Hello.Protocol < 1 {
		return fmt.Errorf("node %s: it begins without a greeting: %w", node, errdefs.ErrInvalidArgument)
	}
	have := map[Ref]uint64{}
	for name, print := range first.Hello.Have {
		k, id, _ := strings.Cut(name, "/")
		if cluster.Kind(k).New() == nil || id == "" {
			return fmt.Errorf("node %s: it has %q: %w", node, name, errdefs.ErrInvalidArgument)
		}
		have[Ref{cluster.Kind(k), id}] = print
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	select {
	case <-d.ready: // nodes come as soon as they know who leads
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	s := newSession(node, have, cancel)
	if err := d.enter(s); err != nil {
		return err
	}
	defer d.exit(s)
	if err := d.do(ctx, job{node: node, hello: first.Hello}); err != nil {
		return err
	}
	// Both may be amid a call that ends once our caller has returned: nobody waits for them.
	go func() { cancel(d.speak(ctx, s, link)) }()
	go func() { cancel(d.listen(ctx, s, link)) }()
	<-ctx.Done()
	return context.Cause(ctx)
}

// enter begins a session; the one that the node had ends.
func (d *Dispatcher) enter(s *session) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.x == nil {
		return errOver
	}
	if !d.member(s.node) {
		return fmt.Errorf("node %s is not of this cluster: %w", s.node, errdefs.ErrPermissionDenied)
	}
	if old := d.sessions[s.node]; old != nil {
		d.drop(old)
		old.end(fmt.Errorf("node %s has connected anew: %w", s.node, errdefs.ErrUnavailable))
	}
	d.sessions[s.node] = s
	d.heard(s)
	if d.awaited[s.node] {
		delete(d.awaited, s.node)
		d.came = time.Since(d.begun)
	}
	s.begin()
	return nil
}

func (d *Dispatcher) exit(s *session) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.drop(s)
}

// heard notes that a node is there.
func (d *Dispatcher) heard(s *session) { s.last.Store(int64(time.Since(d.begun))) }

// listen takes what a node says.
func (d *Dispatcher) listen(ctx context.Context, s *session, link Server) error {
	for {
		up, err := link.Receive()
		if err != nil {
			return err
		}
		d.heard(s)
		s.echo.Store(true)
		s.rouse()
		if len(up.Reports) == 0 && up.Node == nil {
			continue
		}
		if len(up.Reports) > store.MaxChanges {
			return fmt.Errorf("node %s: %d reports at once: %w", s.node, len(up.Reports), errdefs.ErrInvalidArgument)
		}
		select {
		case d.jobs <- job{node: s.node, reports: up.Reports, status: up.Node, done: func(at uint64, err error) { d.ack(s, ackOf(up.Seq, at, err)) }}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// ack lets a node know, once it has got what its reports have changed.
func (d *Dispatcher) ack(s *session, a Ack) {
	d.mu.Lock()
	if !s.over {
		s.acks = append(s.acks, a)
		d.waiting[s] = struct{}{}
	}
	d.mu.Unlock()
	s.rouse()
}

// speak tells a node what there is to tell.
func (d *Dispatcher) speak(ctx context.Context, s *session, link Server) error {
	first := true
	for {
		select {
		case <-s.wake:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		list := d.news(s)
		if len(list) == 0 {
			return errOver
		}
		if echo := s.echo.Swap(false); !echo && !list[0].says() {
			continue
		}
		for _, down := range list {
			if first {
				down.Protocol, first = Protocol, false
			}
			if err := link.Send(down); err != nil {
				return err
			}
		}
		select {
		case <-time.After(pace):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// decodeStatus reads what a node says of itself. InvalidArgument.
func decodeStatus(raw json.RawMessage) (out cluster.NodeStatus, err error) {
	if err := json.Unmarshal(raw, &out); err != nil {
		return out, fmt.Errorf("status of a node: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return out, nil
}

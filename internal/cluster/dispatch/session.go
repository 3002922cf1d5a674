package dispatch

import (
	"context"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"escale.dev/escale/internal/cluster"
)

// Server is the manager's end of a connection with a node. Receive and Send are called by
// one goroutine each; they block, until ctx of Serve ends at the latest.
type Server interface {
	Receive() (Up, error)
	Send(Down) error
}

// session is a node's, with its connection. What is below end belongs to the Dispatcher's lock.
type session struct {
	node string
	last atomic.Int64 // when it was heard of, in nanoseconds of time.Since(d.begun)
	echo atomic.Bool  // it is to be told that somebody is there
	wake chan struct{}
	end  context.CancelCauseFunc

	wants  wants
	look   bool             // what it wants may have changed
	dirty  map[Ref]bool     // to be looked at
	sent   map[Ref]uint64   // prints of what the node has
	on     map[Ref][]string // other nodes that tasks and networks are on which it has
	peers  map[string]int   // and by how many of them each
	acks   []Ack
	synced bool
	over   bool // it is nobody's any more
	told   *Cluster
}

func newSession(node string, have map[Ref]uint64, end context.CancelCauseFunc) *session {
	return &session{
		node: node, wake: make(chan struct{}, 1), end: end, look: true, sent: have, wants: wants{map[string]bool{}, map[Ref]bool{}},
		dirty: map[Ref]bool{}, on: map[Ref][]string{}, peers: map[string]int{},
	}
}

// rouse lets the session's sender look whether there is something to say.
func (s *session) rouse() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// The most that goes into one message, and the time between two that were not asked for.
const (
	maxBatch = 1 << 20 // bytes of objects; one object may be larger
	pace     = 10 * time.Millisecond
)

// news are what the session's node is to be told: one or more messages that belong together.
func (d *Dispatcher) news(s *session) []Down {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s.over || d.x == nil {
		return nil
	}
	if s.look {
		d.wish(s)
	}
	var objects []Object
	var gone []Ref
	for len(s.dirty) > 0 { // what is sent can make more of it dirty
		dirty := s.dirty
		s.dirty = map[Ref]bool{}
		for r := range dirty {
			switch o, wanted := d.pick(s, r); {
			case !wanted:
				if _, has := s.sent[r]; has {
					delete(s.sent, r)
					gone = append(gone, r)
				}
				d.away(s, r)
			default:
				d.beside(s, r)
				if was, has := s.sent[r]; !has || was != o.Print {
					s.sent[r] = o.Print
					objects = append(objects, o)
				}
			}
		}
	}
	out := split(objects)
	last := &out[len(out)-1]
	for _, r := range gone {
		if _, back := s.sent[r]; !back { // or it was wanted again at once
			last.Gone = append(last.Gone, r)
		}
	}
	if !s.synced {
		s.synced, last.Synced = true, true
	}
	for len(s.acks) > 0 && s.acks[0].revision <= d.x.view.Revision() {
		last.Acks = append(last.Acks, s.acks[0])
		if s.acks = s.acks[1:]; len(s.acks) == 0 {
			delete(d.waiting, s)
		}
	}
	if d.cluster != nil && s.told != d.cluster {
		s.told, last.Cluster = d.cluster, d.cluster
	}
	for i := range out {
		out[i].Term, out[i].More = d.term, i < len(out)-1
	}
	return out
}

// split makes messages of objects: at least one.
func split(objects []Object) []Down {
	out := []Down{{}}
	size := 0
	for _, o := range objects {
		if size > 0 && size+len(o.Raw) > maxBatch {
			out, size = append(out, Down{}), 0
		}
		last := &out[len(out)-1]
		last.Objects = append(last.Objects, o)
		size += len(o.Raw)
	}
	return out
}

// says tells whether a message has to be sent at once.
func (d Down) says() bool {
	return len(d.Objects) > 0 || len(d.Gone) > 0 || d.More || d.Synced || len(d.Acks) > 0 || d.Cluster != nil
}

// pick is an object as a session's node gets it, if it does.
func (d *Dispatcher) pick(s *session, r Ref) (Object, bool) {
	p, ok := d.x.places[r]
	if !ok {
		return Object{}, false
	}
	f := d.x.form(r)
	if f == nil {
		return Object{}, false // it has just gone: the index is about to be told
	}
	if r.Kind == cluster.KindSecret || r.Kind == cluster.KindConfig {
		return f.whole(), s.wants.grants[r]
	}
	if p.own != "" && s.wants.topics[p.own] {
		return f.whole(), true
	}
	for _, topic := range p.shared {
		if s.wants.topics[topic] {
			return f.part(), true
		}
	}
	return Object{}, false
}

// beside sees to it that a node knows the nodes of the tasks that it knows, and those that are
// on its networks themselves, or with containers of their own.
func (d *Dispatcher) beside(s *session, r Ref) {
	var nodes []string
	switch o := d.x.form(r).o.(type) {
	case *cluster.Task:
		if o.Node != s.node {
			nodes = []string{o.Node}
		}
	case *cluster.Network:
		for _, a := range o.Status.Attached {
			if a.Node != s.node {
				nodes = append(nodes, a.Node)
			}
		}
		slices.Sort(nodes)
		nodes = slices.Compact(nodes)
	default:
		return
	}
	had := s.on[r]
	for _, node := range nodes { // before the others go: most are the same
		if s.peers[node]++; s.peers[node] == 1 {
			d.subscribe(s, "node:"+node)
		}
	}
	d.unpeer(s, had)
	if s.on[r] = nodes; len(nodes) == 0 {
		delete(s.on, r)
	}
}

// away undoes beside.
func (d *Dispatcher) away(s *session, r Ref) {
	d.unpeer(s, s.on[r])
	delete(s.on, r)
}

func (d *Dispatcher) unpeer(s *session, nodes []string) {
	for _, node := range nodes {
		if s.peers[node]--; s.peers[node] == 0 {
			delete(s.peers, node)
			d.unsubscribe(s, "node:"+node)
		}
	}
}

// wish finds out what a session's node wants now, and looks at all that it concerns.
func (d *Dispatcher) wish(s *session) {
	s.look = false
	want := wantsOf(d.x.view, s.node)
	for topic := range want.topics {
		if !s.wants.topics[topic] {
			d.subscribe(s, topic)
		}
	}
	for topic := range s.wants.topics {
		if !want.topics[topic] && s.peers[topicNode(topic)] == 0 {
			d.unsubscribe(s, topic)
		}
	}
	for _, grants := range []map[Ref]bool{s.wants.grants, want.grants} {
		for r := range grants {
			if s.wants.grants[r] != want.grants[r] {
				s.dirty[r] = true
			}
		}
	}
	s.wants.grants = want.grants
}

// topicNode is the node that a topic is about, as peers see it.
func topicNode(topic string) string {
	const prefix = "node:"
	if len(topic) > len(prefix) && topic[:len(prefix)] == prefix {
		return topic[len(prefix):]
	}
	return ""
}

func (d *Dispatcher) subscribe(s *session, topic string) {
	s.wants.topics[topic] = true
	if d.subs[topic] == nil {
		d.subs[topic] = map[*session]struct{}{}
	}
	d.subs[topic][s] = struct{}{}
	d.soil(s, topic)
}

func (d *Dispatcher) unsubscribe(s *session, topic string) {
	delete(s.wants.topics, topic)
	delete(d.subs[topic], s)
	if len(d.subs[topic]) == 0 {
		delete(d.subs, topic)
	}
	d.soil(s, topic)
}

// soil has all that a topic is about looked at.
func (d *Dispatcher) soil(s *session, topic string) {
	for r := range d.x.about[topic] {
		s.dirty[r] = true
	}
}

// drop ends a session that is over. Called with the lock held.
func (d *Dispatcher) drop(s *session) {
	d.leave(s)
	s.over = true
	delete(d.waiting, s)
	if d.sessions[s.node] == s {
		delete(d.sessions, s.node)
		if d.member(s.node) {
			d.seen[s.node] = time.Duration(s.last.Load())
		}
	}
}

// leave forgets what a session is interested in. Called with the lock held.
func (d *Dispatcher) leave(s *session) {
	for topic := range maps.Clone(s.wants.topics) {
		delete(d.subs[topic], s)
		if len(d.subs[topic]) == 0 {
			delete(d.subs, topic)
		}
	}
	s.wants.topics = map[string]bool{}
}

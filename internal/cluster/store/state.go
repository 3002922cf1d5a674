package store

import (
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"escale.dev/escale/internal/cluster"
	"github.com/containerd/errdefs"
	"github.com/hashicorp/go-memdb"
)

// State is the image of all objects in memory, with their indexes and the latest
// commits. Readers never wait; one writer at a time Stages commits and Applies them.
type State struct {
	db  *memdb.MemDB
	now func() time.Time

	mu       sync.Mutex
	revision uint64
	log      []Commit // the latest, oldest first
	dropped  uint64   // revision up to which commits are not in the log
	more     chan struct{}
	closed   bool
}

// keptCommits is how many commits a watch may lag behind.
const keptCommits = 4096

// Commit is what one commit did.
type Commit struct {
	Revision uint64
	Events   []Event
}

// Event is what happened to one object. Old is nil when it was made, New when it
// was removed.
type Event struct{ Old, New cluster.Object }

// Kind is that of the object.
func (e Event) Kind() cluster.Kind {
	if e.New != nil {
		return e.New.Kind()
	}
	return e.Old.Kind()
}

// record is an object in memory: as loops see it, and as it is encoded, with the
// fields that a newer version has written and this one does not know.
type record struct {
	object cluster.Object
	raw    json.RawMessage
}

// NewState makes a State without objects.
func NewState() *State {
	db, err := memdb.NewMemDB(schema())
	if err != nil {
		panic(err) // the schema is ours
	}
	return &State{db: db, now: time.Now, more: make(chan struct{})}
}

// Now sets the clock by which objects get their times.
func (s *State) Now(now func() time.Time) { s.now = now }

// Revision is that of the last commit.
func (s *State) Revision() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.revision
}

// View is what is stored now.
func (s *State) View() View {
	s.mu.Lock()
	defer s.mu.Unlock()
	return View{txn: s.db.Txn(false), revision: s.revision}
}

// Staged are commits that are decided and not yet seen by anybody: they are made
// durable, then Applied; or Aborted.
type Staged struct {
	s       *State
	txn     *memdb.Txn
	commits []Commit
	writes  []Write
	at      uint64
}

// Write is what a commit writes: an object by kind and id, nothing of it when it
// is removed.
type Write struct {
	Kind cluster.Kind
	ID   string
	Raw  json.RawMessage
}

// Stage begins to stage commits. The caller sees to it that only one does.
func (s *State) Stage() *Staged {
	return &Staged{s: s, txn: s.db.Txn(true), at: s.Revision()}
}

// Add decides on one more commit, all of its changes or none. The objects of the
// changes get their revisions and times and stay the caller's.
func (g *Staged) Add(changes []Change) (uint64, error) {
	if len(changes) == 0 {
		return g.at, nil
	}
	if len(changes) > MaxChanges {
		return 0, fmt.Errorf("%d changes at once, %d are possible: %w", len(changes), MaxChanges, errdefs.ErrInvalidArgument)
	}
	seen := map[string]bool{}
	for _, c := range changes {
		if err := g.check(c, seen); err != nil {
			return 0, err
		}
	}
	if err := g.names(changes); err != nil {
		return 0, err
	}
	at := g.at + 1
	commit := Commit{Revision: at}
	for _, c := range changes {
		if c.Op == OpUnchanged {
			continue
		}
		e, err := g.do(c, at)
		if err != nil {
			return 0, err // cannot be: what could be wrong was checked
		}
		commit.Events = append(commit.Events, e)
	}
	if len(commit.Events) == 0 {
		return g.at, nil
	}
	g.at, g.commits = at, append(g.commits, commit)
	return at, nil
}

// check tells whether a change can be made, its name apart.
func (g *Staged) check(c Change, seen map[string]bool) error {
	k, m := c.Object.Kind(), c.Object.Base()
	if k.New() == nil {
		return fmt.Errorf("%q is no kind of object: %w", k, errdefs.ErrInvalidArgument)
	}
	if m.ID == "" && c.Op == OpCreate {
		m.ID = cluster.NewID()
	}
	what := fmt.Sprintf("%s %s", k, m.ID)
	if seen[what] {
		return fmt.Errorf("%s: changed twice: %w", what, errdefs.ErrInvalidArgument)
	}
	seen[what] = true
	if k.Named() && m.Name == "" && c.Op <= OpUpdate {
		return fmt.Errorf("%s: a name wanted: %w", what, errdefs.ErrInvalidArgument)
	}
	is, err := first(g.txn, k, "id", m.ID)
	switch {
	case err != nil:
		return err
	case c.Op == OpCreate && is != nil:
		return fmt.Errorf("%s: already there: %w", what, errdefs.ErrAlreadyExists)
	case c.Op == OpCreate:
		return nil
	case is == nil:
		return fmt.Errorf("%s: not found: %w", what, errdefs.ErrNotFound)
	case is.object.Base().Revision != m.Revision:
		return fmt.Errorf("%s: was changed meanwhile: %w", what, errdefs.ErrConflict)
	}
	return nil
}

// names tells whether each name will be one object's.
func (g *Staged) names(changes []Change) error {
	type name struct {
		kind cluster.Kind
		name string
	}
	taken, freed := map[name]bool{}, map[string]bool{}
	for _, c := range changes {
		if c.Op == OpUpdate || c.Op == OpDelete {
			freed[c.Object.Base().ID] = true
		}
	}
	for _, c := range changes {
		k, m := c.Object.Kind(), c.Object.Base()
		if c.Op > OpUpdate || !k.Named() {
			continue
		}
		is, err := first(g.txn, k, "name", m.Name)
		if err != nil {
			return err
		}
		if taken[name{k, m.Name}] || is != nil && !freed[is.object.Base().ID] {
			return fmt.Errorf("%s %s: name already in use: %w", k, m.Name, errdefs.ErrAlreadyExists)
		}
		taken[name{k, m.Name}] = true
	}
	return nil
}

// do makes one change that was checked.
func (g *Staged) do(c Change, at uint64) (Event, error) {
	k, m := c.Object.Kind(), c.Object.Base()
	is, err := first(g.txn, k, "id", m.ID)
	if err != nil {
		return Event{}, err
	}
	var e Event
	if is != nil {
		e.Old = is.object
	}
	if c.Op == OpDelete {
		g.writes = append(g.writes, Write{Kind: k, ID: m.ID})
		return e, drop(g.txn, k, is)
	}
	m.Revision, m.UpdatedAt = at, g.s.now().UTC()
	if is == nil {
		m.CreatedAt = m.UpdatedAt
	}
	r := &record{}
	if r.raw, err = json.Marshal(c.Object); err != nil {
		return e, err
	}
	if is != nil {
		if r.raw, err = keepUnknown(r.raw, is); err != nil {
			return e, err
		}
	}
	if r.object, err = decode(k, r.raw); err != nil {
		return e, err
	}
	e.New = r.object
	g.writes = append(g.writes, Write{Kind: k, ID: m.ID, Raw: r.raw})
	return e, put(g.txn, k, e.Old, r)
}

// put puts in a record, in the place of an object or, when that is nil, of none.
func put(txn *memdb.Txn, k cluster.Kind, old cluster.Object, r *record) error {
	if err := weigh(txn, old, r.object); err != nil {
		return err
	}
	return txn.Insert(string(k), r)
}

// drop takes out a record.
func drop(txn *memdb.Txn, k cluster.Kind, r *record) error {
	if err := weigh(txn, r.object, nil); err != nil {
		return err
	}
	return txn.Delete(string(k), r)
}

// Writes are what must be made durable, in order, and the revision they lead to.
func (g *Staged) Writes() ([]Write, uint64) { return g.writes, g.at }

// Apply lets everybody see the commits.
func (g *Staged) Apply() {
	s := g.s
	s.mu.Lock()
	defer s.mu.Unlock()
	g.txn.Commit()
	s.revision = g.at
	s.log = append(s.log, g.commits...)
	if n := len(s.log) - keptCommits; n > keptCommits/4 { // seldom, for it copies
		s.dropped = s.log[n-1].Revision
		s.log = append([]Commit(nil), s.log[n:]...)
	}
	if len(g.commits) > 0 {
		close(s.more)
		s.more = make(chan struct{})
	}
}

// Abort forgets the commits.
func (g *Staged) Abort() { g.txn.Abort() }

// Close ends the watches. Idempotent.
func (s *State) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		close(s.more)
	}
}

// loading fills an empty State.
type loading struct {
	s   *State
	txn *memdb.Txn
}

func (s *State) loading() loading { return loading{s, s.db.Txn(true)} }

// add puts in an object as it was written. InvalidArgument when it is none.
func (l loading) add(k cluster.Kind, raw json.RawMessage) error {
	o, err := decode(k, raw)
	if err != nil {
		return err
	}
	return put(l.txn, k, nil, &record{o, raw})
}

// done lets everybody see what was put in, and nothing of what was before.
func (l loading) done(revision uint64) {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	l.txn.Commit()
	l.s.revision, l.s.dropped, l.s.log = revision, revision, nil
	if !l.s.closed {
		close(l.s.more)
		l.s.more = make(chan struct{})
	}
}

// Fill puts objects, as they were written, into an empty State.
func (s *State) Fill(revision uint64, writes []Write) error {
	in := s.loading()
	for _, w := range writes {
		if err := in.add(w.Kind, w.Raw); err != nil {
			in.txn.Abort()
			return err
		}
	}
	in.done(revision)
	return nil
}

package store

import (
	"fmt"

	"escale.dev/escale/internal/cluster"
	"github.com/containerd/errdefs"
)

// Writes are all objects of a view as they were written, those that others go with
// first.
func Writes(v View) []Write {
	var out []Write
	for _, k := range cluster.Kinds() {
		for _, r := range v.records(k, "id") {
			out = append(out, Write{Kind: k, ID: r.object.Base().ID, Raw: r.raw})
		}
	}
	return out
}

// Replay adds a commit that somebody else has decided and made durable: its writes, in
// the order of its changes. DataLoss when it does not follow upon what is there: then
// all must be read anew, and be Reset.
func (g *Staged) Replay(revision uint64, writes []Write) error {
	if revision != g.at+1 {
		return fmt.Errorf("commit %d does not follow upon %d: %w", revision, g.at, errdefs.ErrDataLoss)
	}
	commit := Commit{Revision: revision}
	for _, w := range writes {
		e, err := g.redo(w)
		if err != nil {
			return fmt.Errorf("commit %d: %s %s: %w: %w", revision, w.Kind, w.ID, err, errdefs.ErrDataLoss)
		}
		commit.Events = append(commit.Events, e)
	}
	g.at, g.commits = revision, append(g.commits, commit)
	return nil
}

// redo makes one change that was written.
func (g *Staged) redo(w Write) (Event, error) {
	if w.Kind.New() == nil {
		return Event{}, fmt.Errorf("%q is no kind of object", w.Kind)
	}
	is, err := first(g.txn, w.Kind, "id", w.ID)
	if err != nil {
		return Event{}, err
	}
	var e Event
	if is != nil {
		e.Old = is.object
	}
	if w.Raw == nil {
		if is == nil {
			return e, fmt.Errorf("removed, and not there")
		}
		return e, drop(g.txn, w.Kind, is)
	}
	if e.New, err = decode(w.Kind, w.Raw); err != nil {
		return e, err
	}
	if id := e.New.Base().ID; id != w.ID {
		return e, fmt.Errorf("written with the id %s", id)
	}
	return e, put(g.txn, w.Kind, e.Old, &record{e.New, w.Raw})
}

// Reset puts other objects in the place of all that are there. Watches from before
// are told that they are out of range, unless the revision has stayed the same. On an
// error all is as it was. The caller sees to it that nobody stages meanwhile.
func (s *State) Reset(revision uint64, writes []Write) error {
	in := s.loading()
	tables := []string{loads}
	for _, k := range cluster.Kinds() {
		tables = append(tables, string(k))
	}
	for _, t := range tables {
		if _, err := in.txn.DeleteAll(t, "id"); err != nil {
			in.txn.Abort()
			return err
		}
	}
	for _, w := range writes {
		if err := in.add(w.Kind, w.Raw); err != nil {
			in.txn.Abort()
			return fmt.Errorf("%s %s: %w", w.Kind, w.ID, err)
		}
	}
	in.done(revision)
	return nil
}

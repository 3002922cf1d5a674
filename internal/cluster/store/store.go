// Package store keeps the orchestrator's objects: with versions, transactions that
// compare before they set, and watches from a revision. Everything that loops know
// of each other is here. State is the image of all objects in memory from which
// every store answers; what keeps it (nothing, a file, a cluster) is a package
// beneath: mem, bolt, etcd. Each passes the suite in storetest.
package store

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"escale.dev/escale/internal/cluster"
	"github.com/containerd/errdefs"
)

// MaxChanges is how many changes one Commit takes; a cluster's store takes no more.
const MaxChanges = 100

// Store keeps objects. Its methods may be called from several goroutines.
type Store interface {
	// View is what is stored now. It never changes; taking one costs nothing.
	View() View

	// Commit does all of the changes or none, and returns the new revision. It blocks
	// until they are durable, and is seen by View before it returns. Kinds: Conflict
	// when somebody has written an object meanwhile (take a new View, decide anew),
	// AlreadyExists for a name or id that is taken, NotFound, InvalidArgument,
	// Unavailable once the store is closed or cannot be written.
	Commit(ctx context.Context, changes ...Change) (uint64, error)

	// Watch tells of every commit after a revision, of which the kinds that are
	// named (none: all). OutOfRange when the revision is so old that what came
	// after it is not kept: take a new View and watch from its revision.
	Watch(after uint64, kinds ...cluster.Kind) (*Watch, error)

	// Close ends the watches and lets go of what keeps the objects. Idempotent.
	Close() error
}

// Op is what a change does.
type Op int

// The operations.
const (
	OpCreate Op = iota
	OpUpdate
	OpDelete
	OpUnchanged
)

// Change is one of the changes of a commit.
type Change struct {
	Op     Op
	Object cluster.Object
}

// Create makes an object; its id, if it has none, and its times are set.
func Create(o cluster.Object) Change { return Change{OpCreate, o} }

// Update writes an object over what it was at its Revision.
func Update(o cluster.Object) Change { return Change{OpUpdate, o} }

// Delete removes an object as it was at its Revision.
func Delete(o cluster.Object) Change { return Change{OpDelete, o} }

// Unchanged changes nothing: the commit is refused when the object is not what it
// was at its Revision any more.
func Unchanged(o cluster.Object) Change { return Change{OpUnchanged, o} }

// Copy is an object that may be changed.
func Copy[T cluster.Object](o T) T { return cluster.Copy(o) }

// Save writes all objects of a view, one a line after a line that tells of them.
func Save(w io.Writer, v View) error {
	e := json.NewEncoder(w)
	if err := e.Encode(heading{Format: Format, Revision: v.Revision()}); err != nil {
		return err
	}
	for _, k := range cluster.Kinds() {
		for _, r := range v.records(k, "id") {
			if err := e.Encode(entry{Kind: k, Object: r.raw}); err != nil {
				return err
			}
		}
	}
	return e.Encode(entry{}) // or what was cut off would pass for whole
}

// Format is the version of what Save writes and bolt keeps (docs/formats.md).
const Format = 1

type heading struct {
	Format   int
	Revision uint64
}

type entry struct {
	Kind   cluster.Kind    `json:",omitempty"`
	Object json.RawMessage `json:",omitempty"`
}

// Load reads what Save wrote. InvalidArgument when it is not that, or not whole;
// FailedPrecondition when it is of a later format.
func Load(r io.Reader) (*State, error) {
	d := json.NewDecoder(r)
	var h heading
	if err := d.Decode(&h); err != nil {
		return nil, fmt.Errorf("saved objects: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if h.Format > Format {
		return nil, fmt.Errorf("saved objects: their format is %d, this version of Escale knows %d: %w", h.Format, Format, errdefs.ErrFailedPrecondition)
	}
	s := NewState()
	in := s.loading()
	for {
		var e entry
		if err := d.Decode(&e); err != nil {
			return nil, fmt.Errorf("saved objects: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		if e.Kind == "" {
			in.done(h.Revision)
			return s, nil
		}
		if err := in.add(e.Kind, e.Object); err != nil {
			return nil, fmt.Errorf("saved objects: %w", err)
		}
	}
}

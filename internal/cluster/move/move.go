// Package move takes volumes from one node of a cluster to another, with the tasks that have
// them. The Mover, on the leader, brings each cluster.Move from phase to phase; what it knows is
// in the store, so that another leader goes on where it was. Desk is what people ask. What
// nodes have to do, Nodes do: each step may be asked for again, and none is undone by a stranger's.
package move

import (
	"context"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
)

// Step is what a node is asked to do with one volume of a move.
type Step struct {
	Move   string // id
	Volume string // name in the engine
	Peer   string // id of the other node
	Addr   string `json:",omitempty"` // host where that one listens, for a node that does not know
	Term   uint64 // of the leader that asks: a node does not do what an earlier one has asked
}

// Nodes do the steps, on engines of the cluster. They block. Kinds of errors beside those that are
// said: Unavailable for a node that cannot be reached, NotFound for one that there is none of.
type Nodes interface {
	// Hold keeps a volume from containers, for it is to leave. NotFound; NotImplemented for
	// one that has no content there; Conflict when containers have it that are to be respected.
	Hold(ctx context.Context, node string, s Step) error
	// Fetch brings a volume to a node from Peer, which holds it; nobody gets it there before
	// Free. told hears of the bytes that came. AlreadyExists when the node has another of the name.
	Fetch(ctx context.Context, node string, s Step, told func(bytes, total int64)) error
	// Free ends what Hold or Fetch keep.
	Free(ctx context.Context, node string, s Step) error
	// Drop removes a volume that Hold or Fetch have. Conflict while containers of tasks that are
	// over have it.
	Drop(ctx context.Context, node string, s Step) error
	// Volumes are those of a node, or the one of a name.
	Volumes(ctx context.Context, node, name string) ([]Volume, error)
}

// Volume is one that a node has.
type Volume struct {
	Name      string
	Driver    string
	Scope     string            `json:",omitempty"`
	Labels    map[string]string `json:",omitempty"`
	Options   map[string]string `json:",omitempty"`
	CreatedAt time.Time         `json:",omitzero"`
	Users     []User            `json:",omitempty"` // containers
	Moving    string            `json:",omitempty"` // id of the move that has it
}

// User is a container that has a volume.
type User struct {
	Name    string
	Task    string `json:",omitempty"` // id; "": it is of none
	Running bool   `json:",omitempty"`
}

// LeaderStore is a store in which only who leads can write.
type LeaderStore interface {
	store.Store
	// Term is that of the leadership.
	Term() uint64
}

// lacks tells the first of the volumes that a task has on a node and a move does not take along.
func lacks(v store.View, m *cluster.MoveSpec, t *cluster.Task, from *cluster.Node) string {
	shared := map[string]bool{}
	for _, o := range store.List[*cluster.Volume](v) {
		if !cluster.LocalDriver(o.Spec.Driver, o.Spec.Options) {
			shared[o.Spec.Name] = true
		}
	}
	taken := map[string]bool{}
	for _, name := range m.Volumes {
		taken[name] = true
	}
	for _, name := range t.VolumesOn(from) {
		if !shared[name] && !taken[name] {
			return name
		}
	}
	return ""
}

// Package dispatch tells nodes what they have to do, and the store what became of it. The
// Dispatcher stands beside the leader's store: each node gets of it what its own tasks need
// and nothing else, and may write nothing but what became of those. It also knows which nodes
// live. A Remote stands on a node: it is the store.Store of the agent and of whoever else
// looks at the node's part of the cluster, with or without a manager at the other end.
// How messages travel is others' to know.
package dispatch

import (
	"encoding/json"
	"fmt"
	"time"

	"escale.dev/escale/internal/cluster"
	"github.com/containerd/errdefs"
)

// Protocol is the version of the messages (docs/formats.md). Each side works with the one before.
const Protocol = 1

// The times of the one failure detector.
const (
	Beat  = 500 * time.Millisecond  // between two messages of a node
	Dead  = 2500 * time.Millisecond // without one, and a node is down, or a manager is not there
	Come  = 1500 * time.Millisecond // that nodes have at least to come to a new leader, and more while others come
	Grace = 4 * time.Second         // that they have at most, and when it is not known how long the old one was missed
)

// Up is what a node sends. One with nothing in it says that the node is there.
type Up struct {
	Hello   *Hello          `json:",omitempty"` // of the first message
	Seq     uint64          `json:",omitempty"` // of the reports, counted from 1; it comes back in an Ack
	Reports []Report        `json:",omitempty"` // written all at once or not at all
	Node    json.RawMessage `json:",omitempty"` // cluster.NodeStatus: what the node says of itself
}

// Hello begins a session.
type Hello struct {
	Protocol int
	Name     string            // of the host
	Status   json.RawMessage   // cluster.NodeStatus
	Have     map[string]uint64 `json:",omitempty"` // what the node has: the prints of objects, by "kind/id"
}

// Report is what became of a task.
type Report struct {
	Task   string
	Status json.RawMessage `json:",omitempty"` // cluster.TaskStatus; with Halted it may be left out: it is as it was
	Halted *bool           `json:",omitempty"` // a client has stopped its container, or started it again; nil: neither
}

// Down is what a node gets.
type Down struct {
	Protocol int      `json:",omitempty"` // of the first message
	Term     uint64   // of the leader who sends it; a node refuses a lower one than it has seen
	Objects  []Object `json:",omitempty"`
	Gone     []Ref    `json:",omitempty"`
	More     bool     `json:",omitempty"` // the next message belongs to this one
	Synced   bool     `json:",omitempty"` // from here on the node has all that it is to have
	Acks     []Ack    `json:",omitempty"`
	Cluster  *Cluster `json:",omitempty"` // when it has changed
	Refused  bool     `json:",omitempty"` // who sends it does not lead: Cluster says who does
}

// Object is one as a node is to have it.
type Object struct {
	Kind  cluster.Kind
	Print uint64          // of Raw
	Raw   json.RawMessage // the object
}

// Ref names an object.
type Ref struct {
	Kind cluster.Kind
	ID   string
}

func (r Ref) String() string { return string(r.Kind) + "/" + r.ID }

// Ack says that reports were written, or why not.
type Ack struct {
	Seq  uint64
	Kind string `json:",omitempty"` // of the error; "": it was written
	Err  string `json:",omitempty"`

	revision uint64 // that the node has to have seen before it gets this
}

// Cluster is what a node needs to find managers and to believe them.
type Cluster struct {
	Managers []Manager
	Roots    []byte `json:",omitempty"` // that are trusted, PEM
	// Barred are ids of nodes that were removed, whose certificates may be valid still: nobody is to answer them.
	Barred []string `json:",omitempty"`
	Issuer string   `json:",omitempty"` // names the key that the node's certificate is to be signed by
	// Serves: who says it leads, and serves nodes. It is said to who asks who leads.
	Serves bool   `json:",omitempty"`
	Term   uint64 `json:",omitempty"` // by which the one among them leads; 0: it is not known
}

// Manager is one that nodes may call.
type Manager struct {
	Node   string
	Addr   string // host:port
	Leader bool   `json:",omitempty"`
}

// kinds are those of errors that reach a node.
var kinds = []struct {
	name string
	err  error
	is   func(error) bool
}{
	{"not found", errdefs.ErrNotFound, errdefs.IsNotFound},
	{"conflict", errdefs.ErrConflict, errdefs.IsConflict},
	{"permission denied", errdefs.ErrPermissionDenied, errdefs.IsPermissionDenied},
	{"failed precondition", errdefs.ErrFailedPrecondition, errdefs.IsFailedPrecondition},
	{"invalid argument", errdefs.ErrInvalidArgument, errdefs.IsInvalidArgument},
	{"unavailable", errdefs.ErrUnavailable, func(error) bool { return true }},
}

func ackOf(seq, revision uint64, err error) Ack {
	a := Ack{Seq: seq, revision: revision}
	if err == nil {
		return a
	}
	a.Err = err.Error()
	for _, k := range kinds {
		if k.is(err) {
			a.Kind = k.name
			break
		}
	}
	return a
}

// error is what an Ack says, nil when all was written.
func (a Ack) error() error {
	if a.Kind == "" {
		return nil
	}
	for _, k := range kinds {
		if k.name == a.Kind {
			return fmt.Errorf("%s: %w", a.Err, k.err)
		}
	}
	return fmt.Errorf("%s (%s): %w", a.Err, a.Kind, errdefs.ErrUnavailable)
}

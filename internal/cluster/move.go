package cluster

import (
	"slices"
	"time"
)

// Move takes volumes from one node to another, with the tasks that have them. It stays for a
// while when it is over.
type Move struct {
	Meta
	Spec   MoveSpec
	Status MoveStatus
}

// Kind implements Object.
func (*Move) Kind() Kind { return KindMove }

// MoveSpec is what is to be moved.
type MoveSpec struct {
	Volumes  []string // names in the engines
	From, To string   // ids of nodes
	Keep     bool     `json:",omitempty"` // what the first node has is not removed
	Canceled bool     `json:",omitempty"` // it is to be undone, as long as that can be
}

// MoveStatus is how far it is.
type MoveStatus struct {
	Phase   MovePhase `json:",omitempty"` // "": it waits for its turn
	At      time.Time `json:",omitzero"`  // of the phase
	Message string    `json:",omitempty"` // what it waits for, or why it is undone
	Come    []string  `json:",omitempty"` // the volumes of which all is on the second node
	Bytes   int64     `json:",omitempty"` // of the next one that have come
	Total   int64     `json:",omitempty"` // that it has, as far as that is known
	// Freed: of one that is undone, tasks may have the volumes on the first node again.
	Freed bool `json:",omitempty"`
	// Swept: of one that is over, neither node has a note of it any more that came late, or it is a node no more.
	Swept bool `json:",omitempty"`
}

// MovePhase is the state of a move.
type MovePhase string

// The phases of a move: the first three and MoveUndoing lead to MoveUndone, if anything is in
// the way; from MoveMoved on the volumes are the second node's, and it goes forward only.
const (
	MoveHolding  MovePhase = "holding"  // tasks that have the volumes end; nobody else gets them
	MoveCopying  MovePhase = "copying"  // the content comes to the second node
	MoveMoved    MovePhase = "moved"    // all is there: places of tasks are told where to go
	MoveDropping MovePhase = "dropping" // tasks start there; the first node removes what it had
	MoveDone     MovePhase = "done"
	MoveUndoing  MovePhase = "undoing" // what came is removed, and the first node's are in use again
	MoveUndone   MovePhase = "undone"
)

// Over tells whether nothing is left to be done.
func (m *Move) Over() bool { return m.Status.Phase == MoveDone || m.Status.Phase == MoveUndone }

// Holds tells whether no task may have the volumes: they are on neither node for good.
func (m *Move) Holds() bool {
	switch m.Status.Phase {
	case MoveHolding, MoveCopying, MoveMoved:
		return true
	case MoveUndoing:
		return !m.Status.Freed
	}
	return false
}

// VolumesOn are the engine's names, on a node, of the volumes of a task that, as far as it says,
// exist on one node.
func (t *Task) VolumesOn(n *Node) []string {
	out := t.Spec.LocalVolumes()
	for i, name := range out {
		if text, err := t.Place(n).Expand(name, nil); err == nil {
			out[i] = text
		}
	}
	return out
}

// Has tells whether a task has, or its place has had, one of a move's volumes on the first node, or
// has it when it is put there.
func (m *Move) Has(t *Task, from *Node) bool {
	return slices.ContainsFunc(t.VolumesOn(from), func(v string) bool { return slices.Contains(m.Spec.Volumes, v) })
}

// Binds tells whether a move takes a task along: one that is, or was last, on the first node with one of
// the volumes, or that waits for its place there.
func (m *Move) Binds(t *Task, from *Node) bool {
	at := t.Node
	if at == "" || t.Home != nil && t.Home.Moved {
		if t.Home == nil {
			return false
		}
		at = t.Home.Node
	}
	return at == from.ID && m.Has(t, from)
}

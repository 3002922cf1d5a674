// Package cluster is what the orchestrator knows: apps, services, tasks, nodes and
// what they need, each an object of Meta, Spec (what somebody asked) and Status
// (what is). It holds types and their rules only; objects live in cluster/store,
// and the loops that move them meet there. A single host is a cluster of one.
package cluster

import (
	"crypto/rand"
	"fmt"
	"math/big"
	"time"
)

// Kind is a kind of object.
type Kind string

// The kinds of objects.
const (
	KindApp     Kind = "app"
	KindService Kind = "service"
	KindTask    Kind = "task"
	KindNetwork Kind = "network"
	KindVolume  Kind = "volume"
	KindSecret  Kind = "secret"
	KindConfig  Kind = "config"
	KindNode    Kind = "node"
	KindMove    Kind = "move"
	KindCluster Kind = "cluster" // one object, named DefaultCluster
)

// Meta is what all objects have.
type Meta struct {
	ID     string            // 25 lower-case letters and digits
	Name   string            `json:",omitempty"`
	Labels map[string]string `json:",omitempty"`
	Owner  string            `json:",omitempty"` // id of the object that it goes with; "" is nobody's
	// Revision is the store's when the object was last written; 0 is not stored yet.
	// A write of an object that somebody else has written meanwhile is refused by it.
	Revision  uint64
	CreatedAt time.Time
	UpdatedAt time.Time
}

// Base is the object's Meta, to be changed in a copy only.
func (m *Meta) Base() *Meta { return m }

// Object is what the store keeps, always a pointer. Those that it gives out are
// shared: store.Copy before changing one.
type Object interface {
	// Kind may be asked of a nil pointer.
	Kind() Kind
	Base() *Meta
}

// Named tells whether two objects of the kind cannot have one name.
func (k Kind) Named() bool {
	switch k {
	case KindTask, KindNode, KindMove:
		return false
	}
	return true
}

// New makes an empty object of the kind, nil when there is no such kind.
func (k Kind) New() Object {
	switch k {
	case KindApp:
		return new(App)
	case KindService:
		return new(Service)
	case KindTask:
		return new(Task)
	case KindNetwork:
		return new(Network)
	case KindVolume:
		return new(Volume)
	case KindSecret:
		return new(Secret)
	case KindConfig:
		return new(Config)
	case KindNode:
		return new(Node)
	case KindMove:
		return new(Move)
	case KindCluster:
		return new(Cluster)
	}
	return nil
}

// Kinds are all kinds, those that others go with first.
func Kinds() []Kind {
	return []Kind{KindCluster, KindNode, KindApp, KindNetwork, KindVolume, KindSecret, KindConfig, KindMove, KindService, KindTask}
}

// idSize is the length of an id, in digits of base 36: 128 random bits.
const idSize = 25

// NewID makes an id that nobody has.
func NewID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: see crypto/rand
	return fmt.Sprintf("%0*s", idSize, new(big.Int).SetBytes(b[:]).Text(36))
}

// Package volume is what volumes are: directories that outlive containers. Drivers
// live beneath it: local keeps volumes on this machine's disk, plugin asks
// programs of others. A Set is the volumes of all of them.
package volume

import (
	"crypto/rand"
	"encoding/hex"
	"os"
	"time"
)

// Anonymous is the label of volumes that got their name from the engine.
const Anonymous = "com.docker.volume.anonymous"

// Local is the driver that keeps volumes in directories of this machine.
const Local = "local"

// Volume is a volume that containers of this machine can have.
type Volume struct {
	Name      string
	Driver    string
	Path      string // where its data is; empty: nowhere yet, until it is mounted
	Scope     string // where it can be reached: "local", or "global" for all machines that ask its plugin
	Labels    map[string]string
	Options   map[string]string // of the driver, as they were given
	CreatedAt time.Time         // zero: the driver does not tell
	Users     []string          // ids of the containers that hold it, sorted
	Status    map[string]any    // what a plugin tells of it; nil: nothing
	Moving    *Moving           // it is on its way from one node to another; nil: it is not
}

// Moving says that a volume is on its way from one node of a cluster to another: no
// container gets it meanwhile.
type Moving struct {
	ID   string // of the move
	In   bool   // it has come here and is not the one in use yet; else it is to leave
	Peer string // id of the node that it goes to, or has come from
}

// OnDisk tells whether its files lie on the engine's own disk, so that they count there.
func (v *Volume) OnDisk() bool { return v.Driver == Local && len(v.Options) == 0 }

// Request is what a volume is made from.
type Request struct {
	Name    string // "": the engine gives one
	Driver  string // "": the one that has a volume of the name, else local
	Labels  map[string]string
	Options map[string]string
	// Unnamed says that the engine gave the name, by NewName, and no client.
	Unnamed bool
	// Held says that a container had the volume before: its driver is not asked.
	Held bool
}

// NewName is a name for a volume that nobody gives one.
func NewName() string {
	var raw [32]byte
	rand.Read(raw[:])
	return hex.EncodeToString(raw[:])
}

// Arrival is a volume that is on its way from another node: a tree that has no name yet. It is
// Abort's or Keep's to end it; an engine that is killed before leaves nothing of it.
type Arrival interface {
	// Root is the tree, to be filled; it is open until the end.
	Root() *os.File
	// Keep makes a volume of what has come, durably; nobody gets it before its move lets go of
	// it. Kind: AlreadyExists when there is one of the name by now.
	Keep() error
	// Abort deletes what has come. Idempotent, and does nothing after Keep.
	Abort() error
}

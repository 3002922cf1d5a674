// Package volume is what volumes are: directories that outlive containers.
// Drivers live beneath it.
package volume

import "time"

// Anonymous is the label of volumes that got their name from the engine.
const Anonymous = "com.docker.volume.anonymous"

// Volume is a volume on this machine.
type Volume struct {
	Name      string
	Driver    string
	Path      string // where its data is
	Labels    map[string]string
	Options   map[string]string // of the driver, as they were given
	CreatedAt time.Time
	Users     []string // ids of the containers that hold it, sorted
}

// Request is what a volume is made from.
type Request struct {
	Name    string // "": the engine gives one
	Driver  string // "": local
	Labels  map[string]string
	Options map[string]string
}

// Package volume is what volumes are: directories that outlive containers.
// Drivers live beneath it.
package volume

import "time"

// Volume is a volume on this machine.
type Volume struct {
	Name      string
	Driver    string
	Path      string // where its data is
	Labels    map[string]string
	CreatedAt time.Time
}

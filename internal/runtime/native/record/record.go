// Package record is what the OCI runtime keeps of a container, and what it tells of one.
package record

import (
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// State is what is kept of a container, in state.json of its directory (docs/formats.md).
type State struct {
	Version     int               `json:"version"`
	ID          string            `json:"id"`
	OCIVersion  string            `json:"ociVersion"`
	Pid         int               `json:"init_process_pid"`
	Start       uint64            `json:"init_process_start"` // clock ticks after boot: with the pid it is one process
	Bundle      string            `json:"bundle"`
	Rootfs      string            `json:"rootfs"`
	RootMount   uint64            `json:"root_mount"` // the mount that the root lay on before
	Created     time.Time         `json:"created"`
	CgroupsPath string            `json:"cgroups_path"`
	Cgroups     map[string]string `json:"cgroups,omitempty"`     // directories by controller, "" version 2's; absent: where the path leads the caller
	Unit        string            `json:"unit,omitempty"`        // of systemd, which made the cgroup
	Namespaces  int               `json:"namespaces"`            // CLONE_NEW* of those that are not the runtime's
	OthersPIDs  bool              `json:"others_pids,omitempty"` // its pid namespace is another's
	Process     *specs.Process    `json:"process"`
	Hooks       *specs.Hooks      `json:"hooks,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Personality *specs.LinuxPersonality
	FilterFlags uint `json:"filter_flags"`
}

// Told is what runc tells of a container too: the specification's state (specs.State,
// where a pid of 0 is left out) and more.
type Told struct {
	Version     string               `json:"ociVersion"`
	ID          string               `json:"id"`
	Status      specs.ContainerState `json:"status"`
	Bundle      string               `json:"bundle"`
	Annotations map[string]string    `json:"annotations,omitempty"`
	Pid         int                  `json:"pid"` // 0 is told too
	Rootfs      string               `json:"rootfs"`
	Created     time.Time            `json:"created"`
	Owner       string               `json:"owner"`
}

// Line is an error in the log, where that is of JSON (runc's --log-format json).
type Line struct {
	Level string `json:"level"`
	Msg   string `json:"msg"`
	Time  string `json:"time"` // RFC 3339
}

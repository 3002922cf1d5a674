package cluster

import (
	"slices"
	"strings"

	"github.com/moby/moby/api/types/mount"
)

// The labels of a service that say how its tasks move.
const (
	LabelVolumes   = "escale.volumes"   // anywhere: its tasks leave volumes that exist on one node behind
	LabelRebalance = "escale.rebalance" // off: its tasks are not moved to nodes that have come
)

// Home is where volumes of a task's place are that exist on one node: whoever comes next in
// the place goes there, too.
type Home struct {
	Node    string   // id
	Volumes []string // by their sources
	// Moved, of a task that has had a node: they were moved to this one since.
	Moved bool `json:",omitempty"`
}

// Bound is the home that the task cannot leave; nil: it can be anywhere.
func (t *Task) Bound() *Home {
	if t.Labels[LabelVolumes] == "anywhere" {
		return nil
	}
	return t.Home
}

// Fixed tells whether the task can be on one node alone, for the sake of what is there.
func (t *Task) Fixed() bool { return t.Bound() != nil || t.Spec.Placement.Keep != nil }

// home is that of a task that takes the place of t: the node where t has run, or where the
// one before t has, with the volumes that both have.
func (t *Task) home(spec *TaskSpec) *Home {
	var h Home
	if t.Slot == 0 {
		return nil // the place is the node's anyway
	}
	if t.Home != nil {
		h = *t.Home
	}
	if !t.Status.RunningAt.IsZero() && !h.Moved {
		h = Home{Node: t.Node, Volumes: t.Spec.LocalVolumes()}
	}
	h.Moved = false
	mine := spec.LocalVolumes()
	h.Volumes = slices.DeleteFunc(slices.Clone(h.Volumes), func(v string) bool { return !slices.Contains(mine, v) })
	if len(h.Volumes) == 0 {
		return nil
	}
	return &h
}

// LocalVolumes are the sources of the named volumes of a task that, as far as it says, exist
// on one node.
func (t *TaskSpec) LocalVolumes() (out []string) {
	if t.Host == nil {
		return nil
	}
	for _, m := range t.Host.Mounts {
		if m.Type != mount.TypeVolume || m.Source == "" {
			continue
		}
		local := true
		if o := m.VolumeOptions; o != nil && o.DriverConfig != nil {
			local = LocalDriver(o.DriverConfig.Name, o.DriverConfig.Options)
		}
		if local && !slices.Contains(out, m.Source) {
			out = append(out, m.Source)
		}
	}
	return out
}

// LocalDriver tells whether volumes of a driver exist on one node: those of local do that
// are no shares of another machine.
func LocalDriver(name string, options map[string]string) bool {
	if name != "" && name != "local" {
		return false
	}
	switch kind := options["type"]; {
	case strings.HasPrefix(kind, "nfs"), kind == "cifs", kind == "smb3", kind == "ceph", kind == "glusterfs", kind == "9p":
		return false
	}
	return true
}

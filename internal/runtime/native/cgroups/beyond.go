package cgroups

import (
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// beyond refuses what the kernel has no file for: passed over in silence it would be
// taken for granted. Clients of an engine are told before, by a warning.
func (g *Group) beyond(r *specs.LinuxResources) error {
	set := map[string]bool{}
	if m := r.Memory; m != nil {
		set["memory.swappiness"] = g.Pure && m.Swappiness != nil && int64(*m.Swappiness) != -1
		set["memory.disableOOMKiller"] = g.Pure && m.DisableOOMKiller != nil && *m.DisableOOMKiller
	}
	if c := r.CPU; c != nil {
		set["cpu.realtimeRuntime"] = g.Pure && value(c.RealtimeRuntime) != 0
		set["cpu.realtimePeriod"] = g.Pure && c.RealtimePeriod != nil && *c.RealtimePeriod != 0
	}
	if b := r.BlockIO; b != nil {
		leaf := func(w *uint16) bool { return g.Pure && w != nil && *w != 0 }
		set["blockIO.leafWeight"] = leaf(b.LeafWeight)
		for _, d := range b.WeightDevice {
			set["blockIO.weightDevice.leafWeight"] = set["blockIO.weightDevice.leafWeight"] || leaf(d.LeafWeight)
		}
	}
	if n := r.Network; n != nil {
		set["network.classID"] = g.Pure && n.ClassID != nil
		set["network.priorities"] = g.Pure && len(n.Priorities) > 0
	}
	for name, given := range set {
		if given {
			return fmt.Errorf("linux.resources.%s: not supported: the kernel has no such control in the cgroups that are here", name)
		}
	}
	return nil
}

// checkWeights refuses weights of block devices that are none: another scale made of
// them would wrap around.
func checkWeights(b *specs.LinuxBlockIO) error {
	list := []*uint16{b.Weight, b.LeafWeight}
	for _, d := range b.WeightDevice {
		list = append(list, d.Weight, d.LeafWeight)
	}
	for _, w := range list {
		if w != nil && *w != 0 && (*w < 10 || *w > 1000) {
			return fmt.Errorf("invalid blkio weight: %d (valid range is 10-1000)", *w)
		}
	}
	return nil
}

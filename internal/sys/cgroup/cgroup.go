// Package cgroup finds out how control groups are mounted on a machine (the
// first version, the second, or both as systemd's hybrid layout has it), which
// controllers there are and what the kernel can limit with them.
//
// It reads; it makes and changes no cgroup. The sources are the kernel's
// admin-guide/cgroup-v1 and admin-guide/cgroup-v2.rst.
package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// Mode is how the hierarchies are mounted.
type Mode string

// The layouts. In the hybrid one, limits are set through version 1; the
// version 2 hierarchy beside it has no controllers and only tracks processes.
const (
	None    Mode = "none"
	Legacy  Mode = "legacy"
	Hybrid  Mode = "hybrid"
	Unified Mode = "unified"
)

// Info is what a machine has.
type Info struct {
	Mode        Mode
	Mounts      map[string]string // version 1: mount point by controller; a named hierarchy as "name=systemd"
	Unified     string            // mount point of the version 2 hierarchy; empty: none
	Controllers []string          // those that can limit, sorted
	Own         map[string]string // the calling process' cgroup by controller; "" is the version 2 one
	Namespaces  bool              // the kernel has cgroup namespaces
	Features    Features
}

// Features are the limits that the kernel can set.
type Features struct {
	MemoryLimit, SwapLimit, MemoryReservation bool
	OOMKillDisable, MemorySwappiness          bool // only version 1 has them

	CPUShares, CPUCfs, CPURealtime bool

	Cpuset bool
	Cpus   string // processors that can be asked for, "0-3,7"; empty: not known
	Mems   string // memory nodes, likewise

	BlkioWeight, BlkioWeightDevice       bool
	BlkioReadBps, BlkioWriteBps          bool
	BlkioReadIOps, BlkioWriteIOps        bool
	PidsLimit, Devices, Freezer, Hugetlb bool
}

// Version is what Docker calls the version: "1" or "2". The hybrid layout
// limits by version 1 and counts as that.
func (i Info) Version() string {
	if i.Mode == Unified {
		return "2"
	}
	return "1"
}

// Dir is the directory of cgroup path in the hierarchy of controller. With
// version 2 the controller plays no part as long as it exists.
func (i Info) Dir(controller, path string) (dir string, ok bool) {
	path = filepath.Clean("/" + path)
	if i.Mode == Unified {
		return filepath.Join(i.Unified, path), slices.Contains(i.Controllers, controller)
	}
	mount, ok := i.Mounts[controller]
	return filepath.Join(mount, path), ok
}

// Dirs are the directories of cgroup path in every hierarchy, sorted and
// without repetition: all that has to be gone once the cgroup is removed.
func (i Info) Dirs(path string) []string {
	path = filepath.Clean("/" + path)
	mounts := slices.Collect(maps.Values(i.Mounts))
	if i.Unified != "" {
		mounts = append(mounts, i.Unified)
	}
	slices.Sort(mounts)
	mounts = slices.Compact(mounts)
	for n, m := range mounts {
		mounts[n] = filepath.Join(m, path)
	}
	return mounts
}

// Detect looks at the machine it runs on. Reads some 20 small files. No error
// for what is merely not there: Mode None is an answer.
func Detect() (Info, error) { return detect("") }

// detect does it for the tree below root, so that tests can show any machine.
func detect(root string) (Info, error) {
	i := Info{Mode: None, Mounts: map[string]string{}}
	mounts, err := readMounts(root)
	if err != nil {
		return Info{}, err
	}
	b, err := os.ReadFile(root + "/proc/self/cgroup")
	if err != nil {
		return Info{}, err
	}
	if i.Own, err = parseSelf(b); err != nil {
		return Info{}, fmt.Errorf("/proc/self/cgroup: %w", err)
	}
	for _, m := range mounts {
		switch m.FSType {
		case "cgroup2":
			// The first one that is whole is the machine's; later ones are
			// binds of it.
			if i.Unified == "" {
				i.Unified = m.Mountpoint
			}
		case "cgroup":
			for opt := range strings.SplitSeq(m.VFSOptions, ",") {
				if _, known := i.Own[opt]; known && i.Mounts[opt] == "" {
					i.Mounts[opt] = m.Mountpoint
				}
			}
		}
	}
	switch {
	case len(i.Mounts) > 0 && i.Unified != "":
		i.Mode = Hybrid
	case len(i.Mounts) > 0:
		i.Mode = Legacy
	case i.Unified != "":
		i.Mode = Unified
	}
	i.Namespaces = exists(root + "/proc/self/ns/cgroup")
	switch i.Mode {
	case Unified:
		err = i.detectUnified(root)
	case Legacy, Hybrid:
		i.detectLegacy(root)
	}
	slices.Sort(i.Controllers)
	return i, err
}

// readMounts lists the mounts of cgroup filesystems.
func readMounts(root string) ([]*mountinfo.Info, error) {
	b, err := os.ReadFile(root + "/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	mounts, err := mountinfo.GetMountsFromReader(bytes.NewReader(b), mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, fmt.Errorf("/proc/self/mountinfo: %w", err)
	}
	return mounts, nil
}

// parseSelf reads lines of the form "4:memory:/a/b" (cgroups(7)).
func parseSelf(b []byte) (map[string]string, error) {
	own := map[string]string{}
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSuffix(line, "\n")
		if line == "" {
			continue
		}
		parts := strings.SplitN(line, ":", 3)
		if len(parts) != 3 || !strings.HasPrefix(parts[2], "/") {
			return nil, fmt.Errorf("unexpected line %q", line)
		}
		for controller := range strings.SplitSeq(parts[1], ",") {
			own[controller] = parts[2]
		}
	}
	return own, nil
}

// detectLegacy asks version 1 for its features: a file in the hierarchy's root
// is the sign of one.
func (i *Info) detectLegacy(root string) {
	for c := range i.Mounts {
		if !strings.HasPrefix(c, "name=") {
			i.Controllers = append(i.Controllers, c)
		}
	}
	has := func(controller, file string) bool {
		mount, ok := i.Mounts[controller]
		return ok && exists(filepath.Join(root+mount, file))
	}
	mounted := func(controller string) bool { _, ok := i.Mounts[controller]; return ok }
	// BFQ's weights are in every cgroup but the root.
	below := func(controller, file string) bool {
		mount, ok := i.Mounts[controller]
		return ok && anyChildHas(root+mount, file)
	}
	f := &i.Features
	f.MemoryLimit = mounted("memory")
	f.SwapLimit = has("memory", "memory.memsw.limit_in_bytes")
	f.MemoryReservation = has("memory", "memory.soft_limit_in_bytes")
	f.OOMKillDisable = has("memory", "memory.oom_control")
	f.MemorySwappiness = has("memory", "memory.swappiness")
	f.CPUShares = has("cpu", "cpu.shares")
	f.CPUCfs = has("cpu", "cpu.cfs_quota_us")
	f.CPURealtime = has("cpu", "cpu.rt_period_us")
	f.BlkioWeight = has("blkio", "blkio.weight") || below("blkio", "blkio.bfq.weight")
	f.BlkioWeightDevice = has("blkio", "blkio.weight_device") || below("blkio", "blkio.bfq.weight_device")
	f.BlkioReadBps = has("blkio", "blkio.throttle.read_bps_device")
	f.BlkioWriteBps = has("blkio", "blkio.throttle.write_bps_device")
	f.BlkioReadIOps = has("blkio", "blkio.throttle.read_iops_device")
	f.BlkioWriteIOps = has("blkio", "blkio.throttle.write_iops_device")
	f.PidsLimit = mounted("pids")
	f.Devices = mounted("devices")
	f.Freezer = mounted("freezer")
	f.Hugetlb = mounted("hugetlb")
	if f.Cpuset = mounted("cpuset"); f.Cpuset {
		dir := root + i.Mounts["cpuset"]
		f.Cpus = readLine(filepath.Join(dir, "cpuset.cpus"))
		f.Mems = readLine(filepath.Join(dir, "cpuset.mems"))
	}
}

// detectUnified asks version 2.
func (i *Info) detectUnified(root string) error {
	mount := root + i.Unified
	b, err := os.ReadFile(filepath.Join(mount, "cgroup.controllers"))
	if err != nil {
		return err
	}
	i.Controllers = strings.Fields(string(b))
	has := func(c string) bool { return slices.Contains(i.Controllers, c) }
	// The limits of a controller are files of every cgroup but the root: look
	// in our own, else in any child of the root.
	own := filepath.Join(mount, i.Own[""])
	child := func(file string) bool {
		return exists(filepath.Join(own, file)) || anyChildHas(mount, file)
	}
	f := &i.Features
	if has("memory") {
		f.MemoryLimit, f.MemoryReservation = true, true
		// A machine without any child cgroup shows no such file; then
		// /proc/swaps tells whether the kernel knows swap at all.
		f.SwapLimit = child("memory.swap.max") || !child("memory.max") && exists(root+"/proc/swaps")
	}
	if has("cpu") {
		f.CPUShares, f.CPUCfs = true, true
	}
	if has("io") {
		f.BlkioReadBps, f.BlkioWriteBps, f.BlkioReadIOps, f.BlkioWriteIOps = true, true, true, true
		f.BlkioWeight = child("io.weight") || child("io.bfq.weight") || !child("io.max")
		f.BlkioWeightDevice = f.BlkioWeight
	}
	if f.Cpuset = has("cpuset"); f.Cpuset {
		f.Cpus = readLine(filepath.Join(mount, "cpuset.cpus.effective"))
		f.Mems = readLine(filepath.Join(mount, "cpuset.mems.effective"))
	}
	f.PidsLimit = has("pids")
	f.Hugetlb = has("hugetlb")
	f.Devices, f.Freezer = true, true // BPF programs and cgroup.freeze are part of version 2
	return nil
}

// anyChildHas reports whether a directory in dir holds file.
func anyChildHas(dir, file string) bool {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(entries, func(e fs.DirEntry) bool {
		return e.IsDir() && exists(filepath.Join(dir, e.Name(), file))
	})
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil || !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, os.ErrInvalid)
}

func readLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

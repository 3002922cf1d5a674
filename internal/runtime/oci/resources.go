package oci

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"escale.dev/escale/internal/sys/systemd"
	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// CgroupsPath is where the cgroup of container id goes, in the form of the
// specification's linux.cgroupsPath: "/parent/id", or, with what systemd's scopes
// begin with, "parent.slice:scopes:id". parent is the container's or the engine's; empty:
// "/docker" or "system.slice". A path is always absolute and never above the
// root, whatever parent says.
func CgroupsPath(parent, id, scopes string) string {
	if scopes != "" {
		if parent == "" {
			parent = "system.slice"
		}
		return parent + ":" + scopes + ":" + id
	}
	if parent == "" {
		parent = "/docker"
	}
	return filepath.Clean("/" + parent + "/" + id)
}

// CgroupDir is what linux.cgroupsPath, in either form, is as a path below the mount points.
func CgroupDir(spec string) string { return systemd.Path(spec) }

// Resources are the limits of a container in the form of the specification,
// without its device rules: for a new container, and to update one. Nothing is
// checked but that devices exist; see Builder.ValidateResources.
func Resources(r container.Resources) (*specs.LinuxResources, error) {
	cpu, err := cpuResources(r)
	if err != nil {
		return nil, err
	}
	block, err := blockResources(r)
	if err != nil {
		return nil, err
	}
	out := &specs.LinuxResources{Memory: memoryResources(r), CPU: cpu, BlockIO: block}
	if r.PidsLimit != nil {
		limit := *r.PidsLimit
		if limit <= 0 {
			limit = -1
		}
		out.Pids = &specs.LinuxPids{Limit: &limit}
	}
	return out, nil
}

func memoryResources(r container.Resources) *specs.LinuxMemory {
	m := specs.LinuxMemory{DisableOOMKiller: r.OomKillDisable}
	if r.Memory > 0 {
		m.Limit = &r.Memory
	}
	if r.MemoryReservation > 0 {
		m.Reservation = &r.MemoryReservation
	}
	if r.MemorySwap > 0 {
		m.Swap = &r.MemorySwap
	}
	if r.MemorySwappiness != nil {
		n := uint64(*r.MemorySwappiness)
		m.Swappiness = &n
	}
	if m == (specs.LinuxMemory{}) {
		return nil
	}
	return &m
}

// cfsPeriod is the scheduler's default period, in microseconds: a number of
// CPUs is a quota of it.
const cfsPeriod = 100000

func cpuResources(r container.Resources) (*specs.LinuxCPU, error) {
	c := specs.LinuxCPU{Cpus: r.CpusetCpus, Mems: r.CpusetMems}
	if r.CPUShares < 0 {
		return nil, invalid("invalid CPU shares (%d): value must be a positive integer", r.CPUShares)
	}
	if r.CPUShares > 0 {
		n := uint64(r.CPUShares)
		c.Shares = &n
	}
	if r.NanoCPUs > 0 {
		period, quota := uint64(cfsPeriod), r.NanoCPUs*cfsPeriod/1e9
		c.Period, c.Quota = &period, &quota
	}
	if r.CPUPeriod != 0 {
		n := uint64(r.CPUPeriod)
		c.Period = &n
	}
	if r.CPUQuota != 0 {
		c.Quota = &r.CPUQuota
	}
	if r.CPURealtimePeriod != 0 {
		n := uint64(r.CPURealtimePeriod)
		c.RealtimePeriod = &n
	}
	if r.CPURealtimeRuntime != 0 {
		c.RealtimeRuntime = &r.CPURealtimeRuntime
	}
	if c == (specs.LinuxCPU{}) {
		return nil, nil
	}
	return &c, nil
}

func blockResources(r container.Resources) (*specs.LinuxBlockIO, error) {
	var b specs.LinuxBlockIO
	any := false
	if r.BlkioWeight != 0 {
		b.Weight, any = &r.BlkioWeight, true
	}
	for _, w := range r.BlkioWeightDevice {
		if w == nil {
			continue
		}
		major, minor, err := blockDevice(w.Path)
		if err != nil {
			return nil, err
		}
		d := specs.LinuxWeightDevice{Weight: &w.Weight}
		d.Major, d.Minor = major, minor
		b.WeightDevice, any = append(b.WeightDevice, d), true
	}
	for _, t := range []struct {
		from []*blkiodev.ThrottleDevice
		to   *[]specs.LinuxThrottleDevice
	}{
		{r.BlkioDeviceReadBps, &b.ThrottleReadBpsDevice},
		{r.BlkioDeviceWriteBps, &b.ThrottleWriteBpsDevice},
		{r.BlkioDeviceReadIOps, &b.ThrottleReadIOPSDevice},
		{r.BlkioDeviceWriteIOps, &b.ThrottleWriteIOPSDevice},
	} {
		for _, dev := range t.from {
			if dev == nil {
				continue
			}
			major, minor, err := blockDevice(dev.Path)
			if err != nil {
				return nil, err
			}
			d := specs.LinuxThrottleDevice{Rate: dev.Rate}
			d.Major, d.Minor = major, minor
			*t.to, any = append(*t.to, d), true
		}
	}
	if !any {
		return nil, nil
	}
	return &b, nil
}

func blockDevice(path string) (major, minor int64, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, 0, fmt.Errorf("stat %s: %w", path, noKind{err})
	}
	return int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev)), nil
}

// weighsDevice tells whether the scheduler of a block device knows weights: bfq
// and its forerunner do, others refuse them. A device that cannot be looked at
// is left to the start to tell of.
func weighsDevice(path string) bool {
	major, minor, err := blockDevice(path)
	if err != nil {
		return true
	}
	dir := fmt.Sprintf("/sys/dev/block/%d:%d", major, minor)
	for _, queue := range []string{dir + "/queue", dir + "/../queue"} { // a partition has its disk's
		if b, err := os.ReadFile(queue + "/scheduler"); err == nil {
			return bytes.Contains(b, []byte("[bfq]")) || bytes.Contains(b, []byte("[cfq]"))
		}
	}
	return true
}

// rlimits are the resource limits of processes by Docker's name.
var rlimits = map[string]int{
	"core": unix.RLIMIT_CORE, "cpu": unix.RLIMIT_CPU, "data": unix.RLIMIT_DATA, "fsize": unix.RLIMIT_FSIZE,
	"locks": unix.RLIMIT_LOCKS, "memlock": unix.RLIMIT_MEMLOCK, "msgqueue": unix.RLIMIT_MSGQUEUE,
	"nice": unix.RLIMIT_NICE, "nofile": unix.RLIMIT_NOFILE, "nproc": unix.RLIMIT_NPROC, "rss": unix.RLIMIT_RSS,
	"rtprio": unix.RLIMIT_RTPRIO, "rttime": unix.RLIMIT_RTTIME, "sigpending": unix.RLIMIT_SIGPENDING, "stack": unix.RLIMIT_STACK,
}

// rlimits are a container's process limits: its own, then those of the engine
// that it has not. A limit that the engine may not give is lowered to what it
// may, with a warning, for a container that runs is worth more than one that
// does not.
func (b *Builder) rlimits(o Options) (out []specs.POSIXRlimit, warnings []string) {
	asked := o.HostConfig.Ulimits
	own := map[string]bool{}
	for _, l := range asked {
		if l == nil {
			continue
		}
		own[l.Name] = true
	}
	for _, name := range sortedKeys(o.DefaultUlimits) {
		if !own[name] {
			asked = append(asked[:len(asked):len(asked)], o.DefaultUlimits[name])
		}
	}
	for _, l := range asked {
		if l == nil {
			continue
		}
		soft, hard := uint64(l.Soft), uint64(l.Hard) // -1 is RLIM_INFINITY
		if most := b.hardLimit(l.Name); hard > most {
			warnings = append(warnings, fmt.Sprintf("Ulimit %s: hard limit %s is above what the engine may set, lowered to %d.", l.Name, limitWord(l.Hard), most))
			hard, soft = most, min(soft, most)
		}
		out = append(out, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(l.Name), Soft: soft, Hard: hard})
	}
	return out, warnings
}

// hardLimit is the highest hard limit that the engine may give.
func (b *Builder) hardLimit(name string) uint64 {
	most := uint64(unix.RLIM_INFINITY)
	if name == "nofile" && b.host.MaxOpen > 0 {
		most = b.host.MaxOpen
	}
	if own, ok := b.host.HardLimits[name]; ok && !b.host.RaiseLimits {
		most = min(most, own)
	}
	return most
}

func limitWord(n int64) string {
	if n < 0 {
		return "unlimited"
	}
	return fmt.Sprint(n)
}

package cgroups

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// setting is a value for one file of a cgroup.
type setting struct {
	controller, file, value string
	optional                bool // nothing happens where the kernel does not have the file
}

// Limit sets what a specification asks for, without pids.max, which LimitPids sets
// once the runtime's own threads no longer count. Those that the kernel refuses
// because others do not fit yet are set again after these.
func (g *Group) Limit(r *specs.LinuxResources) error {
	if r == nil {
		return nil
	}
	list, err := g.settings(r)
	if err != nil {
		return err
	}
	if err := g.checkUsage(r); err != nil {
		return err
	}
	var again []setting
	for _, s := range list {
		err := g.put(s)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EBUSY) {
			again = append(again, s)
		} else if err != nil {
			return err
		}
	}
	for _, s := range again {
		if err := g.put(s); err != nil {
			return g.explain(s, err)
		}
	}
	return g.checkShares(r)
}

// LimitPids sets the most processes; 0 and less are no limit.
func (g *Group) LimitPids(r *specs.LinuxResources) error {
	if s := pidsMax(r); s != nil {
		return g.put(*s)
	}
	return nil
}

// pidsMax is the setting of LimitPids; nil where nothing is asked for.
func pidsMax(r *specs.LinuxResources) *setting {
	if r == nil || r.Pids == nil || r.Pids.Limit == nil {
		return nil
	}
	value := "max"
	if n := *r.Pids.Limit; n > 0 {
		value = strconv.FormatInt(n, 10)
	}
	// Without a limit a missing controller is none the worse.
	return &setting{"pids", "pids.max", value, value == "max"}
}

// dir is the directory of a controller; "" when there is none.
func (g *Group) dir(controller string) string {
	if g.Pure {
		return g.Unified
	}
	return g.V1[controller]
}

func (g *Group) put(s setting) error {
	dir := g.dir(s.controller)
	if dir == "" {
		if s.optional {
			return nil
		}
		return fmt.Errorf("cannot set %s: container could not join or create cgroup: controller %s is not mounted", s.file, s.controller)
	}
	err := write(filepath.Join(dir, s.file), s.value)
	if s.optional && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// explain adds what is known about a refusal.
func (g *Group) explain(s setting, err error) error {
	if s.file == "memory.limit_in_bytes" && errors.Is(err, unix.EBUSY) {
		usage, _ := os.ReadFile(filepath.Join(g.dir("memory"), "memory.usage_in_bytes"))
		peak, _ := os.ReadFile(filepath.Join(g.dir("memory"), "memory.max_usage_in_bytes"))
		return fmt.Errorf("unable to set memory limit to %s (current usage: %s, peak usage: %s)", s.value, strings.TrimSpace(string(usage)), strings.TrimSpace(string(peak)))
	}
	return err
}

// settings are all but pids.max, in the order in which they are tried.
func (g *Group) settings(r *specs.LinuxResources) (list []setting, err error) {
	add := func(controller, file, value string) { list = append(list, setting{controller, file, value, false}) }
	if err := g.beyond(r); err != nil {
		return nil, err
	}
	if r.Memory != nil {
		if list, err = g.memory(list, r.Memory); err != nil {
			return nil, err
		}
	}
	if r.CPU != nil {
		list = g.cpu(list, r.CPU)
	}
	if b := r.BlockIO; b != nil {
		if err := checkWeights(b); err != nil {
			return nil, err
		}
		list = g.blockIO(list, b)
	}
	for _, l := range r.HugepageLimits {
		file, value := "hugetlb."+l.Pagesize+".limit_in_bytes", strconv.FormatUint(l.Limit, 10)
		reserved := "hugetlb." + l.Pagesize + ".rsvd.limit_in_bytes"
		if g.Pure {
			file, reserved = "hugetlb."+l.Pagesize+".max", "hugetlb."+l.Pagesize+".rsvd.max"
		}
		add("hugetlb", file, value)
		list = append(list, setting{"hugetlb", reserved, value, true})
	}
	if n := r.Network; n != nil {
		if n.ClassID != nil {
			add("net_cls", "net_cls.classid", strconv.FormatUint(uint64(*n.ClassID), 10))
		}
		for _, p := range n.Priorities {
			add("net_prio", "net_prio.ifpriomap", p.Name+" "+strconv.FormatUint(uint64(p.Priority), 10))
		}
	}
	for device, l := range r.Rdma {
		for key, v := range map[string]*uint32{"hca_handle": l.HcaHandles, "hca_object": l.HcaObjects} {
			if v != nil {
				add("rdma", "rdma.max", device+" "+key+"="+strconv.FormatUint(uint64(*v), 10))
			}
		}
	}
	return g.unified(list, r.Unified)
}

// unified are version 2's own files.
func (g *Group) unified(list []setting, files map[string]string) ([]setting, error) {
	if len(files) > 0 && !g.Pure {
		return nil, errors.New("invalid configuration: cgroup v1 has no unified resources")
	}
	for file, value := range files {
		controller, _, ok := strings.Cut(file, ".")
		if !ok || strings.ContainsAny(file, "/\x00") {
			return nil, fmt.Errorf("unified resource %q must be a file name (no slashes)", file)
		}
		list = append(list, setting{controller, file, value, false})
	}
	return list, nil
}

// limitWord is a limit in version 2's words; "" when it is not set.
func limitWord(n int64) string {
	switch n {
	case 0:
		return ""
	case -1:
		return "max"
	}
	return strconv.FormatInt(n, 10)
}

func value(p *int64) int64 {
	if p == nil {
		return 0
	}
	return *p
}

func (g *Group) memory(list []setting, m *specs.LinuxMemory) ([]setting, error) {
	add := func(file, v string, optional bool) { list = append(list, setting{"memory", file, v, optional}) }
	limit, swap := value(m.Limit), value(m.Swap)
	if g.Pure {
		v, err := swapWord(swap, limit)
		if err != nil {
			return nil, err
		}
		if v != "" {
			add("memory.swap.max", v, v == "max" || v == "0")
		}
		if w := limitWord(limit); w != "" {
			add("memory.max", w, false)
		}
		if w := limitWord(value(m.Reservation)); w != "" {
			add("memory.low", w, false)
		}
		return list, nil
	}
	number := func(n int64) string { return strconv.FormatInt(n, 10) }
	optional := false
	if limit == -1 && swap == 0 {
		swap, optional = -1, true
	}
	if limit != 0 {
		add("memory.limit_in_bytes", number(limit), false)
	}
	if swap != 0 {
		add("memory.memsw.limit_in_bytes", number(swap), optional)
	}
	if n := value(m.Reservation); n != 0 {
		add("memory.soft_limit_in_bytes", number(n), false)
	}
	if n := value(m.KernelTCP); n != 0 {
		add("memory.kmem.tcp.limit_in_bytes", number(n), true)
	}
	if m.DisableOOMKiller != nil && *m.DisableOOMKiller {
		add("memory.oom_control", "1", false)
	}
	if m.Swappiness != nil && int64(*m.Swappiness) != -1 {
		if *m.Swappiness > 100 {
			return nil, fmt.Errorf("invalid memory swappiness value: %d (valid range is 0-100)", *m.Swappiness)
		}
		add("memory.swappiness", strconv.FormatUint(*m.Swappiness, 10), false)
	}
	return list, nil
}

// swapWord makes version 2's limit of swap alone from that of memory and swap.
func swapWord(both, memory int64) (string, error) {
	switch {
	case memory == -1 && both == 0, both == -1:
		return "max", nil
	case both == 0:
		return "", nil
	case memory == -1:
		return strconv.FormatInt(both, 10), nil
	case memory == 0:
		return "", errors.New("unable to set swap limit without memory limit")
	case memory < 0:
		return "", fmt.Errorf("invalid memory value: %d", memory)
	case both < memory:
		return "", errors.New("memory+swap limit should be >= memory limit")
	}
	return strconv.FormatInt(both-memory, 10), nil
}

// Weight makes version 2's weight from version 1's shares by the curve that runc
// takes: 2, 1024 and 262144 become 1, 100 and 10000. 0 is not set.
func Weight(shares uint64) uint64 {
	switch {
	case shares == 0:
		return 0
	case shares <= 2:
		return 1
	case shares >= 262144:
		return 10000
	}
	l := math.Log2(float64(shares))
	return uint64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34)))
}

func (g *Group) cpu(list []setting, c *specs.LinuxCPU) []setting {
	add := func(controller, file, v string, optional bool) {
		list = append(list, setting{controller, file, v, optional})
	}
	unsigned := func(p *uint64) uint64 {
		if p == nil {
			return 0
		}
		return *p
	}
	shares, period, quota := unsigned(c.Shares), unsigned(c.Period), value(c.Quota)
	if c.Idle != nil {
		add("cpu", "cpu.idle", strconv.FormatInt(*c.Idle, 10), false)
	}
	switch {
	case g.Pure:
		if w := Weight(shares); w != 0 && (c.Idle == nil || *c.Idle != 1) {
			add("cpu", "cpu.weight", strconv.FormatUint(w, 10), false)
		}
		if quota != 0 || period != 0 {
			word := "max"
			if quota > 0 {
				word = strconv.FormatInt(quota, 10)
			}
			if period == 0 {
				period = cfsPeriod // cgroup-v2.rst, cpu.max
			}
			add("cpu", "cpu.max", word+" "+strconv.FormatUint(period, 10), false)
		}
		if c.Burst != nil {
			add("cpu", "cpu.max.burst", strconv.FormatUint(*c.Burst, 10), false)
		}
	default:
		if shares != 0 && (c.Idle == nil || *c.Idle != 1) {
			add("cpu", "cpu.shares", strconv.FormatUint(shares, 10), false)
		}
		if period != 0 {
			add("cpu", "cpu.cfs_period_us", strconv.FormatUint(period, 10), false)
		}
		if quota != 0 {
			add("cpu", "cpu.cfs_quota_us", strconv.FormatInt(quota, 10), false)
		}
		if c.Burst != nil {
			add("cpu", "cpu.cfs_burst_us", strconv.FormatUint(*c.Burst, 10), true)
		}
		if n := unsigned(c.RealtimePeriod); n != 0 {
			add("cpu", "cpu.rt_period_us", strconv.FormatUint(n, 10), false)
		}
		if n := value(c.RealtimeRuntime); n != 0 {
			add("cpu", "cpu.rt_runtime_us", strconv.FormatInt(n, 10), false)
		}
	}
	if c.Cpus != "" {
		add("cpuset", "cpuset.cpus", c.Cpus, false)
	}
	if c.Mems != "" {
		add("cpuset", "cpuset.mems", c.Mems, false)
	}
	return list
}

func (g *Group) blockIO(list []setting, b *specs.LinuxBlockIO) []setting {
	add := func(file, v string) { list = append(list, setting{g.ioController(), file, v, false}) }
	weight, device := g.weightFiles()
	number := func(n uint16) string {
		if weight == "io.weight" { // from 1 to 10000, not from 10 to 1000
			return strconv.FormatUint(1+(uint64(n)-10)*9999/990, 10)
		}
		return strconv.FormatUint(uint64(n), 10)
	}
	if b.Weight != nil && *b.Weight != 0 {
		add(weight, number(*b.Weight))
	}
	if b.LeafWeight != nil && *b.LeafWeight != 0 {
		add("blkio.leaf_weight", number(*b.LeafWeight))
	}
	for _, d := range b.WeightDevice {
		name := fmt.Sprintf("%d:%d ", d.Major, d.Minor)
		if d.Weight != nil && *d.Weight != 0 {
			add(device, name+number(*d.Weight))
		}
		if d.LeafWeight != nil && *d.LeafWeight != 0 {
			add("blkio.leaf_weight_device", name+number(*d.LeafWeight))
		}
	}
	for _, t := range []struct {
		devices []specs.LinuxThrottleDevice
		v1, v2  string
	}{
		{b.ThrottleReadBpsDevice, "read_bps", "rbps"}, {b.ThrottleWriteBpsDevice, "write_bps", "wbps"},
		{b.ThrottleReadIOPSDevice, "read_iops", "riops"}, {b.ThrottleWriteIOPSDevice, "write_iops", "wiops"},
	} {
		for _, d := range t.devices {
			if g.Pure {
				rate := strconv.FormatUint(d.Rate, 10)
				if d.Rate == 0 {
					rate = "max"
				}
				add("io.max", fmt.Sprintf("%d:%d %s=%s", d.Major, d.Minor, t.v2, rate))
			} else {
				add("blkio.throttle."+t.v1+"_device", fmt.Sprintf("%d:%d %d", d.Major, d.Minor, d.Rate))
			}
		}
	}
	return list
}

func (g *Group) ioController() string {
	if g.Pure {
		return "io"
	}
	return "blkio"
}

// weightFiles are those that the kernel's scheduler of block devices has.
func (g *Group) weightFiles() (weight, device string) {
	dir := g.dir(g.ioController())
	there := func(file string) bool {
		_, err := os.Lstat(filepath.Join(dir, file))
		return err == nil
	}
	switch {
	case g.Pure && there("io.bfq.weight"):
		return "io.bfq.weight", "io.bfq.weight"
	case g.Pure:
		return "io.weight", "io.weight"
	case there("blkio.weight"):
		return "blkio.weight", "blkio.weight_device"
	}
	return "blkio.bfq.weight", "blkio.bfq.weight_device"
}

// checkUsage refuses a limit below what is in use where that is asked for: version
// 2 would end processes instead.
func (g *Group) checkUsage(r *specs.LinuxResources) error {
	m := r.Memory
	if !g.Pure || m == nil || m.CheckBeforeUpdate == nil || !*m.CheckBeforeUpdate || value(m.Limit) <= 0 {
		return nil
	}
	b, err := os.ReadFile(filepath.Join(g.Unified, "memory.current"))
	if err != nil {
		return nil // nothing is in use yet
	}
	if usage, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err == nil && *m.Limit < usage {
		return fmt.Errorf("rejecting memory limit %d <= usage %d", *m.Limit, usage)
	}
	return nil
}

// checkShares says so where the kernel has taken less or more than was asked for.
func (g *Group) checkShares(r *specs.LinuxResources) error {
	if g.Pure || r.CPU == nil || r.CPU.Shares == nil || *r.CPU.Shares == 0 || r.CPU.Idle != nil && *r.CPU.Idle == 1 {
		return nil
	}
	b, err := os.ReadFile(filepath.Join(g.V1["cpu"], "cpu.shares"))
	if err != nil {
		return err
	}
	got, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	switch {
	case err != nil:
		return err
	case *r.CPU.Shares > got:
		return fmt.Errorf("the maximum allowed cpu-shares is %d", got)
	case *r.CPU.Shares < got:
		return fmt.Errorf("the minimum allowed cpu-shares is %d", got)
	}
	return nil
}

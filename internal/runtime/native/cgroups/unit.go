package cgroups

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"escale.dev/escale/internal/sys/systemd"
)

// Unit is the scope of systemd's that a container's cgroup is that of.
type Unit struct {
	Name string // "docker-ID.scope"; empty: there is none
	Path string // linux.cgroupsPath in full, "slice:prefix:name"
	id   string
	in   string // slice
}

// ParseUnit reads linux.cgroupsPath as runc does with --systemd-cgroup: "slice:prefix:name", of
// which nothing is "system.slice:escale:ID".
func ParseUnit(spec, id string) (Unit, error) {
	slice, prefix, name, ok := systemd.Split(spec)
	if spec == "" {
		prefix, name, ok = "escale", id, true
	}
	if !ok {
		return Unit{}, fmt.Errorf("expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got %q instead", spec)
	}
	if slice == "" {
		slice = "system.slice"
	}
	if !systemd.IsSlice(slice) {
		return Unit{}, fmt.Errorf("invalid slice name: %s", slice)
	}
	// A slice is for others to lie in: its own cgroup takes no process.
	if name == "" || strings.ContainsAny(prefix+name, "/\x00") || strings.HasSuffix(name, ".slice") {
		return Unit{}, fmt.Errorf("cgroupsPath %q: not the name of a scope", spec)
	}
	return Unit{Name: systemd.Unit(prefix, name), Path: slice + ":" + prefix + ":" + name, id: id, in: slice}, nil
}

// StartUnit has systemd make the unit with its cgroups, and put the process pid into them: a scope
// lives as long as somebody is in it. What systemd knows of the limits it is told, but for
// pids.max (see LimitPids). Blocks until it is done: some milliseconds.
func (g *Group) StartUnit(ctx context.Context, u Unit, pid int, r *specs.LinuxResources, rules *Rules, extra []systemd.Property) error {
	c, err := systemd.Dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	limits, err := g.properties(ctx, c, r)
	if err != nil {
		return err
	}
	blocks := "IOAccounting"
	if !g.Pure {
		blocks = "BlockIOAccounting"
	}
	list := []systemd.Property{
		{Name: "Description", Value: "container " + u.id}, {Name: "Slice", Value: u.in}, {Name: "Delegate", Value: true}, {Name: "PIDs", Value: []uint32{uint32(pid)}},
		{Name: "MemoryAccounting", Value: true}, {Name: "CPUAccounting", Value: true}, {Name: blocks, Value: true}, {Name: "TasksAccounting", Value: true},
		// Ended by whoever made it, and not by systemd before the engine; forgotten once nobody is in it.
		{Name: "DefaultDependencies", Value: false}, {Name: "CollectMode", Value: "inactive-or-failed"},
	}
	list = append(append(append(list, rules.properties(g.Pure)...), limits...), extra...)
	if err := c.StartTransient(ctx, u.Name, list); err != nil {
		return err
	}
	dir, ok := g.Unified, g.Pure
	if !ok {
		dir, ok = g.V1["name=systemd"]
	}
	if !ok {
		return nil
	}
	if _, err := os.Lstat(dir); err != nil {
		return errors.Join(fmt.Errorf("unit %s: systemd did not make its cgroup: %w", u.Name, err), c.Stop(ctx, u.Name))
	}
	return nil
}

// UpdateUnit tells systemd of changed limits, which would else put back the old ones at its next
// occasion. The files are written by Limit and LimitPids.
func (g *Group) UpdateUnit(ctx context.Context, name string, r *specs.LinuxResources) error {
	if r == nil {
		return nil
	}
	if err := g.checkUsage(r); err != nil {
		return err // before systemd has the kernel end processes
	}
	c, err := systemd.Dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	list, err := g.properties(ctx, c, r)
	if err != nil {
		return err
	}
	if s := pidsMax(r); s != nil {
		p, err := g.property(*s, nil)
		if err != nil {
			return err
		}
		list = append(list, p...)
	}
	return c.SetProperties(ctx, name, list)
}

// StopUnit ends what is left of a unit and has systemd forget it. Without one it is no error.
func StopUnit(ctx context.Context, name string) error {
	c, err := systemd.Dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Stop(ctx, name)
}

// properties are the limits that systemd knows, as it names them (systemd.resource-control(5)).
func (g *Group) properties(ctx context.Context, c *systemd.Conn, r *specs.LinuxResources) (list []systemd.Property, err error) {
	if r == nil {
		return nil, nil
	}
	settings, err := g.settings(r)
	if err != nil {
		return nil, err
	}
	for _, s := range settings {
		p, err := g.property(s, func() (int, error) { return c.Version(ctx) })
		if err != nil {
			return nil, err
		}
		list = append(list, p...)
	}
	if !g.Pure && r.CPU != nil {
		period := uint64(0)
		if r.CPU.Period != nil {
			period = *r.CPU.Period
		}
		list = append(list, quota(value(r.CPU.Quota), period)...)
	}
	return list, nil
}

// numbers are the properties that are numbers as their files are, "max" the highest.
var numbers = map[string]string{
	"memory.max": "MemoryMax", "memory.high": "MemoryHigh", "memory.low": "MemoryLow", "memory.min": "MemoryMin", "memory.swap.max": "MemorySwapMax",
	"cpu.weight": "CPUWeight", "pids.max": "TasksMax",
	"memory.limit_in_bytes": "MemoryLimit", "cpu.shares": "CPUShares", "blkio.weight": "BlockIOWeight",
}

// property is what systemd calls a setting; nothing where it knows none, or takes it from others.
func (g *Group) property(s setting, version func() (int, error)) ([]systemd.Property, error) {
	word := strings.TrimSpace(s.value)
	if name := numbers[s.file]; name != "" {
		n, err := number(word)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.file, err)
		}
		if n == 0 && name == "TasksMax" {
			n = 1 // it takes no zero
		}
		return []systemd.Property{{Name: name, Value: n}}, nil
	}
	switch s.file {
	case "cpuset.cpus", "cpuset.mems":
		bits, err := bitsOf(word)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.file, err)
		}
		return []systemd.Property{{Name: map[string]string{"cpuset.cpus": "AllowedCPUs", "cpuset.mems": "AllowedMemoryNodes"}[s.file], Value: bits}}, nil
	case "cpu.max":
		most, rest, _ := strings.Cut(word, " ")
		n, err := number(most)
		period := uint64(cfsPeriod)
		if rest = strings.TrimSpace(rest); err == nil && rest != "" {
			period, err = strconv.ParseUint(rest, 10, 64)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.file, err)
		}
		return quota(int64(min(n, math.MaxInt64)), period), nil
	case "cpu.idle":
		if word != "1" {
			return nil, nil
		}
		// Since 252 the weight 0 stands for it.
		if n, err := version(); err != nil || n < 252 {
			return nil, err
		}
		return []systemd.Property{{Name: "CPUWeight", Value: uint64(0)}}, nil
	}
	return nil, nil
}

// number reads a limit: -1 and "max" are none.
func number(word string) (uint64, error) {
	if word == "max" || word == "-1" {
		return math.MaxUint64, nil
	}
	return strconv.ParseUint(word, 10, 64)
}

// cfsPeriod is the kernel's period of the limit of processors, in microseconds.
const cfsPeriod = 100000

// quota is a limit of processors: quota and period in microseconds, 0 not set, of the quota less
// or the highest none.
func quota(quota int64, period uint64) (list []systemd.Property) {
	if period != 0 {
		list = append(list, systemd.Property{Name: "CPUQuotaPeriodUSec", Value: period})
	}
	if quota == 0 && period == 0 {
		return nil
	}
	second := uint64(math.MaxUint64)
	if quota > 0 && quota < math.MaxInt64/1000000 {
		if period == 0 {
			period = cfsPeriod
		}
		second = uint64(quota) * 1000000 / period
	}
	return append(list, systemd.Property{Name: "CPUQuotaPerSecUSec", Value: second})
}

// Rounded are limits as systemd can have them: of processors it knows hundredths, and what is
// between is rounded up. runc does the same.
func Rounded(r *specs.LinuxResources) *specs.LinuxResources {
	if r == nil || r.CPU == nil || value(r.CPU.Quota) <= 0 || *r.CPU.Quota >= math.MaxInt64/1000000 {
		return r
	}
	period := int64(cfsPeriod)
	if r.CPU.Period != nil && *r.CPU.Period > 0 && *r.CPU.Period <= 1000000 { // more the kernel does not take
		period = int64(*r.CPU.Period)
	}
	const hundredth = 10000 // microseconds in a second
	second := *r.CPU.Quota * 1000000 / period
	if second%hundredth == 0 {
		return r
	}
	q := (second/hundredth + 1) * hundredth * period / 1000000
	cpu, out := *r.CPU, *r
	cpu.Quota, out.CPU = &q, &cpu
	return &out
}

// bitsOf turns "0-2,7" into a mask, lowest eight first.
func bitsOf(list string) ([]byte, error) {
	var mask []byte
	for one := range strings.SplitSeq(list, ",") {
		one = strings.TrimSpace(one)
		if one == "" {
			continue
		}
		low, high, several := strings.Cut(one, "-")
		from, err := strconv.ParseUint(low, 10, 16)
		to := from
		if err == nil && several {
			to, err = strconv.ParseUint(high, 10, 16)
		}
		if err != nil || to < from {
			return nil, fmt.Errorf("invalid range: %s", one)
		}
		for n := from; n <= to; n++ {
			for int(n/8) >= len(mask) {
				mask = append(mask, 0)
			}
			mask[n/8] |= 1 << (n % 8)
		}
	}
	if len(mask) == 0 {
		return nil, errors.New("empty value")
	}
	return mask, nil
}

// properties say to systemd who may have access to devices, so that it does not let in more when
// it sets up the cgroup again. It knows lists of what is allowed, and no minor number of all major
// ones. What it cannot be told is with version 2 left to our own program, which it does
// not touch; with version 1 it gets less than is in force.
func (r *Rules) properties(pure bool) []systemd.Property {
	policy, list := "strict", []systemd.Device{}
	told := !r.Allow
	for _, d := range r.order {
		access, ok := r.exceptions[d]
		if !ok {
			continue
		}
		if r.Allow || d.major == anyNumber && d.minor != anyNumber {
			told = false
			continue
		}
		kind := map[byte]string{'b': "block", 'c': "char"}[d.kind]
		path := fmt.Sprintf("/dev/%s/%d:%d", kind, d.major, d.minor)
		switch {
		case d.major == anyNumber:
			path = kind + "-*"
		case d.minor == anyNumber:
			path = kind + "-" + strconv.FormatInt(d.major, 10)
		}
		words := d.words(access)
		list = append(list, systemd.Device{Path: path, Access: words[strings.LastIndexByte(words, ' ')+1:]})
	}
	if r.Allow && len(r.exceptions) == 0 || pure && !told {
		policy, list = "auto", []systemd.Device{}
	}
	return []systemd.Property{{Name: "DevicePolicy", Value: policy}, {Name: "DeviceAllow", Value: list}}
}

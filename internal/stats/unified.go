package stats

import (
	"os"

	"github.com/moby/moby/api/types/container"
)

// readUnified reads version 2: one directory has it all.
func (r *Reader) readUnified(s *container.StatsResponse, path string) error {
	name, _ := r.cgroups.Dir("", path)
	if _, err := os.Stat(name); err != nil {
		return err
	}
	d := dir(name)
	cpu, err := d.table("cpu.stat")
	if err != nil {
		return err
	}
	const micro = 1000 // nanoseconds
	s.CPUStats.CPUUsage = container.CPUUsage{
		TotalUsage: cpu["usage_usec"] * micro, UsageInUsermode: cpu["user_usec"] * micro, UsageInKernelmode: cpu["system_usec"] * micro,
	}
	s.CPUStats.ThrottlingData = container.ThrottlingData{
		Periods: cpu["nr_periods"], ThrottledPeriods: cpu["nr_throttled"], ThrottledTime: cpu["throttled_usec"] * micro,
	}
	if err := unifiedMemory(&s.MemoryStats, d); err != nil {
		return err
	}
	io, err := d.text("io.stat")
	if err != nil {
		return err
	}
	s.BlkioStats.IoServiceBytesRecursive = parseIO(io)
	return readPids(&s.PidsStats, d)
}

func unifiedMemory(m *container.MemoryStats, d dir) (err error) {
	if m.Stats, err = d.table("memory.stat"); err != nil {
		return err
	}
	events, err := d.table("memory.events")
	if err != nil {
		return err
	}
	m.Failcnt = events["oom"]
	if err := d.number("memory.current", &m.Usage); err != nil {
		return err
	}
	return d.number("memory.max", &m.Limit)
}

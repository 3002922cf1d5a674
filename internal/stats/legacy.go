package stats

import (
	"math"
	"os"

	"github.com/moby/moby/api/types/container"
)

// readLegacy reads version 1, where each controller has a hierarchy of its own.
func (r *Reader) readLegacy(s *container.StatsResponse, path string) error {
	at := func(controller string) dir {
		d, ok := r.cgroups.Dir(controller, path)
		if !ok {
			return ""
		}
		return dir(d)
	}
	// Each hierarchy loses the cgroup at its own time; one is asked for all.
	for _, controller := range []string{"memory", "cpuacct", "pids"} {
		if d := at(controller); d != "" {
			if _, err := os.Stat(string(d)); err != nil {
				return err
			}
			break
		}
	}
	for _, read := range []func() error{
		func() error { return legacyCPU(&s.CPUStats, at("cpuacct"), at("cpu")) },
		func() error { return legacyMemory(&s.MemoryStats, at("memory")) },
		func() error { return legacyBlkio(&s.BlkioStats, at("blkio")) },
		func() error { return readPids(&s.PidsStats, at("pids")) },
	} {
		if err := read(); err != nil {
			return err
		}
	}
	return nil
}

func legacyCPU(c *container.CPUStats, acct, cpu dir) error {
	if err := acct.number("cpuacct.usage", &c.CPUUsage.TotalUsage); err != nil {
		return err
	}
	each, err := acct.text("cpuacct.usage_percpu")
	if err != nil {
		return err
	}
	c.CPUUsage.PercpuUsage = parseNumbers(each)
	times, err := acct.table("cpuacct.stat")
	if err != nil {
		return err
	}
	c.CPUUsage.UsageInUsermode, c.CPUUsage.UsageInKernelmode = times["user"]*tick, times["system"]*tick
	throttled, err := cpu.table("cpu.stat")
	c.ThrottlingData = container.ThrottlingData{
		Periods: throttled["nr_periods"], ThrottledPeriods: throttled["nr_throttled"], ThrottledTime: throttled["throttled_time"],
	}
	return err
}

func legacyMemory(m *container.MemoryStats, d dir) (err error) {
	if m.Stats, err = d.table("memory.stat"); err != nil {
		return err
	}
	for _, f := range []struct {
		file string
		to   *uint64
	}{
		{"memory.usage_in_bytes", &m.Usage},
		{"memory.max_usage_in_bytes", &m.MaxUsage},
		{"memory.failcnt", &m.Failcnt},
		{"memory.limit_in_bytes", &m.Limit},
	} {
		if err := d.number(f.file, f.to); err != nil {
			return err
		}
	}
	return nil
}

// legacyBlkio reads what the I/O scheduler counted, by whichever there is; the
// throttling layer sees all of it and is the one that is always there.
func legacyBlkio(b *container.BlkioStats, d dir) error {
	for _, f := range []struct {
		to    *[]container.BlkioStatEntry
		files []string
	}{
		{&b.IoServiceBytesRecursive, []string{"blkio.io_service_bytes_recursive", "blkio.throttle.io_service_bytes_recursive", "blkio.bfq.io_service_bytes_recursive", "blkio.throttle.io_service_bytes"}},
		{&b.IoServicedRecursive, []string{"blkio.io_serviced_recursive", "blkio.throttle.io_serviced_recursive", "blkio.bfq.io_serviced_recursive", "blkio.throttle.io_serviced"}},
		{&b.IoQueuedRecursive, []string{"blkio.io_queued_recursive"}},
		{&b.IoServiceTimeRecursive, []string{"blkio.io_service_time_recursive"}},
		{&b.IoWaitTimeRecursive, []string{"blkio.io_wait_time_recursive"}},
		{&b.IoMergedRecursive, []string{"blkio.io_merged_recursive"}},
		{&b.IoTimeRecursive, []string{"blkio.time_recursive"}},
		{&b.SectorsRecursive, []string{"blkio.sectors_recursive"}},
	} {
		*f.to = []container.BlkioStatEntry{} // as Docker tells of version 1: empty, not null
		for _, file := range f.files {
			s, err := d.text(file)
			if err != nil {
				return err
			}
			if entries := parseBlkio(s); len(entries) > 0 {
				*f.to = entries
				break
			}
		}
	}
	return nil
}

// readPids is the same in both versions. No limit is 0.
func readPids(p *container.PidsStats, d dir) error {
	if err := d.number("pids.current", &p.Current); err != nil {
		return err
	}
	err := d.number("pids.max", &p.Limit)
	if p.Limit == math.MaxUint64 {
		p.Limit = 0
	}
	return err
}

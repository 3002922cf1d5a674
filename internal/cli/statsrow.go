package cli

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"

	"escale.dev/escale/internal/cli/table"
)

const statsTable = `table {{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}`

// statsRow is a container's figures in a list. Its methods are the fields of a
// template.
type statsRow struct {
	container string // as asked for
	s         *container.StatsResponse
	known     bool // there are figures
	trunc     bool
}

// Headers gives the title of each column.
func (r *statsRow) Headers() map[string]string {
	return map[string]string{
		"Container": "CONTAINER", "ID": "CONTAINER ID", "Name": "NAME", "CPUPerc": "CPU %", "MemUsage": "MEM USAGE / LIMIT",
		"MemPerc": "MEM %", "NetIO": "NET I/O", "BlockIO": "BLOCK I/O", "PIDs": "PIDS",
	}
}

// MarshalJSON gives every field by its name.
func (r *statsRow) MarshalJSON() ([]byte, error) { return table.MarshalRow(r) }

// Container is the name or ID that was asked for.
func (r *statsRow) Container() string { return r.container }

// ID is the container's ID, short unless --no-trunc.
func (r *statsRow) ID() string { return shortID(r.s.ID, r.trunc) }

// Name is the container's name.
func (r *statsRow) Name() string {
	if len(r.s.Name) > 1 {
		return strings.TrimPrefix(r.s.Name, "/")
	}
	return "--"
}

// CPUPerc is the CPU time since the sample before; 100% is one processor.
func (r *statsRow) CPUPerc() string {
	if !r.known {
		return "--"
	}
	return formatPercent(cpuPercent(r.s))
}

// MemUsage is the memory in use and the limit.
func (r *statsRow) MemUsage() string {
	if !r.known {
		return "-- / --"
	}
	return units.BytesSize(float64(memoryUsed(&r.s.MemoryStats))) + " / " + units.BytesSize(float64(r.s.MemoryStats.Limit))
}

// MemPerc is the share of the limit that is in use.
func (r *statsRow) MemPerc() string {
	if !r.known {
		return "--"
	}
	m := &r.s.MemoryStats
	if m.Limit == 0 {
		return formatPercent(0)
	}
	return formatPercent(float64(memoryUsed(m)) / float64(m.Limit) * 100)
}

// NetIO is what was received and sent.
func (r *statsRow) NetIO() string {
	if !r.known {
		return "--"
	}
	var rx, tx uint64
	for _, n := range r.s.Networks {
		rx, tx = rx+n.RxBytes, tx+n.TxBytes
	}
	return transferred(rx, tx)
}

// BlockIO is what was read from block devices and written to them.
func (r *statsRow) BlockIO() string {
	if !r.known {
		return "--"
	}
	var read, written uint64
	for _, e := range r.s.BlkioStats.IoServiceBytesRecursive {
		switch strings.ToLower(e.Op) {
		case "read":
			read += e.Value
		case "write":
			written += e.Value
		}
	}
	return transferred(read, written)
}

// PIDs counts processes and threads.
func (r *statsRow) PIDs() string {
	if !r.known {
		return "--"
	}
	return strconv.FormatUint(r.s.PidsStats.Current, 10)
}

func transferred(in, out uint64) string {
	return units.HumanSizeWithPrecision(float64(in), 3) + " / " + units.HumanSizeWithPrecision(float64(out), 3)
}

func formatPercent(p float64) string { return fmt.Sprintf("%.2f%%", p) }

// cpuPercent compares the container's time with that of the whole machine.
func cpuPercent(s *container.StatsResponse) float64 {
	now, before := &s.CPUStats, &s.PreCPUStats
	used := float64(now.CPUUsage.TotalUsage) - float64(before.CPUUsage.TotalUsage)
	passed := float64(now.SystemUsage) - float64(before.SystemUsage)
	cpus := float64(now.OnlineCPUs)
	if cpus == 0 {
		cpus = float64(len(now.CPUUsage.PercpuUsage))
	}
	if used <= 0 || passed <= 0 {
		return 0
	}
	return used / passed * cpus * 100
}

// memoryUsed leaves out cached files that the kernel can drop at once: by their
// name in cgroups of version 1, then of version 2.
func memoryUsed(m *container.MemoryStats) uint64 {
	for _, name := range []string{"total_inactive_file", "inactive_file"} {
		if cache, ok := m.Stats[name]; ok && cache < m.Usage {
			return m.Usage - cache
		}
	}
	return m.Usage
}

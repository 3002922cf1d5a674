package stats

import (
	"math"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
)

// tick is a clock tick of user space (USER_HZ, 100 on every architecture) in
// nanoseconds.
const tick = 1e9 / 100

// parseNumber reads a number; "max", which is the kernel's word for no limit,
// is the greatest there is, and what is no number is 0.
func parseNumber(s string) uint64 {
	if s == "max" {
		return math.MaxUint64
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// parseTable reads lines "name number"; others are left out.
func parseTable(s string) map[string]uint64 {
	out := make(map[string]uint64, strings.Count(s, "\n"))
	for line := range strings.Lines(s) {
		f := strings.Fields(line)
		if len(f) != 2 {
			continue
		}
		if n, err := strconv.ParseUint(f[1], 10, 64); err == nil {
			out[f[0]] = n
		}
	}
	return out
}

// parseNumbers reads numbers between spaces.
func parseNumbers(s string) []uint64 {
	var out []uint64
	for _, f := range strings.Fields(s) {
		out = append(out, parseNumber(f))
	}
	return out
}

// parseDevice reads "8:16".
func parseDevice(s string) (major, minor uint64, ok bool) {
	a, b, ok := strings.Cut(s, ":")
	if !ok {
		return 0, 0, false
	}
	major, err := strconv.ParseUint(a, 10, 32)
	if err != nil {
		return 0, 0, false
	}
	minor, err = strconv.ParseUint(b, 10, 32)
	return major, minor, err == nil
}

// parseBlkio reads a file of version 1's blkio controller: lines
// "8:0 Read 4096" or "8:0 4096", and a total at the end, which is left out.
func parseBlkio(s string) []container.BlkioStatEntry {
	out := []container.BlkioStatEntry{}
	for line := range strings.Lines(s) {
		f := strings.Fields(line)
		if len(f) < 2 || len(f) > 3 {
			continue
		}
		major, minor, ok := parseDevice(f[0])
		n, err := strconv.ParseUint(f[len(f)-1], 10, 64)
		if !ok || err != nil {
			continue
		}
		e := container.BlkioStatEntry{Major: major, Minor: minor, Value: n}
		if len(f) == 3 {
			e.Op = strings.ToLower(f[1])
		}
		out = append(out, e)
	}
	return out
}

// parseIO reads version 2's io.stat: lines "8:0 rbytes=1 wbytes=2 rios=3 …".
func parseIO(s string) []container.BlkioStatEntry {
	var out []container.BlkioStatEntry
	for line := range strings.Lines(s) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		major, minor, ok := parseDevice(f[0])
		if !ok {
			continue
		}
		for _, kv := range f[1:] {
			key, value, _ := strings.Cut(kv, "=")
			op := ""
			switch key {
			case "rbytes":
				op = "read"
			case "wbytes":
				op = "write"
			default:
				continue
			}
			if n, err := strconv.ParseUint(value, 10, 64); err == nil {
				out = append(out, container.BlkioStatEntry{Major: major, Minor: minor, Op: op, Value: n})
			}
		}
	}
	return out
}

// parseSystem reads /proc/stat: the time that all processors together spent on
// anything at all, idle included, in nanoseconds, and how many there are. Time
// given to guests is in the time of the process that runs them already.
func parseSystem(s string) (usage uint64, cpus uint32) {
	for line := range strings.Lines(s) {
		f := strings.Fields(line)
		if len(f) == 0 || !strings.HasPrefix(f[0], "cpu") {
			continue
		}
		if f[0] != "cpu" {
			cpus++
			continue
		}
		// user nice system idle iowait irq softirq
		for _, n := range f[1:min(len(f), 8)] {
			usage += parseNumber(n) * tick
		}
	}
	return usage, cpus
}

// parseNetDev reads /proc/net/dev by interface: eight counters received, eight
// sent, the first four of each being bytes, packets, errors, drops.
func parseNetDev(s string) map[string]container.NetworkStats {
	out := map[string]container.NetworkStats{}
	for line := range strings.Lines(s) {
		name, rest, ok := strings.Cut(line, ":")
		f := strings.Fields(rest)
		if !ok || len(f) < 12 {
			continue // the two lines of the heading
		}
		n := parseNumbers(strings.Join(f, " "))
		out[strings.TrimSpace(name)] = container.NetworkStats{
			RxBytes: n[0], RxPackets: n[1], RxErrors: n[2], RxDropped: n[3],
			TxBytes: n[8], TxPackets: n[9], TxErrors: n[10], TxDropped: n[11],
		}
	}
	return out
}

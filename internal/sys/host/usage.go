package host

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Usage is how busy a machine is.
type Usage struct {
	Busy, Total uint64 // of its processors since it is up, in ticks; two Usages make a rate
	Memory      int64  // bytes that cannot be had without swapping
}

// ReadUsage reads /proc/stat and /proc/meminfo (proc(5)).
func ReadUsage() (u Usage, err error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return u, err
	}
	if u.Busy, u.Total, err = parseCPU(b); err != nil {
		return u, fmt.Errorf("/proc/stat: %w", err)
	}
	if b, err = os.ReadFile("/proc/meminfo"); err != nil {
		return u, err
	}
	if u.Memory, err = parseUsed(b); err != nil {
		return u, fmt.Errorf("/proc/meminfo: %w", err)
	}
	return u, nil
}

// parseCPU reads the first line: user, nice, system, idle, iowait, irq, softirq, steal;
// guests' time is part of user and nice.
func parseCPU(b []byte) (busy, total uint64, err error) {
	line, _, _ := bytes.Cut(b, []byte("\n"))
	f := strings.Fields(string(line))
	if len(f) < 5 || f[0] != "cpu" {
		return 0, 0, fmt.Errorf("no line of all processors")
	}
	for i, text := range f[1:min(len(f), 9)] {
		n, err := strconv.ParseUint(text, 10, 63)
		if err != nil {
			return 0, 0, err
		}
		total += n
		if i != 3 && i != 4 { // idle, and idle though something waits for a disk
			busy += n
		}
	}
	return busy, total, nil
}

// parseUsed is MemTotal without MemAvailable.
func parseUsed(b []byte) (int64, error) {
	var total, free int64
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		to := map[string]*int64{"MemTotal": &total, "MemAvailable": &free}[key]
		if to == nil {
			continue
		}
		kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 53)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", key, err)
		}
		*to = kb * 1024
	}
	if total <= 0 || free < 0 || free > total {
		return 0, fmt.Errorf("MemTotal %d, MemAvailable %d", total, free)
	}
	return total - free, nil
}

package harness

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
)

// Footprint is what an engine holds at one instant.
type Footprint struct {
	RSS, PSS    int64 // bytes, as the kernel counts them
	Anon        int64 // bytes of RSS that are not the program's: its pages come and go with what is done
	Heap        int64 // bytes of live objects after a collection
	Goroutines  int
	Descriptors int
}

// String is "RSS 25.1 MB, …".
func (f Footprint) String() string {
	mb := func(n int64) float64 { return float64(n) / (1 << 20) }
	return fmt.Sprintf("RSS %.1f MB, %.1f of them anonymous, PSS %.1f MB, heap %.2f MB, %d goroutines, %d descriptors", mb(f.RSS), mb(f.Anon), mb(f.PSS), mb(f.Heap), f.Goroutines, f.Descriptors)
}

var (
	heapAlloc  = regexp.MustCompile(`(?m)^# HeapAlloc = (\d+)$`)
	goroutines = regexp.MustCompile(`^goroutine profile: total (\d+)`)
)

// Footprint measures the engine, which must run with --debug: its garbage is
// collected first.
func (e *Engine) Footprint(ctx context.Context) (f Footprint, err error) {
	api := e.API()
	defer api.Close()
	number := func(path string, in *regexp.Regexp) int64 {
		if err != nil {
			return 0
		}
		var st int
		var body []byte
		if st, body, err = api.Raw(ctx, "GET", path, nil); err != nil {
			return 0
		}
		m := in.FindSubmatch(body)
		if m == nil {
			err = fmt.Errorf("GET %s: %d: nothing like %s (does the engine run with --debug?)", path, st, in)
			return 0
		}
		var n int64
		n, err = strconv.ParseInt(string(m[1]), 10, 64)
		return n
	}
	f.Heap = number("/debug/pprof/heap?gc=1&debug=1", heapAlloc)
	f.Goroutines = int(number("/debug/pprof/goroutine?debug=1", goroutines))
	if err != nil {
		return f, err
	}
	pid := e.Pid()
	f.RSS, f.PSS, f.Anon = rss(pid), pss(pid), statusBytes(pid, "RssAnon:")
	for _, n := range descriptors(pid) {
		f.Descriptors += n
	}
	return f, nil
}

func pss(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "Pss:" {
			kb, _ := strconv.ParseInt(f[1], 10, 64)
			return kb << 10
		}
	}
	return 0
}

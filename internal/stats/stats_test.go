package stats

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"escale.dev/escale/internal/sys/cgroup"
	"github.com/moby/moby/api/types/container"
)

// tree writes files below a new directory.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

const (
	procStat = "cpu  100 2 30 4000 5 6 7 8 9 10\ncpu0 50 1 15 2000 2 3 3 4 4 5\ncpu1 50 1 15 2000 3 3 4 4 5 5\nintr 1 2\nctxt 3\n"
	meminfo  = "MemTotal:        2048000 kB\nMemFree:          100 kB\n"
	netDev   = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     999       9    0    0    0     0          0         0      999       9    0    0    0     0       0          0
  eth0:1000      10    1    2    0     0          0         0     2000      20    3    4    0     0       0          0
tunl0:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0
`
)

var (
	system = uint64(100+2+30+4000+5+6+7) * 10_000_000
	eth0   = map[string]container.NetworkStats{"eth0": {RxBytes: 1000, RxPackets: 10, RxErrors: 1, RxDropped: 2, TxBytes: 2000, TxPackets: 20, TxErrors: 3, TxDropped: 4}}
	noon   = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
)

func reader(root string, i cgroup.Info) *Reader {
	r := New(i)
	r.root, r.now = root, func() time.Time { return noon }
	return r
}

func legacyInfo(root string) cgroup.Info {
	i := cgroup.Info{Mode: cgroup.Hybrid, Mounts: map[string]string{}, Unified: root + "/cg/unified"}
	for _, c := range []string{"memory", "cpu", "cpuacct", "blkio", "pids"} {
		i.Mounts[c] = root + "/cg/" + c
		i.Controllers = append(i.Controllers, c)
	}
	return i
}

func TestLegacy(t *testing.T) {
	root := tree(t, map[string]string{
		"proc/stat": procStat, "proc/meminfo": meminfo, "proc/7/net/dev": netDev,
		"cg/cpuacct/docker/x/cpuacct.usage":                           "30232683\n",
		"cg/cpuacct/docker/x/cpuacct.usage_percpu":                    "20660262 9572421 \n",
		"cg/cpuacct/docker/x/cpuacct.stat":                            "user 12\nsystem 3\n",
		"cg/cpu/docker/x/cpu.stat":                                    "nr_periods 5\nnr_throttled 2\nthrottled_time 77\n",
		"cg/memory/docker/x/memory.usage_in_bytes":                    "1974272\n",
		"cg/memory/docker/x/memory.max_usage_in_bytes":                "3837952\n",
		"cg/memory/docker/x/memory.failcnt":                           "4\n",
		"cg/memory/docker/x/memory.limit_in_bytes":                    "67108864\n",
		"cg/memory/docker/x/memory.stat":                              "cache 1572864\nrss 102400\ntotal_inactive_file 1466368\n",
		"cg/blkio/docker/x/blkio.throttle.io_service_bytes_recursive": "8:0 Read 4096\n8:0 Write 0\n8:0 Sync 4096\nTotal 4096\n",
		"cg/blkio/docker/x/blkio.throttle.io_serviced_recursive":      "Total 0\n",
		"cg/pids/docker/x/pids.current":                               "3\n",
		"cg/pids/docker/x/pids.max":                                   "33\n",
	})
	got, err := reader(root, legacyInfo(root)).Read(Target{Cgroup: "/docker/x", Pid: 7, Links: []string{"eth0"}})
	if err != nil {
		t.Fatal(err)
	}
	none := []container.BlkioStatEntry{}
	want := &container.StatsResponse{
		OSType: "linux", Read: noon, Networks: eth0,
		CPUStats: container.CPUStats{
			CPUUsage:    container.CPUUsage{TotalUsage: 30232683, PercpuUsage: []uint64{20660262, 9572421}, UsageInUsermode: 120_000_000, UsageInKernelmode: 30_000_000},
			SystemUsage: system, OnlineCPUs: 2, ThrottlingData: container.ThrottlingData{Periods: 5, ThrottledPeriods: 2, ThrottledTime: 77},
		},
		MemoryStats: container.MemoryStats{
			Usage: 1974272, MaxUsage: 3837952, Failcnt: 4, Limit: 67108864,
			Stats: map[string]uint64{"cache": 1572864, "rss": 102400, "total_inactive_file": 1466368},
		},
		BlkioStats: container.BlkioStats{
			IoServiceBytesRecursive: []container.BlkioStatEntry{{Major: 8, Op: "read", Value: 4096}, {Major: 8, Op: "write"}, {Major: 8, Op: "sync", Value: 4096}},
			IoServicedRecursive:     none, IoQueuedRecursive: none, IoServiceTimeRecursive: none, IoWaitTimeRecursive: none,
			IoMergedRecursive: none, IoTimeRecursive: none, SectorsRecursive: none,
		},
		PidsStats: container.PidsStats{Current: 3, Limit: 33},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v, want\n%+v", got, want)
	}
}

func TestUnified(t *testing.T) {
	root := tree(t, map[string]string{
		"proc/stat": procStat, "proc/meminfo": meminfo, "proc/7/net/dev": netDev,
		"cg/docker/x/cpu.stat":       "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 9\nnr_throttled 8\nthrottled_usec 7\n",
		"cg/docker/x/memory.current": "5000000\n",
		"cg/docker/x/memory.max":     "max\n",
		"cg/docker/x/memory.stat":    "anon 4000\nfile 1000\ninactive_file 900\n",
		"cg/docker/x/memory.events":  "low 0\nhigh 0\nmax 3\noom 2\noom_kill 1\n",
		"cg/docker/x/io.stat":        "8:16 rbytes=100 wbytes=200 rios=1 wios=2 dbytes=0 dios=0\n253:0\n",
		"cg/docker/x/pids.current":   "2\n",
		"cg/docker/x/pids.max":       "max\n",
	})
	r := reader(root, cgroup.Info{Mode: cgroup.Unified, Unified: root + "/cg", Controllers: []string{"cpu", "io", "memory", "pids"}})
	got, err := r.Read(Target{Cgroup: "/docker/x", Pid: 7})
	if err != nil {
		t.Fatal(err)
	}
	want := &container.StatsResponse{
		OSType: "linux", Read: noon,
		CPUStats: container.CPUStats{
			CPUUsage:    container.CPUUsage{TotalUsage: 1_500_000, UsageInUsermode: 1_000_000, UsageInKernelmode: 500_000},
			SystemUsage: system, OnlineCPUs: 2, ThrottlingData: container.ThrottlingData{Periods: 9, ThrottledPeriods: 8, ThrottledTime: 7000},
		},
		// Without a limit of its own the machine's memory is the limit.
		MemoryStats: container.MemoryStats{Usage: 5000000, Failcnt: 2, Limit: 2048000 << 10, Stats: map[string]uint64{"anon": 4000, "file": 1000, "inactive_file": 900}},
		BlkioStats:  container.BlkioStats{IoServiceBytesRecursive: []container.BlkioStatEntry{{Major: 8, Minor: 16, Op: "read", Value: 100}, {Major: 8, Minor: 16, Op: "write", Value: 200}}},
		PidsStats:   container.PidsStats{Current: 2},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v, want\n%+v", got, want)
	}
}

// What has ended is not there, in whatever order its parts go.
func TestGone(t *testing.T) {
	root := tree(t, map[string]string{
		"proc/stat": procStat, "proc/meminfo": meminfo,
		"cg/memory/docker/x/memory.usage_in_bytes": "1\n", "v2/docker/x/cpu.stat": "",
	})
	legacy := reader(root, legacyInfo(root))
	unified := reader(root, cgroup.Info{Mode: cgroup.Unified, Unified: root + "/v2"})
	for _, c := range []struct {
		r *Reader
		t Target
	}{
		{legacy, Target{Cgroup: "/docker/y"}},
		{legacy, Target{Cgroup: "/docker/x", Pid: 7, Links: []string{"eth0"}}},
		{unified, Target{Cgroup: "/docker/y"}},
		{unified, Target{Cgroup: "/docker/x", Pid: 7, Links: []string{"eth0"}}},
	} {
		if s, err := c.r.Read(c.t); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%+v: %+v, %v", c.t, s, err)
		}
	}
	// A kernel that counts little has zeros, not errors.
	for _, r := range []*Reader{legacy, unified} {
		if s, err := r.Read(Target{Cgroup: "/docker/x"}); err != nil || s.PidsStats.Current != 0 {
			t.Errorf("%+v, %v", s, err)
		}
	}
}

// The machine's own figures, read as they are.
func TestHere(t *testing.T) {
	i, err := cgroup.Detect()
	if err != nil || i.Mode == cgroup.None {
		t.Skipf("needs cgroups: %v", err)
	}
	s, err := New(i).Read(Target{Cgroup: "/", Pid: os.Getpid(), Links: []string{"lo"}})
	if err != nil {
		t.Fatal(err)
	}
	if s.CPUStats.SystemUsage == 0 || s.CPUStats.OnlineCPUs == 0 || len(s.Networks) != 1 {
		t.Errorf("%+v", s)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{procStat, netDev, meminfo, "8:0 Read 4096\nTotal 1\n", "8:16 rbytes=1 wbytes=\n", "max", "1 2 max", "a 1\nb -1\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		parseNumber(s)
		parseNumbers(s)
		for _, e := range append(parseBlkio(s), parseIO(s)...) {
			if e.Major>>32 != 0 || e.Minor>>32 != 0 {
				t.Errorf("device %d:%d", e.Major, e.Minor)
			}
		}
		for name := range parseTable(s) {
			if name == "" {
				t.Error("a figure without a name")
			}
		}
		parseSystem(s)
		parseNetDev(s)
	})
}

func BenchmarkRead(b *testing.B) {
	i, err := cgroup.Detect()
	if err != nil || i.Mode == cgroup.None {
		b.Skipf("needs cgroups: %v", err)
	}
	r := New(i)
	for b.Loop() {
		if _, err := r.Read(Target{Cgroup: "/", Pid: os.Getpid(), Links: []string{"lo"}}); err != nil {
			b.Fatal(err)
		}
	}
}

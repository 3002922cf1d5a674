package etcd

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/etcd/child"
)

// Changes of one object among 10 000 by one writer and by 64 at once, in clusters of one and
// of three; what reading all of them takes, and what the servers have in memory.
func BenchmarkCommit(b *testing.B) {
	const n = 10_000
	for _, members := range []int{1, 3} {
		cfgs := make([]child.Config, members)
		var all []string
		for i := range cfgs {
			cfgs[i] = config(b, fmt.Sprint("m", i+1))
			cfgs[i].Heartbeat, cfgs[i].Election = 0, 0 // as they are in earnest
			all = append(all, cfgs[i].Name+"="+cfgs[i].Listen)
		}
		var servers []*running
		began := time.Now()
		for _, cfg := range cfgs {
			cfg.Cluster = strings.Join(all, ",")
			servers = append(servers, start(b, cfg))
		}
		for _, r := range servers {
			r.ready(b)
		}
		first := servers[0]
		b.Logf("%d servers were ready after %v", members, time.Since(began))
		s := first.open(b)
		tasks := make([]*cluster.Task, n)
		for i := 0; i < n; i += store.MaxChanges {
			var some []store.Change
			for j := range store.MaxChanges {
				tasks[i+j] = &cluster.Task{Meta: cluster.Meta{Owner: fmt.Sprint(i)}, Slot: uint64(j)}
				some = append(some, store.Create(tasks[i+j]))
			}
			must(b, s, some...)
		}
		change := func(i int) {
			t := tasks[i%n]
			t.Status.State = cluster.TaskRunning
			if _, err := s.Commit(context.Background(), store.Update(t)); err != nil {
				b.Fatal(err)
			}
		}
		b.Run(fmt.Sprintf("members=%d/writers=1", members), func(b *testing.B) {
			for i := range b.N {
				change(i)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commits/s")
		})
		b.Run(fmt.Sprintf("members=%d/writers=64", members), func(b *testing.B) {
			var next atomic.Int64
			b.SetParallelism(32) // of each of the processors
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					change(int(next.Add(1)))
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "commits/s")
		})
		b.Run(fmt.Sprintf("members=%d/open", members), func(b *testing.B) {
			for range b.N {
				if err := first.open(b).Close(); err != nil {
					b.Fatal(err)
				}
			}
			state, _ := first.State()
			b.ReportMetric(memory(b, state.PID, "VmRSS"), "server-MB")
			b.ReportMetric(memory(b, state.PID, "RssAnon"), "server-anon-MB")
		})
	}
}

// memory is what a process has, in MB.
func memory(b *testing.B, pid int, what string) float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), what+":")
	kb, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
	if err != nil {
		b.Fatal(err)
	}
	return kb / 1000
}

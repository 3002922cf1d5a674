package bolt

import (
	"context"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
)

// Changes of one object among so many, by one writer and by 64 at once.
func BenchmarkCommit(b *testing.B) {
	for _, n := range []int{100, 10_000} {
		s, err := Open(filepath.Join(b.TempDir(), "state.db"))
		if err != nil {
			b.Fatal(err)
		}
		defer s.Close()
		tasks := make([]*cluster.Task, n)
		for i := 0; i < n; i += store.MaxChanges {
			var all []store.Change
			for j := range store.MaxChanges {
				tasks[i+j] = &cluster.Task{Meta: cluster.Meta{Owner: fmt.Sprint(i)}, Slot: uint64(j)}
				all = append(all, store.Create(tasks[i+j]))
			}
			if _, err := s.Commit(b.Context(), all...); err != nil {
				b.Fatal(err)
			}
		}
		change := func(i int) {
			t := tasks[i%n]
			t.Status.State = cluster.TaskRunning
			if _, err := s.Commit(context.Background(), store.Update(t)); err != nil {
				b.Fatal(err)
			}
		}
		b.Run(fmt.Sprintf("objects=%d/writers=1", n), func(b *testing.B) {
			for i := range b.N {
				change(i)
			}
		})
		b.Run(fmt.Sprintf("objects=%d/writers=64", n), func(b *testing.B) {
			var next atomic.Int64
			b.SetParallelism(32) // of each of the processors
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					change(int(next.Add(1)))
				}
			})
		})
	}
}

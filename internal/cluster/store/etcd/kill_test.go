package etcd

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
)

// A server that is killed amid commits, again and again, loses none that was acknowledged,
// does none twice and leaves none in halves; the store goes on by itself, and who watches
// sees each commit once.
func TestServerKilled(t *testing.T) {
	r := start(t, config(t, "m1")).ready(t)
	s := r.open(t)
	w, err := s.Watch(0)
	if err != nil {
		t.Fatal(err)
	}
	acked := storm(t, []*Store{s}, 8, 5, func() {
		state, _ := r.State()
		if state.Ready {
			_ = syscall.Kill(state.PID, syscall.SIGKILL)
		}
	})
	r.ready(t)
	check(t, s, w, acked)
	if state, _ := r.State(); state.Starts < 3 {
		t.Errorf("it was started %d times", state.Starts)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again := r.open(t) // what others read is what this one had
	if a, b := saved(t, s), saved(t, again); a != b {
		t.Errorf("read anew it is another:\n%s\n%s", a, b)
	}
}

// storm commits to each store from several writers while fault is done, so many times, and
// gives the names that were acknowledged.
func storm(t *testing.T, stores []*Store, writers, faults int, fault func()) []string {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	var mu sync.Mutex
	var acked []string
	var group sync.WaitGroup
	for i := range writers * len(stores) {
		s := stores[i%len(stores)]
		group.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				name := fmt.Sprintf("s%d-%d", i, n)
				_, err := s.Commit(context.Background(), store.Create(&cluster.Service{Meta: cluster.Meta{Name: name}}), store.Create(&cluster.Task{Meta: cluster.Meta{Name: name}}))
				switch {
				case err == nil:
					mu.Lock()
					acked = append(acked, name)
					mu.Unlock()
				case !errdefs.IsUnavailable(err):
					t.Errorf("%s: %v", name, err)
					return
				}
			}
		})
	}
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(acked)
	}
	for range faults {
		from := count()
		eventually(t, func() string {
			if count() >= from+30 {
				return ""
			}
			return "nothing is committed any more"
		})
		time.Sleep(time.Duration(rand.IntN(10)) * time.Millisecond) // anywhere in a commit
		fault()
	}
	from := count()
	eventually(t, func() string {
		if count() > from {
			return ""
		}
		return "nothing is committed after the last fault"
	})
	stop()
	group.Wait()
	return acked
}

// check compares what is there with what was acknowledged and what was watched.
func check(t *testing.T, s store.Store, w *store.Watch, acked []string) {
	t.Helper()
	v := s.View()
	var services, tasks []string
	for _, o := range store.List[*cluster.Service](v) {
		services = append(services, o.Name)
	}
	for _, o := range store.List[*cluster.Task](v) {
		tasks = append(tasks, o.Name)
	}
	slices.Sort(services)
	slices.Sort(tasks)
	if !slices.Equal(services, tasks) {
		t.Errorf("a commit in halves: %d services, %d tasks", len(services), len(tasks))
	}
	if uint64(len(services)) != v.Revision() {
		t.Errorf("%d commits led to revision %d", len(services), v.Revision())
	}
	for _, name := range acked {
		if _, ok := slices.BinarySearch(services, name); !ok {
			t.Errorf("%s was acknowledged and is lost", name)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	for at := uint64(0); at < v.Revision(); {
		list, err := w.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range list {
			if at++; c.Revision != at || len(c.Events) != 2 {
				t.Fatalf("commit %d was told as %d, with %d events", at, c.Revision, len(c.Events))
			}
		}
	}
}

// Servers of three managers that are killed while all three write: what was acknowledged is
// there, once, at all of them, whoever was in doubt and decided anew.
func TestManagersKilled(t *testing.T) {
	for name, patience := range map[string]time.Duration{"patient": soon, "impatient": 100 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			all := managers(t, 3, func(c *Config) { c.Patience = patience })
			stores := []*Store{all[0].s, all[1].s, all[2].s}
			w, err := stores[1].Watch(0)
			if err != nil {
				t.Fatal(err)
			}
			next := 0
			acked := storm(t, stores, 4, 4, func() {
				m := all[next%3]
				next++
				eventually(t, func() string { // one at a time
					for _, m := range all {
						if state, _ := m.State(); !state.Ready {
							return m.cfg.Name + " does not come back"
						}
					}
					return ""
				})
				state, _ := m.State()
				_ = syscall.Kill(state.PID, syscall.SIGKILL)
			})
			for _, m := range all {
				m.ready(t)
			}
			eventually(t, func() string { // what was in doubt is decided, and all know of it
				for _, m := range all {
					if _, err := m.s.Commit(t.Context(), store.Create(&cluster.Service{Meta: cluster.Meta{Name: cluster.NewID()}}), store.Create(&cluster.Network{Meta: cluster.Meta{Name: cluster.NewID()}})); err != nil {
						return err.Error()
					}
				}
				return ""
			})
			alike(t, all)
			checkMany(t, all[1].s, w, acked)
		})
	}
}

// checkMany compares what is there with what was acknowledged, and each commit of a watch with
// the one before.
func checkMany(t *testing.T, s store.Store, w *store.Watch, acked []string) {
	t.Helper()
	v := s.View()
	services, tasks := map[string]int{}, map[string]int{}
	for _, o := range store.List[*cluster.Service](v) {
		services[o.Name]++
	}
	for _, o := range store.List[*cluster.Task](v) {
		tasks[o.Name]++
	}
	for _, name := range acked {
		if services[name] != 1 || tasks[name] != 1 {
			t.Errorf("%s was acknowledged; there are %d services and %d tasks of it", name, services[name], tasks[name])
		}
	}
	for name, n := range tasks {
		if n != 1 || services[name] != 1 {
			t.Errorf("%s: %d tasks, %d services", name, n, services[name])
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	for at := uint64(0); at < v.Revision(); {
		list, err := w.Next(ctx)
		if errdefs.IsOutOfRange(err) {
			return // some was read anew
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range list {
			if at++; c.Revision != at || len(c.Events) != 2 {
				t.Fatalf("commit %d was told as %d, with %d events", at, c.Revision, len(c.Events))
			}
		}
	}
}

// A manager far from the one through which writes go gets its turn while others write without
// end.
func TestTurn(t *testing.T) {
	all := managers(t, 2, func(c *Config) { c.Patience = 20 * time.Second })
	at := leading(t, all)
	near, far := all[at].s, all[1-at].s
	ctx, stop := context.WithCancel(t.Context())
	var group sync.WaitGroup
	for range 16 {
		group.Go(func() {
			for ctx.Err() == nil {
				if _, err := near.Commit(context.Background(), store.Create(&cluster.Task{})); err != nil {
					t.Error(err)
				}
			}
		})
	}
	var longest time.Duration
	for range 30 {
		began := time.Now()
		must(t, far, store.Create(&cluster.Task{}))
		longest = max(longest, time.Since(began))
	}
	stop()
	group.Wait()
	t.Logf("30 commits of the other manager beside %d took %v at most", near.View().Revision(), longest)
}

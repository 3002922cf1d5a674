package kill

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
	"escale.dev/escale/test/internal/load"
	"escale.dev/escale/test/testregistry"
	bolt "go.etcd.io/bbolt"
)

var shipRounds = flag.Int("shiprounds", load.EnvInt("ESCALE_KILL_ROUNDS", 12), "how often the engine is killed amid builds and transfers (also $ESCALE_KILL_ROUNDS)")

// base is the image that all builds begin with.
const base = "kill:base"

// TestKillShip kills the engine at random instants while builds, pulls, pushes,
// removals and prunes run. After each round nothing is left of what was under way,
// what was answered is there and runs, and what was cut off goes well when it is
// asked for again. Every fifth round all is removed and the disk compared, too.
func TestKillShip(t *testing.T) {
	if why := harness.Needs(); why != "" {
		t.Skip(why)
	}
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d, %d rounds", *seed, *shipRounds)
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute+time.Duration(*shipRounds)*30*time.Second)
	defer cancel()
	y := newYard(ctx, t)
	for round := range *shipRounds {
		y.round(ctx)
		y.check(ctx)
		if round%5 == 4 || round == *shipRounds-1 {
			y.clear(ctx)
			y.leaks(ctx, true)
		} else {
			y.leaks(ctx, false)
		}
		if testing.Verbose() && round%10 == 9 {
			t.Logf("%d rounds: %d pieces of work done, %d cut off, %d retried, %d images run", round+1, y.done, y.cut, y.retried, y.ran)
		}
		if t.Failed() {
			t.Logf("in round %d of %d, seed %d", round+1, *shipRounds, *seed)
			load.KeepLog(t, y.e)
			return
		}
	}
	y.leases(ctx)
	fmt.Printf("rounds %d: %d pieces of work done, %d cut off, %d retried, %d images run, slowest start %d ms, seed %d\n",
		*shipRounds, y.done, y.cut, y.retried, y.ran, y.slowest.Milliseconds(), *seed)
	if y.done+y.retried < *shipRounds || y.cut < *shipRounds {
		t.Errorf("%d pieces of work done and %d cut off in %d rounds: too little load to show anything", y.done, y.cut, *shipRounds)
	}
}

// yard is an engine with those who work on it.
type yard struct {
	t       *testing.T
	e       *harness.Engine
	reg     *testregistry.Registry
	rng     *rand.Rand
	workers []*worker
	before  []string // leases of an engine that has nothing but the base

	mu                      sync.Mutex
	done, cut, retried, ran int
	slowest                 time.Duration
	slow                    *rand.Rand // of the registry, under mu
}

// newYard starts an engine that has built, pulled and removed once, and a
// registry that takes its time.
func newYard(ctx context.Context, t *testing.T) *yard {
	y := &yard{t: t, reg: testregistry.New(t), rng: rand.New(rand.NewPCG(*seed, 0)), slow: rand.New(rand.NewPCG(*seed, 1))}
	y.e = load.StartEngine(t, ctx, harness.Options{})
	api := y.e.API()
	defer api.Close()
	tar, err := harness.BusyboxTar()
	if err != nil {
		t.Fatal(err)
	}
	if err := api.Import(ctx, "kill", "base", strings.NewReader(string(tar))); err != nil {
		t.Fatal(err)
	}
	for i, kind := range []func(*worker) []piece{(*worker).classic, (*worker).classic, (*worker).command, (*worker).transfers, (*worker).pruning} {
		w := &worker{yard: y, n: i, api: y.e.API(), rng: rand.New(rand.NewPCG(*seed, uint64(i+2))), owned: map[string]*owned{}, dir: t.TempDir()}
		t.Cleanup(w.api.Close)
		w.pieces = kind(w)
		y.workers = append(y.workers, w)
	}
	// What is to be pulled.
	seller := y.workers[0]
	for i := range applications {
		if err := seller.offer(ctx, i); err != nil {
			t.Fatal(err)
		}
	}
	for _, w := range y.workers {
		for _, p := range w.pieces {
			if err := p.do(ctx); err != nil {
				t.Fatalf("%s, without a kill: %v", p.name, err)
			}
		}
	}
	y.reg.SetFault(y.dawdle)
	y.clear(ctx)
	if err := y.e.Stop(); err != nil {
		t.Fatal(err)
	}
	y.before = y.readLeases()
	if err := y.e.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := y.workers[0].pieces[0].do(ctx); err != nil {
		t.Fatal(err)
	}
	y.clear(ctx)
	if err := y.e.Mark(); err != nil {
		t.Fatal(err)
	}
	return y
}

// dawdle lets blobs come late, some in two halves.
func (y *yard) dawdle(w http.ResponseWriter, r *http.Request) bool {
	if !strings.Contains(r.URL.Path, "/blobs/") {
		return false
	}
	y.mu.Lock()
	nap, halves := time.Duration(y.slow.Int64N(int64(100*time.Millisecond))), y.slow.IntN(2) == 0
	y.mu.Unlock()
	time.Sleep(nap)
	name, d, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/blobs/")
	data := y.reg.Blob(name, d)
	if r.Method != http.MethodGet || !halves || data == nil || r.Header.Get("Range") != "" {
		return false
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(data)))
	_, _ = w.Write(data[:len(data)/2])
	w.(http.Flusher).Flush()
	time.Sleep(nap)
	_, _ = w.Write(data[len(data)/2:])
	return true
}

func (y *yard) upTo(d time.Duration) time.Duration { return time.Duration(y.rng.Int64N(int64(d) + 1)) }

// round lets all work, kills the engine, sometimes once more while it recovers,
// and starts it again.
func (y *yard) round(ctx context.Context) {
	working, stop := context.WithCancel(ctx)
	defer stop()
	var all sync.WaitGroup
	for _, w := range y.workers {
		all.Go(func() { w.work(working) })
	}
	time.Sleep(20*time.Millisecond + y.upTo(1500*time.Millisecond))
	if err := y.e.Kill(); err != nil {
		y.t.Fatal(err)
	}
	stop() // what is under way is cut off by the kill alone
	gone := make(chan struct{})
	go func() { all.Wait(); close(gone) }()
	select {
	case <-gone:
	case <-time.After(harness.Patience(30 * time.Second)):
		y.t.Fatal("somebody waits for an engine that was killed")
	}
	for y.rng.IntN(4) == 0 {
		if err := y.e.Launch(); err != nil {
			y.t.Fatal(err)
		}
		time.Sleep(y.upTo(300 * time.Millisecond))
		if err := y.e.Kill(); err != nil {
			y.t.Fatal(err)
		}
	}
	begun := time.Now()
	start, cancel := context.WithTimeout(ctx, harness.Patience(30*time.Second))
	defer cancel()
	if err := y.e.Start(start); err != nil {
		y.t.Fatal(err)
	}
	y.slowest = max(y.slowest, time.Since(begun))
}

// check looks at what was answered, and asks again for what was cut off.
func (y *yard) check(ctx context.Context) {
	for _, w := range y.workers {
		if w.cutOff != nil {
			p := *w.cutOff
			w.cutOff = nil
			y.retried++
			if err := p.do(ctx); err != nil {
				y.t.Errorf("%s, asked for again: %v", p.name, err)
			}
		}
		w.look(ctx)
	}
}

// clear removes all images but the base, and the cache.
func (y *yard) clear(ctx context.Context) {
	api := y.e.API()
	defer api.Close()
	var list []struct {
		ID       string `json:"Id"`
		RepoTags []string
	}
	if err := api.Do(ctx, "GET", "/images/json", nil, &list); err != nil {
		y.t.Fatal(err)
	}
	for _, i := range list {
		if slices.Contains(i.RepoTags, base) {
			continue
		}
		if err := api.Do(ctx, "DELETE", "/images/"+i.ID+"?force=1", nil, nil); err != nil && harness.Status(err) != http.StatusNotFound {
			y.t.Errorf("removing %v: %v", i.RepoTags, err)
		}
	}
	for _, w := range y.workers {
		clear(w.owned)
	}
	// What a build that ended just now has used is let go of a moment later.
	for end := time.Now().Add(harness.Patience(10 * time.Second)); ; time.Sleep(50 * time.Millisecond) {
		if err := api.Do(ctx, "POST", "/build/prune?all=1", nil, nil); err != nil {
			y.t.Fatal(err)
		}
		var usage struct{ BuildCache []any }
		if err := api.Do(ctx, "GET", "/v1.50/system/df?type=build-cache", nil, &usage); err != nil {
			y.t.Fatal(err)
		}
		if len(usage.BuildCache) == 0 {
			return
		}
		if time.Now().After(end) {
			y.t.Fatalf("in the cache after a prune of all: %v", usage.BuildCache)
		}
	}
}

// leaks compares with the baseline; the disk too when nothing should be on it.
func (y *yard) leaks(ctx context.Context, disk bool) {
	for end := time.Now().Add(harness.Patience(10 * time.Second)); ; time.Sleep(50 * time.Millisecond) {
		var left harness.Report
		var err error
		if disk {
			left, err = y.e.Leaks(ctx)
		} else if left, err = harness.LeaksNow(y.e); err == nil {
			delete(left, harness.Snapshots)
			delete(left, harness.Content)
		}
		if err != nil {
			y.t.Fatal(err)
		}
		if left.Empty() {
			return
		}
		if disk || time.Now().After(end) {
			y.t.Errorf("left behind:\n%s", left)
			return
		}
	}
}

// leases compares the leases in the store of an engine that has nothing any more.
func (y *yard) leases(ctx context.Context) {
	if err := y.e.Stop(); err != nil {
		y.t.Fatal(err)
	}
	for _, l := range y.readLeases() {
		if !slices.Contains(y.before, l) {
			y.t.Errorf("a lease is left: %s", l)
		}
	}
	if err := y.e.Start(ctx); err != nil {
		y.t.Fatal(err)
	}
}

// readLeases reads them from the database of an engine that is stopped.
func (y *yard) readLeases() (list []string) {
	db, err := bolt.Open(filepath.Join(y.e.DataRoot, "meta.db"), 0o600, &bolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		y.t.Fatal(err)
	}
	defer db.Close()
	err = db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte("v1"))
		for _, name := range []string{"escale", "leases"} {
			if b != nil {
				b = b.Bucket([]byte(name))
			}
		}
		if b == nil {
			return fmt.Errorf("%s has no leases: %w", db.Path(), os.ErrNotExist)
		}
		return b.ForEach(func(k, _ []byte) error { list = append(list, string(k)); return nil })
	})
	if err != nil {
		y.t.Fatal(err)
	}
	return list
}

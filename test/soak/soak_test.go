// Package soak holds the test that an engine does not wear out. Many clients
// lead many containers through their whole lives, several of them each at a time:
// first while the engine is killed at random instants and started again, then
// undisturbed, round by round. Kernel and disk must be as before, every log
// line and exit code right, and the engine must hold after the last round what
// it held after the first.
//
//	go test ./test/soak -containers 1000 -clients 16 -seed 7
package soak

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
	"escale.dev/escale/test/internal/load"
)

var (
	containers = flag.Int("containers", load.EnvInt("ESCALE_SOAK_CONTAINERS", 60), "lives of containers under kills, and as many again without (also $ESCALE_SOAK_CONTAINERS)")
	clients    = flag.Int("clients", load.EnvInt("ESCALE_SOAK_CLIENTS", 16), "clients at work at a time (also $ESCALE_SOAK_CLIENTS)")
	hold       = flag.Int("hold", 8, "containers that a client has at a time, at most")
	every      = flag.Duration("every", 2*time.Second, "at most so long between a start of the engine and the next kill")
	seed       = flag.Uint64("seed", 0, "seed of the random choices; 0: a new one, printed")
)

// rounds of the undisturbed part; what an engine holds after each is compared.
const rounds = 5

// How much more an engine may hold after the last round than after the first.
// Its memory is that of a collector, which returns pages late and lets some 12 MB of garbage
// lie about, more or less of it when somebody looks; the journal of events fills up to its
// bound; lives that each left a kilobyte would show in what lives of the heap.
const (
	maxHeapGrowth       = 2 << 20
	maxAnonGrowth       = 20 << 20
	maxGoroutineGrowth  = 4 // a connection that is just closing
	maxDescriptorGrowth = 6
)

func TestSoak(t *testing.T) {
	if why := harness.Needs(); why != "" {
		t.Skip(why)
	}
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d, twice %d containers, %d clients, up to %d containers each", *seed, *containers, *clients, *hold)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute+time.Duration(*containers)*3*time.Second)
	defer cancel()
	e := load.StartEngine(t, ctx, harness.Options{Args: []string{"--debug"}})
	r := load.New(ctx, e.Host(), fmt.Sprintf("soak%d", os.Getpid()))
	r.Note = e.Note
	api := harness.NewAPI(r.Host)
	defer api.Close()
	if err := r.Prepare(api); err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond)
	if err := e.Mark(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if t.Failed() {
			load.KeepLog(t, e)
		}
	}()

	killed := underKills(t, r, e)
	prints := undisturbed(t, ctx, r, e)
	left := r.Settle(t, api, e)
	fmt.Printf("soak: %d containers by %d clients, engine killed %d times, then %d in %d rounds: %s, %s\n",
		*containers, *clients, killed.Kills, *containers, rounds, left.Counts(), r.Counts())
	fmt.Printf("  %d log lines, %d execs, %d exit codes judged; %d requests cut off, %d unanswered starts rolled back, slowest start of the engine %d ms, seed %d\n",
		r.Lines.Load(), r.Execs.Load(), r.Codes.Load(), r.Cut.Load(), r.RolledBack.Load(), killed.Slowest.Milliseconds(), *seed)
	for i, p := range prints {
		fmt.Printf("  after round %d: %s\n", i+1, p)
	}
	r.Report(t)
	flat(t, prints)
	if n := int64(2 * *containers); r.Done.Load() < n || r.Execs.Load() < n || r.Codes.Load() < n/2 || r.Lines.Load() < n {
		t.Errorf("%d lives, %d execs, %d exit codes, %d lines: less than asked for", r.Done.Load(), r.Execs.Load(), r.Codes.Load(), r.Lines.Load())
	}
}

// lives starts the clients on n lives; over is closed when all are lived.
func lives(r *load.Run, n int, seed uint64) (over chan struct{}) {
	var begun atomic.Int64
	r.Clients(*clients, seed, func(c *load.Client) {
		c.Lives(*hold, func() bool { return begun.Add(1) <= int64(n) })
	})
	over = make(chan struct{})
	go func() { defer close(over); r.Finish() }()
	return over
}

// underKills lets the clients work while the engine is killed, at least three times.
func underKills(t *testing.T, r *load.Run, e *harness.Engine) *load.Killer {
	t.Helper()
	over := lives(r, *containers, *seed)
	k := &load.Killer{Every: *every, Rounds: 3, More: func() bool {
		select {
		case <-over:
			return false
		default:
			return true
		}
	}}
	if err := k.Run(r, e, rand.New(rand.NewPCG(*seed, 0))); err != nil {
		r.Abandon()
		<-over
		t.Fatalf("engine: %v", err)
	}
	<-over
	return k
}

// undisturbed goes on in rounds with an engine that nobody kills, and returns
// what it holds after each.
func undisturbed(t *testing.T, ctx context.Context, r *load.Run, e *harness.Engine) []harness.Footprint {
	t.Helper()
	var prints []harness.Footprint
	for i := range uint64(rounds) {
		<-lives(r, max(*clients, *containers/rounds), *seed+1+i)
		// What ends behind the last answer, ends: removal, connections.
		time.Sleep(time.Second)
		p, err := e.Footprint(ctx)
		if err != nil {
			t.Fatal(err)
		}
		prints = append(prints, p)
	}
	return prints
}

// flat compares the first and the last.
func flat(t *testing.T, prints []harness.Footprint) {
	t.Helper()
	first, last := prints[0], prints[len(prints)-1]
	for _, c := range []struct {
		what        string
		grown, most int64
	}{
		{"bytes of live heap", last.Heap - first.Heap, maxHeapGrowth},
		{"bytes of memory of its own", last.Anon - first.Anon, maxAnonGrowth},
		{"goroutines", int64(last.Goroutines - first.Goroutines), maxGoroutineGrowth},
		{"descriptors", int64(last.Descriptors - first.Descriptors), maxDescriptorGrowth},
	} {
		if c.grown > c.most {
			t.Errorf("the engine has %d more %s after round %d than after the first; %d are allowed", c.grown, c.what, len(prints), c.most)
		}
	}
}

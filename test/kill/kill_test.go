// Package kill holds the test that the engine survives kill -9 at any instant:
// eight clients work on one engine, which is killed at random moments and
// started again. Afterwards the kernel, the disk and the records are compared
// with what should be, every log with what its container printed, and every
// exit code with what the process returned.
//
//	go test ./test/kill -rounds 300 -seed 7
package kill

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
	"escale.dev/escale/test/internal/load"
)

var (
	rounds  = flag.Int("rounds", load.EnvInt("ESCALE_KILL_ROUNDS", 30), "how often the engine is killed (also $ESCALE_KILL_ROUNDS)")
	seed    = flag.Uint64("seed", 0, "seed of the random choices; 0: a new one, printed")
	clients = flag.Int("clients", 8, "clients at work at a time")
	host    = flag.String("host", "", "work on this endpoint and kill nothing: shows that the clients' own expectations hold")
	pieces  = flag.String("pieces", "", "comma-separated kinds of work; empty: all")
)

func TestKill(t *testing.T) {
	if why := harness.Needs(); why != "" && *host == "" {
		t.Skip(why)
	}
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d, %d rounds, %d clients", *seed, *rounds, *clients)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute+time.Duration(*rounds)*12*time.Second)
	defer cancel()
	r := load.New(ctx, *host, fmt.Sprintf("kill%d", os.Getpid()))

	var e *harness.Engine
	if *host == "" {
		e = load.StartEngine(t, ctx, harness.Options{})
		r.Host, r.Note = e.Host(), e.Note
	}
	api := harness.NewAPI(r.Host)
	defer api.Close()
	if err := r.Prepare(api); err != nil {
		t.Fatal(err)
	}
	if e != nil {
		// The baseline: the image is there, a container has come and gone.
		time.Sleep(500 * time.Millisecond)
		if err := e.Mark(); err != nil {
			t.Fatal(err)
		}
	}

	choice := strings.FieldsFunc(*pieces, func(c rune) bool { return c == ',' })
	r.Clients(*clients, *seed, func(c *load.Client) { c.Pieces(choice) })
	k := &load.Killer{Every: 400 * time.Millisecond, Rounds: *rounds}
	err := k.Run(r, e, rand.New(rand.NewPCG(*seed, 0)))
	r.Quit()
	if err != nil {
		r.Abandon()
	}
	if err := r.Wait(90 * time.Second); err != nil {
		t.Errorf("after the last kill: %v", err)
	}
	if err != nil {
		load.KeepLog(t, e)
		t.Fatalf("engine: %v", err)
	}
	finish(t, r, api, e, k)
}

// finish compares and reports.
func finish(t *testing.T, r *load.Run, api *harness.API, e *harness.Engine, k *load.Killer) {
	left := r.Settle(t, api, e)
	fmt.Printf("rounds %d: %s, %s\n", *rounds, left.Counts(), r.Counts())
	fmt.Printf("  %d pieces of work, %d requests cut off, %d unanswered starts rolled back, slowest start %d ms, seed %d\n",
		r.Done.Load(), r.Cut.Load(), r.RolledBack.Load(), k.Slowest.Milliseconds(), *seed)
	r.Report(t)
	if r.Done.Load() < int64(*rounds) {
		t.Errorf("%d pieces of work in %d rounds: too little load to show anything", r.Done.Load(), *rounds)
	}
	if t.Failed() {
		load.KeepLog(t, e)
	}
}

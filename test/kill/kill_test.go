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
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
)

var (
	rounds  = flag.Int("rounds", envInt("ESCALE_KILL_ROUNDS", 30), "how often the engine is killed (also $ESCALE_KILL_ROUNDS)")
	seed    = flag.Uint64("seed", 0, "seed of the random choices; 0: a new one, printed")
	clients = flag.Int("clients", 8, "clients at work at a time")
	host    = flag.String("host", "", "work on this endpoint and kill nothing: shows that the clients' own expectations hold")
	pieces  = flag.String("pieces", "", "comma-separated kinds of work; empty: all")
)

func envInt(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return otherwise
}

// state is what the killer and the clients share.
type state struct {
	ctx    context.Context
	host   string
	prefix string // begins the name of every container and image of this run
	note   func(id string)
	quit   chan struct{} // closed: finish your piece and go

	begun      atomic.Int64 // pieces of work begun
	done       atomic.Int64
	cut        atomic.Int64 // requests that a kill cut off
	rolledBack atomic.Int64 // starts without an answer of which nothing was left

	mu       sync.Mutex
	lost     int // log lines
	doubled  int
	wrong    int // exit codes
	odd      int // answers nobody expects
	findings []string
}

// blame counts a finding and keeps its words.
func (s *state) blame(counter *int, n int, format string, args ...any) {
	if n == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	*counter += n
	s.findings = append(s.findings, fmt.Sprintf(format, args...))
}

func (s *state) counts() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprintf("lost log lines %d, duplicate log lines %d, wrong exit codes %d, unexpected answers %d", s.lost, s.doubled, s.wrong, s.odd)
}

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
	s := &state{ctx: ctx, host: *host, prefix: fmt.Sprintf("kill%d", os.Getpid()), note: func(string) {}, quit: make(chan struct{})}

	var e *harness.Engine
	if *host == "" {
		e = startEngine(t, ctx)
		s.host, s.note = e.Host(), e.Note
	}
	api := harness.NewAPI(s.host)
	defer api.Close()
	if err := s.prepare(api); err != nil {
		t.Fatal(err)
	}
	if e != nil {
		// The baseline: the image is there, a container has come and gone.
		time.Sleep(500 * time.Millisecond)
		if err := e.Mark(); err != nil {
			t.Fatal(err)
		}
	}

	var wg sync.WaitGroup
	for i := range *clients {
		c := &client{state: s, n: i, api: harness.NewAPI(s.host), rng: rand.New(rand.NewPCG(*seed, uint64(i+1)))}
		wg.Go(c.work)
	}
	slowest, kerr := s.kill(e, rand.New(rand.NewPCG(*seed, 0)))
	close(s.quit)
	if kerr != nil {
		cancel() // nobody will answer them any more
	}
	finished := make(chan struct{})
	go func() { wg.Wait(); close(finished) }()
	select {
	case <-finished:
	case <-time.After(90 * time.Second):
		cancel()
		<-finished
		t.Error("clients did not finish within 90 s of the last kill")
	}
	if kerr != nil {
		keepLog(t, e)
		t.Fatalf("engine: %v", kerr)
	}
	s.finish(t, api, e, slowest)
}

// startEngine starts an engine that Close takes away whatever happens.
func startEngine(t *testing.T, ctx context.Context) *harness.Engine {
	t.Helper()
	if err := harness.Sweep(); err != nil {
		t.Logf("left by an earlier run: %v", err)
	}
	e, err := harness.New(harness.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Errorf("clean-up: %v", err)
		}
	})
	start, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := e.Start(start); err != nil {
		t.Fatal(err)
	}
	return e
}

// prepare gives the engine an image and runs one container of it.
func (s *state) prepare(api *harness.API) error {
	tar, err := harness.BusyboxTar()
	if err != nil {
		return err
	}
	if err := api.Import(s.ctx, s.prefix, "base", strings.NewReader(string(tar))); err != nil {
		return err
	}
	var made struct{ ID string }
	spec := map[string]any{"Image": s.prefix + ":base", "Cmd": []string{"true"}}
	if err := api.Do(s.ctx, "POST", "/containers/create", spec, &made); err != nil {
		return err
	}
	if err := api.Do(s.ctx, "POST", "/containers/"+made.ID+"/start", nil, nil); err != nil {
		return err
	}
	if err := api.Do(s.ctx, "POST", "/containers/"+made.ID+"/wait", nil, nil); err != nil {
		return err
	}
	return api.Do(s.ctx, "DELETE", "/containers/"+made.ID+"?force=1", nil, nil)
}

// kill kills the engine at random instants under load and starts it again,
// sometimes killing it again while it recovers. It returns the longest time
// that a start took until it answered.
func (s *state) kill(e *harness.Engine, rng *rand.Rand) (slowest time.Duration, err error) {
	upTo := func(d time.Duration) time.Duration { return time.Duration(rng.Int64N(int64(d) + 1)) }
	for range *rounds {
		// Load must be there before it can be hit.
		for begun, end := s.begun.Load(), time.Now().Add(3*time.Second); s.begun.Load() == begun && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(upTo(400 * time.Millisecond))
		if e == nil {
			continue
		}
		if err := e.Kill(); err != nil {
			return slowest, err
		}
		if rng.IntN(2) == 0 {
			time.Sleep(upTo(300 * time.Millisecond)) // long enough for containers to end unseen
		}
		for rng.IntN(5) == 0 {
			if err := e.Launch(); err != nil {
				return slowest, err
			}
			time.Sleep(upTo(200 * time.Millisecond))
			if err := e.Kill(); err != nil {
				return slowest, err
			}
		}
		began := time.Now()
		ctx, cancel := context.WithTimeout(s.ctx, 20*time.Second)
		err := e.Start(ctx)
		cancel()
		if err != nil {
			return slowest, err
		}
		slowest = max(slowest, time.Since(began))
	}
	return slowest, nil
}

// finish removes what is left through the API, compares and reports.
func (s *state) finish(t *testing.T, api *harness.API, e *harness.Engine, slowest time.Duration) {
	if err := s.removeAll(api); err != nil {
		t.Errorf("removing what is left: %v", err)
	}
	left := harness.Report{}
	if e != nil {
		if err := s.probe(api); err != nil {
			t.Error(err)
		}
		api.Close()
		var err error
		if left, err = e.Leaks(context.WithoutCancel(s.ctx)); err != nil {
			t.Errorf("leaks: %v", err)
		}
	}
	fmt.Printf("rounds %d: %s, %s\n", *rounds, left.Counts(), s.counts())
	fmt.Printf("  %d pieces of work, %d requests cut off, %d unanswered starts rolled back, slowest start %d ms, seed %d\n",
		s.done.Load(), s.cut.Load(), s.rolledBack.Load(), slowest.Milliseconds(), *seed)
	if !left.Empty() {
		t.Errorf("left behind:\n%s", left)
	}
	for i, f := range s.findings {
		if i == 40 {
			t.Errorf("… and %d more findings", len(s.findings)-i)
			break
		}
		t.Error(f)
	}
	if s.done.Load() < int64(*rounds) {
		t.Errorf("%d pieces of work in %d rounds: too little load to show anything", s.done.Load(), *rounds)
	}
	if t.Failed() {
		keepLog(t, e)
	}
}

// keepLog shows the end of the engine's own log; all of it goes to
// $ESCALE_TEST_LOG when that names a file.
func keepLog(t *testing.T, e *harness.Engine) {
	if e == nil {
		return
	}
	t.Logf("the engine said last:\n%s", e.Tail(4000))
	if file := os.Getenv("ESCALE_TEST_LOG"); file != "" {
		b, err := os.ReadFile(e.LogFile)
		if err = errors.Join(err, os.WriteFile(file, b, 0o600)); err != nil {
			t.Log(err)
		}
	}
}

// removeAll removes the containers and images of this run, except the base
// image while an engine of ours holds it for the comparison.
func (s *state) removeAll(api *harness.API) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), time.Minute)
	defer cancel()
	var list []struct {
		ID    string
		Names []string
	}
	if err := api.Do(ctx, "GET", "/containers/json?all=1", nil, &list); err != nil {
		return err
	}
	var errs []error
	for _, c := range list {
		if len(c.Names) > 0 && strings.HasPrefix(strings.TrimPrefix(c.Names[0], "/"), s.prefix) {
			errs = append(errs, api.Do(ctx, "DELETE", "/containers/"+c.ID+"?force=1&v=1", nil, nil))
		}
	}
	var images []struct {
		ID       string
		RepoTags []string
	}
	if err := api.Do(ctx, "GET", "/images/json", nil, &images); err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, img := range images {
		// An import that was done but not answered lost its name to the one that
		// the client tried next.
		if *host == "" && (len(img.RepoTags) == 0 || img.RepoTags[0] == "<none>:<none>") {
			errs = append(errs, api.Do(ctx, "DELETE", "/images/"+img.ID, nil, nil))
		}
		for _, tag := range img.RepoTags {
			if strings.HasPrefix(tag, s.prefix) && (*host != "" || tag != s.prefix+":base") {
				errs = append(errs, api.Do(ctx, "DELETE", "/images/"+tag+"?force=1", nil, nil))
			}
		}
	}
	return errors.Join(errs...)
}

// probe runs one more container, so that the comparison is made with an
// engine that works, and not with one that has lost its image.
func (s *state) probe(api *harness.API) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), 30*time.Second)
	defer cancel()
	var made struct{ ID string }
	spec := map[string]any{"Image": s.prefix + ":base", "Cmd": []string{"sh", "-c", "exit 41"}}
	if err := api.Do(ctx, "POST", "/containers/create", spec, &made); err != nil {
		return fmt.Errorf("after the last round: %w", err)
	}
	if err := api.Do(ctx, "POST", "/containers/"+made.ID+"/start", nil, nil); err != nil {
		return fmt.Errorf("after the last round: %w", err)
	}
	var code struct{ StatusCode int }
	if err := api.Do(ctx, "POST", "/containers/"+made.ID+"/wait", nil, &code); err != nil || code.StatusCode != 41 {
		return fmt.Errorf("after the last round: exit code %d instead of 41, %v", code.StatusCode, err)
	}
	return api.Do(ctx, "DELETE", "/containers/"+made.ID, nil, nil)
}

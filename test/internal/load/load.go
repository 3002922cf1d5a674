// Package load holds clients that put an engine under load while it is killed
// and started again, and that know what must be true nevertheless: which lines
// a container printed, with which code its process ended, which name is taken.
//
// A connection that breaks is no finding, the client tries again; whatever
// contradicts what a client knows is one. Work is done in pieces, each of which
// leaves nothing behind: what is left when all is over is a leak.
package load

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
)

// Run is one load on one engine: what its clients and its killer share.
type Run struct {
	Host   string          // the engine's address
	Prefix string          // begins the name of every container and image
	Note   func(id string) // told of each container that is made

	Begun      atomic.Int64 // pieces of work begun
	Done       atomic.Int64
	Cut        atomic.Int64 // requests that a kill cut off
	RolledBack atomic.Int64 // starts without an answer of which nothing was left
	Lines      atomic.Int64 // log lines judged
	Execs      atomic.Int64 // execs whose output and exit code were judged
	Codes      atomic.Int64 // exit codes judged

	ctx    context.Context
	cancel context.CancelFunc
	quit   chan struct{} // closed: finish your piece and go
	wg     sync.WaitGroup

	mu       sync.Mutex
	lost     int // log lines
	doubled  int
	wrong    int // exit codes
	odd      int // answers nobody expects
	findings []string
}

// New prepares a load on host. It ends at the latest with ctx.
func New(ctx context.Context, host, prefix string) *Run {
	r := &Run{Host: host, Prefix: prefix, Note: func(string) {}, quit: make(chan struct{})}
	r.ctx, r.cancel = context.WithCancel(ctx)
	return r
}

// blame counts a finding and keeps its words.
func (r *Run) blame(counter *int, n int, format string, args ...any) {
	if n == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	*counter += n
	r.findings = append(r.findings, fmt.Sprintf(format, args...))
}

// Counts is "lost log lines 0, …".
func (r *Run) Counts() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return fmt.Sprintf("lost log lines %d, duplicate log lines %d, wrong exit codes %d, unexpected answers %d", r.lost, r.doubled, r.wrong, r.odd)
}

// Report makes errors of t of the findings, forty at most.
func (r *Run) Report(t testing.TB) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, f := range r.findings {
		if i == 40 {
			t.Errorf("… and %d more findings", len(r.findings)-i)
			break
		}
		t.Error(f)
	}
}

// Prepare gives the engine an image and runs one container of it.
func (r *Run) Prepare(api *harness.API) error {
	tar, err := harness.BusyboxTar()
	if err != nil {
		return err
	}
	if err := api.Import(r.ctx, r.Prefix, "base", strings.NewReader(string(tar))); err != nil {
		return err
	}
	return r.once(r.ctx, api, 0)
}

// Probe runs one more container, so that the comparison is made with an engine
// that works, and not with one that has lost its image.
func (r *Run) Probe(api *harness.API) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), 30*time.Second)
	defer cancel()
	if err := r.once(ctx, api, 41); err != nil {
		return fmt.Errorf("after the last round: %w", err)
	}
	return nil
}

// once runs a container that ends with code, and removes it.
func (r *Run) once(ctx context.Context, api *harness.API, code int) error {
	var made struct{ ID string }
	spec := map[string]any{"Image": r.Prefix + ":base", "Cmd": []string{"sh", "-c", fmt.Sprintf("exit %d", code)}}
	if err := api.Do(ctx, "POST", "/containers/create", spec, &made); err != nil {
		return err
	}
	if err := api.Do(ctx, "POST", "/containers/"+made.ID+"/start", nil, nil); err != nil {
		return err
	}
	var got struct{ StatusCode int }
	if err := api.Do(ctx, "POST", "/containers/"+made.ID+"/wait", nil, &got); err != nil {
		return err
	}
	if got.StatusCode != code {
		return fmt.Errorf("exit code %d instead of %d", got.StatusCode, code)
	}
	return api.Do(ctx, "DELETE", "/containers/"+made.ID, nil, nil)
}

// Clients lets n clients work, each with random choices of its own that follow
// from seed. Wait waits for them.
func (r *Run) Clients(n int, seed uint64, work func(c *Client)) {
	for i := range n {
		c := &Client{Run: r, n: i, api: harness.NewAPI(r.Host), rng: rand.New(rand.NewPCG(seed, uint64(i+1)))}
		r.wg.Go(func() {
			defer c.api.Close()
			work(c)
		})
	}
}

// Finish waits until all clients have returned, however long that takes.
func (r *Run) Finish() { r.wg.Wait() }

// Quit tells the clients to finish their pieces.
func (r *Run) Quit() { close(r.quit) }

// Abandon ends whatever waits for the engine: it will not come back.
func (r *Run) Abandon() { r.cancel() }

// Wait waits for the clients, at most for d: then they are cut off, which is an error.
func (r *Run) Wait(d time.Duration) error {
	finished := make(chan struct{})
	go func() { r.Finish(); close(finished) }()
	select {
	case <-finished:
		return nil
	case <-time.After(d):
		r.cancel()
		<-finished
		return fmt.Errorf("clients did not finish within %s", d)
	}
}

// Killer kills an engine at random instants.
type Killer struct {
	Every  time.Duration // at most so long between a start and the next kill
	Rounds int           // how often it kills
	More   func() bool   // asked after that: whether it goes on; nil: no

	Kills   int           // rounds done
	Slowest time.Duration // the longest time that a start took until it answered
}

// Run kills e under load and starts it again, sometimes killing it again while
// it recovers. Without an engine (nil) it only lets the time pass.
func (k *Killer) Run(r *Run, e *harness.Engine, rng *rand.Rand) error {
	upTo := func(d time.Duration) time.Duration { return time.Duration(rng.Int64N(int64(d) + 1)) }
	for ; k.Kills < k.Rounds || k.More != nil && k.More(); k.Kills++ {
		// Load must be there before it can be hit.
		for begun, end := r.Begun.Load(), time.Now().Add(3*time.Second); r.Begun.Load() == begun && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(upTo(k.Every))
		if e == nil {
			continue
		}
		if err := e.Kill(); err != nil {
			return err
		}
		if rng.IntN(2) == 0 {
			time.Sleep(upTo(300 * time.Millisecond)) // long enough for containers to end unseen
		}
		for rng.IntN(5) == 0 {
			if err := e.Launch(); err != nil {
				return err
			}
			time.Sleep(upTo(200 * time.Millisecond))
			if err := e.Kill(); err != nil {
				return err
			}
		}
		began := time.Now()
		ctx, cancel := context.WithTimeout(r.ctx, 20*time.Second)
		err := e.Start(ctx)
		cancel()
		if err != nil {
			return err
		}
		k.Slowest = max(k.Slowest, time.Since(began))
	}
	return nil
}

// RemoveAll removes the containers and images of this run through the API, and
// whatever image lost its name; keepBase leaves the image that all of them use.
func (r *Run) RemoveAll(api *harness.API, keepBase bool) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), 3*time.Minute)
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
		if len(c.Names) > 0 && strings.HasPrefix(strings.TrimPrefix(c.Names[0], "/"), r.Prefix) {
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
		if keepBase && (len(img.RepoTags) == 0 || img.RepoTags[0] == "<none>:<none>") {
			errs = append(errs, api.Do(ctx, "DELETE", "/images/"+img.ID, nil, nil))
		}
		for _, tag := range img.RepoTags {
			if strings.HasPrefix(tag, r.Prefix) && (!keepBase || tag != r.Prefix+":base") {
				errs = append(errs, api.Do(ctx, "DELETE", "/images/"+tag+"?force=1", nil, nil))
			}
		}
	}
	return errors.Join(errs...)
}

// StartEngine starts an engine that is taken away when t ends, whatever happens.
func StartEngine(t *testing.T, ctx context.Context, o harness.Options) *harness.Engine {
	t.Helper()
	if err := harness.Sweep(); err != nil {
		t.Logf("left by an earlier run: %v", err)
	}
	e, err := harness.New(o)
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

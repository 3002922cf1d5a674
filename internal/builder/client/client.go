// Package client builds on an engine what `escale build` asks: it serves the
// build's context, secrets and outputs in a session with the engine's BuildKit,
// and shows how the build goes on. It runs inside of escaled, which links
// BuildKit anyway, started by escale, which must not.
package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	engine "escale.dev/escale/client"
	"escale.dev/escale/internal/builder/plan"
	"github.com/docker/cli/cli/config"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/util/progress/progressui"
	"github.com/sirupsen/logrus"
)

// Streams are the standard streams.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// Run reads a plan and builds it, and returns the exit code: 1 when something
// went wrong, which was told on the error stream then. It blocks until the build
// is done or ctx is.
func Run(ctx context.Context, r io.Reader, s Streams) int {
	p, err := plan.Read(r)
	if err == nil {
		setDir(p.ConfigDir)
		logrus.SetOutput(io.Discard) // BuildKit's client has its say by errors
		b := &build{plan: p, streams: s}
		defer b.close()
		err = b.run(ctx)
	}
	if err == nil {
		return 0
	}
	var found findings
	if !errors.As(err, &found) {
		explain(s.Err, err)
	}
	return 1
}

// settling guards what is everybody's of the library that reads logins.
var settling sync.Mutex

// setDir has logins read from a directory, unless it is "". Builds that run at once have
// the same.
func setDir(dir string) {
	settling.Lock()
	defer settling.Unlock()
	if dir != "" && config.Dir() != dir {
		config.SetDir(dir)
	}
}

// build is one build.
type build struct {
	plan    *plan.Build
	streams Streams
	solve   client.SolveOpt
	stdin   bool // was used up
	fetched bool // the Dockerfile was, and lies in a directory of ours
	image   bool // the result stays with the engine
	undo    []func()
}

func (b *build) close() {
	for i := len(b.undo) - 1; i >= 0; i-- {
		b.undo[i]()
	}
}

func (b *build) run(ctx context.Context) error {
	display, err := b.display()
	if err != nil {
		return err
	}
	b.solve = client.SolveOpt{Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{}, Internal: true} // no history: a build leaves its cache and nothing else
	prepare := func() error { return b.context(ctx) }
	for _, step := range []func() error{b.attributes, prepare, b.contexts, b.outputs, b.caches, b.session} {
		if err := step(); err != nil {
			return err
		}
	}
	c, err := b.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := b.reachHost(ctx, c); err != nil {
		return err
	}
	if b.plan.Call != "" {
		return b.call(ctx, c, display)
	}
	answer, warnings, err := show(ctx, display, func(news chan *client.SolveStatus) (*client.SolveResponse, error) {
		return c.Solve(ctx, nil, b.solve, news)
	})
	if err != nil {
		return err
	}
	b.warn(warnings)
	return b.done(answer.ExporterResponse)
}

// show runs a build and shows its news meanwhile, to the last.
func show(ctx context.Context, display progressui.Display, do func(chan *client.SolveStatus) (*client.SolveResponse, error)) (*client.SolveResponse, []client.VertexWarning, error) {
	news := make(chan *client.SolveStatus)
	type result struct {
		warnings []client.VertexWarning
		err      error
	}
	shown := make(chan result, 1)
	go func() {
		// It ends with the news; a build that is canceled tells its last ones too.
		warnings, err := display.UpdateFrom(context.WithoutCancel(ctx), news)
		shown <- result{warnings, err}
	}()
	answer, err := do(news)
	r := <-shown
	return answer, r.warnings, errors.Join(err, r.err)
}

// display chooses how to show news: by the option, else by the environment.
func (b *build) display() (progressui.Display, error) {
	mode := progressui.DisplayMode(b.plan.Progress)
	if mode == "" || mode == progressui.AutoMode {
		if env := os.Getenv("BUILDKIT_PROGRESS"); env != "" {
			mode = progressui.DisplayMode(env)
		}
	}
	switch {
	case b.plan.Quiet && mode != "" && mode != progressui.AutoMode && mode != progressui.QuietMode:
		return progressui.Display{}, fmt.Errorf("progress=%s and quiet cannot be used together", mode)
	case b.plan.Quiet:
		mode = progressui.QuietMode
	}
	d, err := progressui.NewDisplay(b.streams.Err, mode)
	if err != nil {
		return d, fmt.Errorf("invalid progress mode %s (want auto, plain, tty, quiet or rawjson): %w", mode, err)
	}
	return d, nil
}

// connect connects to the engine's BuildKit.
func (b *build) connect(ctx context.Context) (*client.Client, error) {
	e, err := engine.New(engine.Options{Host: b.plan.Host, APIVersion: b.plan.APIVersion, Headers: b.plan.Headers, UserAgent: b.plan.UserAgent})
	if err != nil {
		return nil, err
	}
	b.undo = append(b.undo, func() { _ = e.Close() })
	return client.New(ctx, "",
		client.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return e.DialHijack(ctx, "/grpc", "h2c", nil)
		}),
		client.WithSessionDialer(func(ctx context.Context, proto string, meta map[string][]string) (net.Conn, error) {
			return e.DialHijack(ctx, "/session", proto, meta)
		}))
}

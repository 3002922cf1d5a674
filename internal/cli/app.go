// Package cli is the command line `escale`: the verbs, flags, columns and exit
// codes of Docker's client, spoken to any engine with the Docker API.
//
// One file holds one verb. What several share lies in app.go (streams, the
// connection), args.go and errors.go (words and exit codes), root.go and
// help.go (the tree of commands), stream.go (attached containers). The parts
// with a life of their own are packages below: spec (flags of `run` to a
// request), endpoint (which engine), table (columns and templates), tty.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cli/endpoint"
	"escale.dev/escale/internal/cli/tty"
	"escale.dev/escale/internal/cli/verb"
)

// app is what every verb works with: the streams, and the connection, which is
// made when it is first asked for.
type app struct {
	name     string   // how the program was called: escale, or docker
	args     []string // the command line behind that
	in       io.Reader
	out, err io.Writer
	flags    endpoint.Flags
	debug    bool

	resolved bool
	config   endpoint.Config
	endpoint endpoint.Endpoint
	conn     *client.Client
}

// Main runs one command line, args[0] being the program's name, and returns
// the exit code. It blocks until the command is done or ctx is.
func Main(ctx context.Context, args []string) int {
	a := &app{name: "escale", args: args[1:], in: os.Stdin, out: os.Stdout, err: os.Stderr}
	if filepath.Base(args[0]) == "docker" {
		a.name = "docker" // installed under that name: speak as it
	}
	ctx, stop := verb.WithSignals(ctx)
	defer stop()
	root := newRoot(a)
	root.SetArgs(a.args)
	err := root.ExecuteContext(ctx)
	if a.conn != nil {
		_ = a.conn.Close()
	}
	var t verb.Terminated
	if err != nil && ctx.Err() != nil && errors.As(context.Cause(ctx), &t) && errors.Is(err, context.Canceled) {
		return 128 + int(t.Sig)
	}
	return a.report(err)
}

// resolve reads the configuration and chooses the engine, once.
func (a *app) resolve() error {
	if a.resolved {
		return nil
	}
	var err error
	if a.config, err = endpoint.LoadConfig(a.flags.ConfigDir); err != nil {
		a.complain("WARNING:", err) // and go on without, as the stock client does
	}
	if a.endpoint, err = endpoint.Resolve(a.flags, a.config); err != nil {
		return err
	}
	a.resolved = true
	return nil
}

// client connects to the chosen engine. (The connection is made by the first
// request.)
func (a *app) client() (*client.Client, error) {
	if a.conn != nil {
		return a.conn, nil
	}
	if err := a.resolve(); err != nil {
		return nil, err
	}
	o := a.endpoint.Options
	o.UserAgent = "Escale-Client/" + Version + " (linux)"
	c, err := client.New(o)
	if err != nil {
		return nil, err
	}
	a.conn = c
	return c, nil
}

// detachKeys gives the keys from the flag, the configuration or the default,
// for the engine (as text) and for this side (as bytes).
func (a *app) detachKeys(flag string) (text string, keys []byte, err error) {
	text = flag
	if text == "" {
		text = a.config.DetachKeys
	}
	if text == "" {
		return "", tty.DefaultDetachKeys, nil
	}
	keys, err = tty.ParseKeys(text)
	return text, keys, err
}

// checkTTY refuses a container's terminal on input that is none.
func (a *app) checkTTY(attachStdin, ttyMode bool) error {
	if attachStdin && ttyMode && !tty.IsTerminal(a.in) {
		return errors.New("the input device is not a TTY")
	}
	return nil
}

func (a *app) println(v ...any)             { fmt.Fprintln(a.out, v...) }
func (a *app) printf(f string, v ...any)    { fmt.Fprintf(a.out, f, v...) }
func (a *app) complain(v ...any)            { fmt.Fprintln(a.err, v...) }
func (a *app) complainf(f string, v ...any) { fmt.Fprintf(a.err, f, v...) }

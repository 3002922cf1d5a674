// Package compose is `escale compose`: apps made of compose files, with the words,
// flags and exit codes of Docker Compose. What an app is to be (up, down, scale,
// rollback) is asked of the engine, which keeps it so; what is done to containers
// that are there (stop, exec, logs) is done by the Docker API, to those that bear the
// labels of the project, whoever made them.
//
// It is linked into escaled, started by escale: it needs compose-go and BuildKit's
// client, which escale must not link. One file holds a verb or a few that are alike.
package compose

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/docker/cli/cli/config"
	moby "github.com/moby/moby/client"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cli/endpoint"
	"escale.dev/escale/internal/cli/handed"
	"escale.dev/escale/internal/cli/tty"
	"escale.dev/escale/internal/sys/errtext"
)

// session is one command line: its streams, its engine, and what the global flags say.
type session struct {
	in       io.Reader
	out, err io.Writer
	engine   *handed.Engine
	conn     *client.Client
	flags    globals
	env      []string
}

// Main runs a command line of compose, args being what stands behind the word, and
// returns the exit code. It blocks until the command is done.
func Main(args []string) int {
	s := &session{in: os.Stdin, out: os.Stdout, err: os.Stderr, env: os.Environ()}
	var err error
	if len(args) > 0 && args[0] == handed.Flag {
		args = args[1:]
		s.engine, err = handed.Read()
	} else {
		s.engine, err = ownEngine()
	}
	if err != nil {
		return s.report(err)
	}
	config.SetDir(s.engine.ConfigDir)
	logrus.SetOutput(s.err) // compose-go has its warnings there
	logrus.SetFormatter(warnings{})
	return s.report(s.run(context.Background(), args))
}

// ownEngine chooses an engine when escaled is called without escale before it.
func ownEngine() (*handed.Engine, error) {
	f := endpoint.Flags{ConfigDir: endpoint.ConfigDir()}
	c, err := endpoint.LoadConfig(f.ConfigDir)
	if err != nil {
		return nil, err
	}
	e, err := endpoint.Resolve(f, c)
	if err != nil {
		return nil, err
	}
	return &handed.Engine{Name: "escale", Host: e.Options.Host, APIVersion: e.Options.APIVersion, Headers: e.Options.Headers, ConfigDir: f.ConfigDir}, nil
}

// warnings writes what compose-go logs in one line each.
type warnings struct{}

// Format implements logrus.Formatter.
func (warnings) Format(e *logrus.Entry) ([]byte, error) {
	level := strings.ToUpper(e.Level.String())
	return fmt.Appendf(nil, "%.4s %s\n", level, e.Message), nil
}

// run builds the tree of commands and runs one.
func (s *session) run(ctx context.Context, args []string) error {
	root := newRoot(s)
	root.SetArgs(args)
	return root.ExecuteContext(ctx)
}

// client connects to the engine. (The connection is made by the first request.)
func (s *session) client() (*client.Client, error) {
	if s.conn != nil {
		return s.conn, nil
	}
	c, err := client.New(client.Options{Host: s.engine.Host, APIVersion: s.engine.APIVersion, Headers: s.engine.Headers, UserAgent: s.engine.UserAgent})
	if err != nil {
		return nil, err
	}
	s.conn = c
	return c, nil
}

// exit ends the program with a code of its own; without an error in silence.
type exit struct {
	code int
	err  error
}

func (e *exit) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exit) Unwrap() error { return e.err }

// exitWith passes on an exit code.
func exitWith(code int) error {
	if code == 0 {
		return nil
	}
	return &exit{code: code}
}

// The exit codes of Docker Compose for what is wrong before anything is done.
const (
	exitFile  = 14 // a file cannot be found
	exitParse = 15 // or read
	exitUsage = 16
	exitBreak = 130
)

// report tells an error and gives the exit code.
func (s *session) report(err error) int {
	if err == nil {
		return 0
	}
	code := 1
	var e *exit
	if errors.As(err, &e) && e.code != 0 {
		code = e.code
	}
	text := strings.TrimSpace(errtext.Of(err))
	if moby.IsErrConnectionFailed(err) && (errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)) {
		text = fmt.Sprintf("Cannot connect to the Docker daemon at %s. Is the docker daemon running?\nStart the engine with 'escale daemon' or 'systemctl start escale', or name another with -H or ESCALE_HOST.", s.engine.Host)
	}
	if text != "" {
		fmt.Fprintln(s.err, text)
	}
	return code
}

// interrupted is the end of what a signal has ended.
var interrupted = &exit{code: exitBreak, err: errors.New("canceled")}

// whole gives a context that the first signal ends, for commands that need no more
// care than that.
func whole(ctx context.Context) (context.Context, func()) {
	return signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
}

func (s *session) printf(f string, v ...any) { fmt.Fprintf(s.out, f, v...) }
func (s *session) warnf(f string, v ...any)  { fmt.Fprintf(s.err, "WARN "+f+"\n", v...) }

// colored tells whether what is written to w may have colors.
func (s *session) colored(w io.Writer) bool {
	switch s.flags.ansi {
	case "never":
		return false
	case "always":
		return true
	}
	return tty.IsTerminal(w) && os.Getenv("NO_COLOR") == ""
}

// command makes a cobra command whose run is ended by the first signal.
func command(use, short string, run func(context.Context, []string) error) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := whole(cmd.Context())
			defer stop()
			err := run(ctx, args)
			if ctx.Err() != nil && errors.Is(err, context.Canceled) {
				return interrupted
			}
			return err
		},
	}
}

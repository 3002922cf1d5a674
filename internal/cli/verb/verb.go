// Package verb is what commands have in common that live in packages of their own
// below internal/cli: the streams and the engine they work with, the words for wrong
// arguments, exit codes, filters and the options of lists.
package verb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cli/endpoint"
	"escale.dev/escale/internal/cli/handed"
)

// App is the program as a command sees it. All functions may be called more than once.
type App struct {
	Name     string // how the program was called: escale, or docker
	In       io.Reader
	Out, Err io.Writer

	// Connect gives the engine that the command line chose. (The connection is made by
	// the first request.)
	Connect func() (*client.Client, error)
	// Config is the client's configuration, once Connect was called.
	Config func() endpoint.Config
	// Auth is the login to a registry, by its host, in the form of a header.
	Auth func(ctx context.Context, registry string) string
	// Hand has escaled do work of which the word tells what, with a payload that names
	// the engine, and gives its exit code as an error. Signals are the work's own affair.
	Hand func(ctx context.Context, word string, payload func(handed.Engine) any) error
	// Completing is Connect while a line is completed: no command has run.
	Completing func(cmd *cobra.Command) (*client.Client, error)
	// Help prints a command's page to the error stream.
	Help func(cmd *cobra.Command)
}

// What help says of --filter, and of --format of lists and of inspect.
const (
	FilterHelp  = "Show only what matches: NAME=VALUE"
	FormatHelp  = `Print with a Go template: 'table TEMPLATE', 'TEMPLATE' or 'json'`
	InspectHelp = `Print with a Go template: 'json' or 'TEMPLATE'`
)

// Println writes a line to the output.
func (a *App) Println(v ...any) { fmt.Fprintln(a.Out, v...) }

// Printf writes to the output.
func (a *App) Printf(f string, v ...any) { fmt.Fprintf(a.Out, f, v...) }

// Complain writes a line to the error stream.
func (a *App) Complain(v ...any) { fmt.Fprintln(a.Err, v...) }

// InTurn does op to one name after the other, prints those that went well, and returns
// all errors. It ends early only where no engine is.
func (a *App) InTurn(names []string, op func(name string) error) error {
	var errs []error
	for _, n := range names {
		err := op(n)
		if err == nil {
			a.Println(n)
			continue
		}
		errs = append(errs, err)
		if moby.IsErrConnectionFailed(err) {
			break
		}
	}
	return Join(errs)
}

// Join makes one error of several; a single one stays what it is.
func Join(errs []error) error {
	if len(errs) == 1 {
		return errs[0]
	}
	return errors.Join(errs...)
}

// Error ends the program with a code of its own. Without text it ends silently, as
// when the exit code of something else is passed on.
type Error struct {
	Code int
	Text string
	Err  error
}

func (e *Error) Error() string {
	if e.Text == "" && e.Err != nil {
		return e.Err.Error()
	}
	return e.Text
}

func (e *Error) Unwrap() error { return e.Err }

// Completer offers words for what is being typed.
type Completer = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// completionTime bounds what a press of the Tab key may cost.
const completionTime = 2 * time.Second

// Complete offers what the engine lists, and no files.
func (a *App) Complete(list func(context.Context, *client.Client) ([]string, error)) Completer {
	return func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTime)
		defer cancel()
		c, err := a.Completing(cmd)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		names, err := list(ctx, c)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// Words offers a few words.
func Words(words ...string) Completer {
	return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return words, cobra.ShellCompDirectiveNoFileComp
	}
}

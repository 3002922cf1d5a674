package cli

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/internal/sys/errtext"
)

// exitWith passes on a container's exit code.
func exitWith(code int) error {
	if code == 0 {
		return nil
	}
	return &statusError{Code: code}
}

// report prints an error in the words a user of Docker knows, with what to do
// next, and gives the exit code.
func (a *app) report(err error) int {
	if err == nil {
		return 0
	}
	code := 1
	var s *statusError
	if errors.As(err, &s) && s.Code != 0 {
		code = s.Code
	}
	text := errtext.Of(err)
	if moby.IsErrConnectionFailed(err) {
		text = a.reword(err, err.Error())
	}
	if text != "" {
		a.complain(text)
	}
	return code
}

// reword makes the moby client's various words for an engine that cannot be
// reached the one sentence that scripts and people look for, and says how to
// start an engine.
func (a *app) reword(err error, text string) string {
	host := a.endpoint.Options.Host
	cannot := fmt.Sprintf("Cannot connect to the Docker daemon at %s. Is the docker daemon running?", host)
	inner := err
	var s *statusError
	if errors.As(err, &s) && s.Err != nil {
		inner = s.Err
	}
	switch raw := inner.Error(); {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return strings.Replace(text, raw, cannot+startHint(host), 1)
	case errors.Is(err, os.ErrPermission), strings.HasPrefix(raw, "permission denied"):
		denied := fmt.Sprintf("permission denied while trying to connect to the Docker daemon socket at %s", host)
		return strings.Replace(text, raw, denied+"\nUse sudo, or join the group that owns the socket and log in again.", 1)
	case strings.HasPrefix(raw, "Cannot connect"):
		return strings.Replace(text, raw, cannot+startHint(host), 1)
	}
	return text
}

func startHint(host string) string {
	if strings.HasPrefix(host, "unix://") {
		return "\nStart the engine with 'escale daemon' or 'systemctl start escale', or name another with -H or ESCALE_HOST."
	}
	return "\nCheck the address, or name another engine with -H or ESCALE_HOST."
}

// withHelp is an error of run or create, with Docker's pointer to the help.
func (a *app) withHelp(code int, verb string, err error) error {
	return &statusError{
		Code: code,
		Text: fmt.Sprintf("%s: %s\n\nRun '%s %s --help' for more information", a.name, err, a.name, verb),
		Err:  err,
	}
}

// startError gives a failed create or start its exit code: 127 when the
// command is not there, 126 when it cannot be run, 125 for all else.
func (a *app) startError(verb string, err error) error {
	text := err.Error()
	code := 125
	switch {
	case strings.Contains(text, "executable file not found"), strings.Contains(text, "no such file or directory"):
		code = 127
	case strings.Contains(text, syscall.EACCES.Error()), strings.Contains(text, syscall.EISDIR.Error()):
		code = 126
	}
	// An engine that cannot be reached may also be a file that is not there.
	if moby.IsErrConnectionFailed(err) {
		code = 125
	}
	return a.withHelp(code, verb, err)
}

// flagError is what an unknown or ill-formed flag ends with.
func flagError(cmd *cobra.Command, err error) error {
	return &statusError{
		Code: 125,
		Text: fmt.Sprintf("%s\n\nUsage:  %s\n\nRun '%s --help' for more information", err, cmd.UseLine(), cmd.CommandPath()),
	}
}

package container

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strconv"
	"syscall"

	"escale.dev/escale/internal/runtime"

	"github.com/containerd/errdefs"
)

// ErrNotModified tells that a container already is as asked (HTTP 304).
var ErrNotModified = fmt.Errorf("not modified")

// errNoSuch is Docker's answer for an unknown container.
func errNoSuch(ref string) error {
	return &statusError{kind: errdefs.ErrNotFound, msg: "No such container: " + ref}
}

// statusError carries Docker's exact words together with an error kind, whose
// own words are not shown.
type statusError struct {
	kind error
	msg  string
}

func (e *statusError) Error() string { return e.msg }
func (e *statusError) Unwrap() error { return e.kind }

// kindf makes an error of kind with exactly the words given.
func kindf(kind error, format string, args ...any) error {
	return &statusError{kind: kind, msg: fmt.Sprintf(format, args...)}
}

var (
	errInvalid        = errdefs.ErrInvalidArgument
	errConflict       = errdefs.ErrConflict
	errNotFound       = errdefs.ErrNotFound
	errNotImplemented = errdefs.ErrNotImplemented
)

// errMonitorLost is the runtime's word for a monitor that is gone.
var errMonitorLost = runtime.ErrMonitorLost

// gone tells whether err is that of a monitor that has left, as monitors do when
// their container has ended: the engine hears of it at the same time.
func gone(err error) bool {
	return errdefs.IsNotFound(err) || errors.Is(err, errMonitorLost) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist)
}

// notRunning puts the error of a monitor that has left into the words for what
// comes after the end of a container.
func notRunning(id ID, err error) error {
	if gone(err) {
		return kindf(errConflict, "container %s is not running", id)
	}
	return err
}

func uitoa(n uint64) string { return strconv.FormatUint(n, 10) }

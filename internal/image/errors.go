package image

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"golang.org/x/sys/unix"
)

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

// invalidf makes an error of kind InvalidArgument.
func invalidf(format string, args ...any) error {
	return kindf(errdefs.ErrInvalidArgument, format, args...)
}

// errNoSuch is Docker's answer for an unknown image.
func errNoSuch(ref reference.Reference) error {
	name := ref.String()
	if named, ok := ref.(reference.Named); ok {
		name = reference.FamiliarString(reference.TagNameOnly(named))
	}
	return kindf(errdefs.ErrNotFound, "No such image: %s", name)
}

// asInvalid gives what a broken archive made go wrong the kind
// InvalidArgument, unless it has a kind already or the host is to blame.
func asInvalid(err error) error {
	var kind *statusError
	switch {
	case err == nil, errors.As(err, &kind), errdefs.IsResourceExhausted(err), errdefs.IsNotFound(err),
		errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EROFS), errors.Is(err, unix.EIO),
		errdefs.IsCanceled(err), errdefs.IsDeadlineExceeded(err):
		return err
	}
	return &wrapped{kind: errdefs.ErrInvalidArgument, err: err}
}

// wrapped gives an error a kind and leaves its words.
type wrapped struct{ kind, err error }

func (w *wrapped) Error() string   { return w.err.Error() }
func (w *wrapped) Unwrap() []error { return []error{w.kind, w.err} }

package network

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
)

// worded is an error of a kind with exactly these words, which clients know.
func worded(kind error, format string, args ...any) error {
	return &wordedError{kind: kind, words: fmt.Sprintf(format, args...)}
}

type wordedError struct {
	kind  error
	words string
}

func (e *wordedError) Error() string { return e.words }
func (e *wordedError) Unwrap() error { return e.kind }

// kindOf is the kind of an error, for another with more words.
func kindOf(err error) error {
	switch {
	case errdefs.IsInvalidArgument(err):
		return errdefs.ErrInvalidArgument
	case errdefs.IsPermissionDenied(err):
		return errdefs.ErrPermissionDenied
	case errdefs.IsNotFound(err):
		return errdefs.ErrNotFound
	case errdefs.IsUnavailable(err):
		return errdefs.ErrUnavailable
	default:
		return errdefs.ErrInternal
	}
}

// listed puts several things that are wrong into one text as Docker does: one
// alone as it is, more as a list.
func listed(wrong []string) string {
	if len(wrong) == 1 {
		return strings.TrimSpace(wrong[0])
	}
	for i, w := range wrong {
		wrong[i] = strings.ReplaceAll(w, "\n", "\n\t")
	}
	return "* " + strings.Join(wrong, "\n* ")
}

// missingPlugin says that there is no driver of a name.
func missingPlugin(name string) error {
	return worded(errdefs.ErrNotFound, "plugin %q not found", name)
}

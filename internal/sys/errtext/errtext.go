// Package errtext gives the words of errors for people. Errors carry kinds of
// github.com/containerd/errdefs, often as the last of what they wrap, so that their texts end in
// ": failed precondition" or the like: that is for programs, and is left out where a text leaves
// the engine.
package errtext

import (
	"errors"
	"strings"

	"github.com/containerd/errdefs"
)

// kinds are those that a text may end in. Some say what nothing else of the text may have said:
// they stay, unless one of the words before says it too.
var kinds = []struct {
	err  error
	said []string // nil: it says nothing to people
	once bool     // an error of the system has the same words
}{
	{err: errdefs.ErrInvalidArgument, once: true},
	{err: errdefs.ErrFailedPrecondition},
	{err: errdefs.ErrUnavailable},
	{err: errdefs.ErrConflict},
	{err: errdefs.ErrInternal},
	{err: errdefs.ErrUnknown},
	{err: errdefs.ErrAborted},
	{err: errdefs.ErrOutOfRange},
	{err: errdefs.ErrDataLoss},
	{err: errdefs.ErrResourceExhausted},
	{err: errdefs.ErrUnauthenticated},
	{err: errdefs.ErrNotFound, said: []string{"not found", "no such", " no ", " not ", "nothing", "does not"}},
	{err: errdefs.ErrAlreadyExists, said: []string{"exists", "already", "in use", "of its own"}},
	{err: errdefs.ErrPermissionDenied, said: []string{"denied", " not ", " no ", "only ", "none of", "may ", "removed"}, once: true},
	{err: errdefs.ErrNotImplemented, said: []string{"not ", "cannot", "no ", "unsupported"}},
}

// Of is the text of an error without the names of its kinds at the end of its lines; "" for nil.
func Of(err error) string {
	if err == nil {
		return ""
	}
	text := err.Error()
	if !strings.Contains(text, "\n") {
		return line(err, text)
	}
	lines := strings.Split(text, "\n")
	for i := range lines {
		lines[i] = line(err, lines[i])
	}
	return strings.Join(lines, "\n")
}

func line(err error, text string) string {
	done := map[error]bool{}
next:
	for {
		for _, k := range kinds {
			rest, ends := strings.CutSuffix(text, ": "+k.err.Error())
			if !ends || rest == "" || done[k.err] || !errors.Is(err, k.err) || k.said != nil && !says(rest, k.said) {
				continue
			}
			done[k.err] = k.once
			text = rest
			continue next
		}
		return text
	}
}

func says(text string, words []string) bool {
	text = strings.ToLower(text)
	for _, w := range words {
		if strings.Contains(text, w) {
			return true
		}
	}
	return false
}

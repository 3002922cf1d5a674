package errtext

import (
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
)

// A text ends in what people can use, also after it has crossed between nodes.
func TestOf(t *testing.T) {
	for want, err := range map[string]error{
		"":                                 nil,
		"this manager does not lead":       fmt.Errorf("this manager does not lead: %w", errdefs.ErrUnavailable),
		"root x: it is in use already":     fmt.Errorf("root x: it is in use already: %w", errdefs.ErrInvalidArgument),
		"node a: it is not there":          fmt.Errorf("node a: %w", fmt.Errorf("it is not there: %w", errdefs.ErrNotFound)),
		`secret "x": not found`:            fmt.Errorf("secret %q: %w", "x", errdefs.ErrNotFound),
		"task 3: not found":                fmt.Errorf("task 3: not found: %w", errdefs.ErrNotFound),
		"volume x: already exists":         fmt.Errorf("volume x: %w", errdefs.ErrAlreadyExists),
		"a.\nb":                            errors.Join(fmt.Errorf("a.: %w", errdefs.ErrConflict), fmt.Errorf("b: %w", errdefs.ErrFailedPrecondition)),
		"mount: invalid argument":          fmt.Errorf("mount: %w: %w", syscall.EINVAL, errdefs.ErrInvalidArgument),
		"exec: invalid argument":           fmt.Errorf("exec: %w", syscall.EINVAL),
		"open x: permission denied":        fmt.Errorf("open x: %w: %w", syscall.EACCES, errdefs.ErrPermissionDenied),
		"seccomp on mips: not implemented": fmt.Errorf("seccomp on mips: %w", errdefs.ErrNotImplemented),
		"not found":                        errdefs.ErrNotFound,
		"container x: conflict":            errors.New("container x: conflict"),
		"No such container: x":             errdefs.ErrNotFound.WithMessage("No such container: x"),
		"manager m: refused":               fmt.Errorf("manager m: %w: %w", fmt.Errorf("refused: %w", errdefs.ErrUnavailable), errdefs.ErrUnavailable),
		"a secret is larger than 500 kB":   errgrpc.ToNative(errgrpc.ToGRPC(errdefs.ErrInvalidArgument.WithMessage("a secret is larger than 500 kB"))),
		"it is locked":                     errgrpc.ToNative(errgrpc.ToGRPC(fmt.Errorf("it is locked: %w", errdefs.ErrFailedPrecondition))),
		"node n: it was removed":           fmt.Errorf("node n: %w", errgrpc.ToNative(errgrpc.ToGRPC(fmt.Errorf("it was removed: %w", errdefs.ErrPermissionDenied)))),
	} {
		if got := Of(err); got != want {
			t.Errorf("%v: %q, want %q", err, got, want)
		}
	}
}

package shim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime/shim/wire"
)

const (
	// adoptPatience is how long a monitor may take until it can be talked to, or
	// until its container's process has been started.
	adoptPatience = 30 * time.Second
	adoptPause    = 5 * time.Millisecond
)

// holdAlive makes the file in runDir whose lock tells that a monitor lives. The
// lock goes with the descriptor: the monitor inherits it, from before it has run
// a single instruction until it has recorded how its container ended.
func holdAlive(runDir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(runDir, wire.AliveName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, &os.PathError{Op: "lock", Path: f.Name(), Err: err}
	}
	return f, nil
}

// lives tells whether a monitor has runDir.
func lives(runDir string) bool {
	f, err := os.Open(filepath.Join(runDir, wire.AliveName))
	if err != nil {
		return false // of a monitor from before there was the file, or of none
	}
	defer f.Close()
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// reach connects to the monitor in runDir. One that an engine launched just
// before it was killed may not listen yet, and one whose container has ended does
// not any more: NotFound means that there is none, and that what it had to record
// is recorded. Nothing tells when a monitor begins to listen, hence the pauses.
func reach(ctx context.Context, runDir string, dial func(context.Context) (*net.UnixConn, error)) (*net.UnixConn, error) {
	for end := time.Now().Add(adoptPatience); ; {
		nc, err := dial(ctx)
		if err == nil || !errdefs.IsNotFound(err) || !lives(runDir) {
			return nc, err
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("lives and does not listen: %w", errdefs.ErrUnavailable)
		}
		if err := pause(ctx); err != nil {
			return nil, err
		}
	}
}

// outcome asks for the status until a start that is under way has come to its
// end: taken for one that never was, its outcome would be lost.
func (t *Task) outcome(ctx context.Context) (wire.Message, error) {
	for end := time.Now().Add(adoptPatience); ; {
		status, err := t.conn.call(ctx, wire.Status, nil)
		if err != nil || status.Uint(wire.TagState) != wire.StateStarting || time.Now().After(end) {
			return status, err
		}
		if err := pause(ctx); err != nil {
			return status, err
		}
	}
}

func pause(ctx context.Context) error {
	select {
	case <-time.After(adoptPause):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

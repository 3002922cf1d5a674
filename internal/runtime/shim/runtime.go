// Package shim runs containers under monitors: escale-shim processes that call
// an OCI runtime, or have the children of a Maker, and outlive the engine. It
// implements runtime.Runtime.
//
// A monitor is told what to do over a socket in the container's run directory;
// package wire has the protocol, package monitor the other side.
package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"escale.dev/escale/internal/runtime"
	"escale.dev/escale/internal/runtime/shim/wire"
	"escale.dev/escale/internal/sys/cgroup"
	"escale.dev/escale/internal/sys/ready"
)

// Config is what a Runtime needs.
type Config struct {
	ShimPath string       // the monitor's binary, absolute
	Logger   *slog.Logger // nil: nothing is logged

	// Cgroup is the directory of a version 2 cgroup that monitors are started in,
	// so that they are not counted and ended with the engine's. Empty: the engine's.
	Cgroup string

	// Maker starts containers whose OCI runtime is the program MakerOf, in place of it. nil: none.
	Maker   runtime.Maker
	MakerOf string

	// Grace is how long a client that has stopped reading is waited for once its
	// process has ended: the monitor lives on for it, and for nothing else. 0 is
	// ten minutes; seconds are what counts.
	Grace time.Duration
}

// Runtime launches and finds monitors.
type Runtime struct {
	cfg     Config
	log     *slog.Logger
	cgroups func() (cgroup.Info, error)

	patience time.Duration // with OCI runtimes that update or delete
	pool     *ready.Spares[*blank]
}

var _ runtime.Runtime = (*Runtime)(nil)

// New makes a Runtime. It does no I/O.
func New(cfg Config) *Runtime {
	if cfg.Grace <= 0 {
		cfg.Grace = 10 * time.Minute
	}
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	r := &Runtime{cfg: cfg, log: log.With("component", "shim"), cgroups: sync.OnceValues(cgroup.Detect), patience: callPatience}
	r.keep(ready.Config[*blank]{Size: poolSize, Delay: poolDelay, Rest: poolRest})
	return r
}

// Close ends the monitors that are kept ready, and waits for their end. Those of
// containers go on, and more can be launched. Idempotent.
func (r *Runtime) Close() error {
	r.pool.Close()
	return nil
}

// Adopt connects to the monitor in runDir; see runtime.Runtime.
func (r *Runtime) Adopt(ctx context.Context, id, runDir, stateDir string) (runtime.Task, error) {
	dial := dialer(runDir)
	nc, err := reach(ctx, runDir, dial)
	if err != nil {
		return nil, fmt.Errorf("monitor of container %s: %w", id, err)
	}
	t := newTask(id, stateDir, newConn(nc), dial, r.log)
	t.runDir = runDir
	t.conn.hello()
	go t.conn.read()
	status, err := t.outcome(ctx)
	if err == nil && status.Text(wire.TagID) != id {
		err = fmt.Errorf("is that of container %q: %w", status.Text(wire.TagID), errdefs.ErrFailedPrecondition)
	}
	if errors.Is(err, errLost) {
		err = errdefs.ErrNotFound // it was just leaving
	}
	if err != nil {
		_ = t.Close() // it is of no use
		return nil, fmt.Errorf("monitor of container %s: %w", id, err)
	}
	t.adopted(status)
	return t, nil
}

// dialer connects to the socket in dir through the directory's descriptor, for
// its path may be longer than a socket's address can be. NotFound when nobody
// listens.
func dialer(dir string) func(context.Context) (*net.UnixConn, error) {
	return func(ctx context.Context) (*net.UnixConn, error) {
		path := filepath.Join(dir, wire.SocketName)
		if len(path) > maxSocketPath {
			d, err := openDir(dir)
			if err != nil {
				return nil, notFound(err)
			}
			defer d.Close()
			path = "/proc/self/fd/" + strconv.Itoa(int(d.Fd())) + "/" + wire.SocketName
		}
		var d net.Dialer
		c, err := d.DialContext(ctx, "unix", path)
		if err != nil {
			return nil, notFound(err)
		}
		return c.(*net.UnixConn), nil
	}
}

// exitRecord is what monitor.record writes.
type exitRecord struct {
	Version    int
	Generation uint64
	Code       *int
	At         int64 // Unix time, nanoseconds
	OOM        bool
	Boot       string
}

// LastExit reads the exit record of a start; see runtime.Runtime. A record that
// cannot be read (written while the power went) is none.
func (r *Runtime) LastExit(stateDir string, generation uint64) (runtime.Exit, error) {
	return lastExit(stateDir, generation)
}

func lastExit(stateDir string, generation uint64) (runtime.Exit, error) {
	path := filepath.Join(stateDir, wire.ExitPrefix+strconv.FormatUint(generation, 10))
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return runtime.Exit{}, fmt.Errorf("exit record %s: %w", path, errdefs.ErrNotFound)
	} else if err != nil {
		return runtime.Exit{}, err
	}
	var rec exitRecord
	if err := json.Unmarshal(b, &rec); err != nil || rec.Code == nil || rec.Generation != generation {
		return runtime.Exit{}, fmt.Errorf("exit record %s: unreadable: %w", path, errdefs.ErrNotFound)
	}
	return runtime.Exit{Code: *rec.Code, At: time.Unix(0, rec.At), OOMKilled: rec.OOM}, nil
}

// Package builder builds images: BuildKit in the engine's own process, its steps
// run by the engine's runtime, in the image store's own content and snapshots. It
// is the only package that imports moby/buildkit; DESIGN.md says how the two fit.
//
// BuildKit is started by the first build, or whatever else needs it, not before.
package builder

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"escale.dev/escale/internal/image"
	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/runtime"
	"escale.dev/escale/internal/runtime/oci"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Images is the store that builds work in and leave their images in.
type Images interface {
	Shared() image.Shared
	Adopt(ctx context.Context, a image.Adopted) (image.Image, error)
	Get(ctx context.Context, ref string) (image.Image, error)
	ByDigest(d digest.Digest) (image.Image, bool)
	List(ctx context.Context) ([]image.Image, error)
	Collect(ctx context.Context) error
}

// Networks gives steps their networks; see network.Manager.
type Networks interface {
	Setup(ctx context.Context, r network.Request) (*network.Sandbox, error)
	Teardown(ctx context.Context, id string, eps []network.Endpoint) error
}

// Specs makes the specifications of steps; see oci.Builder.
type Specs interface {
	Spec(ctx context.Context, o oci.Options) (*specs.Spec, []string, error)
	Process(spec *specs.Spec, rootfs string, e oci.ExecOptions) (*specs.Process, error)
	Validate(h *container.HostConfig, c *container.Config) (warnings []string, err error)
	Complete(h *container.HostConfig)
}

// Config is what a Builder needs; all of it but AppArmorProfile, Hosts, Gateway and DNS.
type Config struct {
	Dir    string // of the cache's databases, durable
	RunDir string // of steps under way, on tmpfs

	Images   Images
	Networks Networks
	Runtime  runtime.Runtime
	Binary   func() runtime.Binary // the OCI runtime of steps, as the settings of now have it
	Specs    Specs

	CgroupParent    string
	Scopes          string // what systemd's scopes of steps begin with; empty: it makes none
	AppArmorProfile string
	Hosts           docker.RegistryHosts // nil: those of Docker
	Gateway         func() string        // the address that host-gateway stands for; nil: none
	DNS             DNS
	Version         string
	Logger          *slog.Logger
}

// DNS is what the engine's configuration says for resolv.conf; empty: the host's.
type DNS struct{ Servers, Search, Options []string }

// Builder builds. It is safe for concurrent use.
type Builder struct {
	cfg   Config
	log   *slog.Logger
	exec  *executor
	stop  context.CancelFunc
	ctx   context.Context // ends with Close
	tasks sync.WaitGroup

	starting sync.Mutex // held while BuildKit starts

	mu     sync.Mutex
	kit    *kit // nil: not started
	closed bool
	busy   int           // builds under way
	tidy   chan struct{} // closed once nothing half made is in the cache
	builds map[string]context.CancelCauseFunc
}

// New makes a Builder; nothing is opened before Open.
func New(cfg Config) *Builder {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	b := &Builder{cfg: cfg, log: cfg.Logger, builds: map[string]context.CancelCauseFunc{}, tidy: make(chan struct{})}
	b.exec = newExecutor(&b.cfg)
	return b
}

// busyFile, in the durable directory, is there while a build is under way: an
// engine that finds it was preceded by one that was killed.
const busyFile = "busy"

// Open collects what an engine that was killed amid a build left behind: what
// steps had in the kernel at once, what was half made of the cache in the
// background. Blocks for some milliseconds a step.
func (b *Builder) Open(ctx context.Context) error {
	// detached: builds outlive the call that opened the builder
	b.ctx, b.stop = context.WithCancel(context.WithoutCancel(ctx))
	if err := os.MkdirAll(b.cfg.RunDir, 0o711); err != nil {
		return err
	}
	b.exec.sweep(ctx)
	_, err := os.Stat(b.path(busyFile))
	if errors.Is(err, fs.ErrNotExist) {
		close(b.tidy)
		return nil
	}
	b.log.Info("collecting what builds left that were cut off")
	b.tasks.Go(func() {
		if err := b.collectCutOff(b.ctx); err != nil && b.ctx.Err() == nil {
			b.log.Error("collecting what builds left that were cut off", "error", err)
		}
	})
	return nil
}

// collectCutOff removes the half-made parts of the cache. Builds wait until they are
// out of it, not until the disk has its space back.
func (b *Builder) collectCutOff(ctx context.Context) error {
	k, err := b.start()
	if err == nil {
		err = k.dropHalfMade(ctx)
	}
	close(b.tidy)
	if err != nil {
		return err
	}
	if err := b.cfg.Images.Collect(ctx); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.busy == 0 {
		return os.Remove(b.path(busyFile))
	}
	return nil
}

func (b *Builder) path(name string) string { return filepath.Join(b.cfg.Dir, name) }

// start starts BuildKit unless it runs. It blocks for tens of milliseconds.
func (b *Builder) start() (*kit, error) {
	b.starting.Lock()
	defer b.starting.Unlock()
	b.mu.Lock()
	k, closed := b.kit, b.closed
	b.mu.Unlock()
	if k != nil {
		return k, nil
	}
	if closed || b.ctx == nil {
		return nil, fmt.Errorf("builder: the engine is shutting down: %w", errdefs.ErrUnavailable)
	}
	if err := os.MkdirAll(b.cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	k, err := newKit(b.ctx, &b.cfg, b.exec)
	if err != nil {
		return nil, fmt.Errorf("builder: %w", err)
	}
	b.mu.Lock()
	b.kit = k
	b.mu.Unlock()
	return k, nil
}

// begin counts a build and writes down that there is one. It blocks while what an
// engine that was killed has left is taken out of the cache.
func (b *Builder) begin(ctx context.Context) error {
	select {
	case <-b.tidy:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return fmt.Errorf("builder: the engine is shutting down: %w", errdefs.ErrUnavailable)
	}
	if b.busy == 0 {
		if err := os.WriteFile(b.path(busyFile), nil, 0o600); err != nil {
			return err
		}
	}
	b.busy++
	b.tasks.Add(1)
	return nil
}

func (b *Builder) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.busy--; b.busy == 0 && b.ctx.Err() == nil {
		err := errors.Join(os.Remove(b.path(busyFile)), tidyTemp(filepath.Join(b.cfg.RunDir, mountPool)))
		if err != nil {
			b.log.Warn("builder", "error", err)
		}
	}
	b.tasks.Done()
}

// Close ends all builds and BuildKit. Idempotent.
func (b *Builder) Close() error {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return nil
	}
	b.closed = true
	b.mu.Unlock()
	if b.stop != nil {
		b.stop()
	}
	b.tasks.Wait()
	b.starting.Lock()
	defer b.starting.Unlock()
	if b.kit == nil {
		return nil
	}
	return b.kit.close()
}

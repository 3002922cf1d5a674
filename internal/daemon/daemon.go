package daemon

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"escale.dev/escale/internal/api/engine"
	"escale.dev/escale/internal/builder"
	"escale.dev/escale/internal/container"
	"escale.dev/escale/internal/events"
	"escale.dev/escale/internal/image"
	"escale.dev/escale/internal/logs/ship"
	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/network/overlay"
	netplugin "escale.dev/escale/internal/network/plugin"
	"escale.dev/escale/internal/plugin"
	"escale.dev/escale/internal/plugin/managed"
	"escale.dev/escale/internal/registry"
	"escale.dev/escale/internal/runtime/cdi"
	"escale.dev/escale/internal/runtime/native"
	"escale.dev/escale/internal/runtime/oci"
	"escale.dev/escale/internal/runtime/shim"
	"escale.dev/escale/internal/sys/atomicfile"
	"escale.dev/escale/internal/sys/host"
	"escale.dev/escale/internal/volume"
	"escale.dev/escale/internal/volume/local"
	volumeplugin "escale.dev/escale/internal/volume/plugin"
)

// Daemon is an engine: everything it is made of, wired.
type Daemon struct {
	cfg *Config
	log *slog.Logger
	id  string

	host          host.Facts
	facts         oci.Host    // of the kernel, for specifications and info
	tls           *tls.Config // of TCP listeners; nil: none
	live          atomic.Pointer[live]
	level         *slog.LevelVar // of the log
	safe          *safeMode
	crashed       crashRecord // of the engines before this one
	events        *events.Journal
	images        *image.Store
	networks      *network.Manager
	overlay       *overlay.Driver
	spans         *spans
	plugins       *plugin.Registry
	managed       *managed.Manager
	volumes       *volume.Set
	localVolumes  *local.Store
	pluginVolumes *volumeplugin.Store
	pluginNets    *netplugin.Store
	containers    *container.Manager
	devices       *cdi.Devices // by name; nil: turned off
	builder       *builder.Builder
	orchestrator  *orchestrator
	peers         *peers
	monitors      *shim.Runtime
	confined      confinement
	shipping      *ship.Set
	server        *engine.Server
	rest          *rest
	registry      *registry.Client
	taskFilesMu   sync.Mutex // see taskFiles
	listeners     []net.Listener
	closers       []func() error // what Run has opened, closed in reverse
}

// New checks that an engine can be made of cfg and what is installed; nothing
// is opened before Run. A reload may change the level of the log.
func New(cfg *Config, log *slog.Logger, level *slog.LevelVar) (*Daemon, error) {
	d := &Daemon{cfg: cfg, log: log.With("instance", cfg.Instance), level: level}
	d.rest = newRest(d.log)
	runtimes, err := cfg.runtimes()
	if err != nil {
		return nil, err
	}
	d.live.Store(&live{cfg, runtimes})
	if d.tls, err = cfg.tlsConfig(); err != nil {
		return nil, err
	}
	return d, nil
}

// now is the configuration as the last reload left it.
func (d *Daemon) now() *live { return d.live.Load() }

// Run opens the engine from the ground up, serves until ctx ends, and returns.
// Containers go on unless --stop-containers was said. At each signal of hup it
// takes over what parse gives.
func (d *Daemon) Run(ctx context.Context, hup <-chan os.Signal, parse func() (*Config, error)) error {
	for _, key := range d.cfg.unused {
		d.log.Warn("daemon.json: this version has no use for the key", "key", key)
	}
	d.cfg.tellRuntime(d.log)
	for _, open := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"roots", d.openRoots},
		{"events", d.openEvents},
		{"images", d.openImages},
		{"plugins", d.openPlugins},
		{"network", d.openNetwork},
		{"volumes", d.openVolumes},
		{"containers", d.openContainers},
		{"builder", d.openBuilder},
		{"registry", d.openRegistry},
		{"managed plugins", d.startPlugins},
		{"store", d.openStore},
		{"tasks", d.openTasks},
		{"API", d.openAPI},
	} {
		if err := open.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", open.what, err)
		}
	}
	return d.serve(ctx, hup, parse)
}

// Close lets go of everything in reverse. Idempotent.
func (d *Daemon) Close() error {
	var errs []error
	for i := len(d.closers) - 1; i >= 0; i-- {
		errs = append(errs, d.closers[i]())
	}
	d.closers = nil
	return errors.Join(errs...)
}

func (d *Daemon) onClose(f func() error) { d.closers = append(d.closers, f) }

// serve answers until ctx ends or a listener fails.
func (d *Daemon) serve(ctx context.Context, hup <-chan os.Signal, parse func() (*Config, error)) error {
	failed := make(chan error, len(d.listeners))
	var served sync.WaitGroup
	for _, l := range d.listeners {
		d.log.Info("API listens", "address", l.Addr().Network()+"://"+l.Addr().String())
		served.Go(func() { failed <- d.server.Serve(ctx, l) })
	}
	if err := notify("READY=1"); err != nil {
		d.log.Warn("telling systemd", "error", err)
	}
	d.log.Info("ready", "version", Version, "containers", len(d.containers.List()))
	if err := d.holdBack(d.cfg.SafeMode); err != nil {
		d.log.Warn("counting crashes", "error", err)
	}
	d.containers.Resume(ctx)
	go d.reloads(ctx, hup, parse)
	go d.rest.run(ctx)
	release := d.keepApps(ctx)
	defer release()
	select {
	case <-ctx.Done():
	case err := <-failed:
		if err != nil && ctx.Err() == nil {
			return err
		}
	}
	d.log.Info("stopping", "containers", map[bool]string{true: "are stopped too", false: "go on"}[d.now().cfg.StopContainers])
	notify("STOPPING=1") // systemd gone meanwhile is no harm
	served.Wait()        // a request under way may be a start: it counts below
	release()            // or what is stopped below would be replaced
	cfg := d.now().cfg
	if cfg.StopContainers {
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Duration(cfg.StopTimeout)*time.Second)
		defer cancel()
		d.containers.StopAll(stopCtx)
		d.managed.StopAll(stopCtx)
	}
	if cfg.CleanExit {
		if err := d.leaveNothing(ctx); err != nil {
			d.log.Warn("leaving nothing behind", "error", err)
		}
	}
	return nil
}

// openRoots makes the directories, takes the lock and writes the pid file.
func (d *Daemon) openRoots(context.Context) error {
	for _, dir := range []string{d.cfg.DataRoot, d.cfg.ExecRoot} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
	}
	err := d.lockAll()
	if err != nil {
		return err
	}
	if err := d.openSafeMode(filepath.Join(d.cfg.DataRoot, "crashes.json")); err != nil {
		return err
	}
	if d.host, err = host.Read(); err != nil {
		return err
	}
	if d.id, err = engineID(filepath.Join(d.cfg.DataRoot, "engine-id")); err != nil {
		d.log.Warn("keeping the engine's id: the next start has another", "error", err) // a full disk
	}
	if err := os.MkdirAll(filepath.Dir(d.cfg.Pidfile), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(d.cfg.Pidfile, []byte(strconv.Itoa(os.Getpid())), 0o644); err != nil {
		return err
	}
	d.onClose(func() error { return os.Remove(d.cfg.Pidfile) })
	return nil
}

var engineIDRule = regexp.MustCompile(`^[0-9a-zA-Z:_-]{1,64}$`)

// engineID is this data root's identity, made once. With an error it is one that does not last.
func engineID(path string) (string, error) {
	b, err := os.ReadFile(path)
	if id := strings.TrimSpace(string(b)); err == nil && engineIDRule.MatchString(id) {
		return id, nil
	}
	var raw [16]byte
	rand.Read(raw[:])
	h := hex.EncodeToString(raw[:])
	id := strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-")
	return id, atomicfile.Write(path, []byte(id+"\n"), 0o600, atomicfile.Options{Sync: true})
}

func (d *Daemon) openRuntime() (*shim.Runtime, error) {
	path, err := beside("escale-shim")
	if err != nil {
		return nil, err
	}
	c := shim.Config{ShimPath: path, Logger: d.log, Cgroup: d.monitorsCgroup()}
	if own := d.now().runtimes[ownRuntime].Path; own != "" && d.cfg.Runtimes[ownRuntime] == "" {
		if m, err := native.NewMaker(own); err != nil { // its program may do
			d.log.Warn("each start of a container calls the runtime's program", "program", own, "error", err)
		} else {
			d.onClose(m.Close)
			c.Maker, c.MakerOf = m, own
		}
	}
	r := shim.New(c)
	d.onClose(r.Close)
	return r, nil
}

// monitorsCgroup makes the version 2 cgroup that monitors live in, beside those
// of the containers and outside the engine's own: a limit on the engine's
// service does not reach them. Empty where there is no version 2 hierarchy.
func (d *Daemon) monitorsCgroup() string {
	if d.facts.Cgroup.Unified == "" {
		return ""
	}
	dir := filepath.Join(d.facts.Cgroup.Unified, d.cfg.cgroupName()+"-monitors")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		d.log.Debug("monitors share the engine's cgroup", "error", err)
		return ""
	}
	return dir
}

// beside finds a program of ours: next to the engine, or in libexec/escale when
// installed, or on the PATH.
func beside(name string) (string, error) {
	for _, dir := range append(ownDirs(), filepath.SplitList(os.Getenv("PATH"))...) {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return filepath.Abs(path)
		}
	}
	return "", fmt.Errorf("%s is missing: it belongs beside escaled (make build, or make install)", name)
}

// ownDirs are where our programs lie: beside the engine, or in libexec/escale.
func ownDirs() []string {
	self, err := os.Executable()
	if err != nil {
		return nil
	}
	return []string{filepath.Dir(self), filepath.Join(filepath.Dir(self), "../libexec/escale")}
}

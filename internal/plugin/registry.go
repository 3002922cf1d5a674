package plugin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// Kinds of plugins, as their handshakes name them.
const (
	VolumeDriver  = "VolumeDriver"
	NetworkDriver = "NetworkDriver"
	IpamDriver    = "IpamDriver"
)

const (
	activateTimeout = 30 * time.Second
	probeTimeout    = 5 * time.Second  // of what asks all plugins
	shunFor         = 30 * time.Second // how long one that hung is left out of that
)

// Plugin is one that has made itself known. Safe for concurrent use.
type Plugin struct {
	*Client
	Name       string
	Implements []string
	// Managed tells that the engine runs it itself.
	Managed bool
	// Root is in front of paths that it tells: "" when it sees the machine's files.
	Root func(path string) string

	addr string
}

// Path is where a path that the plugin told lies for the engine.
func (p *Plugin) Path(path string) string {
	if p.Root == nil || path == "" {
		return path
	}
	return p.Root(path)
}

// Managed finds the plugins that the engine runs itself.
type Managed interface {
	// Find gives a plugin that is enabled. Kinds: NotFound; FailedPrecondition
	// for one that is not enabled.
	Find(name string) (*Plugin, error)
	// All gives the plugins that are enabled.
	All() []*Plugin
}

// Config is what a Registry needs.
type Config struct {
	Sockets []string // directories of sockets
	Specs   []string // directories of files with addresses
	Managed Managed  // nil: none
	Logger  *slog.Logger
}

// Registry knows the plugins of a machine. Safe for concurrent use.
type Registry struct {
	cfg    Config
	places places

	mu      sync.Mutex
	active  map[string]*Plugin       // of the host, after the handshake
	shunned map[string]time.Time     // until when
	shaking map[string]chan struct{} // handshakes under way
}

// NewRegistry makes a Registry; it looks when it is asked.
func NewRegistry(c Config) *Registry {
	return &Registry{
		cfg: c, places: places{c.Sockets, c.Specs},
		active: map[string]*Plugin{}, shunned: map[string]time.Time{}, shaking: map[string]chan struct{}{},
	}
}

// Find gives a plugin that implements a kind. It blocks for the handshake of one
// that nobody has asked before. Kinds: NotFound; FailedPrecondition for one that
// is there and does not do that, or is disabled; else it cannot be reached.
func (r *Registry) Find(ctx context.Context, name, kind string) (*Plugin, error) {
	return r.find(ctx, name, kind, How{Timeout: activateTimeout})
}

func (r *Registry) find(ctx context.Context, name, kind string, how How) (*Plugin, error) {
	if r.cfg.Managed != nil {
		p, err := r.cfg.Managed.Find(name)
		if !errdefs.IsNotFound(err) {
			if err == nil && !slices.Contains(p.Implements, kind) {
				err = lacks(name, kind)
			}
			return p, err
		}
	}
	p, err := r.host(ctx, name, how)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(p.Implements, kind) {
		return nil, lacks(name, kind)
	}
	return p, nil
}

func lacks(name, kind string) error {
	return errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf("Plugin does not implement the requested driver: plugin=%q, requested implementation=%q", name, kind))
}

// host finds a plugin that the machine has, and shakes hands once.
func (r *Registry) host(ctx context.Context, name string, how How) (*Plugin, error) {
	w, err := r.places.find(name)
	if errors.Is(err, fs.ErrNotExist) {
		r.forget(name)
		return nil, errdefs.ErrNotFound.WithMessage(fmt.Sprintf("plugin %q not found", name))
	}
	if err != nil {
		return nil, fmt.Errorf("legacy plugin: %w", err)
	}
	for {
		r.mu.Lock()
		if p := r.active[name]; p != nil && p.addr == w.Addr {
			r.mu.Unlock()
			return p, nil
		}
		other := r.shaking[name]
		if other == nil {
			break
		}
		r.mu.Unlock()
		select { // one handshake at a time
		case <-other:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	done := make(chan struct{})
	r.shaking[name] = done
	r.mu.Unlock()
	p, err := activate(ctx, name, w, how)
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.shaking, name)
	close(done)
	if err != nil {
		return nil, fmt.Errorf("legacy plugin: %w", err)
	}
	r.active[name] = p
	return p, nil
}

func (r *Registry) forget(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.active, name)
}

// activate is the handshake.
func activate(ctx context.Context, name string, w where, how How) (*Plugin, error) {
	c, err := NewClient(w.Addr, w.TLS)
	if err != nil {
		return nil, err
	}
	var manifest struct{ Implements []string }
	if err := c.Call(ctx, "Plugin.Activate", nil, &manifest, how); err != nil {
		return nil, err
	}
	return &Plugin{Client: c, Name: name, Implements: manifest.Implements, addr: w.Addr}, nil
}

// Ask calls f for every plugin of a kind, all at the same time, and returns when
// all are done. f gets a context that ends after some seconds; a plugin for which
// it returns ErrUnreachable then is left out for a while. It returns what failed, by plugin.
func (r *Registry) Ask(ctx context.Context, kind string, f func(ctx context.Context, p *Plugin) error) map[string]error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	var (
		mu     sync.Mutex
		wg     sync.WaitGroup
		failed = map[string]error{}
	)
	note := func(name string, err error) {
		if err == nil {
			return
		}
		if ctx.Err() != nil && errors.Is(err, ErrUnreachable) {
			r.shun(name)
		}
		mu.Lock()
		defer mu.Unlock()
		failed[name] = err
	}
	ask := func(p *Plugin) { note(p.Name, f(ctx, p)) }
	if r.cfg.Managed != nil {
		for _, p := range r.cfg.Managed.All() {
			if slices.Contains(p.Implements, kind) {
				wg.Go(func() { ask(p) })
			}
		}
	}
	for _, name := range r.places.names() {
		if r.shuns(name) {
			note(name, fmt.Errorf("%s: %w: it did not answer in time", name, ErrUnreachable))
			continue
		}
		wg.Go(func() {
			p, err := r.host(ctx, name, How{Timeout: probeTimeout, Once: true})
			switch {
			case err != nil:
				note(name, err)
			case slices.Contains(p.Implements, kind):
				ask(p)
			}
		})
	}
	wg.Wait()
	return failed
}

func (r *Registry) shun(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.shunned[name] = time.Now().Add(shunFor)
	r.cfg.Logger.Warn("plugin does not answer: it is left out of what asks all plugins", "plugin", name, "for", shunFor)
}

func (r *Registry) shuns(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	until, ok := r.shunned[name]
	if ok && time.Now().After(until) {
		delete(r.shunned, name)
		ok = false
	}
	return ok
}

// Known lists the plugins of a kind that have been used or are enabled, sorted. It asks nobody.
func (r *Registry) Known(kind string) []string {
	var out []string
	if r.cfg.Managed != nil {
		for _, p := range r.cfg.Managed.All() {
			if slices.Contains(p.Implements, kind) {
				out = append(out, p.Name)
			}
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, p := range r.active {
		if slices.Contains(p.Implements, kind) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

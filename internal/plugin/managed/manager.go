package managed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"escale.dev/escale/internal/events"
	"escale.dev/escale/internal/image"
	"escale.dev/escale/internal/plugin"
	"escale.dev/escale/internal/runtime"
	"escale.dev/escale/internal/runtime/oci"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/container"
	apievents "github.com/moby/moby/api/types/events"
	apiplugin "github.com/moby/moby/api/types/plugin"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/sys/mount"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Repository is a repository of a registry, where plugins are as images are. See
// registry.Repository.
type Repository interface {
	Manifest(ctx context.Context, ref string) (ocispec.Descriptor, []byte, error)
	Blob(ctx context.Context, d digest.Digest, offset int64) (io.ReadCloser, error)
	Push(ctx context.Context, d ocispec.Descriptor, from []string, open func() (io.ReadCloser, error)) (image.Sent, error)
	PushManifest(ctx context.Context, ref string, d ocispec.Descriptor, data []byte) error
	Close()
}

// Specs makes OCI specifications; see oci.Builder.
type Specs interface {
	Spec(ctx context.Context, o oci.Options) (*specs.Spec, []string, error)
	Complete(h *container.HostConfig)
}

// Publisher receives what happened.
type Publisher interface{ Publish(events.Message) }

// Config is what a Manager needs.
type Config struct {
	Dir    string // durable: <id>/ of each plugin, blobs/
	RunDir string // on tmpfs; short, since sockets lie below it
	Events Publisher
	Logger *slog.Logger
}

// Engine is what the rest of an engine gives to a Manager.
type Engine struct {
	Runtime      runtime.Runtime
	Binary       func() runtime.Binary // the OCI runtime
	Specs        Specs
	CgroupParent string
	Scopes       string // what systemd's scopes begin with; empty: it makes none
	// Open finds a repository; see registry.Client.
	Open func(ctx context.Context, name reference.Named, login registry.AuthConfig, push bool) (Repository, error)
	// InUse tells whether something of the engine, as a volume, needs a plugin.
	InUse func(name string) bool
}

// Manager is the managed plugins of an engine. Safe for concurrent use.
type Manager struct {
	cfg Config
	eng Engine

	ctx    context.Context // ends with Close: plugins go on
	cancel context.CancelFunc
	loops  sync.WaitGroup
	blobs  blobs

	mu     sync.Mutex
	byID   map[string]*entry
	making map[string]bool // names of plugins that are being made
}

// entry is a plugin.
type entry struct {
	dir string
	op  sync.Mutex // held while it is changed, started or stopped

	mu     sync.Mutex
	rec    record
	client *plugin.Client // nil: it does not run
	run    *run
}

// view is the plugin as it is now.
func (e *entry) view() apiplugin.Plugin {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.rec.Plugin
}

// New makes a Manager; nothing is read or started before Open.
func New(c Config) *Manager {
	m := &Manager{cfg: c, byID: map[string]*entry{}, making: map[string]bool{}, blobs: blobs{filepath.Join(c.Dir, "blobs")}}
	m.ctx, m.cancel = context.WithCancel(context.Background()) // detached: lives from New to Close
	return m
}

// Open reads the records, collects what a killed engine left half-made, takes up the
// plugins that run and starts those that should. It blocks until each of them answers,
// or has not for some seconds. A record of a later format is refused (FailedPrecondition).
func (m *Manager) Open(ctx context.Context, eng Engine) error {
	m.eng = eng
	for _, dir := range []string{m.cfg.Dir, m.cfg.RunDir, m.blobs.dir} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return err
		}
	}
	list, err := os.ReadDir(m.cfg.Dir)
	if err != nil {
		return err
	}
	for _, d := range list {
		dir := filepath.Join(m.cfg.Dir, d.Name())
		switch {
		case strings.HasPrefix(d.Name(), newPrefix), strings.HasPrefix(d.Name(), oldPrefix):
			m.discard(dir)
		case idRule.MatchString(d.Name()):
			rec, err := load(dir)
			if errdefs.IsFailedPrecondition(err) {
				return err
			}
			if err != nil {
				m.cfg.Logger.Error("record of a plugin cannot be read: it is left alone", "path", dir, "error", err)
				continue
			}
			m.mu.Lock()
			m.byID[d.Name()] = &entry{dir: dir, rec: rec}
			m.mu.Unlock()
		}
	}
	m.collect()
	runs{m}.sweep(ctx)
	var wg sync.WaitGroup
	for _, e := range m.byID {
		wg.Go(func() { runs{m}.resume(ctx, e) })
	}
	wg.Wait()
	return nil
}

// Close lets go of the plugins, which go on. Idempotent.
func (m *Manager) Close() error {
	m.cancel()
	m.all(func(e *entry) {
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.run != nil {
			e.run.task.Close()
		}
	})
	m.loops.Wait()
	return nil
}

// StopAll ends all plugins, for an engine that leaves nothing. They stay enabled.
func (m *Manager) StopAll(ctx context.Context) {
	m.all(func(e *entry) {
		e.op.Lock()
		defer e.op.Unlock()
		runs{m}.stop(ctx, e)
	})
}

func (m *Manager) all(f func(*entry)) {
	m.mu.Lock()
	list := make([]*entry, 0, len(m.byID))
	for _, e := range m.byID {
		list = append(list, e)
	}
	m.mu.Unlock()
	for _, e := range list {
		f(e)
	}
}

// fullName is a plugin's name with its tag, as people write it.
func fullName(name string) (string, error) {
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return "", err
	}
	return reference.FamiliarString(reference.TagNameOnly(ref)), nil
}

// find finds a plugin by name, id, or a beginning of the id. Kinds: NotFound, InvalidArgument.
func (m *Manager) find(ref string) (*entry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.byID[ref]; e != nil {
		return e, nil
	}
	if name, err := fullName(ref); err == nil {
		for _, e := range m.byID {
			if e.view().Name == name {
				return e, nil
			}
		}
	}
	var found *entry
	for id, e := range m.byID {
		if ref != "" && strings.HasPrefix(id, ref) {
			if found != nil {
				return nil, invalidf("multiple plugins found for %q", ref)
			}
			found = e
		}
	}
	if found == nil {
		return nil, errdefs.ErrNotFound.WithMessage(fmt.Sprintf("plugin %q not found", ref))
	}
	return found, nil
}

// hold finds a plugin for who changes it; the caller unlocks its op. It blocks while
// another does. Kinds: those of find, NotFound also for one that was removed meanwhile.
func (m *Manager) hold(ref string) (*entry, error) {
	e, err := m.find(ref)
	if err != nil {
		return nil, err
	}
	e.op.Lock()
	m.mu.Lock()
	there := m.byID[e.view().ID] == e
	m.mu.Unlock()
	if !there {
		e.op.Unlock()
		return nil, errdefs.ErrNotFound.WithMessage(fmt.Sprintf("plugin %q not found", ref))
	}
	return e, nil
}

// List gives all plugins, by name.
func (m *Manager) List() []apiplugin.Plugin {
	out := []apiplugin.Plugin{}
	m.all(func(e *entry) { out = append(out, e.view()) })
	slices.SortFunc(out, func(a, b apiplugin.Plugin) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Inspect gives one. Kind: NotFound.
func (m *Manager) Inspect(ref string) (apiplugin.Plugin, error) {
	e, err := m.find(ref)
	if err != nil {
		return apiplugin.Plugin{}, err
	}
	return e.view(), nil
}

// Enable starts a plugin and waits until it answers, as long as timeout says, 0 being
// some seconds. Kinds: NotFound, Conflict for one that is enabled.
func (m *Manager) Enable(ctx context.Context, ref string, timeout time.Duration) error {
	e, err := m.hold(ref)
	if err != nil {
		return err
	}
	defer e.op.Unlock()
	if v := e.view(); v.Enabled {
		return conflictf("plugin already enabled: plugin %s is enabled", v.Name)
	}
	// A client that goes away does not stop a start half-way.
	if err := (runs{m}).start(context.WithoutCancel(ctx), e, timeout); err != nil {
		return err
	}
	if err := m.update(e, func(r *record) { r.Plugin.Enabled = true }); err != nil {
		runs{m}.stop(m.ctx, e)
		return err
	}
	m.tell(apievents.ActionEnable, e)
	return nil
}

// Disable ends a plugin; with force also one that is in use. Kinds: NotFound, Conflict.
func (m *Manager) Disable(ctx context.Context, ref string, force bool) error {
	e, err := m.hold(ref)
	if err != nil {
		return err
	}
	defer e.op.Unlock()
	v := e.view()
	switch {
	case !v.Enabled:
		return conflictf("plugin is already disabled: plugin %s found but disabled", v.Name)
	case !force && m.eng.InUse(v.Name):
		return conflictf("plugin %s is in use", v.Name)
	}
	if err := m.update(e, func(r *record) { r.Plugin.Enabled = false }); err != nil {
		return err
	}
	runs{m}.stop(context.WithoutCancel(ctx), e)
	m.tell(apievents.ActionDisable, e)
	return nil
}

// Set changes settings, NAME[.FIELD]=VALUE each, of a plugin that is disabled. Kinds:
// NotFound, InvalidArgument, Conflict.
func (m *Manager) Set(ref string, args []string) error {
	e, err := m.hold(ref)
	if err != nil {
		return err
	}
	defer e.op.Unlock()
	p := e.view()
	if err := set(&p, args); err != nil {
		return err
	}
	return m.update(e, func(r *record) { r.Plugin.Settings = p.Settings })
}

// Remove deletes a plugin; with force also one that runs or is in use. Kinds: NotFound, Conflict.
func (m *Manager) Remove(ctx context.Context, ref string, force bool) error {
	e, err := m.hold(ref)
	if err != nil {
		return err
	}
	defer e.op.Unlock()
	v := e.view()
	switch {
	case !force && m.eng.InUse(v.Name):
		return conflictf("plugin %s is in use", v.Name)
	case !force && v.Enabled:
		return conflictf("plugin %s is enabled", v.Name)
	}
	runs{m}.stop(context.WithoutCancel(ctx), e)
	gone := filepath.Join(m.cfg.Dir, oldPrefix+v.ID)
	if err := os.Rename(e.dir, gone); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	m.mu.Lock()
	delete(m.byID, v.ID)
	m.mu.Unlock()
	m.discard(gone)
	m.collect()
	m.tell(apievents.ActionRemove, e)
	return nil
}

// discard deletes a directory that no plugin has, but nothing that is mounted in it.
func (m *Manager) discard(dir string) {
	err := mount.RecursiveUnmount(dir)
	if err == nil {
		err = os.RemoveAll(dir)
	}
	if err != nil {
		m.cfg.Logger.Warn("deleting a plugin's files", "path", dir, "error", err)
	}
}

// update changes a record on disk and in memory; op is held.
func (m *Manager) update(e *entry, change func(*record)) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	next := e.rec
	change(&next)
	if err := save(e.dir, &next); err != nil {
		return err
	}
	e.rec = next
	return nil
}

// tell publishes an event of a plugin.
func (m *Manager) tell(action apievents.Action, e *entry) {
	v := e.view()
	m.cfg.Events.Publish(events.Message{
		Type: apievents.PluginEventType, Action: action, Actor: apievents.Actor{ID: v.ID, Attributes: map[string]string{"name": v.Name}},
	})
}

func conflictf(text string, a ...any) error {
	return errdefs.ErrConflict.WithMessage(fmt.Sprintf(text, a...))
}

// kinds of plugins by the capability that a configuration names.
var kinds = map[string]string{"volumedriver": plugin.VolumeDriver, "networkdriver": plugin.NetworkDriver, "ipamdriver": plugin.IpamDriver}

// Find gives a plugin that is enabled and runs; see plugin.Managed.
func (m *Manager) Find(name string) (*plugin.Plugin, error) {
	if name == "" {
		return nil, errdefs.ErrNotFound.WithMessage("plugin \"\" not found")
	}
	e, err := m.find(name)
	if err != nil {
		return nil, err
	}
	p := e.plugin()
	switch v := e.view(); {
	case !v.Enabled:
		return nil, errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf("plugin %s found but disabled", v.Name))
	case p == nil:
		return nil, fmt.Errorf("plugin %s: %w: it is being started anew", v.Name, plugin.ErrUnreachable)
	}
	return p, nil
}

// All gives the plugins that are enabled and run.
func (m *Manager) All() (out []*plugin.Plugin) {
	m.all(func(e *entry) {
		if p := e.plugin(); p != nil {
			out = append(out, p)
		}
	})
	return out
}

// plugin is how an entry is called; nil: it does not run.
func (e *entry) plugin() *plugin.Plugin {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.client == nil || !e.rec.Plugin.Enabled {
		return nil
	}
	p := &plugin.Plugin{Client: e.client, Name: e.rec.Plugin.Name, Managed: true, Root: e.hostPath(&e.rec)}
	for _, t := range e.rec.Plugin.Config.Interface.Types {
		if kind := kinds[t.Capability]; kind != "" && t.Prefix == "docker" {
			p.Implements = append(p.Implements, kind)
		}
	}
	return p
}

// hostPath tells where a path of the plugin lies on the machine: what it mounts is seen
// at its propagated mount only.
func (e *entry) hostPath(r *record) func(string) string {
	inside, dir, root := r.Plugin.Config.PropagatedMount, filepath.Join(e.dir, propagated), filepath.Join(e.dir, r.Rootfs)
	return func(path string) string {
		path = filepath.Join("/", path)
		if inside != "" {
			if rel, err := filepath.Rel(inside, path); err == nil && filepath.IsLocal(rel) {
				return filepath.Join(dir, rel)
			}
		}
		return filepath.Join(root, path)
	}
}

package container

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"escale.dev/escale/internal/events"
	"escale.dev/escale/internal/image"
	"escale.dev/escale/internal/logs/ship"
	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/runtime"
	"escale.dev/escale/internal/runtime/oci"
	"escale.dev/escale/internal/stats"
	"escale.dev/escale/internal/sys/pin"
	"escale.dev/escale/internal/volume"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	apievents "github.com/moby/moby/api/types/events"
	apinetwork "github.com/moby/moby/api/types/network"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Images resolves what a container is made from, and takes what is made from one.
type Images interface {
	Get(ctx context.Context, ref string) (image.Image, error)
	Commit(ctx context.Context, o image.CommitOptions) (image.Image, error)
}

// Rootfs keeps the root file systems of containers. Remove and Unmount are
// idempotent.
type Rootfs interface {
	Prepare(ctx context.Context, containerID, imageID string) error
	Mount(ctx context.Context, containerID, target string) error
	Unmount(target string) error
	Remove(ctx context.Context, containerID string) error
	Size(ctx context.Context, containerID string) (rw, rootfs int64, err error)
	Containers(ctx context.Context) ([]string, error)
	// Layers tells where what the container wrote lies, and what is below it,
	// the topmost layer first.
	Layers(ctx context.Context, containerID string) (upper string, lowers []string, err error)
}

// Networks gives containers their network namespace; see network.Manager.
type Networks interface {
	Setup(ctx context.Context, r network.Request) (*network.Sandbox, error)
	Unpublish(ctx context.Context, id string, eps []network.Endpoint) error
	Teardown(ctx context.Context, id string, eps []network.Endpoint) error
	Restore(ctx context.Context, live map[string][]network.Endpoint) error
	Connect(ctx context.Context, r network.Request, eps []network.Endpoint) (*network.Change, error)
	Disconnect(ctx context.Context, id, ref string, eps []network.Endpoint) (*network.Change, error)
	Rename(id, old, name string, eps []network.Endpoint) []network.Endpoint
	// Keep leaves the addresses asked for to a container that does not run, instead of
	// those before, also on networks that are made later; until Unkeep.
	Keep(id string, asked map[string]*apinetwork.EndpointSettings)
	Unkeep(id string)
	// TakeUp goes on with what the engine does for a container that lived through
	// its restart; made is for the monitor to hold.
	TakeUp(ctx context.Context, s network.Survivor) (made []*os.File, err error)
	WriteResolvConf(path string, s network.Resolve, host bool, id string, eps []network.Endpoint) error
	// SetHealth tells what a container's health check has found.
	SetHealth(ctx context.Context, id, status string)
	// Rotate lets new connections by shared ports and names come to a container, or not.
	Rotate(ctx context.Context, id string, in bool)
	// Validate tells what is wrong with the networks asked for, before Setup.
	Validate(r network.Request) error
	// Find describes a network by its name, without the containers on it.
	Find(name string) (network.Info, error)
	// HostGateway is the host's address on the default network.
	HostGateway() string
}

// Volumes keeps named and anonymous volumes. Acquire makes a volume that is not
// there; a volume lives at least as long as one user holds it. Between Mount and
// Unmount, which is idempotent, its data is at the path that Mount gave.
type Volumes interface {
	Acquire(ctx context.Context, r volume.Request, user string) (volume.Volume, error)
	Get(ctx context.Context, name string) (volume.Volume, error)
	Size(ctx context.Context, name string) (int64, error)
	Release(name, user string)
	Remove(ctx context.Context, name string, force bool) error
	Mount(ctx context.Context, name, user string) (path string, err error)
	Unmount(name, user string) error
}

// Specs makes OCI specifications; see oci.Builder.
type Specs interface {
	Spec(ctx context.Context, o oci.Options) (*specs.Spec, []string, error)
	Process(spec *specs.Spec, rootfs string, e oci.ExecOptions) (*specs.Process, error)
	Validate(h *container.HostConfig, c *container.Config) (warnings []string, err error)
	ValidateResources(r *container.Resources, update bool) (warnings []string, err error)
	Complete(h *container.HostConfig)
}

// Freezer stops and resumes all processes of a cgroup; see cgroup.Freezer.
type Freezer interface {
	Freeze(cgroupPath string) error
	Thaw(cgroupPath string) error
}

// Figures reads what the processes of a cgroup use; see stats.Reader.
type Figures interface {
	Read(t stats.Target) (*container.StatsResponse, error)
}

// Processes lists those of a cgroup and the ones below, and tells what
// processors and memory nodes they have; see cgroup.Info.
type Processes interface {
	Pids(cgroupPath string) ([]int, error)
	Cpuset(cgroupPath string) (cpus, mems string)
	// OOMs blocks until ctx ends or the cgroup is gone, and calls told whenever
	// memory ran out in it; at once, with before, when it has already.
	OOMs(ctx context.Context, cgroupPath string, told func(before bool)) error
}

// Publisher receives what happened.
type Publisher interface{ Publish(events.Message) }

// LogShipping knows the log drivers and sends logs on; see ship.Set.
type LogShipping interface {
	Check(driver string, opts map[string]string) error
	Begin(l ship.Log, ended <-chan struct{}) error
	Drop(id string)
}

// Defaults are the engine's settings that reach containers.
type Defaults struct {
	LogDriver    string
	LogOpts      map[string]string
	Init         bool
	InitPath     string // of the init binary; empty: none is installed
	Ulimits      map[string]*units.Ulimit
	DNS          []string
	DNSSearch    []string
	DNSOptions   []string
	Runtime      string                    // name of the default runtime
	Runtimes     map[string]runtime.Binary // by name
	CgroupParent string                    // "/docker", "system.slice"
	Scopes       string                    // what systemd's scopes begin with; empty: it makes no cgroups
	StopTimeout  int                       // seconds

	AppArmorProfile string        // of containers that name none; empty: unconfined
	StartTimeout    time.Duration // that an OCI runtime has for a start
	Heal            Heal          // of containers that do not say it themselves
	NoNewPrivileges bool
	SeccompProfile  string   // as oci.Options has it
	HostGateways    []string // what host-gateway stands for; empty: the bridge's address
}

// Config is what a Manager needs.
type Config struct {
	Dir    string // durable: containers/<id>/
	RunDir string // on tmpfs: <id>/<generation>/
	// RestoreDir, durable, has a note of each volume whose content is being replaced.
	RestoreDir string
	Runtime    runtime.Runtime
	Images     Images
	Rootfs     Rootfs
	Networks   Networks
	Volumes    Volumes
	Specs      Specs
	Freezer    Freezer
	Figures    Figures
	Processes  Processes
	Events     Publisher
	Logs       LogShipping
	Defaults   Defaults
	Logger     *slog.Logger
}

// core is what every part of the package works with.
type core struct {
	cfg   Config
	log   *slog.Logger
	store *store
	live  atomic.Pointer[Defaults] // cfg.Defaults, or what took their place
	gate  gate

	filling   filling
	restoring sync.Map // volumes whose content is being replaced: name → *opLock, held while it is put in place

	past sync.Map // OCI runtimes that settings of before had: name → runtime.Binary

	ctx    context.Context // ends with Close: loops of the package's own
	cancel context.CancelFunc
	loops  sync.WaitGroup
}

// defaults are the settings of now; they are not changed in place.
func (m *core) defaults() *Defaults { return m.live.Load() }

// SetDefaults replaces the settings for what is done from now on.
func (m *Manager) SetDefaults(d Defaults) {
	for name, b := range m.defaults().Runtimes {
		m.past.Store(name, b)
	}
	m.live.Store(&d)
}

// binary is the OCI runtime of a name, also of one that a reload took out: what
// it made is still to be cleaned up. Of a name nobody knows it is the default one.
func (m *core) binary(name string) runtime.Binary {
	d := m.defaults()
	if b, ok := d.Runtimes[name]; ok {
		return b
	}
	if b, ok := m.past.Load(name); ok {
		return b.(runtime.Binary)
	}
	return d.Runtimes[d.Runtime]
}

// Manager is the life of all containers of an engine: what clients ask for.
// What happens underneath is done by its parts, each with one subject: creator,
// mounts, runner, execs, prober, recovery, watcher, updater, Files.
type Manager struct {
	*runner
	*watcher
	updater
	creator creator
}

// New makes a Manager; nothing is read or started before Open.
func New(cfg Config) *Manager {
	ctx, cancel := context.WithCancel(context.Background()) // detached: lives from New to Close
	c := &core{cfg: cfg, log: cfg.Logger, store: newStore(cfg.Dir), ctx: ctx, cancel: cancel}
	c.live.Store(&cfg.Defaults)
	x := &execs{core: c, byID: map[string]*exec{}}
	m := mounts{c}
	r := &runner{core: c, execs: x, mounts: m}
	r.prober = prober{execs: x, judged: r.judged}
	return &Manager{
		runner:  r,
		creator: creator{core: c, mounts: m},
		watcher: &watcher{c: c, samplers: map[ID]*sampler{}},
		updater: updater{c},
	}
}

// Close lets go of everything that runs: containers and their monitors go on.
// Blocks until the manager's own goroutines have ended.
func (m *Manager) Close() error {
	m.cancel()
	for _, e := range m.store.all() {
		e.mu.Lock()
		if e.run != nil && e.run.task != nil {
			e.run.task.Close()
		}
		e.mu.Unlock()
	}
	m.loops.Wait()
	return nil
}

// StopAll stops every running container, each by its own signal and timeout, and
// those that are being started, once they run. Restart policies are kept for the
// next start of the engine.
func (m *Manager) StopAll(ctx context.Context) {
	var wg sync.WaitGroup
	for _, e := range m.store.all() {
		if st := e.state(); !st.Running() && st.Status != Starting {
			continue
		}
		wg.Go(func() {
			if err := m.stopForEngine(ctx, e); err != nil {
				m.log.Warn("stopping container", "container", e.id.Short(), "error", err)
			}
		})
	}
	wg.Wait()
}

// stopForEngine stops a container whose restart policy goes on.
func (m *runner) stopForEngine(ctx context.Context, e *entry) error {
	if err := e.op.lock(ctx); err != nil {
		return err
	}
	if !e.state().Running() { // it did not start, or has ended
		e.op.unlock()
		return nil
	}
	r, err := m.signalStop(ctx, e, Stop{})
	e.op.unlock()
	if err != nil || r == nil {
		return err
	}
	return m.awaitEnd(ctx, e, r, Stop{})
}

// Files are the files of the containers.
func (m *Manager) Files() Files { return Files{m.runner} }

// Get returns a container by id, name or unique prefix.
func (m *Manager) Get(ref string) (View, error) {
	e, err := m.store.find(ref)
	if err != nil {
		return View{}, err
	}
	return e.view(), nil
}

// List returns all containers, newest first.
func (m *Manager) List() []View {
	all := m.store.all()
	out := make([]View, len(all))
	for i, e := range all {
		out[i] = e.view()
	}
	return out
}

// Users lists the containers that use an image.
func (m *Manager) Users(imageID string) []image.User {
	var out []image.User
	for _, e := range m.store.all() {
		e.mu.Lock()
		if e.rec.ImageID == imageID {
			out = append(out, image.User{Container: string(e.id), Running: e.rec.State.Running() || e.rec.State.Status == Restarting})
		}
		e.mu.Unlock()
	}
	return out
}

// Size gives the bytes a container wrote and those of its whole root.
func (m *Manager) Size(ctx context.Context, ref string) (rw, rootfs int64, err error) {
	e, err := m.store.find(ref)
	if err != nil {
		return 0, 0, err
	}
	return m.cfg.Rootfs.Size(ctx, string(e.id))
}

// Rename gives a container another name.
func (m *Manager) Rename(ctx context.Context, ref, name string) error {
	if name == "" {
		return kindf(errInvalid, "Neither old nor new names may be empty")
	}
	e, err := m.store.find(ref)
	if err != nil {
		return err
	}
	if name, err = validName("/" + strings.TrimPrefix(name, "/")); err != nil {
		return kindf(errInvalid, "Error when allocating new name: %s", err)
	}
	if err := e.op.lock(ctx); err != nil {
		return err
	}
	defer e.op.unlock()
	if e.gone() { // while this waited
		return errNoSuch(ref)
	}
	old := e.view().Name
	if old == name {
		return kindf(errInvalid, "Renaming a container with the same name as its current name")
	}
	if err := m.store.reserve(name, e.id); err != nil {
		return kindf(errConflict, "Error when allocating new name: %s", err)
	}
	e.mu.Lock()
	e.rec.Name = name
	if e.rec.State.Running() && len(e.rec.Endpoints) > 0 {
		e.rec.Endpoints = m.cfg.Networks.Rename(string(e.id), old, name, e.rec.Endpoints)
	}
	err = m.store.save(&e.rec, true)
	if err != nil {
		e.rec.Name = old
	}
	e.mu.Unlock()
	if err != nil {
		m.store.release(name, e.id)
		return err
	}
	m.store.release(old, e.id)
	m.publish(e, apievents.ActionRename, map[string]string{"oldName": "/" + old})
	return nil
}

// publish tells an event of a container with Docker's attributes.
func (m *core) publish(e *entry, action apievents.Action, extra map[string]string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	m.publishLocked(e, action, extra)
}

// publishLocked is publish for who holds the entry's lock.
func (m *core) publishLocked(e *entry, action apievents.Action, extra map[string]string) {
	attrs := make(map[string]string, len(e.rec.Config.Labels)+2+len(extra))
	for k, v := range e.rec.Config.Labels {
		attrs[k] = v
	}
	attrs["image"], attrs["name"] = e.rec.Config.Image, e.rec.Name
	for k, v := range extra {
		attrs[k] = v
	}
	m.cfg.Events.Publish(events.Message{
		Type: apievents.ContainerEventType, Action: action,
		Actor: apievents.Actor{ID: string(e.id), Attributes: attrs},
	})
}

// update changes the record under the lock and writes it.
func (m *core) update(e *entry, durable bool, change func(*Record) error) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return m.updateLocked(e, durable, change)
}

// updateLocked is update for callers that hold e.mu. A record that cannot be
// written stays changed in memory: the kernel's truth has moved already, and
// the next write carries it.
func (m *core) updateLocked(e *entry, durable bool, change func(*Record) error) error {
	if err := change(&e.rec); err != nil {
		return err
	}
	if e.removed {
		return nil
	}
	err := m.store.save(&e.rec, durable)
	e.unsaved = err != nil
	return err
}

// background runs f on a goroutine that Close waits for.
func (m *core) background(f func(ctx context.Context)) {
	m.loops.Go(func() { f(m.ctx) })
}

// runDir is the directory of one start of a container.
func (m *core) runDir(id ID, generation uint64) string {
	return filepath.Join(m.cfg.RunDir, string(id), uitoa(generation))
}

// removeRunDir drops the directory of a start, and the container's when it is
// the last: only now nothing of this start is left anywhere.
func (m *core) removeRunDir(id ID, generation uint64) {
	dir := m.runDir(id, generation)
	// Behind what is still mounted here lie the files of others.
	if err := pin.Clear(m.pinDir(id, generation)); err != nil {
		m.log.Warn("removing run directory", "path", dir, "error", err)
		return
	}
	if err := os.RemoveAll(dir); err != nil {
		m.log.Warn("removing run directory", "path", dir, "error", err)
	}
	os.Remove(filepath.Dir(dir)) // fails while another start lives there
}

// now is when things happened: UTC, as Docker writes times.
func now() time.Time { return time.Now().UTC() }

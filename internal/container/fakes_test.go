package container

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"escale.dev/escale/internal/events"
	"escale.dev/escale/internal/image"
	"escale.dev/escale/internal/logs/ship"
	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/runtime"
	"escale.dev/escale/internal/runtime/oci"
	"escale.dev/escale/internal/volume"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	apinetwork "github.com/moby/moby/api/types/network"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// fakeEngine is everything a Manager needs, in memory.
type fakeEngine struct {
	dir       string
	mu        sync.Mutex
	tasks     map[string]*fakeTask // live ones, by container id
	exits     map[string]runtime.Exit
	startErr  error
	starting  func()          // called while a process is made
	hangs     bool            // processes are never made
	refuse    map[string]bool // by id: processes that are not made
	layers    []string        // of the image, the topmost first
	mountable bool            // the first of them is mounted where a root is
	mounts    int             // of that
	prepared  map[string]bool
	mounted   map[string]bool
	sandboxes map[string]bool
	gateway   string // the host's address on the default network
	cleaned   map[string]int
	volumes   map[string]map[string]bool
	events    []events.Message
	telling   func()   // called before an event is told
	updates   []string // resources, JSON
	updateErr error
	onUpdate  func()
	figures   fakeFigures
	ways      []string // what was let come to containers and what ends they were asked for, in order
}

// way notes one of ways.
func (f *fakeEngine) way(s string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ways = append(f.ways, s)
}

func newFakeEngine() *fakeEngine {
	return &fakeEngine{
		tasks: map[string]*fakeTask{}, exits: map[string]runtime.Exit{}, prepared: map[string]bool{}, mounted: map[string]bool{},
		figures:   fakeFigures{oom: make(chan struct{})},
		sandboxes: map[string]bool{}, gateway: "172.17.0.1", cleaned: map[string]int{}, volumes: map[string]map[string]bool{},
	}
}

// manager makes a Manager over the fakes, with its records in dir.
func (f *fakeEngine) manager(t *testing.T, dir string) *Manager {
	t.Helper()
	return f.managerSaying(t, dir, slog.New(slog.NewTextHandler(io.Discard, nil)))
}

// managerSaying makes one that says what it has to say to log.
func (f *fakeEngine) managerSaying(t *testing.T, dir string, log *slog.Logger) *Manager {
	t.Helper()
	f.dir = dir
	if f.layers == nil {
		f.layers = []string{t.TempDir()}
	}
	m := New(Config{
		Dir: dir + "/containers", RunDir: dir + "/run", RestoreDir: dir + "/restores", Runtime: fakeRuntime{f}, Images: fakeImages{}, Rootfs: fakeRootfs{f},
		Networks: fakeNetworks{f}, Volumes: fakeVolumes{f}, Specs: fakeSpecs{}, Freezer: fakeFreezer{}, Figures: &f.figures, Processes: &f.figures, Events: f, Logs: fakeLogs{ship.Files()},
		Defaults: Defaults{LogDriver: "json-file", Runtime: "runc", Runtimes: map[string]runtime.Binary{"runc": {Path: "/runc"}}, CgroupParent: "/docker", StopTimeout: 10, StartTimeout: 2 * time.Minute},
		Logger:   log,
	})
	if err := m.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	return m
}

// fakeLogs knows the drivers that keep files and sends nothing on.
type fakeLogs struct{ ship.Kinds }

func (fakeLogs) Begin(ship.Log, <-chan struct{}) error { return nil }
func (fakeLogs) Drop(string)                           {}

func (f *fakeEngine) Publish(m events.Message) {
	if f.telling != nil {
		f.telling()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events = append(f.events, m)
}

// actions lists what was published, in order.
func (f *fakeEngine) actions() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, e := range f.events {
		out = append(out, string(e.Action))
	}
	return out
}

// end makes the container's process end.
func (f *fakeEngine) end(id ID, code int) { f.finish(id, runtime.Exit{Code: code, At: now()}) }

func (f *fakeEngine) finish(id ID, exit runtime.Exit) {
	f.mu.Lock()
	task := f.tasks[string(id)]
	f.mu.Unlock()
	task.end(exit)
}

type fakeRuntime struct{ f *fakeEngine }

func (r fakeRuntime) Launch(_ context.Context, l runtime.Launch) (runtime.Task, error) {
	t := &fakeTask{f: r.f, launch: l, done: make(chan struct{}), execs: map[string]chan struct{}{}}
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	r.f.tasks[l.ID] = t
	return t, nil
}

func (r fakeRuntime) Adopt(_ context.Context, id, _, _ string) (runtime.Task, error) {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	t := r.f.tasks[id]
	if t == nil || !t.alive() {
		return nil, errdefs.ErrNotFound
	}
	return t, nil
}

func (r fakeRuntime) LastExit(dir string, _ uint64) (runtime.Exit, error) {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	if x, ok := r.f.exits[dir]; ok {
		return x, nil
	}
	return runtime.Exit{}, errdefs.ErrNotFound
}

func (r fakeRuntime) Cleanup(_ context.Context, c runtime.Cleanup) error {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	r.f.cleaned[c.ID]++
	if t := r.f.tasks[c.ID]; t != nil && t.hung {
		t.lost = true
		t.finish(137)
	}
	return nil
}

func (r fakeRuntime) Update(_ context.Context, u runtime.Update) error {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	r.f.updates = append(r.f.updates, string(u.Resources))
	if r.f.onUpdate != nil {
		r.f.onUpdate()
	}
	return r.f.updateErr
}

// fakeTask is a process that ends when it is told to.
type fakeTask struct {
	lag    time.Duration // between what a signal does and the answer
	f      *fakeEngine
	launch runtime.Launch
	once   sync.Once
	done   chan struct{}
	exit   runtime.Exit
	lost   bool
	pid    int
	ignore syscall.Signal // a signal that the process ignores
	hung   bool           // the monitor answers nothing
	stuck  chan struct{}  // when set, signals wait for its end

	mu    sync.Mutex
	execs map[string]chan struct{}
}

func (t *fakeTask) alive() bool {
	select {
	case <-t.done:
		return false
	default:
		return true
	}
}

func (t *fakeTask) finish(code int) { t.end(runtime.Exit{Code: code, At: now()}) }

func (t *fakeTask) end(exit runtime.Exit) {
	t.once.Do(func() {
		t.exit = exit
		close(t.done)
	})
}

func (t *fakeTask) Start(ctx context.Context) (int, error) {
	if t.f.startErr != nil {
		return 0, t.f.startErr
	}
	if t.f.refuse[t.launch.ID] {
		return 0, &runtime.StartError{Code: 127, Message: "refused"}
	}
	if t.f.hangs {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	if t.f.starting != nil {
		t.f.starting()
	}
	t.pid = 4242
	return t.pid, nil
}

func (t *fakeTask) Exec(_ context.Context, e runtime.Exec) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.execs[e.ID] == nil {
		t.execs[e.ID] = make(chan struct{})
	}
	return 4243, nil
}

func (t *fakeTask) Attach(context.Context, string, runtime.Attach) (runtime.Stream, error) {
	if !t.alive() {
		return nil, runtime.ErrMonitorLost
	}
	return &fakeStream{Reader: bytes.NewReader(nil)}, nil
}

func (t *fakeTask) Signal(ctx context.Context, _ string, sig syscall.Signal) error {
	if t.hung {
		<-ctx.Done()
		return ctx.Err()
	}
	if t.stuck != nil {
		<-t.stuck
	}
	t.f.way(sig.String())
	if sig != t.ignore {
		t.finish(128 + int(sig))
	}
	time.Sleep(t.lag)
	return nil
}

func (t *fakeTask) Resize(context.Context, string, uint16, uint16) error { return nil }

func (t *fakeTask) Wait(ctx context.Context, process string) (runtime.Exit, error) {
	done := t.done
	if process != "" {
		t.mu.Lock()
		done = t.execs[process]
		t.mu.Unlock()
	}
	select {
	case <-done:
		if t.lost {
			return runtime.Exit{}, runtime.ErrMonitorLost
		}
		return t.exit, nil
	case <-ctx.Done():
		return runtime.Exit{}, ctx.Err()
	}
}

func (t *fakeTask) Held(context.Context) ([]*os.File, error) { return nil, nil }
func (t *fakeTask) Hold(context.Context, []*os.File) error   { return nil }

func (t *fakeTask) Pid() int     { return t.pid }
func (t *fakeTask) Monitor() int { return 1 }
func (t *fakeTask) Close() error { return nil }

type fakeStream struct{ io.Reader }

func (*fakeStream) Write(p []byte) (int, error) { return len(p), nil }
func (*fakeStream) Close() error                { return nil }
func (*fakeStream) CloseWrite() error           { return nil }

type fakeImages struct{}

func (fakeImages) Commit(ctx context.Context, o image.CommitOptions) (image.Image, error) {
	_, err := o.Diff(ctx, io.Discard)
	return image.Image{ID: "sha256:committed"}, err
}

func (fakeImages) Get(_ context.Context, ref string) (image.Image, error) {
	if ref != "debian" {
		return image.Image{}, kindf(errNotFound, "No such image: %s", ref)
	}
	var img image.Image
	img.ID = "sha256:1234"
	img.Config.Config.Cmd = []string{"bash"}
	img.Config.Config.Env = []string{"PATH=/bin", "A=image"}
	img.Config.Config.ExposedPorts = map[string]struct{}{"8080/tcp": {}}
	return img, nil
}

type fakeRootfs struct{ f *fakeEngine }

func (r fakeRootfs) Layers(context.Context, string) (string, []string, error) {
	if r.f.layers == nil {
		return "", nil, errdefs.ErrNotFound
	}
	return "", r.f.layers, nil
}

func (r fakeRootfs) set(m map[string]bool, k string, v bool) error {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	if v {
		m[k] = true
	} else {
		delete(m, k)
	}
	return nil
}

func (r fakeRootfs) Prepare(_ context.Context, id, _ string) error {
	return r.set(r.f.prepared, id, true)
}
func (r fakeRootfs) Mount(_ context.Context, _, target string) error {
	if r.f.mountable {
		r.f.mounts++
		if err := unix.Mount(r.f.layers[0], target, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	return r.set(r.f.mounted, target, true)
}
func (r fakeRootfs) Unmount(target string) error {
	if r.f.mountable {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			return err
		}
	}
	return r.set(r.f.mounted, target, false)
}
func (r fakeRootfs) Remove(_ context.Context, id string) error        { return r.set(r.f.prepared, id, false) }
func (fakeRootfs) Size(context.Context, string) (int64, int64, error) { return 0, 0, nil }
func (r fakeRootfs) Containers(context.Context) ([]string, error) {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	var out []string
	for id := range r.f.prepared {
		out = append(out, id)
	}
	return out, nil
}

type fakeNetworks struct{ f *fakeEngine }

func (n fakeNetworks) Setup(_ context.Context, r network.Request) (*network.Sandbox, error) {
	n.f.mu.Lock()
	defer n.f.mu.Unlock()
	n.f.sandboxes[r.ContainerID] = true
	return &network.Sandbox{ID: r.ContainerID, Path: "/netns", Endpoints: []network.Endpoint{{Network: "bridge", IP: "172.17.0.2", Gateway: "172.17.0.1"}}}, nil
}
func (n fakeNetworks) Unpublish(context.Context, string, []network.Endpoint) error { return nil }
func (n fakeNetworks) Teardown(_ context.Context, id string, _ []network.Endpoint) error {
	n.f.mu.Lock()
	defer n.f.mu.Unlock()
	delete(n.f.sandboxes, id)
	return nil
}
func (n fakeNetworks) Restore(_ context.Context, live map[string][]network.Endpoint) error {
	n.f.mu.Lock()
	defer n.f.mu.Unlock()
	for id := range n.f.sandboxes {
		if len(live[id]) == 0 {
			delete(n.f.sandboxes, id)
		}
	}
	return nil
}
func (fakeNetworks) Find(name string) (network.Info, error) {
	return network.Info{Name: name, ID: name + "-id", Driver: name}, nil
}

func (fakeNetworks) Connect(_ context.Context, r network.Request, eps []network.Endpoint) (*network.Change, error) {
	for name := range r.Networks {
		ep := network.Endpoint{Network: name, IP: "172.18.0.2"}
		return &network.Change{Endpoints: append(slices.Clone(eps), ep), Changed: ep}, nil
	}
	return nil, kindf(errInvalid, "no network")
}
func (fakeNetworks) Disconnect(_ context.Context, _, name string, eps []network.Endpoint) (*network.Change, error) {
	for i, ep := range eps {
		if ep.Network == name {
			return &network.Change{Endpoints: slices.Delete(slices.Clone(eps), i, i+1), Changed: ep}, nil
		}
	}
	return nil, kindf(errNotFound, "not connected")
}
func (fakeNetworks) Rename(_, _, _ string, eps []network.Endpoint) []network.Endpoint { return eps }
func (fakeNetworks) Keep(string, map[string]*apinetwork.EndpointSettings)             {}
func (fakeNetworks) Unkeep(string)                                                    {}
func (n fakeNetworks) HostGateway() string                                            { return n.f.gateway }
func (n fakeNetworks) Rotate(_ context.Context, _ string, in bool) {
	n.f.way(map[bool]string{true: "in", false: "out"}[in])
}
func (n fakeNetworks) SetHealth(_ context.Context, _, status string) { n.f.way(status) }
func (fakeNetworks) Validate(r network.Request) error {
	for name := range r.Networks {
		if name != "bridge" && name != "none" && !r.Later {
			return kindf(errNotFound, "network %s not found", name)
		}
	}
	return nil
}

type fakeVolumes struct{ f *fakeEngine }

func (v fakeVolumes) Acquire(_ context.Context, r volume.Request, user string) (volume.Volume, error) {
	v.f.mu.Lock()
	defer v.f.mu.Unlock()
	name := r.Name
	if name == "" {
		name = strings.Repeat(string(rune('a'+len(v.f.volumes))), 64)
	}
	if v.f.volumes[name] == nil {
		v.f.volumes[name] = map[string]bool{}
	}
	v.f.volumes[name][user] = true
	path := filepath.Join(v.f.dir, "volumes", name)
	return volume.Volume{Name: name, Driver: "local", Path: path}, os.MkdirAll(path, 0o755)
}
func (v fakeVolumes) Release(name, user string) {
	v.f.mu.Lock()
	defer v.f.mu.Unlock()
	delete(v.f.volumes[name], user)
}
func (v fakeVolumes) Size(context.Context, string) (int64, error) { return 0, nil }
func (v fakeVolumes) Get(_ context.Context, name string) (volume.Volume, error) {
	v.f.mu.Lock()
	defer v.f.mu.Unlock()
	if v.f.volumes[name] == nil {
		return volume.Volume{}, volume.ErrNone(name)
	}
	return volume.Volume{Name: name, Driver: "local", Labels: map[string]string{"of": name}}, nil
}
func (v fakeVolumes) Mount(_ context.Context, name, _ string) (string, error) {
	return filepath.Join(v.f.dir, "volumes", name), nil
}
func (v fakeVolumes) Unmount(string, string) error { return nil }
func (v fakeVolumes) Remove(_ context.Context, name string, _ bool) error {
	v.f.mu.Lock()
	defer v.f.mu.Unlock()
	if len(v.f.volumes[name]) > 0 {
		return kindf(errConflict, "volume %s is in use", name)
	}
	delete(v.f.volumes, name)
	return nil
}

type fakeFreezer struct{}

func (fakeFreezer) Freeze(string) error { return nil }
func (fakeFreezer) Thaw(string) error   { return nil }

type fakeSpecs struct{}

func (fakeSpecs) Spec(_ context.Context, o oci.Options) (*specs.Spec, []string, error) {
	return &specs.Spec{Version: "1.2.0", Linux: &specs.Linux{CgroupsPath: o.CgroupsPath}}, nil, nil
}
func (fakeSpecs) Process(*specs.Spec, string, oci.ExecOptions) (*specs.Process, error) {
	return &specs.Process{}, nil
}
func (fakeSpecs) Validate(*container.HostConfig, *container.Config) ([]string, error) {
	return nil, nil
}

func (fakeSpecs) ValidateResources(r *container.Resources, _ bool) ([]string, error) {
	if r.Memory == 1 {
		return nil, kindf(errInvalid, "Minimum memory limit allowed is 6MB")
	}
	return []string{"careful"}, nil
}

func (fakeSpecs) Complete(*container.HostConfig) {}

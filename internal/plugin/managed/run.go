package managed

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"escale.dev/escale/internal/plugin"
	"escale.dev/escale/internal/runtime"
	"escale.dev/escale/internal/runtime/oci"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	apiplugin "github.com/moby/moby/api/types/plugin"
	"github.com/moby/sys/mount"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const (
	// socketsInside is where a plugin makes its socket.
	socketsInside = "/run/docker/plugins"

	answerTime  = 12 * time.Second // until a plugin that was started answers, if nobody says
	stopTime    = 10 * time.Second // between a plugin's signal and its kill
	firstPause  = time.Second      // before a plugin that ended is started again, doubling
	longestWait = time.Minute
)

// run is a plugin while it runs.
type run struct {
	task     runtime.Task
	ended    chan struct{}
	stopping bool // guarded by entry.mu
	begun    time.Time
}

// runs is what a Manager does with processes.
type runs struct{ *Manager }

// runDir is the run directory of a plugin. Its name is short: a socket's path has but
// 107 bytes.
func (m runs) runDir(id string) string { return filepath.Join(m.cfg.RunDir, id[:12]) }

func (m runs) sockets(id string) string { return filepath.Join(m.runDir(id), "s") }

func (m runs) cgroup(id string) string { return oci.CgroupsPath(m.eng.CgroupParent, id, m.eng.Scopes) }

func (m runs) cleanup(id string) runtime.Cleanup {
	c := runtime.Cleanup{ID: id, RunDir: m.runDir(id), Runtime: m.eng.Binary(), CgroupPath: m.cgroup(id)}
	// An engine of another configuration may have started it.
	var spec specs.Spec
	if b, err := os.ReadFile(filepath.Join(c.RunDir, "config.json")); err == nil && json.Unmarshal(b, &spec) == nil && spec.Linux != nil {
		c.CgroupPath = spec.Linux.CgroupsPath
	}
	return c
}

// resume takes up a plugin that runs, or starts one that should.
func (m runs) resume(ctx context.Context, e *entry) {
	e.op.Lock()
	defer e.op.Unlock()
	v := e.view()
	task, err := m.eng.Runtime.Adopt(ctx, v.ID, m.runDir(v.ID), e.dir)
	if err == nil && task.Pid() > 0 && v.Enabled {
		m.running(e, task)
		return
	}
	if err == nil {
		task.Close()
	}
	m.clear(ctx, e)
	if !v.Enabled {
		return
	}
	if err := m.start(ctx, e, 0); err != nil {
		m.cfg.Logger.Error("starting plugin", "plugin", v.Name, "error", err)
		m.again(e, firstPause)
	}
}

// sweep gives back what plugins left that are no more.
func (m runs) sweep(ctx context.Context) {
	list, err := os.ReadDir(m.cfg.RunDir)
	if err != nil {
		return
	}
	known := map[string]bool{}
	for id := range m.byID {
		known[id[:12]] = true
	}
	for _, d := range list {
		dir := filepath.Join(m.cfg.RunDir, d.Name())
		b, err := os.ReadFile(filepath.Join(dir, "id"))
		if known[d.Name()] || err != nil || !idRule.Match(b) {
			continue
		}
		if err := m.eng.Runtime.Cleanup(ctx, m.cleanup(string(b))); err != nil {
			m.cfg.Logger.Warn("sweeping", "plugin", string(b), "error", err)
			continue
		}
		m.discard(dir)
	}
}

// start runs a plugin and waits until it answers; op is held. With an error nothing
// of it runs.
func (m runs) start(ctx context.Context, e *entry, timeout time.Duration) error {
	if err := m.update(e, func(r *record) { r.Generation++ }); err != nil {
		return err
	}
	e.mu.Lock()
	rec := e.rec
	e.mu.Unlock()
	task, err := m.launch(ctx, e, &rec)
	if err != nil {
		m.clear(ctx, e)
		return err
	}
	r := m.running(e, task)
	if timeout <= 0 {
		timeout = answerTime
	}
	socket := filepath.Join(m.sockets(rec.Plugin.ID), rec.Plugin.Config.Interface.Socket)
	for until := time.Now().Add(timeout); ; {
		c, err := net.Dial("unix", socket)
		if err == nil {
			c.Close()
			return nil
		}
		select {
		case <-r.ended:
			err = fmt.Errorf("plugin %s has ended: %s", rec.Plugin.Name, lastWords(e.dir))
		case <-ctx.Done():
			err = ctx.Err()
		case <-time.After(20 * time.Millisecond):
			if time.Now().Before(until) {
				continue
			}
		}
		m.stop(m.ctx, e)
		return err
	}
}

// lastWords is the end of what a plugin wrote.
func lastWords(dir string) string {
	b, err := os.ReadFile(filepath.Join(dir, logFile))
	if err != nil {
		return "it wrote nothing"
	}
	return string(b[max(0, len(b)-500):])
}

const logFile = "plugin.log"

// launch makes what a plugin runs in, and starts its process.
func (m runs) launch(ctx context.Context, e *entry, rec *record) (runtime.Task, error) {
	id, dir := rec.Plugin.ID, m.runDir(rec.Plugin.ID)
	if err := os.MkdirAll(m.sockets(id), 0o711); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "id"), []byte(id), 0o600); err != nil {
		return nil, err
	}
	if rec.Plugin.Config.PropagatedMount != "" {
		prop := filepath.Join(e.dir, propagated)
		if err := os.MkdirAll(prop, 0o755); err != nil {
			return nil, err
		}
		if err := mount.MakeRShared(prop); err != nil {
			return nil, fmt.Errorf("error setting up propagated mount dir: %w", err)
		}
	}
	o, err := m.options(e, rec)
	if err != nil {
		return nil, err
	}
	spec, _, err := m.eng.Specs.Spec(ctx, o)
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), b, 0o600); err != nil {
		return nil, err
	}
	task, err := m.eng.Runtime.Launch(ctx, runtime.Launch{
		ID: id, Generation: rec.Generation, Bundle: dir, RunDir: dir, StateDir: e.dir, Runtime: m.eng.Binary(),
		Log: runtime.LogFile{Path: filepath.Join(e.dir, logFile), MaxSize: 1 << 20, MaxFiles: 2}, CgroupPath: spec.Linux.CgroupsPath,
	})
	if err != nil {
		return nil, err
	}
	if _, err := task.Start(ctx); err != nil {
		task.Close()
		return nil, err
	}
	return task, nil
}

// options are a plugin's needs in the words of containers.
func (m runs) options(e *entry, rec *record) (oci.Options, error) {
	c, s := &rec.Plugin.Config, &rec.Plugin.Settings
	h := &container.HostConfig{
		NetworkMode: "none", IpcMode: "private", CapAdd: c.Linux.Capabilities,
		// As Docker runs plugins: what they may do is in their privileges.
		SecurityOpt: []string{"seccomp=unconfined", "apparmor=unconfined"},
	}
	o := oci.Options{
		ID: rec.Plugin.ID, Rootfs: filepath.Join(e.dir, rec.Rootfs), HostConfig: h, CgroupsPath: m.cgroup(rec.Plugin.ID),
		Config: &container.Config{Env: s.Env, WorkingDir: c.WorkDir, Hostname: rec.Plugin.ID[:12]},
		Path:   c.Entrypoint[0], Args: append(slices.Clone(c.Entrypoint[1:]), s.Args...),
	}
	if u := c.User; u.UID != 0 || u.GID != 0 {
		o.Config.User = strconv.Itoa(int(u.UID)) + ":" + strconv.Itoa(int(u.GID))
	}
	if c.Network.Type == "host" {
		h.NetworkMode, o.HostsPath, o.ResolvConfPath = "host", "/etc/hosts", "/etc/resolv.conf"
	}
	if c.PidHost {
		h.PidMode = "host"
	}
	if c.IpcHost {
		h.IpcMode = "host"
	}
	if c.Linux.AllowAllDevices {
		h.DeviceCgroupRules = []string{"a *:* rwm"}
	}
	for _, d := range s.Devices {
		if d.Path != nil && *d.Path != "" {
			h.Devices = append(h.Devices, container.DeviceMapping{PathOnHost: *d.Path, PathInContainer: *d.Path, CgroupPermissions: "rwm"})
		}
	}
	o.Mounts = append(o.Mounts, oci.Mount{Type: oci.Bind, Source: m.sockets(rec.Plugin.ID), Destination: socketsInside, Propagation: "rprivate"})
	if c.PropagatedMount != "" {
		o.Mounts = append(o.Mounts, oci.Mount{Type: oci.Bind, Source: filepath.Join(e.dir, propagated), Destination: c.PropagatedMount, Propagation: "rshared"})
	}
	for _, mnt := range s.Mounts {
		om, err := mountOf(mnt)
		if err != nil {
			return o, err
		}
		o.Mounts = append(o.Mounts, om)
	}
	m.eng.Specs.Complete(h)
	return o, nil
}

// mountOf is a mount of a plugin's settings.
func mountOf(p apiplugin.Mount) (oci.Mount, error) {
	om := oci.Mount{Type: p.Type, Destination: p.Destination, Propagation: "rprivate"}
	if p.Source == nil {
		return om, invalidf("mount source is not specified")
	}
	om.Source = *p.Source
	if om.Type == "" || om.Type == "none" {
		om.Type = oci.Bind
	}
	for _, o := range p.Options {
		switch o {
		case "ro", "readonly":
			om.ReadOnly = true
		case "bind":
			om.NonRecursive = true
		case "rbind":
			om.NonRecursive = false
		case "shared", "rshared", "slave", "rslave", "private", "rprivate":
			om.Propagation = o
		}
	}
	if om.Type != oci.Bind && om.Type != oci.Tmpfs {
		return om, invalidf("plugin mount at %s: type %q is not supported", p.Destination, p.Type)
	}
	if om.Type == oci.Bind && !filepath.IsAbs(om.Source) {
		return om, invalidf("plugin mount at %s: source %q must be an absolute path", p.Destination, om.Source)
	}
	return om, nil
}

// running notes that a plugin runs, and watches it.
func (m runs) running(e *entry, task runtime.Task) *run {
	r := &run{task: task, ended: make(chan struct{}), begun: time.Now()}
	e.mu.Lock()
	defer e.mu.Unlock()
	// The address is a path: that it can be read was made sure of.
	e.client, _ = plugin.NewClient("unix://"+filepath.Join(m.sockets(e.rec.Plugin.ID), e.rec.Plugin.Config.Interface.Socket), nil)
	e.run = r
	m.loops.Go(func() { m.watch(e, r) })
	return r
}

// watch waits for a plugin's end. One that was not to end is started again.
func (m runs) watch(e *entry, r *run) {
	exit, err := r.task.Wait(m.ctx, "")
	if m.ctx.Err() != nil {
		return // the engine stops; the plugin goes on
	}
	close(r.ended)
	e.mu.Lock()
	stopping, name := r.stopping, e.rec.Plugin.Name
	e.client = nil
	e.mu.Unlock()
	if stopping {
		return
	}
	m.cfg.Logger.Warn("plugin has ended", "plugin", name, "code", exit.Code, "error", err)
	pause := firstPause
	if time.Since(r.begun) < firstPause {
		pause = 5 * firstPause
	}
	m.again(e, pause)
}

// again starts a plugin after a pause, and as often as that takes.
func (m runs) again(e *entry, pause time.Duration) {
	m.loops.Go(func() {
		for ; ; pause = min(2*pause, longestWait) {
			select {
			case <-m.ctx.Done():
				return
			case <-time.After(pause):
			}
			if m.startAgain(e) {
				return
			}
		}
	})
}

// startAgain tells that nothing is left to do.
func (m runs) startAgain(e *entry) bool {
	e.op.Lock()
	defer e.op.Unlock()
	e.mu.Lock()
	idle := e.client == nil && e.rec.Plugin.Enabled
	name := e.rec.Plugin.Name
	e.mu.Unlock()
	if _, err := os.Stat(e.dir); err != nil || !idle {
		return true // removed, disabled, or somebody else has started it
	}
	m.clear(m.ctx, e)
	err := m.start(m.ctx, e, 0)
	if err != nil && m.ctx.Err() == nil {
		m.cfg.Logger.Error("starting plugin again", "plugin", name, "error", err)
	}
	return err == nil
}

// stop ends a plugin and gives back what it ran in; op is held. Idempotent.
func (m runs) stop(ctx context.Context, e *entry) {
	e.mu.Lock()
	r := e.run
	e.run, e.client = nil, nil
	if r != nil {
		r.stopping = true
	}
	e.mu.Unlock()
	if r != nil {
		for _, sig := range []syscall.Signal{unix.SIGTERM, unix.SIGKILL} {
			if err := r.task.Signal(ctx, "", sig); err != nil && !errdefs.IsNotFound(err) {
				m.cfg.Logger.Debug("ending plugin", "error", err)
			}
			select {
			case <-r.ended:
			case <-time.After(stopTime):
				continue
			}
			break
		}
		r.task.Close()
	}
	m.clear(ctx, e)
}

// clear gives back what a plugin that does not run left: cgroup, run directory, mounts.
func (m runs) clear(ctx context.Context, e *entry) {
	id := e.view().ID
	err := m.eng.Runtime.Cleanup(ctx, m.cleanup(id))
	// What it mounted there is no more of use, and what is below must be reached.
	for mounted := true; mounted && err == nil; {
		mounted = unix.Unmount(filepath.Join(e.dir, propagated), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) == nil
	}
	if err == nil {
		err = os.RemoveAll(m.runDir(id))
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		m.cfg.Logger.Warn("clearing after a plugin", "plugin", id[:12], "error", err)
	}
}

package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/runtime"
	apievents "github.com/moby/moby/api/types/events"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"
)

// start is one start of a container while its steps are done.
type start struct {
	m   *runner
	e   *entry
	run *run
	rec Record
	dir string // run directory, which is the OCI bundle too

	sandbox *network.Sandbox // nil: the host's network or another container's
	netns   string
	spec    *specs.Spec
	task    runtime.Task
	pid     int
	pinned  map[string]string // what stands in the specification for the sources of mounts
	undo    undoStack
}

// step is a named part of a start. do adds its own undo.
type step struct {
	name string
	do   func(s *start, ctx context.Context) error
}

// startSteps are done in this order and undone in reverse.
var startSteps = []step{
	{"directory", (*start).makeDir},
	{"root and network", (*start).rootAndNetwork},
	{"marks of containers", (*start).mtab},
	{"volumes", (*start).volumes},
	{"specification", (*start).specify},
	{"log", (*start).log},
	{"monitor", (*start).monitor},
	{"process", (*start).process},
}

func (s *start) rootfs() string { return filepath.Join(s.dir, "rootfs") }

func (s *start) makeDir(context.Context) error {
	if err := os.MkdirAll(s.rootfs(), 0o711); err != nil {
		return err
	}
	s.undo.add(func() { s.m.removeRunDir(s.e.id, s.run.generation) })
	return nil
}

// rootAndNetwork mounts the root file system while the network is made: the
// two longest waits for the kernel, side by side.
func (s *start) rootAndNetwork(ctx context.Context) error {
	var g errgroup.Group
	g.Go(func() error { return s.network(ctx) })
	err := s.m.cfg.Rootfs.Mount(ctx, string(s.e.id), s.rootfs())
	if err == nil {
		s.undo.add(func() { s.m.unmountRun(s.e.id, s.run.generation) })
	}
	netErr := g.Wait()
	if s.sandbox != nil {
		s.undo.add(func() {
			if err := s.m.cfg.Networks.Teardown(s.m.ctx, string(s.e.id), s.sandbox.Endpoints); err != nil {
				s.m.log.Warn("undoing network", "container", s.e.id.Short(), "error", err)
			}
		})
	}
	if netErr == nil {
		s.m.tellNetworks(apievents.ActionConnect, &s.rec, s.endpoints())
		s.undo.add(func() { s.m.tellNetworks(apievents.ActionDisconnect, &s.rec, s.endpoints()) })
	}
	return errors.Join(err, netErr)
}

// network makes the container's namespace, or finds the one it shares.
func (s *start) network(ctx context.Context) error {
	mode := s.rec.HostConfig.NetworkMode
	switch {
	case mode.IsHost():
		return nil
	case mode.IsContainer():
		other, err := s.m.store.find(mode.ConnectedContainer())
		if err != nil {
			return err
		}
		st := other.state()
		if !st.Running() {
			return kindf(errConflict, "cannot join network of a non running container: %s", other.id)
		}
		s.netns = fmt.Sprintf("/proc/%d/ns/net", st.Pid)
		return nil
	}
	req := networkRequest(&s.rec, wantedNetworks(&s.rec))
	req.Resolve = s.m.resolve(&s.rec)
	sb, err := s.m.cfg.Networks.Setup(ctx, req)
	if err != nil {
		return fmt.Errorf("failed to set up container networking: %w", err)
	}
	s.sandbox, s.netns = sb, sb.Path
	return writeEndpoints(s.dir, sb.Endpoints)
}

// endpointsFile, in the run directory, tells a later engine what network a
// start had made when it was killed before the record said so.
const endpointsFile = "network.json"

func writeEndpoints(dir string, eps []network.Endpoint) error {
	b, err := json.Marshal(eps)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, endpointsFile), b, 0o600)
}

func readEndpoints(dir string) []network.Endpoint {
	var eps []network.Endpoint
	b, err := os.ReadFile(filepath.Join(dir, endpointsFile))
	if err != nil || json.Unmarshal(b, &eps) != nil {
		return nil
	}
	return eps
}

// endpoints are those of the sandbox, for the record.
func (s *start) endpoints() []network.Endpoint {
	if s.sandbox == nil {
		return nil
	}
	return s.sandbox.Endpoints
}

// closeHeld closes the engine's copies of the published ports' sockets; the
// monitor holds its own.
func (s *start) closeHeld() {
	if s.sandbox == nil {
		return
	}
	for _, f := range s.sandbox.Held {
		f.Close()
	}
}

// specify writes config.json and the files bound in at /etc.
func (s *start) specify(ctx context.Context) error {
	o, err := s.options()
	if err != nil {
		return err
	}
	spec, warnings, err := s.m.cfg.Specs.Spec(ctx, o)
	if err != nil {
		return err
	}
	for _, w := range warnings {
		s.m.log.Debug("specification", "container", s.e.id.Short(), "warning", w)
	}
	s.spec = spec
	b, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.dir, "config.json"), b, 0o600)
}

// log begins to follow the log for a driver that sends it on. When the start fails
// it sees the end of the run.
func (s *start) log(context.Context) error {
	if err := s.m.ship(s.e); err != nil {
		return fmt.Errorf("failed to create task for container: failed to initialize logging driver: %w", err)
	}
	return nil
}

// confined is the AppArmor profile that the process runs under; empty where
// the kernel has none.
func (s *start) confined() string {
	if s.spec == nil || s.spec.Process == nil {
		return ""
	}
	return s.spec.Process.ApparmorProfile
}

// monitor launches the monitor and lets in the clients that attached early.
func (s *start) monitor(ctx context.Context) error {
	c, h := s.rec.Config, s.rec.HostConfig
	l := runtime.Launch{
		ID: string(s.e.id), Generation: s.run.generation, Bundle: s.dir, RunDir: s.dir, StateDir: s.m.store.path(s.e.id),
		Passing:  s.rec.passing(),
		Runtime:  s.m.defaults().Runtimes[h.Runtime],
		Terminal: c.Tty, Rows: uint16(h.ConsoleSize[0]), Cols: uint16(h.ConsoleSize[1]),
		OpenStdin: c.OpenStdin, StdinOnce: c.StdinOnce,
		Log: s.m.logFile(&s.rec), CgroupPath: s.spec.Linux.CgroupsPath,
	}
	if s.sandbox != nil {
		l.Held = s.sandbox.Held
	}
	task, err := s.m.cfg.Runtime.Launch(ctx, l)
	if err != nil {
		return fmt.Errorf("monitor: %w", err)
	}
	s.task = task
	s.undo.add(func() {
		task.Close()
		if err := s.m.cfg.Runtime.Cleanup(s.m.ctx, s.m.cleanup(&s.rec, s.run.generation)); err != nil {
			s.m.log.Warn("undoing start", "container", s.e.id.Short(), "error", err)
		}
	})
	s.e.admit(ctx, task)
	return nil
}

// process runs the container's process. An OCI runtime that does not come back
// is given up, and ended with all its children by the undo of the monitor.
func (s *start) process(ctx context.Context) error {
	patience := s.m.defaults().StartTimeout
	brief, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	pid, err := s.task.Start(brief)
	if err != nil && brief.Err() != nil && ctx.Err() == nil {
		return fmt.Errorf("OCI runtime %q did not start the container within %s", s.rec.HostConfig.Runtime, patience)
	}
	s.pid = pid
	var se *runtime.StartError
	if errors.As(err, &se) {
		for pinned, source := range s.pinned { // people know only the path they gave
			se.Message = strings.ReplaceAll(se.Message, pinned, source)
		}
	}
	return err
}

// cleanup names what the runtime keeps of a run.
func (m *core) cleanup(rec *Record, generation uint64) runtime.Cleanup {
	return runtime.Cleanup{
		ID: string(rec.ID), RunDir: m.runDir(rec.ID, generation),
		Runtime: m.binary(rec.HostConfig.Runtime), CgroupPath: m.specCgroup(rec),
	}
}

// readSpec reads the specification of a run.
func readSpec(dir string) (*specs.Spec, error) {
	b, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		return nil, err
	}
	var spec specs.Spec
	return &spec, json.Unmarshal(b, &spec)
}

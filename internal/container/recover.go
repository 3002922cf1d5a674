package container

import (
	"context"
	"errors"
	"fmt"
	"github.com/moby/moby/api/types/container"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/runtime"
	"escale.dev/escale/internal/volume"
	"github.com/containerd/errdefs"
	apievents "github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"
)

// Open reads the records, takes up what runs, records what ended meanwhile, and
// collects what an engine that was killed left half-made. Restart policies act
// when Resume is called.
func (m *Manager) Open(ctx context.Context) error {
	rec := recovery{m.runner}
	entries, err := m.store.load()
	if err != nil {
		return err
	}
	for id, err := range m.store.dark {
		m.log.Error("record is left alone with all that belongs to it: it cannot be read", "container", id.Short(), "error", err)
	}
	rec.dropHalf(ctx)
	if err := os.MkdirAll(m.cfg.RunDir, 0o711); err != nil {
		return err
	}
	for _, e := range entries {
		m.mounts.hold(ctx, e)
		v := e.view()
		m.cfg.Networks.Keep(string(e.id), v.Networking)
	}
	// Monitors answer at once; a few at a time keep a thousand of them quick.
	slots := make(chan struct{}, 16)
	var wg sync.WaitGroup
	for _, e := range entries {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := rec.takeUp(ctx, e); err != nil {
				m.log.Error("taking up container", "container", e.id.Short(), "error", err)
			}
		})
	}
	wg.Wait()
	live := rec.dark()
	for _, e := range entries {
		if v := e.view(); v.State.Running() {
			live[string(e.id)] = resting(v.Endpoints, &v.State)
			m.mounts.keepMounted(ctx, &v.Record)
		}
	}
	m.Copies().recoverAll(ctx)
	if err := m.cfg.Networks.Restore(ctx, live); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	rec.takeUpNetworks(ctx, entries)
	rec.sweepRuns(ctx)
	rec.sweepRoots(ctx)
	rec.watchAdopted(entries)
	m.shipAll(entries)
	m.background(func(context.Context) { m.store.collect() })
	return nil
}

// dropHalf takes away containers that were being made when the engine before was killed, and
// the volumes without a name that were made for them.
func (m recovery) dropHalf(ctx context.Context) {
	for _, id := range m.store.half {
		var errs []error
		for _, name := range m.store.announced(id) {
			if err := m.cfg.Volumes.Remove(ctx, name, true); err != nil && !errdefs.IsNotFound(err) {
				errs = append(errs, err)
			}
		}
		if len(errs) == 0 { // else the next engine tries again
			errs = append(errs, m.store.discard(id))
		}
		if err := errors.Join(errs...); err != nil {
			m.log.Warn("taking away a container that was being made", "container", id.Short(), "error", err)
		}
	}
}

// Resume lets restart policies act on what does not run, each container after
// what it needs (see boot), and removes what has --rm and does not run: it has
// ended, or whoever made it lost the engine before it ran. Called once the engine is ready.
func (m *Manager) Resume(ctx context.Context) {
	var starts []*bootStart
	for _, e := range m.store.all() {
		e.mu.Lock()
		st := e.rec.State
		auto := e.rec.HostConfig.AutoRemove && (st.Status == Exited || st.Status == Created)
		again := !st.Running() && st.Generation > 0 && st.Status != Removing && st.Status != Dead && e.resumes()
		e.mu.Unlock()
		switch {
		case st.Status == Removing:
			if err := m.finishRemoval(e, false); err != nil {
				m.log.Error("removing", "container", e.id.Short(), "error", err)
			}
		case auto:
			m.autoRemove(ctx, e)
		case again:
			var pending pendingRestart
			if err := m.update(e, false, func(rec *Record) error {
				pending = m.armRestart(e)
				if rec.State.Status == Restarting {
					return nil
				}
				return rec.State.move(Restarting)
			}); err != nil {
				m.log.Error("restarting", "container", e.id.Short(), "error", err)
				pending.cancel()
				continue
			}
			starts = append(starts, &bootStart{e: e, pending: pending})
		}
	}
	m.startAtBoot(starts)
}

// resumes tells whether a container that does not run is started when the
// engine comes up. Called with mu held.
func (e *entry) resumes() bool {
	p := &e.rec.HostConfig.RestartPolicy
	switch {
	case p.IsAlways():
		return true
	case p.IsUnlessStopped():
		return !e.rec.ManuallyStopped
	case p.IsOnFailure():
		return !e.rec.ManuallyStopped && (e.rec.State.Status == Restarting || e.wantsRestart(e.rec.State.ExitCode))
	}
	return false
}

// hold counts the container among the users of its volumes again.
func (m mounts) hold(ctx context.Context, e *entry) {
	v := e.view()
	for _, p := range v.Mounts {
		if p.Type != mount.TypeVolume {
			continue
		}
		if _, err := m.cfg.Volumes.Acquire(ctx, volume.Request{Name: p.Name, Driver: p.Driver, Held: true}, string(e.id)); err != nil {
			m.log.Warn("holding volume", "container", e.id.Short(), "volume", p.Name, "error", err)
		}
	}
}

// keepMounted counts a running container among those for whom its volumes are
// mounted.
func (m mounts) keepMounted(ctx context.Context, rec *Record) {
	for _, p := range rec.Mounts {
		if p.Type != mount.TypeVolume {
			continue
		}
		path, err := m.cfg.Volumes.Mount(ctx, p.Name, string(rec.ID))
		if err == nil {
			err = m.settle(ctx, p.Name, path)
		}
		if err != nil {
			m.log.Warn("keeping volume mounted", "container", rec.ID.Short(), "volume", p.Name, "error", err)
		}
	}
}

// recovery takes up what an earlier engine left.
type recovery struct{ *runner }

// takeUp finds out what became of a container while no engine was there.
func (m recovery) takeUp(ctx context.Context, e *entry) error {
	m.takeIntent(e)
	v := e.view()
	st := v.State
	if st.Status != Starting && !st.Running() {
		return nil
	}
	r := &run{generation: st.Generation, ended: make(chan struct{}), reaped: make(chan struct{}), started: time.Now()}
	m.findCgroup(e, &v.Record)
	if st.BootID != bootID() {
		// The machine went down under it; Docker gives 255.
		return m.tookUpEnded(e, r, runtime.Exit{Code: 255, At: now()}, errors.New("the machine was restarted"))
	}
	task, err := m.cfg.Runtime.Adopt(ctx, string(e.id), m.runDir(e.id, st.Generation), m.store.path(e.id))
	if err == nil && task.Pid() > 0 {
		return m.tookUpRunning(e, r, task)
	}
	if err == nil {
		task.Close() // a monitor that was never told to start
	}
	exit, err := m.cfg.Runtime.LastExit(m.store.path(e.id), st.Generation)
	if err == nil {
		return m.tookUpEnded(e, r, exit, nil)
	}
	if !errdefs.IsNotFound(err) {
		m.log.Warn("reading exit record", "container", e.id.Short(), "error", err)
	}
	if err := m.cfg.Runtime.Cleanup(ctx, m.cleanup(&v.Record, st.Generation)); err != nil {
		m.log.Error("ending container without monitor", "container", e.id.Short(), "error", err)
	}
	if st.Status == Starting {
		// Killed before the process ran: as if the start had not been asked.
		return m.update(e, false, func(rec *Record) error {
			rec.State.clearProcess()
			if rec.State.StartedAt.IsZero() {
				return rec.State.move(Created)
			}
			return rec.State.move(Exited)
		})
	}
	return m.tookUpEnded(e, r, runtime.Exit{Code: 137, At: now()}, runtime.ErrMonitorLost)
}

// findCgroup notes the cgroup of a run that an engine started which did not note it yet.
func (m recovery) findCgroup(e *entry, rec *Record) {
	if rec.State.Cgroup != "" {
		return
	}
	spec, err := readSpec(m.runDir(rec.ID, rec.State.Generation))
	if err != nil || spec.Linux == nil {
		return // it has come to nothing, or lies where it would now
	}
	rec.State.Cgroup = spec.Linux.CgroupsPath
	e.mu.Lock()
	e.rec.State.Cgroup = spec.Linux.CgroupsPath // written with what is next
	e.mu.Unlock()
}

// tookUpRunning goes on with a container whose monitor is there.
func (m recovery) tookUpRunning(e *entry, r *run, task runtime.Task) error {
	r.task = task
	e.mu.Lock()
	e.run, e.adopted = r, true
	err := m.updateLocked(e, false, func(rec *Record) error {
		st := &rec.State
		if st.Status == Starting {
			if err := st.move(Running); err != nil {
				return err
			}
			st.StartedAt, st.ExitCode, st.Error, st.OOMKilled = now(), 0, "", false
			rec.Endpoints = readEndpoints(m.runDir(rec.ID, st.Generation))
		}
		st.Pid, st.PidStart, st.Monitor = task.Pid(), pidStart(task.Pid()), task.Monitor()
		return nil
	})
	r.started = e.rec.State.StartedAt
	e.mu.Unlock()
	return err
}

// takes tells whether a container takes what comes to ports that it shares: it
// runs and, if it has a health check, is healthy.
func (s *State) takes() bool {
	return s.Status == Running && (s.Health == nil || s.Health.Status == string(container.Healthy))
}

// resting are endpoints as they were at the start of a container, with what has
// become of it since.
func resting(eps []network.Endpoint, st *State) []network.Endpoint {
	out := slices.Clone(eps)
	for i := range out {
		out[i].Resting = out[i].Balance != "" && !st.takes()
	}
	return out
}

// dark are the endpoints of containers whose records cannot be read, which may run: as
// the starts that made them noted them.
func (m recovery) dark() map[string][]network.Endpoint {
	out := map[string][]network.Endpoint{}
	for id := range m.store.dark {
		dir := filepath.Join(m.cfg.RunDir, string(id))
		for _, generation := range names(dir) {
			out[string(id)] = append(out[string(id)], readEndpoints(filepath.Join(dir, generation))...)
		}
	}
	return out
}

// watchAdopted begins to watch what was taken up. Only now that the network
// knows what lives: an end that was handled before would be forgotten by it, and
// the ports of a container that is no more would stay published.
func (m recovery) watchAdopted(entries []*entry) {
	var roots []func()
	for _, e := range entries {
		e.mu.Lock()
		r, live := e.run, e.adopted && e.rec.State.Running()
		e.mu.Unlock()
		if live {
			m.resume(e)
			m.watch(e, r)
			m.prober.begin(e)
			roots = append(roots, func() { m.hideRoot(e, r) })
		}
	}
	m.background(func(ctx context.Context) {
		for _, hide := range roots {
			if ctx.Err() != nil {
				return
			}
			hide()
		}
	})
}

// tookUpEnded records an end that happened while no engine was there.
func (m recovery) tookUpEnded(e *entry, r *run, exit runtime.Exit, cause error) error {
	close(r.ended)
	close(r.reaped) // its remains are swept by Open, before anything starts
	m.store.removeUnfinished(e.id)
	e.mu.Lock()
	lived := exit.At.Sub(e.rec.State.StartedAt)
	e.run = r
	eps := e.rec.Endpoints
	told := e.rec.State.OOMKilled
	err := m.updateLocked(e, true, func(rec *Record) error {
		st := &rec.State
		if st.Status == Starting {
			if err := st.move(Running); err != nil {
				return err
			}
			st.StartedAt = exit.At
		}
		st.ExitCode, st.OOMKilled, st.FinishedAt, st.Error = exit.Code, exit.OOMKilled || told, exit.At.UTC(), ""
		if cause != nil {
			st.Error = cause.Error()
		}
		st.clearProcess()
		rec.Endpoints = nil
		return st.move(Exited)
	})
	rec := e.rec
	m.tellExitLocked(e, exit, exit.OOMKilled && !told, lived)
	e.mu.Unlock()
	m.tellNetworks(apievents.ActionDisconnect, &rec, eps)
	return err
}

// sweepRuns gives back what runs left in the kernel that nobody watches any
// more. The run directory is the journal: it is made first and removed last.
func (m recovery) sweepRuns(ctx context.Context) {
	for _, id := range names(m.cfg.RunDir) {
		dir := filepath.Join(m.cfg.RunDir, id)
		for _, name := range names(dir) {
			if generation, err := strconv.ParseUint(name, 10, 64); err == nil {
				m.sweepUnlessLive(ctx, ID(id), generation)
			}
		}
		os.Remove(dir) // if it is empty
	}
}

func (m recovery) sweepUnlessLive(ctx context.Context, id ID, generation uint64) {
	if m.store.dark[id] != nil {
		return
	}
	rec := Record{ID: id}
	if e, err := m.store.find(string(id)); err == nil && e.id == id {
		v := e.view()
		if v.State.Running() && v.State.Generation == generation {
			return
		}
		rec = v.Record
	}
	m.sweepRun(ctx, &rec, generation)
}

func (m recovery) sweepRun(ctx context.Context, rec *Record, generation uint64) {
	var c runtime.Cleanup
	if rec.HostConfig != nil {
		c = m.cleanup(rec, generation)
		if generation != rec.State.Generation {
			c.CgroupPath = m.cleanupOfBundle(rec, generation).CgroupPath
		}
	} else { // the record is gone: read the bundle
		c = m.cleanupOfBundle(rec, generation)
	}
	if err := m.cfg.Runtime.Cleanup(ctx, c); err != nil {
		m.log.Warn("sweeping", "container", rec.ID.Short(), "error", err)
		return
	}
	if err := m.unmountRun(rec.ID, generation); err != nil {
		m.log.Warn("sweeping", "container", rec.ID.Short(), "error", err)
		return
	}
	m.removeRunDir(rec.ID, generation)
}

// cleanupOfBundle names the remains of a run whose record is gone, from what
// stands in its bundle.
func (m recovery) cleanupOfBundle(rec *Record, generation uint64) runtime.Cleanup {
	c := runtime.Cleanup{
		ID: string(rec.ID), RunDir: m.runDir(rec.ID, generation), Runtime: m.binary(""),
		CgroupPath: m.newCgroup(rec),
	}
	if spec, err := readSpec(c.RunDir); err == nil && spec.Linux != nil {
		c.CgroupPath = spec.Linux.CgroupsPath
	}
	return c
}

// sweepRoots drops root file systems that no container owns.
func (m recovery) sweepRoots(ctx context.Context) {
	roots, err := m.cfg.Rootfs.Containers(ctx)
	if err != nil {
		m.log.Warn("listing root file systems", "error", err)
		return
	}
	for _, id := range roots {
		owner := rootOwner(id)
		if e, err := m.store.find(owner); err == nil && string(e.id) == owner {
			continue
		}
		if m.store.dark[ID(owner)] != nil {
			continue
		}
		if err := m.cfg.Rootfs.Remove(ctx, id); err != nil {
			m.log.Warn("removing root file system", "container", ID(id).Short(), "error", err)
		}
	}
}

package container

import (
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"escale.dev/escale/internal/sys/atomicfile"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
)

// Kept are the containers that an orchestrator keeps, as it sees them. It is a part of
// Manager, see Manager.Kept.
type Kept struct{ m *runner }

// Kept are the containers of tasks.
func (m *Manager) Kept() Kept { return Kept{m.runner} }

// Of is the container of a task. Kind: NotFound.
func (k Kept) Of(task string) (View, error) {
	e := k.m.store.ofTask(task)
	if e == nil {
		return View{}, errNoSuch("of task " + task)
	}
	return e.view(), nil
}

// List gives all containers of tasks, in no order.
func (k Kept) List() []View {
	var out []View
	for _, e := range k.m.store.kept() {
		out = append(out, e.view())
	}
	return out
}

// Anonymous are the volumes of a container that nobody gave a name, by destination. Its
// successor can take them over.
func (v *View) Anonymous() map[string]string {
	out := map[string]string{}
	for i := range v.Mounts {
		if p := &v.Mounts[i]; anonymous(&v.Record, p) && !slices.Contains(v.Others, p.Destination) {
			out[p.Destination] = p.Name
		}
	}
	return out
}

// Attend blocks until a container does not run any more, though nobody is about to
// start it again, and gives its exit code. Restarts by clients and pauses are seen
// through. It tells each state of health on the way, the present one first; "" of a
// container without a health check. Kinds: NotFound when it is removed, Conflict when
// it was never started; else that of ctx.
func (k Kept) Attend(ctx context.Context, ref string, told func(container.HealthStatus)) (int, error) {
	e, err := k.m.store.find(ref)
	if err != nil {
		return 0, err
	}
	last := container.HealthStatus("none told")
	for {
		e.mu.Lock()
		st, removed := e.rec.State, e.removed
		coming := st.Status == Starting || st.Status == Restarting || e.restarts > 0
		health := container.HealthStatus(e.health())
		if _, probed := newProbe(e.rec.Config); !probed {
			health = ""
		}
		changed := e.onChange()
		e.mu.Unlock()
		switch {
		case removed:
			return 0, errNoSuch(ref)
		case st.Status == Running && health != last:
			last = health
			told(health)
			continue // it may have changed meanwhile
		case st.Running() || coming:
		case st.Status == Created:
			return 0, kindf(errConflict, "container %s was never started", e.id)
		default:
			return st.ExitCode, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// Start starts a container, but not while the engine holds back what it does by itself:
// until then it blocks. ErrNotModified when it runs.
func (k Kept) Start(ctx context.Context, ref string) error {
	if err := k.m.gate.wait(ctx); err != nil {
		return err
	}
	e, err := k.m.store.hold(ctx, ref)
	if err != nil {
		return err
	}
	defer e.op.unlock()
	return k.m.startLocked(ctx, e, true)
}

// Exec runs a command in a container that runs, to its end, and gives its code and the
// beginning of what it wrote. After timeout, 0 for never, it is killed, and the error is
// that of a context's deadline. Kinds: NotFound, Conflict when the container does not run.
func (k Kept) Exec(ctx context.Context, ref string, c ExecConfig, timeout time.Duration) (int, string, error) {
	e, err := k.m.store.find(ref)
	if err == nil {
		err = canExec(e)
	}
	if err != nil {
		return 0, "", err
	}
	out := &boundedBuffer{max: maxProbeOutput}
	code, err := k.m.execs.collect(ctx, e, c, timeout, out)
	return code, out.String(), err
}

// ownLabels begins the names of the labels that tell whose a container is.
const ownLabels = "com.docker.swarm."

// Release makes a container an ordinary one, with the restart policy that its Owner
// says: it stays as it is, runs on if it runs, and has what it needs in its own
// directory where from says that a bind's source lies in a directory that goes.
// Idempotent. Kind: NotFound.
func (k Kept) Release(ctx context.Context, ref, from string) error {
	e, err := k.m.store.hold(ctx, ref)
	if err != nil {
		return err
	}
	defer e.op.unlock()
	next := e.view().Record
	switch {
	case e.gone():
		return errNoSuch(ref)
	case next.Owner == nil:
		return nil
	}
	config, host := copyConfig(next.Config), copyHostConfig(next.HostConfig)
	maps.DeleteFunc(config.Labels, func(name, _ string) bool { return strings.HasPrefix(name, ownLabels) })
	if p := next.Owner.Restart; p.Name != "" {
		host.RestartPolicy = p
	}
	next.HostConfig = host
	if err := k.own(&next, from); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	old := e.rec
	e.rec.Config, e.rec.HostConfig, e.rec.Mounts, e.rec.Owner = config, host, next.Mounts, nil
	if err := k.m.store.save(&e.rec, true); err != nil {
		e.rec.Config, e.rec.HostConfig, e.rec.Mounts, e.rec.Owner = old.Config, old.HostConfig, old.Mounts, old.Owner
		return err
	}
	k.m.store.disown(e)
	return nil
}

// own copies the files below a directory that are bound into a container to where the
// container's other files lie, and lets it have those from its next start on.
func (k Kept) own(rec *Record, from string) error {
	rec.Mounts, rec.HostConfig.Mounts = slices.Clone(rec.Mounts), slices.Clone(rec.HostConfig.Mounts)
	dir := filepath.Join(k.m.store.path(rec.ID), "files")
	for i := range rec.Mounts {
		p := &rec.Mounts[i]
		if p.Type != mount.TypeBind || filepath.Dir(p.Source) != from {
			continue
		}
		to := filepath.Join(dir, strconv.Itoa(i))
		if err := errors.Join(os.MkdirAll(dir, 0o700), copyFile(p.Source, to)); err != nil {
			return err
		}
		for j := range rec.HostConfig.Mounts {
			if mt := &rec.HostConfig.Mounts[j]; mt.Type == mount.TypeBind && mt.Source == p.Source && filepath.Clean(mt.Target) == p.Destination {
				mt.Source = to
			}
		}
		p.Source = to
	}
	return nil
}

// copyFile copies a small file with its owner and mode.
func copyFile(from, to string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	data, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(to, data, 0o600, atomicfile.Options{Sync: true}); err != nil {
		return err
	}
	id := info.Sys().(*syscall.Stat_t) // it is what Linux has
	return errors.Join(os.Lchown(to, int(id.Uid), int(id.Gid)), os.Chmod(to, info.Mode().Perm()))
}

package native

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime/native/cgroups"
	"escale.dev/escale/internal/runtime/native/hooks"
	"escale.dev/escale/internal/runtime/native/plan"
	"escale.dev/escale/internal/runtime/native/record"
)

// birth is a container that is being made.
type birth struct {
	*runtime
	id, bundle string
	spec       *specs.Spec
	now        bool
	kept       int    // descriptors of the caller that the program gets
	sockets    int    // of these, those that it is told of
	keyring    bool   // it gets a session keyring of its own
	pidFile    string // where its pid is written; empty: nowhere
	parent     parent // whose child it is

	group *cgroups.Group
	cgs   []string // directories that were made
	empty bool     // nobody was in the cgroup: whoever is, belongs to the container
	inner *inner
	state *state
	ready bool // hooks have been run, to which poststop's belong

	unit   cgroups.Unit // of systemd, which makes the cgroup; without a name we do
	holder *holder      // keeps the unit until inner is in it
	scoped bool         // the unit is there
}

// bear has the container born. What was made is undone on an error.
func (b *birth) bear() (_ *made, err error) {
	r, id, spec := b.runtime, b.id, b.spec
	var unit cgroups.Unit
	if r.systemd {
		if unit, err = cgroups.ParseUnit(spec.Linux.CgroupsPath, id); err != nil {
			return nil, err
		}
		spec.Linux.CgroupsPath = unit.Path
	}
	if err := os.MkdirAll(r.root, 0o700); err != nil {
		return nil, err
	}
	if err := os.Mkdir(r.dir(id), 0o711); errors.Is(err, fs.ErrExist) {
		return nil, errors.New("container with given ID already exists")
	} else if err != nil {
		return nil, err
	}
	lock, err := r.lock(id)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	b.unit = unit
	defer func() {
		if err != nil {
			b.undo()
		}
	}()
	return b.run()
}

func (b *birth) undo() {
	if b.inner != nil {
		b.inner.end()
	}
	if b.inner != nil && b.state != nil {
		b.state.unmount()
	}
	b.holder.end()
	switch {
	case b.empty:
		_ = b.group.Remove() // what is left is found by delete --force
	case b.group != nil:
		cgroups.RemoveEmpty(b.cgs) // the others are somebody's
	}
	if b.scoped {
		_ = cgroups.StopUnit(asking, b.unit.Name) // nobody is in it any more: it ends without us, too
	}
	if b.ready && b.spec.Hooks != nil {
		_ = hooks.Run("poststop", b.spec.Hooks.Poststop, b.state.told(specs.StateStopped)) // the first error is the one to tell
	}
	_ = os.RemoveAll(b.dir(b.id)) // likewise
}

func (b *birth) run() (*made, error) {
	layout, err := cgroups.Detect()
	if err != nil {
		return nil, err
	}
	// Who finds us killed has to know which cgroups there may be.
	b.state = &state{record.State{Version: stateVersion, ID: b.id, OCIVersion: b.spec.Version, Bundle: b.bundle, Rootfs: b.spec.Root.Path, Created: time.Now().UTC(), CgroupsPath: b.spec.Linux.CgroupsPath, Unit: b.unit.Name,
		Process: b.spec.Process, Hooks: b.spec.Hooks, Annotations: b.spec.Annotations, Personality: b.spec.Linux.Personality}}
	if !strings.HasPrefix(b.state.CgroupsPath, "/") {
		// Below our own: who comes later may be in another.
		g, err := layout.Place(b.state.CgroupsPath, b.id)
		if err != nil {
			return nil, err
		}
		b.state.Cgroups = maps.Clone(g.V1)
		if g.Unified != "" {
			b.state.Cgroups[""] = g.Unified
		}
	}
	b.state.OthersPIDs = joined(b.spec.Linux.Namespaces, specs.PIDNamespace)
	if b.state.Namespaces, err = namespaceFlags(b.spec.Linux.Namespaces); err != nil {
		return nil, err
	}
	if b.state.RootMount, err = mountOf(b.spec.Root.Path); err != nil {
		return nil, fmt.Errorf("invalid rootfs: %w", err)
	}
	if err := b.save(b.state); err != nil {
		return nil, err
	}
	if err := b.makeGroup(layout); err != nil {
		return nil, fmt.Errorf("unable to start container process: unable to apply cgroup configuration: %w", err)
	}
	p, err := b.prepare(b.id, b.bundle, b.spec, layout, b.group, b.kept)
	if err != nil {
		return nil, fmt.Errorf("unable to start container process: error during container init: %w", err)
	}
	defer p.out.close()
	p.plan.Listen = b.sockets
	if !b.keyring {
		p.plan.Keyring = ""
	}
	b.state.FilterFlags = p.plan.SeccompFlags
	if len(p.plan.Filter) > 0 {
		if err := os.WriteFile(filepath.Join(b.dir(b.id), filterName), p.plan.Filter, 0o600); err != nil {
			return nil, err
		}
	}
	if err := b.hand(p); err != nil {
		return nil, err
	}
	if err := b.start(p); err != nil {
		return nil, fmt.Errorf("unable to start container process: %w", err)
	}
	return &made{b.state, b.inner}, nil
}

// hand gives the half inside what it needs besides mounts.
func (b *birth) hand(p *preparation) error {
	proc, err := procfs()
	if err != nil {
		return err
	}
	p.plan.Proc = p.out.give(proc)
	if err := b.handGroup(p); err != nil || b.now || p.out.pids != nil {
		return err
	}
	p.plan.Hold, err = b.hold(p.out)
	return err
}

// hold makes what the process waits for until it is started.
func (b *birth) hold(out *outfit) (int, error) {
	name := filepath.Join(b.dir(b.id), fifoName)
	if err := unix.Mkfifo(name, 0o622); err != nil {
		return plan.NoFD, &os.PathError{Op: "mkfifo", Path: name, Err: err}
	}
	// For both, so that it can be read from before anybody writes.
	f, err := os.OpenFile(name, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return plan.NoFD, err
	}
	return out.give(f), nil
}

// handGroup lets the half inside into the cgroups: of version 2 it is born in.
func (b *birth) handGroup(p *preparation) error {
	files, err := b.group.Tasks()
	if err != nil {
		return err
	}
	for _, f := range files {
		p.plan.Join = append(p.plan.Join, p.out.give(f))
	}
	p.out.cgroup, err = b.group.Birth()
	return err
}

func (b *birth) makeGroup(layout *cgroups.Layout) (err error) {
	l := b.spec.Linux
	if b.group, err = layout.Place(l.CgroupsPath, b.id); err != nil {
		return err
	}
	resources := cgroups.Rounded(l.Resources)
	if b.unit.Name == "" {
		resources = l.Resources
	}
	var list []specs.LinuxDeviceCgroup
	if resources != nil {
		list = resources.Devices
	}
	rules, err := cgroups.NewRules(list)
	if err != nil {
		return err
	}
	if b.unit.Name != "" {
		if err := b.alone(); err != nil {
			return err
		}
		if err := b.startUnit(rules); err != nil {
			return err
		}
	}
	if b.cgs, err = b.group.Make(); err != nil {
		return err
	}
	if len(b.cgs) < len(b.group.Dirs()) && !b.scoped { // some were there
		if err := b.alone(); err != nil {
			return err
		}
	}
	b.empty = true
	if err := b.group.Limit(resources); err != nil {
		return err
	}
	return b.group.LimitDevices(rules)
}

// alone refuses a cgroup that somebody is in.
func (b *birth) alone() error {
	pids, err := b.group.Pids()
	if err == nil && len(pids) > 0 {
		err = fmt.Errorf("container's cgroup is not empty: %d process(es) found", len(pids))
	}
	return err
}

// start starts the half inside and sees it through until it waits to be started,
// or runs.
func (b *birth) start(p *preparation) error {
	in, err := b.parent.spawn(p.out)
	if err != nil {
		return err
	}
	if err := b.take(in); err != nil {
		return err
	}
	told := b.state.told(specs.StateCreating)
	if len(p.plan.CreateContainer)+len(p.plan.StartContainer) > 0 {
		p.plan.State = *told
	}
	outside := func() error {
		b.ready = true
		//lint:ignore SA1019 old bundles have it, and runc runs it
		if err := hooks.Run("prestart", b.spec.Hooks.Prestart, told); err != nil {
			return err
		}
		return hooks.Run("createRuntime", b.spec.Hooks.CreateRuntime, told)
	}
	talk := conversation{plan: p.plan}
	if p.out.pids != nil {
		if talk.plan, err = b.changeHalves(p, outside); err != nil {
			return inInit(err)
		}
	}
	if err := raiseLimits(b.inner.pid, b.spec.Process.Rlimits); err != nil {
		return err
	}
	talk.inner = b.inner
	if err := talk.run(outside, func() error { return b.set(p) }, b.now); err != nil {
		return inInit(err)
	}
	if b.now && b.spec.Hooks != nil {
		return hooks.Run("poststart", b.spec.Hooks.Poststart, b.state.told(specs.StateRunning))
	}
	return nil
}

// take has a half be the one that stands for the container.
func (b *birth) take(in *inner) (err error) {
	b.inner, b.state.Pid = in, in.pid
	if b.state.Start, _, err = startTime(in.pid); err != nil {
		return err
	}
	return setOOMScore(in.pid, b.spec.Process.OOMScoreAdj)
}

// inInit adds to words of the half inside where they come from.
func inInit(err error) error {
	var said *plan.Refusal
	if errors.As(err, &said) {
		return fmt.Errorf("error during container init: %w", err)
	}
	return err
}

// set does what is due before the process may go on: limits that would have
// bound the runtime itself, and the container is there for others.
func (b *birth) set(p *preparation) error {
	if err := setScheduling(b.inner.pid, b.spec.Process); err != nil {
		return err
	}
	b.holder.end() // the container's process is there now
	if b.scoped && b.spec.Linux.Resources != nil {
		if err := b.group.UpdateUnit(asking, b.unit.Name, &specs.LinuxResources{Pids: b.spec.Linux.Resources.Pids}); err != nil {
			return fmt.Errorf("unable to apply cgroup configuration: %w", err)
		}
	}
	if err := b.group.LimitPids(b.spec.Linux.Resources); err != nil {
		return fmt.Errorf("unable to apply cgroup configuration: %w", err)
	}
	if err := b.save(b.state); err != nil {
		return err
	}
	return writePid(b.pidFile, b.inner.pid)
}

// writePid writes a pid file so that nobody reads half of it.
func writePid(name string, pid int) error {
	if name == "" {
		return nil
	}
	if err := os.WriteFile(name+".new", []byte(strconv.Itoa(pid)), 0o644); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

// unmount takes away what a container without a mount namespace has left: all of it
// lies in one mount over its root, which was not there before.
func (s *state) unmount() {
	if s.Namespaces&unix.CLONE_NEWNS != 0 {
		return
	}
	if now, err := mountOf(s.Rootfs); err == nil && now != s.RootMount {
		_ = unix.Unmount(s.Rootfs, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) // gone meanwhile
	}
}

// mountOf is the number of the mount that a path lies on.
func mountOf(path string) (uint64, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_MNT_ID, &st); err != nil {
		return 0, &os.PathError{Op: "statx", Path: path, Err: err}
	}
	return st.Mnt_id, nil
}

package native

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime/native/cgroups"
	"escale.dev/escale/internal/runtime/native/codec"
	"escale.dev/escale/internal/runtime/native/fork"
	"escale.dev/escale/internal/runtime/native/plan"
)

var execOptions = options{"process": true, "detach": false, "pid-file": true, "console-socket": true, "cwd": true, "env": true, "tty": false, "user": true,
	"additional-gids": true, "cap": true, "no-new-privs": false, "apparmor": true, "process-label": true, "preserve-fds": true, "cgroup": true, "ignore-paused": false, "pidfd-socket": true}

// exec runs one more process in a container that runs.
func (r *runtime) exec(o values, words []string) (int, error) {
	if len(words) == 0 {
		return 0, errors.New("exec failed: the container's id is missing")
	}
	if err := o.refuse("cgroup", "pidfd-socket"); err != nil {
		return 0, fmt.Errorf("exec failed: %w", err)
	}
	if err := seal(); err != nil {
		return 0, fmt.Errorf("exec failed: %w", err)
	}
	s, err := r.load(words[0])
	if err != nil {
		return 0, fmt.Errorf("exec failed: %w", err)
	}
	process, err := execProcess(s, o, words[1:])
	if err != nil {
		return 0, fmt.Errorf("exec failed: %w", err)
	}
	signals := make(chan os.Signal, 128)
	if !o.has("detach") {
		signal.Notify(signals)
	}
	in, err := r.join(s, process, o)
	if err != nil {
		return 0, fmt.Errorf("exec failed: %w", err)
	}
	if o.has("detach") {
		return 0, nil
	}
	return (&made{s, in}).attend(signals), nil
}

// execProcess is the process of --process, or the container's own as options change it.
func execProcess(s *state, o values, args []string) (*specs.Process, error) {
	if s.Process == nil {
		return nil, fmt.Errorf("container %s: %s has no process", s.ID, stateName)
	}
	p := &specs.Process{}
	if name := o.text("process", ""); name != "" {
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		if err := codec.ReadProcess(b, p); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		inherit(p, s.Process)
		return p, validateProcess(p)
	}
	*p = *s.Process
	p.Args, p.Terminal = args, o.has("tty")
	p.Cwd = o.text("cwd", p.Cwd)
	p.Env = append(p.Env[:len(p.Env):len(p.Env)], o["env"]...)
	p.ApparmorProfile = o.text("apparmor", p.ApparmorProfile)
	p.SelinuxLabel = o.text("process-label", p.SelinuxLabel)
	if o.has("no-new-privs") {
		p.NoNewPrivileges = true
	}
	if list := o["cap"]; len(list) > 0 && p.Capabilities != nil {
		c := *p.Capabilities
		c.Bounding, c.Effective, c.Permitted = append(c.Bounding, list...), append(c.Effective, list...), append(c.Permitted, list...)
		p.Capabilities = &c
	}
	if user := o.text("user", ""); user != "" {
		uid, gid, _ := strings.Cut(user, ":")
		n, err := strconv.ParseUint(uid, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("user %q: not a number", user)
		}
		p.User.UID = uint32(n)
		if gid != "" {
			if n, err = strconv.ParseUint(gid, 10, 32); err != nil {
				return nil, fmt.Errorf("user %q: not a number", user)
			}
			p.User.GID = uint32(n)
		}
	}
	for _, g := range o["additional-gids"] {
		n, err := strconv.ParseUint(g, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("group %q: not a number", g)
		}
		p.User.AdditionalGids = append(p.User.AdditionalGids, uint32(n))
	}
	return p, validateProcess(p)
}

// inherit gives a process of --process what the container's own has and it says nothing
// about, as runc does.
func inherit(p, from *specs.Process) {
	if p.Capabilities == nil {
		p.Capabilities = from.Capabilities
	}
	if p.ApparmorProfile == "" {
		p.ApparmorProfile = from.ApparmorProfile
	}
	if p.SelinuxLabel == "" {
		p.SelinuxLabel = from.SelinuxLabel
	}
	if len(p.Rlimits) == 0 {
		p.Rlimits = from.Rlimits
	}
	if p.Scheduler == nil {
		p.Scheduler = from.Scheduler
	}
	if p.IOPriority == nil {
		p.IOPriority = from.IOPriority
	}
	if p.ExecCPUAffinity == nil {
		p.ExecCPUAffinity = from.ExecCPUAffinity
	}
}

// join starts a process in a container.
func (r *runtime) join(s *state, process *specs.Process, o values) (_ *inner, err error) {
	pidfd, err := s.open()
	if err != nil {
		return nil, err
	}
	if pidfd == nil {
		return nil, errStopped
	}
	group, err := s.group()
	if err != nil {
		pidfd.Close()
		return nil, err
	}
	if group.Frozen() && !o.has("ignore-paused") {
		pidfd.Close()
		return nil, errors.New("cannot exec in a paused container (use --ignore-paused to override)")
	}
	p := &plan.Plan{ID: s.ID, Exec: true, Process: *process, Keyring: "_ses." + s.ID, MountNS: plan.NoFD, Hold: plan.NoFD, Proc: plan.NoFD,
		SeccompFlags: s.FilterFlags, Personality: s.Personality}
	p.Process.Capabilities = nil
	if p.Caps, err = capsOf(process.Capabilities); err != nil {
		pidfd.Close()
		return nil, err
	}
	kept, err := preserved(o, 0)
	if err != nil {
		pidfd.Close()
		return nil, err
	}
	out := &outfit{kept: kept, enter: &fork.Entry{Of: pidfd, Kinds: s.Namespaces}}
	defer out.close()
	defer func() {
		// What was missing then says nothing: least of all that the program is not there.
		if err != nil && over(pidfd, err) {
			err = errStopped
		}
	}()
	if err := r.handExec(s, out, p, o); err != nil {
		return nil, err
	}
	if err := out.enterGroup(group); err != nil {
		return nil, err
	}
	again := func() (err error) {
		// Which pid that is does not matter: it must be of this container.
		if group, err = group.Around(s.Pid); err != nil {
			return err
		}
		return out.enterGroup(group)
	}
	return startExec(process, out, p, o, again)
}

var errStopped = errors.New("cannot exec in a stopped container")

// over says whether a container's process, by its pidfd, has ended, when an exec could not
// begin. The process ends once all of its pid namespace have been collected, of which the
// exec was one: that is waited for, 100 ms at most, unless the half inside has said what
// was wrong.
func over(pidfd *os.File, why error) bool {
	wait := 100 * time.Millisecond
	if said := (*plan.Refusal)(nil); errors.As(why, &said) {
		wait = 0
	}
	return awaitEnd(pidfd, wait)
}

// awaitEnd waits until the process has ended; false: it has not within so long.
func awaitEnd(pidfd *os.File, wait time.Duration) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}
	for deadline := time.Now().Add(wait); ; {
		n, err := unix.Poll(fds, int(max(0, time.Until(deadline)).Milliseconds()))
		if err != unix.EINTR { // as the end of a child of ours has it
			return err == nil && n == 1
		}
	}
}

// enterGroup has the process go into these cgroups, and no others.
func (o *outfit) enterGroup(g *cgroups.Group) (err error) {
	o.closeGroup()
	if o.enter.Tasks, err = g.Tasks(); err != nil {
		return err
	}
	o.cgroup, err = g.Birth()
	return err
}

// handExec gives what a process in a container needs: the container's filter, mounts, terminal.
func (r *runtime) handExec(s *state, out *outfit, p *plan.Plan, o values) error {
	filter, err := os.ReadFile(filepath.Join(r.dir(s.ID), filterName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	p.Filter = filter
	if s.Namespaces&unix.CLONE_NEWNS == 0 { // its root is by chroot(2)
		if out.enter.Root, err = os.OpenFile(s.Rootfs, unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
			return err
		}
	}
	if p.Process.Terminal && o.text("console-socket", "") == "" {
		return errors.New("cannot allocate tty if runc will detach without setting console socket")
	}
	return nil
}

// startExec starts the process. again has it go into another cgroup, where the
// container's own has processes below it only.
func startExec(process *specs.Process, out *outfit, p *plan.Plan, o values, again func() error) (*inner, error) {
	parent := self{o.text("console-socket", "")}
	in, err := parent.spawn(out)
	if errors.Is(err, unix.EBUSY) {
		if aerr := again(); aerr == nil {
			in, err = parent.spawn(out)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("unable to start container process: %w", err)
	}
	affinity := process.ExecCPUAffinity
	if affinity == nil {
		affinity = &specs.CPUAffinity{}
	}
	err = setOOMScore(in.pid, process.OOMScoreAdj)
	if err == nil {
		err = setAffinity(in.pid, affinity.Initial)
	}
	if err == nil {
		err = raiseLimits(in.pid, process.Rlimits)
	}
	if err == nil {
		ready := func() error {
			if err := setScheduling(in.pid, process); err != nil {
				return err
			}
			if err := setAffinity(in.pid, affinity.Final); err != nil {
				return err
			}
			return writePid(o.text("pid-file", ""), in.pid)
		}
		err = (&conversation{inner: in, plan: p}).run(nil, ready, true)
	}
	if err != nil {
		in.end()
		return nil, fmt.Errorf("unable to start container process: %w", err)
	}
	return in, nil
}

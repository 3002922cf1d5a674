package native

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime/native/cgroups"
	"escale.dev/escale/internal/runtime/native/codec"
	"escale.dev/escale/internal/runtime/native/hooks"
	"escale.dev/escale/internal/runtime/native/plainjson"
	"escale.dev/escale/internal/runtime/native/record"
)

// command is one of the command line's.
type command struct {
	options options
	inOrder bool // what follows the first word is another's
	run     func(*runtime, values, []string) (int, error)
}

var commands = map[string]command{
	"create":   {createOptions, false, (*runtime).create},
	"run":      {createOptions, false, (*runtime).run},
	"start":    {nil, false, (*runtime).start},
	"state":    {nil, false, (*runtime).tell},
	"kill":     {options{"all": false}, false, (*runtime).kill},
	"delete":   {options{"force": false}, false, (*runtime).delete},
	"exec":     {execOptions, true, (*runtime).exec},
	"update":   {updateOptions, false, (*runtime).update},
	"ps":       {options{"format": true}, true, (*runtime).ps},
	"pause":    {nil, false, func(r *runtime, _ values, w []string) (int, error) { return r.freeze(w, true) }},
	"resume":   {nil, false, func(r *runtime, _ values, w []string) (int, error) { return r.freeze(w, false) }},
	"list":     {options{"format": true, "quiet": false}, false, (*runtime).list},
	"features": {nil, false, (*runtime).features},
}

// find is what a command that takes a container and nothing else is about, and how it is.
func (r *runtime) find(words []string) (*state, specs.ContainerState, error) {
	id, err := one(words)
	if err != nil {
		return nil, "", err
	}
	s, err := r.load(id)
	if err != nil {
		return nil, "", err
	}
	status, err := r.status(s)
	return s, status, err
}

// start lets the process of a created container go.
func (r *runtime) start(_ values, words []string) (int, error) {
	id, err := one(words)
	if err != nil {
		return 0, err
	}
	s, err := r.load(id)
	if err != nil {
		return 0, err
	}
	p, err := s.open()
	if err != nil {
		return 0, err
	}
	if p == nil {
		return 0, errors.New("cannot start a container that has stopped")
	}
	defer p.Close()
	name := filepath.Join(r.dir(s.ID), fifoName)
	fifo, err := unix.Open(name, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return 0, errors.New("cannot start an already running container")
	} else if err != nil {
		return 0, fmt.Errorf("cannot start a container that has stopped: %w", err)
	}
	defer unix.Close(fifo)
	// Who removes it has started the container: of two that try, one.
	if err := os.Remove(name); errors.Is(err, fs.ErrNotExist) {
		return 0, errors.New("cannot start an already running container")
	} else if err != nil {
		return 0, err
	}
	if _, err := unix.Write(fifo, []byte{0}); err != nil {
		return 0, fmt.Errorf("starting container %s: %w", s.ID, err)
	}
	if s.Hooks != nil {
		return 0, hooks.Run("poststart", s.Hooks.Poststart, s.told(specs.StateRunning))
	}
	return 0, nil
}

// tell prints the state (runtime.md, "Query State").
func (r *runtime) tell(_ values, words []string) (int, error) {
	s, status, err := r.find(words)
	if err != nil {
		return 0, err
	}
	return 0, printed(r, r.listed(s, status), codec.WriteRecordTold)
}

// listed is what runc tells of a container.
func (r *runtime) listed(s *state, status specs.ContainerState) *record.Told {
	t := s.told(status)
	return &record.Told{Version: t.Version, ID: t.ID, Status: t.Status, Bundle: t.Bundle, Annotations: t.Annotations, Pid: t.Pid, Rootfs: s.Rootfs, Created: s.Created}
}

// printed prints a value as JSON of several lines.
func printed[T any](r *runtime, v *T, text func(*T) ([]byte, error)) error {
	b, err := text(v)
	if err != nil {
		return err
	}
	_, err = r.out.Write(append(plainjson.Indent(b), '\n'))
	return err
}

func (r *runtime) list(o values, _ []string) (int, error) {
	entries, err := os.ReadDir(r.root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	all := []*record.Told{}
	for _, e := range entries {
		s, err := r.load(e.Name())
		if err != nil {
			continue // one that is being made or removed
		}
		status, err := r.status(s)
		if err != nil {
			return 0, err
		}
		all = append(all, r.listed(s, status))
	}
	if o.text("format", "") == "json" {
		return 0, printed(r, &all, codec.WriteList)
	}
	for _, l := range all {
		if o.has("quiet") {
			fmt.Fprintln(r.out, l.ID)
		} else {
			fmt.Fprintf(r.out, "%s\t%d\t%s\t%s\t%s\n", l.ID, l.Pid, l.Status, l.Bundle, l.Created.Format(time.RFC3339Nano))
		}
	}
	return 0, nil
}

// kill sends a signal to the container's process, or to all processes.
func (r *runtime) kill(o values, words []string) (int, error) {
	if len(words) < 1 || len(words) > 2 {
		return 0, errors.New("kill needs the container's id and perhaps a signal")
	}
	sig := unix.SIGTERM
	if len(words) == 2 {
		var err error
		if sig, err = parseSignal(words[1]); err != nil {
			return 0, err
		}
	}
	s, err := r.load(words[0])
	if err != nil {
		return 0, err
	}
	// Without a pid namespace of its own the others do not end with the first.
	shared := s.Namespaces&unix.CLONE_NEWPID == 0 || s.OthersPIDs
	if o.has("all") || shared && sig == unix.SIGKILL {
		g, err := s.group()
		if err != nil {
			return 0, err
		}
		if err := g.Kill(sig); err != nil {
			return 0, err
		}
		return 0, s.letDie(sig)
	}
	p, err := s.open()
	if err != nil {
		return 0, err
	}
	if p == nil {
		return 0, errors.New("container not running")
	}
	defer p.Close()
	if err := unix.PidfdSendSignal(int(p.Fd()), sig, nil, 0); err != nil {
		if err == unix.ESRCH {
			return 0, errors.New("container not running")
		}
		return 0, os.NewSyscallError("pidfd_send_signal", err)
	}
	return 0, s.letDie(sig)
}

// letDie lets a paused container go on that was sent SIGKILL: in version 1 what is frozen
// dies only then.
func (s *state) letDie(sig unix.Signal) error {
	if sig != unix.SIGKILL {
		return nil
	}
	if g, err := s.group(); err == nil && g.Frozen() {
		return g.Freeze(false)
	}
	return nil
}

func parseSignal(word string) (unix.Signal, error) {
	if n, err := strconv.Atoi(word); err == nil {
		if n < 1 || n > 64 {
			return 0, fmt.Errorf("unknown signal %q", word)
		}
		return unix.Signal(n), nil
	}
	name := strings.ToUpper(word)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if n := unix.SignalNum(name); n != 0 {
		return n, nil
	}
	return 0, fmt.Errorf("unknown signal %q", word)
}

// delete removes a container that has ended; with --force it is ended before.
func (r *runtime) delete(o values, words []string) (int, error) {
	id, err := one(words)
	if err != nil {
		return 0, err
	}
	force := o.has("force")
	lock, err := r.lock(id)
	if errors.Is(err, errNone) && force {
		return 0, nil
	} else if err != nil {
		return 0, err
	}
	defer lock.Close()
	s, err := r.load(id)
	if errors.Is(err, errNone) && force {
		// One that was not finished has no state, but a directory.
		return 0, os.RemoveAll(r.dir(id))
	} else if err != nil {
		return 0, err
	}
	p, err := s.open()
	if err != nil {
		return 0, err
	}
	if p != nil {
		defer p.Close()
		status, err := r.status(s)
		if err != nil {
			return 0, err
		}
		if !force && status != specs.StateCreated {
			return 0, fmt.Errorf("cannot delete container %s that is not stopped: %s", id, status)
		}
		if err := s.end(p); err != nil {
			return 0, err
		}
	}
	return 0, r.remove(s)
}

// end kills the container's process and waits until it is over, 10 s at most.
func (s *state) end(p *os.File) error {
	if err := unix.PidfdSendSignal(int(p.Fd()), unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
		return os.NewSyscallError("pidfd_send_signal", err)
	}
	g, err := s.group()
	if err != nil {
		return err
	}
	if g.Frozen() {
		if err := g.Freeze(false); err != nil {
			return err
		}
	}
	fds := []unix.PollFd{{Fd: int32(p.Fd()), Events: unix.POLLIN}}
	for deadline := time.Now().Add(10 * time.Second); ; {
		n, err := unix.Poll(fds, int(time.Until(deadline).Milliseconds()))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return os.NewSyscallError("poll", err)
		case n == 0:
			return fmt.Errorf("container %s: init still running", s.ID)
		default:
			return nil
		}
	}
}

func (r *runtime) freeze(words []string, on bool) (int, error) {
	s, status, err := r.find(words)
	if err != nil {
		return 0, err
	}
	if on && status != specs.StateRunning && status != specs.StateCreated || !on && status != "paused" {
		return 0, fmt.Errorf("container not %s", map[bool]string{true: "running or created", false: "paused"}[on])
	}
	g, err := s.group()
	if err != nil {
		return 0, err
	}
	return 0, g.Freeze(on)
}

// ps lists the processes: their numbers, or what ps(1) says of them.
func (r *runtime) ps(o values, words []string) (int, error) {
	if len(words) == 0 {
		return 0, errors.New("ps needs the container's id")
	}
	s, err := r.load(words[0])
	if err != nil {
		return 0, err
	}
	g, err := s.group()
	if err != nil {
		return 0, err
	}
	pids, err := g.Pids()
	if err != nil {
		return 0, err
	}
	if o.text("format", "table") == "json" {
		if pids == nil {
			pids = []int{}
		}
		return 0, printed(r, &pids, codec.WritePids)
	}
	args := words[1:]
	if len(args) == 0 {
		args = []string{"-ef"}
	}
	out, err := exec.Command("ps", args...).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("ps: %w: %s", err, out)
	}
	lines := strings.Split(strings.TrimRight(string(out), "\n"), "\n")
	column := slices.Index(strings.Fields(lines[0]), "PID")
	if column < 0 {
		return 0, errors.New("ps: no column PID")
	}
	fmt.Fprintln(r.out, lines[0])
	for _, l := range lines[1:] {
		f := strings.Fields(l)
		if column < len(f) {
			if n, err := strconv.Atoi(f[column]); err == nil && slices.Contains(pids, n) {
				fmt.Fprintln(r.out, l)
			}
		}
	}
	return 0, nil
}

// update changes limits; what is absent stays.
func (r *runtime) update(o values, words []string) (int, error) {
	s, _, err := r.find(words)
	if err != nil {
		return 0, err
	}
	res := &specs.LinuxResources{}
	if name := o.text("resources", ""); name != "" {
		b, err := readAll(name, r.in)
		if err != nil {
			return 0, err
		}
		if err := codec.ReadLinuxResources(b, res); err != nil {
			return 0, fmt.Errorf("resources: %w", err)
		}
	} else if err := limitsOf(o, res); err != nil {
		return 0, err
	}
	g, err := s.group()
	if err != nil {
		return 0, err
	}
	if s.Unit != "" {
		res = cgroups.Rounded(res)
		if err := g.UpdateUnit(asking, s.Unit, res); err != nil {
			return 0, err
		}
	}
	if err := g.Limit(res); err != nil {
		return 0, err
	}
	return 0, g.LimitPids(res)
}

package native

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime/native/cgroups"
	"escale.dev/escale/internal/runtime/native/codec"
	"escale.dev/escale/internal/runtime/native/record"
)

const (
	stateVersion = 1
	stateName    = "state.json"
	filterName   = "filter"    // the compiled filter, for exec
	fifoName     = "exec.fifo" // there until the container is started
	specVersion  = "1.3.0"     // of the runtime specification
)

// state is what is kept of a container.
type state struct{ record.State }

func (r *runtime) dir(id string) string { return filepath.Join(r.root, id) }

// load reads the state of a container.
func (r *runtime) load(id string) (*state, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(r.dir(id), stateName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errNone
	} else if err != nil {
		return nil, err
	}
	s := &state{}
	if err := codec.ReadRecordState(b, &s.State); err != nil {
		return nil, fmt.Errorf("container %s: %s: %w", id, stateName, err)
	}
	if s.Version != stateVersion || s.ID != id {
		return nil, fmt.Errorf("container %s: %s is of version %d, for %q", id, stateName, s.Version, s.ID)
	}
	return s, nil
}

var errNone = errors.New("container does not exist")

// lock keeps others from making or removing a container until the file is closed, for
// which it waits 10 s at most. The error is errNone when there is no such container.
func (r *runtime) lock(id string) (*os.File, error) {
	f, err := os.OpenFile(r.dir(id), unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errNone
	} else if err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			break
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			f.Close()
			return nil, os.NewSyscallError("flock", err)
		}
		if time.Now().After(deadline) {
			f.Close()
			return nil, fmt.Errorf("container %s is being created or deleted", id)
		}
	}
	// Who had it before may have removed it.
	held, err := f.Stat()
	if err == nil {
		var now fs.FileInfo
		if now, err = os.Lstat(r.dir(id)); err == nil && !os.SameFile(held, now) {
			err = errNone
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = errNone
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// save writes the state so that a reader sees all of it or the one before.
func (r *runtime) save(s *state) error {
	b, err := codec.WriteRecordState(&s.State)
	if err != nil {
		return err
	}
	name := filepath.Join(r.dir(s.ID), stateName)
	if err := os.WriteFile(name+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

// open is a descriptor of the container's process; nil when it has ended.
func (s *state) open() (*os.File, error) {
	if s.Pid == 0 { // it is being made, or who made it was killed
		return nil, nil
	}
	fd, err := unix.PidfdOpen(s.Pid, 0)
	if err == unix.ESRCH || err == unix.EINVAL {
		return nil, nil
	} else if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	if start, dead, err := startTime(s.Pid); err != nil || dead || start != s.Start {
		f.Close()
		return nil, nil
	}
	return f, nil
}

// startTime reads when a process was started, and whether it is over (proc_pid_stat(5)).
func startTime(pid int) (start uint64, dead bool, err error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, false, err
	}
	// The name, in parentheses, may hold anything.
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 20 {
		return 0, false, fmt.Errorf("/proc/%d/stat: too short", pid)
	}
	start, err = strconv.ParseUint(f[19], 10, 64)
	return start, f[0] == "Z" || f[0] == "X", err
}

// status is the specification's word for how a container is, or runc's "paused".
func (r *runtime) status(s *state) (specs.ContainerState, error) {
	p, err := s.open()
	if err != nil {
		return "", err
	}
	if p == nil {
		return specs.StateStopped, nil
	}
	p.Close()
	if g, err := s.group(); err == nil && g.Frozen() {
		return "paused", nil // created or running: as runc has it
	}
	if _, err := os.Lstat(filepath.Join(r.dir(s.ID), fifoName)); err == nil {
		return specs.StateCreated, nil
	}
	return specs.StateRunning, nil
}

func (s *state) group() (*cgroups.Group, error) {
	l, err := cgroups.Detect()
	if err != nil {
		return nil, err
	}
	g, err := l.Place(s.CgroupsPath, s.ID)
	if err != nil {
		return nil, err
	}
	for name, dir := range s.Cgroups {
		if name == "" {
			g.Unified = dir
		} else {
			g.V1[name] = dir
		}
	}
	return g, nil
}

// told is the state as hooks and callers get it.
func (s *state) told(status specs.ContainerState) *specs.State {
	t := &specs.State{Version: specVersion, ID: s.ID, Status: status, Bundle: s.Bundle, Annotations: s.Annotations}
	if status != specs.StateStopped {
		t.Pid = s.Pid
	}
	return t
}

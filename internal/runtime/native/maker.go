package native

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	boundary "escale.dev/escale/internal/runtime"
)

// Maker is this half of the runtime in a process that lives on: it makes containers for
// an engine, whose monitors have the other half for a child. It implements the
// boundary's Maker.
type Maker struct {
	program *os.File // executed as the half inside: a mount that nobody can write through
	null    *os.File // the null device, by a mount that nobody can write through
}

var _ boundary.Maker = (*Maker)(nil)

// NewMaker opens the program at path, which must be of this version, for as long as the
// Maker is used: what becomes of the file meanwhile does not matter.
func NewMaker(path string) (*Maker, error) {
	program, err := openTree(path, false)
	if err != nil {
		return nil, err
	}
	m := &Maker{program: os.NewFile(uintptr(program), path)}
	if err := setTree(program, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY, Propagation: unix.MS_PRIVATE}, false); err != nil {
		m.Close()
		return nil, err
	}
	if m.null, err = nullTree(); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// Close ends its use. Containers stay as they are.
func (m *Maker) Close() error {
	err := m.program.Close()
	if m.null != nil {
		err = errors.Join(err, m.null.Close())
	}
	return err
}

// Make makes and starts a container; see the boundary's Maker.
func (m *Maker) Make(ctx context.Context, c boundary.Making, p boundary.Parent) (int, error) {
	opts, rest, err := parse(c.Args, globals, true)
	if err != nil || len(rest) > 0 {
		return 0, fmt.Errorf("arguments %q: %w", c.Args, boundary.ErrNotDelegable)
	}
	delete(opts, "root") // the program is told c.Root after all else
	pid, err := m.make(ctx, globalsOf(opts, c.Root), c, p)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return 0, cause
	}
	if err != nil && !errors.Is(err, boundary.ErrNotDelegable) {
		return 0, fmt.Errorf("runc run failed: %w", err)
	}
	return pid, err
}

func (m *Maker) make(ctx context.Context, r *runtime, c boundary.Making, p boundary.Parent) (int, error) {
	if err := checkID(c.ID); err != nil {
		return 0, err
	}
	r.self = fmt.Sprintf("/proc/self/fd/%d", m.program.Fd())
	spec, err := readSpec(c.Bundle)
	if err != nil {
		return 0, err
	}
	if !r.delegable(spec) {
		return 0, boundary.ErrNotDelegable
	}
	away := &remote{ctx: ctx, maker: m, Parent: p, stop: func() bool { return true }}
	defer func() { away.stop() }()
	made, err := (&birth{runtime: r, id: c.ID, bundle: c.Bundle, spec: spec, now: true, keyring: true, parent: away}).bear()
	if err != nil {
		return 0, err
	}
	_ = made.inner.socket.Close() // the other end became the program
	return made.inner.pid, nil
}

// delegable says whether the half inside can be a child of somebody who knows nothing but
// clone(2). Hooks are not for a process that has more to do, and a mount's own mapping of ids
// takes a namespace that is forked with all of our memory.
func (r *runtime) delegable(s *specs.Spec) bool {
	if s.Hooks != nil || !r.systemd && !filepath.IsAbs(s.Linux.CgroupsPath) { // below the parent's cgroup
		return false
	}
	for i := range s.Mounts {
		if len(s.Mounts[i].UIDMappings)+len(s.Mounts[i].GIDMappings) > 0 {
			return false
		}
	}
	flags, err := namespaceFlags(s.Linux.Namespaces)
	return err == nil && flags&(unix.CLONE_NEWUSER|unix.CLONE_NEWTIME) == 0 && !joined(s.Linux.Namespaces, specs.PIDNamespace) && len(s.Mounts)+len(s.Linux.Devices) < boundary.MaxChildFiles/2
}

// remote is somebody else as the parent.
type remote struct {
	boundary.Parent
	ctx   context.Context
	maker *Maker
	stop  func() bool // the connection ends with ctx, until this
}

func (r *remote) spawn(o *outfit) (*inner, error) {
	pair, err := connection()
	if err != nil {
		return nil, err
	}
	theirs := os.NewFile(uintptr(pair[1]), "socket")
	defer theirs.Close()
	// Who waits here must not take a thread.
	if err := unix.SetNonblock(pair[0], true); err != nil {
		unix.Close(pair[0])
		return nil, os.NewSyscallError("fcntl", err)
	}
	ours := os.NewFile(uintptr(pair[0]), "socket")
	null, err := reopenNull(r.maker.null)
	if err != nil {
		ours.Close()
		return nil, err
	}
	defer null.Close()
	pid, err := r.Fork(r.ctx, boundary.Child{Program: r.maker.program, Args: insideArgs, Env: o.env(), Null: null, Files: append([]*os.File{theirs}, o.files...), Flags: o.born(), Cgroup: o.cgroup})
	if err != nil {
		ours.Close()
		if errors.Is(err, boundary.ErrNotDelegable) {
			return nil, err
		}
		r.end(0) // it may be forking still, and its cgroup is to go
		return nil, fmt.Errorf("starting in new namespaces: %w", err)
	}
	r.stop = context.AfterFunc(r.ctx, func() {
		if rc, err := ours.SyscallConn(); err == nil { // else it is closed
			_ = rc.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) }) // likewise
		}
	})
	return &inner{pid: pid, socket: ours, parent: r}, nil
}

func (r *remote) terminal(f *os.File) error {
	defer f.Close()
	return r.Terminal(r.ctx, f)
}

// parting is how long the end of a child is waited for that was killed.
const parting = 5 * time.Second

func (r *remote) ended(int) (syscall.WaitStatus, bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), parting)
	defer cancel()
	ws, err := r.End(ctx)
	return ws, err == nil
}

func (r *remote) end(pid int) { r.ended(pid) }

func (r *remote) givenUp() error { return context.Cause(r.ctx) }

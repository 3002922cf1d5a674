package shim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime"
	"escale.dev/escale/internal/runtime/shim/wire"
)

// maxSocketPath is how long the path in a unix socket's address can be.
const maxSocketPath = 107

// settings are the environment of the monitor's Go runtime: nothing in it runs at once, and a
// second processor would only have its threads wake each other; a small heap is worth collecting
// early (from 0.8 MB on, which a start does not reach: a collection leaves more memory in use than
// it saves), and a huge page would be larger than all of it (Debian's kernel gives them to whoever
// does not refuse).
var settings = []string{"GOMAXPROCS=1", "GOGC=20", "GOTRACEBACK=single", "GODEBUG=disablethp=1"}

// Launch starts a monitor; see runtime.Runtime.
func (r *Runtime) Launch(ctx context.Context, l runtime.Launch) (runtime.Task, error) {
	if err := check(l); err != nil {
		return nil, err
	}
	oom, err := r.oomFile(l.CgroupPath)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", l.ID, err)
	}
	b, err := r.assign(ctx, l, oom)
	if err != nil {
		return nil, fmt.Errorf("monitor of container %s: %w", l.ID, err)
	}
	t := newTask(l.ID, l.StateDir, b.conn, dialer(l.RunDir), r.log)
	t.runDir, t.generation, t.monitor = l.RunDir, l.Generation, b.child.pid
	if l.Runtime.Path == r.cfg.MakerOf {
		t.maker, t.making = r.cfg.Maker, runtime.Making{ID: l.ID, Bundle: l.Bundle, Root: filepath.Join(l.RunDir, wire.RootName), Args: l.Runtime.Args}
	}
	t.started = func() { r.pool.Soon(poolPause) }
	t.watchInit()
	return t, nil
}

// assign makes a monitor the container's: one that was kept ready, or else, and when
// that has died meanwhile, a new one.
func (r *Runtime) assign(ctx context.Context, l runtime.Launch, oom string) (*blank, error) {
	alive, err := holdAlive(l.RunDir)
	if err != nil {
		return nil, err
	}
	defer alive.Close() // the monitor has it
	for ready := r.ready(); ; ready = nil {
		b := ready
		if b == nil {
			if b, err = r.spawn(); err != nil {
				return nil, err
			}
		}
		if err = b.become(ctx, l, oom, alive, r.cfg); err == nil {
			return b, nil
		}
		if ready != nil && errors.Is(err, errLost) {
			r.log.Debug("a monitor that was kept ready has died", "container", l.ID, "monitor", b.child.pid)
			b.end() // nothing that it had begun goes on beside the next
			continue
		}
		b.conn.close(errClosed) // it ends with the connection
		if words := lastWords(l.RunDir); words != "" && errors.Is(err, errLost) {
			err = fmt.Errorf("%w: %s", err, words)
		}
		return nil, err
	}
}

// become makes the monitor the container's, and gives it what it is to hold. Blocks
// until it listens.
func (b *blank) become(ctx context.Context, l runtime.Launch, oom string, alive *os.File, cfg Config) error {
	if err := b.conn.give(append([]*os.File{alive}, l.Held...)); err != nil {
		return err
	}
	_, err := b.conn.call(ctx, wire.Become, func(w *wire.Writer) { encodeLaunch(w, l, oom, cfg) })
	return err
}

func check(l runtime.Launch) error {
	for name, path := range map[string]string{"bundle": l.Bundle, "run directory": l.RunDir, "state directory": l.StateDir, "runtime": l.Runtime.Path} {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("container %s: %s %q is not an absolute path: %w", l.ID, name, path, errdefs.ErrInvalidArgument)
		}
	}
	if l.ID == "" || strings.ContainsAny(l.ID, "/\x00") {
		return fmt.Errorf("container id %q: %w", l.ID, errdefs.ErrInvalidArgument)
	}
	return nil
}

func encodeLaunch(w *wire.Writer, l runtime.Launch, oom string, cfg Config) {
	w.Text(wire.TagID, l.ID)
	w.Uint(wire.TagGeneration, l.Generation)
	w.Text(wire.TagBundle, l.Bundle)
	w.Text(wire.TagRunDir, l.RunDir)
	w.Text(wire.TagStateDir, l.StateDir)
	w.Bool(wire.TagPassing, l.Passing)
	w.Text(wire.TagRuntime, l.Runtime.Path)
	w.Texts(wire.TagArg, l.Runtime.Args)
	w.Bool(wire.TagTerminal, l.Terminal)
	w.Uint(wire.TagRows, uint64(l.Rows))
	w.Uint(wire.TagCols, uint64(l.Cols))
	w.Bool(wire.TagOpenStdin, l.OpenStdin)
	w.Bool(wire.TagStdinOnce, l.StdinOnce)
	w.Text(wire.TagLogPath, l.Log.Path)
	w.Uint(wire.TagLogSize, uint64(max(0, l.Log.MaxSize)))
	w.Uint(wire.TagLogFiles, uint64(max(1, l.Log.MaxFiles)))
	w.Text(wire.TagLogAttrs, l.Log.Attrs)
	w.Text(wire.TagOOMFile, oom)
	w.Uint(wire.TagGrace, uint64(max(1, cfg.Grace.Seconds())))
	w.Uint(wire.TagHeld, uint64(1+len(l.Held))) // the first is the lock of holdAlive
}

// spawn starts a monitor that has no container yet: a process in a session of its
// own, with one end of a connection and nothing else. It ends when the connection does.
func (r *Runtime) spawn() (*blank, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "monitor"), os.NewFile(uintptr(pair[1]), "monitor")
	defer theirs.Close()
	defer ours.Close()
	nc, err := net.FileConn(ours)
	if err != nil {
		return nil, err
	}
	b := &blank{conn: newConn(nc.(*net.UnixConn)), program: programAt(r.cfg.ShimPath), over: make(chan struct{})}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err == nil {
		b.child, err = r.startMonitor([]*os.File{null, null, null, theirs})
		null.Close()
	}
	if err != nil {
		b.conn.close(errClosed)
		return nil, err
	}
	b.conn.hello()
	go func() {
		b.conn.read()
		b.child.reap()
		close(b.over)
	}()
	return b, nil
}

// startMonitor starts the process in the monitors' cgroup if there is one; a
// cgroup that cannot be used is no reason not to start.
func (r *Runtime) startMonitor(files []*os.File) (*child, error) {
	argv := []string{"escale-shim", wire.Unnamed}
	if r.cfg.Cgroup != "" {
		dir, err := os.Open(r.cfg.Cgroup)
		if err == nil {
			defer dir.Close()
			c, err := startChild(r.cfg.ShimPath, argv, files, &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())})
			if err == nil {
				return c, nil
			}
			r.log.Debug("monitor stays in the engine's cgroup", "cgroup", r.cfg.Cgroup, "error", err)
		}
	}
	return startChild(r.cfg.ShimPath, argv, files, &syscall.SysProcAttr{})
}

// environ is the monitor's own settings and what OCI runtimes need of the
// environment that the engine was started with: what it sets later, as TMPDIR, is
// for itself.
var environ = func() []string {
	env := settings[:len(settings):len(settings)]
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "XDG_RUNTIME_DIR", "DBUS_SYSTEM_BUS_ADDRESS", "LANG"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}()

// lastWords is what the monitor wrote when it could not go on.
func lastWords(runDir string) string {
	b, err := os.ReadFile(filepath.Join(runDir, wire.StderrName))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b[max(0, len(b)-2048):]))
}

// child is a process of ours. Its end is awaited through a pidfd in the
// runtime's poller: a hundred containers need no hundred threads.
type child struct {
	pid int
	fd  *os.File
}

func startChild(path string, argv []string, files []*os.File, attr *syscall.SysProcAttr) (*child, error) {
	list, err := numbers(files)
	if err != nil {
		return nil, err
	}
	fds := make([]uintptr, len(files))
	for i, fd := range list {
		fds[i] = uintptr(fd)
	}
	pidfd := -1
	attr.Setsid, attr.PidFD = true, &pidfd
	pid, err := syscall.ForkExec(path, argv, &syscall.ProcAttr{Dir: "/", Env: environ, Files: fds, Sys: attr})
	if err != nil {
		return nil, &fs.PathError{Op: "fork/exec", Path: path, Err: err}
	}
	if err := unix.SetNonblock(pidfd, true); err != nil {
		return nil, os.NewSyscallError("pidfd", err)
	}
	return &child{pid, os.NewFile(uintptr(pidfd), "pidfd")}, nil
}

// reap blocks until the process has ended and collects it.
func (c *child) reap() {
	defer c.fd.Close()
	rc, err := c.fd.SyscallConn()
	if err != nil {
		return
	}
	_ = rc.Read(func(uintptr) bool { // it ends with the process
		var ws unix.WaitStatus
		pid, err := unix.Wait4(c.pid, &ws, unix.WNOHANG, nil)
		return pid != 0 && !errors.Is(err, unix.EINTR)
	})
}

// kill does nothing to one that has been collected.
func (c *child) kill() {
	if rc, err := c.fd.SyscallConn(); err == nil {
		_ = rc.Control(func(fd uintptr) { _ = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) }) // gone at the worst
	}
}

// notFound turns the errors that say "nobody is there" into NotFound.
func notFound(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOTDIR) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	}
	return err
}

func openDir(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

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

// settings are the environment of the monitor's Go runtime: two threads that
// run at once are all it has, a small heap is worth collecting early, and a
// huge page would be larger than all of it (Debian's kernel gives them to whoever does not refuse).
var settings = []string{"GOMAXPROCS=2", "GOGC=10", "GOTRACEBACK=single", "GODEBUG=disablethp=1"}

// Launch starts a monitor; see runtime.Runtime.
func (r *Runtime) Launch(ctx context.Context, l runtime.Launch) (runtime.Task, error) {
	if err := check(l); err != nil {
		return nil, err
	}
	oom, err := r.oomFile(l.CgroupPath)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", l.ID, err)
	}
	nc, child, err := r.spawn(l)
	if err != nil {
		return nil, fmt.Errorf("monitor of container %s: %w", l.ID, err)
	}
	t := newTask(l.ID, l.StateDir, nc, dialer(l.RunDir), r.log)
	t.runDir, t.generation, t.monitor, t.child = l.RunDir, l.Generation, child.pid, child
	t.open()
	_, err = t.conn.call(ctx, wire.Config, func(w *wire.Writer) { encodeLaunch(w, l, oom, r.cfg) })
	if err != nil {
		_ = t.Close() // the monitor ends with the connection
		if words := lastWords(l.RunDir); words != "" && errors.Is(err, errLost) {
			err = fmt.Errorf("%w: %s", err, words)
		}
		return nil, fmt.Errorf("monitor of container %s: %w", l.ID, err)
	}
	t.watchInit()
	return t, nil
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

// spawn starts the monitor's process in a session of its own, with one end of a
// connection and the held descriptors.
func (r *Runtime) spawn(l runtime.Launch) (*net.UnixConn, *child, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "monitor"), os.NewFile(uintptr(pair[1]), "monitor")
	defer theirs.Close()
	defer ours.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	defer null.Close()
	words, err := os.OpenFile(filepath.Join(l.RunDir, wire.StderrName), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, nil, err
	}
	defer words.Close()
	alive, err := holdAlive(l.RunDir)
	if err != nil {
		return nil, nil, err
	}
	defer alive.Close()
	files := append([]*os.File{null, null, words, theirs, alive}, l.Held...)
	c, err := r.startMonitor(l, files)
	if err != nil {
		return nil, nil, err
	}
	nc, err := net.FileConn(ours)
	if err != nil {
		c.kill()
		go c.reap()
		return nil, nil, err
	}
	return nc.(*net.UnixConn), c, nil
}

// startMonitor starts the process in the monitors' cgroup if there is one; a
// cgroup that cannot be used is no reason not to start.
func (r *Runtime) startMonitor(l runtime.Launch, files []*os.File) (*child, error) {
	argv := []string{"escale-shim", l.ID}
	if r.cfg.Cgroup != "" {
		dir, err := os.Open(r.cfg.Cgroup)
		if err == nil {
			defer dir.Close()
			c, err := startChild(r.cfg.ShimPath, argv, l.RunDir, files, &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())})
			if err == nil {
				return c, nil
			}
			r.log.Debug("monitor stays in the engine's cgroup", "container", l.ID, "cgroup", r.cfg.Cgroup, "error", err)
		}
	}
	return startChild(r.cfg.ShimPath, argv, l.RunDir, files, &syscall.SysProcAttr{})
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

func startChild(path string, argv []string, dir string, files []*os.File, attr *syscall.SysProcAttr) (*child, error) {
	fds := make([]uintptr, len(files))
	for i, f := range files {
		// Fd would make a socket blocking for all who have it.
		rc, err := f.SyscallConn()
		if err != nil {
			return nil, err
		}
		if err := rc.Control(func(fd uintptr) { fds[i] = fd }); err != nil {
			return nil, err
		}
	}
	pidfd := -1
	attr.Setsid, attr.PidFD = true, &pidfd
	pid, err := syscall.ForkExec(path, argv, &syscall.ProcAttr{Dir: dir, Env: environ, Files: fds, Sys: attr})
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

func (c *child) kill() { _ = unix.Kill(c.pid, unix.SIGKILL) } // not reaped yet, so the pid is its own

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

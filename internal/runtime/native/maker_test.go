package native

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	boundary "escale.dev/escale/internal/runtime"
	"escale.dev/escale/internal/runtime/native/codec"
	"escale.dev/escale/internal/runtime/native/plan"
)

// monitor is a parent as a monitor is one.
type monitor struct {
	t        *testing.T
	out      *os.File // the child's output
	pid      int
	ended    bool
	status   syscall.WaitStatus
	terminal *os.File
	forked   func() // called once the child is there
	refuse   error
}

func (m *monitor) Fork(_ context.Context, c boundary.Child) (int, error) {
	if m.refuse != nil {
		return 0, m.refuse
	}
	files := []uintptr{c.Null.Fd(), m.out.Fd(), m.out.Fd()}
	for _, f := range c.Files {
		files = append(files, f.Fd())
	}
	attr := &syscall.SysProcAttr{Cloneflags: c.Flags}
	if c.Cgroup != nil {
		attr.UseCgroupFD, attr.CgroupFD = true, int(c.Cgroup.Fd())
	}
	files = append(files, c.Program.Fd()) // where it is may be somebody else's place
	var err error
	m.pid, err = syscall.ForkExec("/proc/self/fd/"+itoa(uintptr(len(files)-1)), c.Args, &syscall.ProcAttr{Env: c.Env, Files: files, Sys: attr})
	if err == nil && m.forked != nil {
		m.forked()
	}
	return m.pid, err
}

func itoa(n uintptr) string {
	b, _ := json.Marshal(n) // a number has a text
	return string(b)
}

func (m *monitor) Terminal(_ context.Context, f *os.File) error {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		m.terminal = os.NewFile(uintptr(fd), "terminal")
	}
	return err
}

func (m *monitor) End(context.Context) (syscall.WaitStatus, error) {
	if m.pid == 0 || m.ended {
		return m.status, nil
	}
	m.ended = true
	_ = unix.Kill(m.pid, unix.SIGKILL)
	return m.wait(), nil
}

func (m *monitor) wait() syscall.WaitStatus {
	for {
		if _, err := syscall.Wait4(m.pid, &m.status, 0, nil); err != syscall.EINTR {
			return m.status
		}
	}
}

// engine makes l's container. It gives what the container has said by its end.
func engine(l *lab, m *monitor, args ...string) (string, error) {
	l.t.Helper()
	l.write()
	maker, err := NewMaker("/proc/self/exe")
	if err != nil {
		l.t.Fatal(err)
	}
	defer maker.Close()
	r, w, err := os.Pipe()
	if err != nil {
		l.t.Fatal(err)
	}
	defer r.Close()
	m.t, m.out = l.t, w
	ctx, cancel := context.WithTimeout(l.t.Context(), 20*time.Second)
	defer cancel()
	pid, err := maker.Make(ctx, boundary.Making{ID: l.id, Bundle: l.bundle, Root: l.states, Args: args}, m)
	w.Close()
	if err != nil {
		return "", err
	}
	if pid != m.pid {
		l.t.Errorf("pid %d, of %d", pid, m.pid)
	}
	out := r
	if m.terminal != nil {
		out = m.terminal
		defer out.Close()
	}
	said, rerr := io.ReadAll(out)
	if rerr != nil && !errors.Is(rerr, unix.EIO) { // what a terminal that nobody has any more says
		l.t.Error(rerr)
	}
	m.wait()
	return strings.TrimSpace(string(said)), nil
}

// A container that an engine makes is no other than one of the program's, and the program
// finds it.
func TestMaker(t *testing.T) {
	l := newLab(t, "id -u; hostname; readlink /proc/1/exe; ls /proc/self/fd; cat /proc/self/oom_score_adj; ls -l /proc/self/fd/0")
	score := 321
	l.spec.Process.OOMScoreAdj, l.spec.Hostname = &score, "inside"
	m := &monitor{}
	said, err := engine(l, m, "--root", t.TempDir()) // the program would get the right one last
	if err != nil {
		t.Fatal(err)
	}
	// 3 is the directory that is listed.
	if want := "0\ninside\n/bin/busybox\n0\n1\n2\n3\n321\n"; !strings.HasPrefix(said, want) || !strings.HasSuffix(said, "/dev/null") {
		t.Errorf("it said %q", said)
	}
	if m.status.ExitStatus() != 0 {
		t.Errorf("it ended by %v", m.status)
	}
	if s := l.state(); s.Status != specs.StateStopped || s.ID != l.id {
		t.Errorf("the program finds %+v", s)
	}
	l.must("delete", l.id)
}

func TestMakerTerminal(t *testing.T) {
	l := newLab(t, "readlink /proc/self/fd/0; ls -l /dev/console")
	l.spec.Process.Terminal = true
	said, err := engine(l, &monitor{})
	if err != nil || !strings.HasPrefix(said, "/dev/pts/0") || !strings.Contains(said, "/dev/console") {
		t.Errorf("it said %q, %v", said, err)
	}
}

// Others' namespaces are gone into by the half inside.
func TestMakerJoins(t *testing.T) {
	l := newLab(t, "readlink /proc/self/ns/net; readlink /proc/self/ns/ipc; cat /proc/sys/net/core/somaxconn")
	other := newLab(t, "sleep 1000")
	other.detached("run", "--detach", other.id)
	at := "/proc/" + itoa(uintptr(other.state().Pid)) + "/ns/"
	l.spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.UTSNamespace},
		{Type: specs.NetworkNamespace, Path: at + "net"}, {Type: specs.IPCNamespace, Path: at + "ipc"}}
	l.spec.Linux.Sysctl = map[string]string{"net.core.somaxconn": "77"}
	said, err := engine(l, &monitor{})
	net, nerr := os.Readlink(at + "net")
	ipc, ierr := os.Readlink(at + "ipc")
	if want := net + "\n" + ipc + "\n77"; err != nil || nerr != nil || ierr != nil || said != want {
		t.Errorf("it said %q, not %q; %v", said, want, errors.Join(err, nerr, ierr))
	}
	l.spec.Linux.Namespaces[3].Path = at + "ipc"
	l.must("delete", l.id)
	if _, err := engine(l, &monitor{}); err == nil || !strings.Contains(err.Error(), "is of another type") {
		t.Errorf("the network namespace may be one of IPC: %v", err)
	}
}

// Of a start that fails nothing is left, whoever is to blame.
func TestMakerRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*lab, *monitor)
		want   string
	}{
		"program": {func(l *lab, _ *monitor) { l.spec.Process.Args = []string{"nosuch"} }, `runc run failed: unable to start container process: error during container init: exec: "nosuch": executable file not found in $PATH`},
		"root":    {func(l *lab, _ *monitor) { l.spec.Root.Path = "nowhere" }, "invalid rootfs"},
		"parent":  {func(_ *lab, m *monitor) { m.refuse = errors.New("has enough") }, "unable to start container process: starting in new namespaces: has enough"},
		"killed": {func(_ *lab, m *monitor) { m.forked = func() { _ = unix.Kill(m.pid, unix.SIGKILL) } },
			"unable to start container process: container init was killed by signal 9 (memory limit too low?)"},
		"own parent": {func(_ *lab, m *monitor) { m.refuse = boundary.ErrNotDelegable }, boundary.ErrNotDelegable.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			l, m := newLab(t, "true"), &monitor{}
			c.change(l, m)
			_, err := engine(l, m)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v", err)
			}
			if name == "own parent" != errors.Is(err, boundary.ErrNotDelegable) {
				t.Errorf("%v is no refusal of its own", err)
			}
			l.nothingLeft()
			if m.pid != 0 && !m.ended {
				t.Error("the child was left")
			}
		})
	}
}

// Who gives up gets that for an error, at once, and nothing is left.
func TestMakerGivenUp(t *testing.T) {
	l := newLab(t, "true")
	l.write()
	maker, err := NewMaker("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer maker.Close()
	ctx, cancel := context.WithCancel(t.Context())
	m := &monitor{t: t, out: os.Stderr}
	m.forked = func() { // it stands still: what is said to it is not answered
		_ = unix.Kill(m.pid, unix.SIGSTOP)
		time.AfterFunc(50*time.Millisecond, cancel)
	}
	if _, err := maker.Make(ctx, boundary.Making{ID: l.id, Bundle: l.bundle, Root: l.states}, m); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if !m.ended {
		t.Error("the child was left")
	}
	l.nothingLeft()
}

// standing is a parent whose child, once all is said, neither becomes the program nor goes.
type standing struct {
	*monitor
	said func() // called then
}

func (s standing) Fork(_ context.Context, c boundary.Child) (int, error) {
	fd, err := unix.FcntlInt(c.Files[0].Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	if s.pid, err = syscall.ForkExec("/bin/busybox", []string{"sleep", "1000"}, &syscall.ProcAttr{}); err != nil {
		unix.Close(fd)
		return 0, err
	}
	go func() {
		socket := os.NewFile(uintptr(fd), "socket")
		_, err := codec.ReceivePlan(socket)
		err = errors.Join(err, plan.Send(socket, plan.KindReady, nil))
		if _, rerr := plan.Expect(socket, plan.KindReady); rerr != nil || err != nil {
			s.t.Error(errors.Join(err, rerr))
		}
		s.said()
		_, _ = socket.Read(make([]byte, 1)) // until the other end goes
		socket.Close()
	}()
	return s.pid, nil
}

// A start that is given up when nothing but the program is due has not succeeded.
func TestMakerGivenUpAtLast(t *testing.T) {
	l := newLab(t, "true")
	l.write()
	maker, err := NewMaker("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer maker.Close()
	ctx, cancel := context.WithCancel(t.Context())
	p := standing{&monitor{t: t}, cancel}
	if pid, err := maker.Make(ctx, boundary.Making{ID: l.id, Bundle: l.bundle, Root: l.states}, p); !errors.Is(err, context.Canceled) {
		t.Errorf("pid %d, %v", pid, err)
	}
	if !p.ended {
		t.Error("the child was left")
	}
	l.nothingLeft()
}

// What needs more than a child is left to the program, before anything is made.
func TestNotDelegable(t *testing.T) {
	for name, change := range map[string]func(*lab){
		"users": withUsers,
		"hooks": func(l *lab) { l.spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/true"}}} },
		"pids":  func(l *lab) { l.spec.Linux.Namespaces[0].Path = "/proc/self/ns/pid" },
		"clocks": func(l *lab) {
			l.spec.Linux.Namespaces = append(l.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
		},
		"ids of a mount":  func(l *lab) { l.spec.Mounts[0].UIDMappings = []specs.LinuxIDMapping{{Size: 1}} },
		"parent's cgroup": func(l *lab) { l.spec.Linux.CgroupsPath = "below" },
		"many mounts": func(l *lab) {
			for range boundary.MaxChildFiles {
				l.spec.Mounts = append(l.spec.Mounts, specs.Mount{Destination: "/tmp", Type: "bind", Source: "/tmp", Options: []string{"bind"}})
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			l, m := newLab(t, "true"), &monitor{}
			change(l)
			if _, err := engine(l, m); !errors.Is(err, boundary.ErrNotDelegable) || m.pid != 0 {
				t.Errorf("%v, child %d", err, m.pid)
			}
			if _, err := os.Stat(filepath.Join(l.states, l.id)); err == nil {
				t.Error("a state was made")
			}
		})
	}
	l := newLab(t, "true")
	if _, err := engine(l, &monitor{}, "--nosuch"); !errors.Is(err, boundary.ErrNotDelegable) {
		t.Errorf("of an argument that it does not know: %v", err)
	}
}

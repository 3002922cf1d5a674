package native

import (
	"errors"
	"fmt"
	"io"
	"os"
	goruntime "runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime/native/fork"
	"escale.dev/escale/internal/runtime/native/plan"
)

// firstFree is above all descriptors that the half inside gets: the program's is
// kept there, so that none of theirs takes its place.
const firstFree = 400

// outfit is what the half inside is started with.
type outfit struct {
	flags  int         // CLONE_NEW* of new namespaces
	joins  []namespace // of others, by descriptor
	cgroup *os.File    // of version 2, to be born in
	users  *fork.Maps  // of a new user namespace
	files  []*os.File  // its descriptors from the fourth on
	user   *os.File    // a user namespace to be joined
}

// namespace is one to be joined. kind is a CLONE_NEW*, or several for a pidfd.
type namespace struct {
	file *os.File
	kind int
}

// give hands a file to the half inside and says what its number will be there.
func (o *outfit) give(f *os.File) int {
	o.files = append(o.files, f)
	return plan.SocketFD + len(o.files)
}

// giveFD is give for a bare descriptor, which is closed with the others.
func (o *outfit) giveFD(fd int, name string) int { return o.give(os.NewFile(uintptr(fd), name)) }

func (o *outfit) close() {
	for _, f := range o.files {
		_ = f.Close() // the other half has its own
	}
	for _, n := range o.joins {
		_ = n.file.Close()
	}
	if o.cgroup != nil {
		_ = o.cgroup.Close()
	}
	if o.user != nil {
		_ = o.user.Close()
	}
}

// inner is the half inside, seen from here.
type inner struct {
	pid    int
	socket *os.File
}

// program opens what we are, as a mount that nobody can write through: whatever a
// container does with /proc/PID/exe of the half inside, our file stays as it is.
func program() (int, error) {
	if done, err := sealed(); err != nil {
		return -1, err
	} else if done {
		// Of a mount that lies nowhere there is no copy to be had before Linux 6.15.
		return openAbove("/proc/self/exe")
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, "/proc/self/exe", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("own program: %w", os.NewSyscallError("open_tree", err))
	}
	defer unix.Close(tree)
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return -1, fmt.Errorf("own program: %w", os.NewSyscallError("mount_setattr", err))
	}
	fd, err := unix.FcntlInt(uintptr(tree), unix.F_DUPFD_CLOEXEC, firstFree)
	if err != nil {
		return -1, os.NewSyscallError("fcntl", err)
	}
	return fd, nil
}

// openAbove opens what is to be executed, above all descriptors of the half inside.
func openAbove(path string) (int, error) {
	low, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(low)
	fd, err := unix.FcntlInt(uintptr(low), unix.F_DUPFD_CLOEXEC, firstFree)
	if err != nil {
		return -1, os.NewSyscallError("fcntl", err)
	}
	return fd, nil
}

// insideEnv has the half inside leave memory and threads as few as can be.
var insideEnv = []string{"GOGC=off", "GOMAXPROCS=1", "GODEBUG=asyncpreemptoff=1"}

// spawn starts the half inside, in its namespaces.
func (o *outfit) spawn() (*inner, error) {
	if len(o.files) > firstFree-8 {
		return nil, fmt.Errorf("%d mounts and devices are more than can be handed over", len(o.files))
	}
	exe, err := program()
	if err != nil {
		return nil, err
	}
	defer unix.Close(exe)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	defer unix.Close(pair[1])
	fds, null, err := streams()
	if err != nil {
		unix.Close(pair[0])
		return nil, err
	}
	if null != nil {
		defer null.Close()
	}
	fds = append(fds, uintptr(pair[1]))
	for _, f := range o.files {
		fds = append(fds, f.Fd())
	}
	pid, err := o.start(exe, fds)
	if err != nil {
		unix.Close(pair[0])
		return nil, err
	}
	return &inner{pid: pid, socket: os.NewFile(uintptr(pair[0]), "socket")}, nil
}

// start forks from a thread that has gone into the namespaces to be joined. The
// thread ends with that; the others stay where we are.
func (o *outfit) start(exe int, fds []uintptr) (pid int, err error) {
	fork := func() (int, error) { return o.fork(exe, fds) }
	if len(o.joins) == 0 && o.flags&unix.CLONE_NEWTIME == 0 {
		return fork()
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		goruntime.LockOSThread() // never unlocked: the thread is of no use to others
		for _, n := range o.joins {
			if err = unix.Setns(int(n.file.Fd()), n.kind); err != nil {
				err = fmt.Errorf("joining namespace %s: %w", n.file.Name(), err)
				return
			}
		}
		if o.flags&unix.CLONE_NEWTIME != 0 {
			if err = unix.Unshare(unix.CLONE_NEWTIME); err != nil {
				err = fmt.Errorf("time namespace: %w", err)
				return
			}
		}
		pid, err = fork()
	}()
	<-done
	return pid, err
}

func (o *outfit) fork(exe int, fds []uintptr) (int, error) {
	if o.users != nil || o.user != nil {
		return o.forkUser(exe, fds)
	}
	attr := &syscall.SysProcAttr{Cloneflags: uintptr(o.flags &^ (unix.CLONE_NEWCGROUP | unix.CLONE_NEWTIME))}
	if o.cgroup != nil {
		attr.UseCgroupFD, attr.CgroupFD = true, int(o.cgroup.Fd())
	}
	pid, err := syscall.ForkExec(fmt.Sprintf("/proc/self/fd/%d", exe), []string{"escale-runtime", insideArg}, &syscall.ProcAttr{Env: insideEnv, Files: fds, Sys: attr})
	if err != nil {
		return 0, fmt.Errorf("starting in new namespaces: %w", err)
	}
	return pid, nil
}

// end kills the half inside, if it is there still, and collects it.
func (i *inner) end() {
	_ = i.socket.Close()
	_ = unix.Kill(i.pid, unix.SIGKILL) // not collected yet: the number is its own
	var ws unix.WaitStatus
	for {
		if _, err := unix.Wait4(i.pid, &ws, 0, nil); err != unix.EINTR {
			return
		}
	}
}

// talk has the half inside carry out the plan. outside runs the hooks that belong
// there; ready is called when all is set but the program itself. wait: until the
// program runs, or could not.
func (i *inner) talk(p *plan.Plan, outside, ready func() error, wait bool) error {
	if err := p.Write(i.socket); err != nil {
		return i.words(err)
	}
	if p.HooksOutside {
		if _, err := plan.Expect(i.socket, plan.KindHooks); err != nil {
			return i.words(err)
		}
		if err := outside(); err != nil {
			return err
		}
		if err := plan.Send(i.socket, plan.KindHooks, nil); err != nil {
			return i.words(err)
		}
	}
	if _, err := plan.Expect(i.socket, plan.KindReady); err != nil {
		return i.words(err)
	}
	if err := ready(); err != nil {
		return err
	}
	if err := plan.Send(i.socket, plan.KindReady, nil); err != nil {
		return i.words(err)
	}
	if !wait {
		return nil
	}
	// Its end of the connection goes when the program is executed.
	kind, body, err := plan.Receive(i.socket)
	switch {
	case err == nil && kind == plan.KindError:
		return &plan.Refusal{Words: string(body)}
	case err == nil:
		return fmt.Errorf("message %q where nothing was due", kind)
	case errors.Is(err, io.EOF):
		return nil
	}
	return err
}

// words is the error of a conversation: what the other half has said, or how it ended.
func (i *inner) words(err error) error {
	var said *plan.Refusal
	if errors.As(err, &said) {
		return said
	}
	// It may have spoken before it went.
	if kind, body, rerr := plan.Receive(i.socket); rerr == nil && kind == plan.KindError {
		return &plan.Refusal{Words: string(body)}
	}
	var ws unix.WaitStatus
	if pid, werr := unix.Wait4(i.pid, &ws, unix.WNOHANG, nil); werr == nil && pid == i.pid && ws.Signaled() {
		return fmt.Errorf("container init was killed by signal %d (memory limit too low?)", ws.Signal())
	}
	return fmt.Errorf("container init: %w", err)
}

package native

import (
	"errors"
	"fmt"
	"os"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime/native/fork"
	"escale.dev/escale/internal/runtime/native/plan"
)

// outfit is what the half inside is started with.
type outfit struct {
	flags  int                              // CLONE_NEW* of new namespaces
	clocks map[string]specs.LinuxTimeOffset // of a new time namespace
	joins  []namespace                      // of others, by descriptor
	cgroup *os.File                         // of version 2, to be born in
	users  *fork.Maps                       // of a new user namespace
	files  []*os.File                       // its descriptors from the fourth on
	user   *os.File                         // a user namespace to be joined
	kept   int                              // descriptors of ours that the program gets, from plan.FirstFD on
	enter  *fork.Entry                      // instead of all that: a container that is there
	pids   *os.File                         // a pid namespace to be joined, by another half in the end
}

// namespace is one to be joined. kind is a CLONE_NEW*, or several for a pidfd.
type namespace struct {
	file *os.File
	kind int
}

// give hands a file to the half inside and says what its number will be there.
func (o *outfit) give(f *os.File) int {
	o.files = append(o.files, f)
	return plan.SocketFD(o.kept) + len(o.files)
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
	o.closeGroup()
	if o.user != nil {
		_ = o.user.Close()
	}
	if o.pids != nil {
		_ = o.pids.Close()
	}
	if o.enter == nil {
		return
	}
	_ = o.enter.Of.Close()
	if o.enter.Root != nil {
		_ = o.enter.Root.Close()
	}
}

// closeGroup closes what lets the half inside into its cgroups.
func (o *outfit) closeGroup() {
	if o.cgroup != nil {
		_ = o.cgroup.Close()
	}
	o.cgroup = nil
	if o.enter == nil {
		return
	}
	for _, f := range o.enter.Tasks {
		_ = f.Close()
	}
	o.enter.Tasks = nil
}

// inner is the half inside, seen from here.
type inner struct {
	pid    int
	socket *os.File
	parent parent
}

// parent is who the half inside is a child of: this process, or somebody for whom we do
// everything else.
type parent interface {
	spawn(o *outfit) (*inner, error)

	// terminal takes the controlling side of the process' terminal, and closes it.
	terminal(f *os.File) error

	// ended is how the child has ended, if it has.
	ended(pid int) (ws syscall.WaitStatus, ok bool)

	// end kills the child, if it is there still, and collects it.
	end(pid int)

	// givenUp is why the connection to the child was ended from here; nil: it was not.
	givenUp() error
}

// self is this process as the parent. console is the socket that takes a terminal.
type self struct{ console string }

// procfs opens the host's, once it is known to be one: its root has the inode 1.
func procfs() (*os.File, error) {
	f, err := os.OpenFile("/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	var fs unix.Statfs_t
	if err := errors.Join(unix.Fstat(int(f.Fd()), &st), unix.Fstatfs(int(f.Fd()), &fs)); err != nil || fs.Type != unix.PROC_SUPER_MAGIC || st.Ino != 1 {
		f.Close()
		return nil, errors.Join(err, errors.New("/proc is not a procfs"))
	}
	return f, nil
}

var insideArgs = []string{"escale-runtime", insideArg}

// insideEnv has the half inside leave memory and threads as few as can be.
var insideEnv = []string{"GOGC=off", "GOMAXPROCS=1", "GODEBUG=asyncpreemptoff=1"}

func (o *outfit) env() []string {
	if o.kept == 0 {
		return insideEnv
	}
	return append(slices.Clone(insideEnv), plan.PreservedEnv+"="+strconv.Itoa(o.kept))
}

// listening is how many sockets the caller has opened for the program, after the standard
// streams (sd_listen_fds(3)).
func listening() int {
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || n < 0 || os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return 0
	}
	return n
}

// preserved is how many of the caller's descriptors, after the standard streams, the
// program is to get, sockets among them, which come first. Each must be one of the
// caller's: our own close at execve.
func preserved(o values, sockets int) (int, error) {
	word := o.text("preserve-fds", "0")
	n, err := strconv.Atoi(word)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("invalid value %q for --preserve-fds", word)
	}
	n += sockets
	for i := range n {
		flags, err := unix.FcntlInt(uintptr(plan.FirstFD+i), unix.F_GETFD, 0)
		if err == nil && flags&unix.FD_CLOEXEC != 0 {
			err = unix.EBADF
		}
		if err != nil {
			return 0, fmt.Errorf("unable to stat preserved-fd %d (of %d): %w", i, n, err)
		}
	}
	return n, nil
}

// spawn starts the half inside, in its namespaces.
func (s self) spawn(o *outfit) (*inner, error) {
	// What is forked from us has our memory for a moment: nobody in a namespace that is
	// joined may look at it.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return nil, os.NewSyscallError("prctl", err)
	}
	open := program
	if o.user != nil || o.enter != nil && o.enter.Kinds&unix.CLONE_NEWUSER != 0 {
		open = hidden
	}
	pair, err := connection()
	if err != nil {
		return nil, err
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
	for i := range o.kept {
		fds = append(fds, uintptr(plan.FirstFD+i))
	}
	fds = append(fds, uintptr(pair[1]))
	for _, f := range o.files {
		fds = append(fds, f.Fd())
	}
	exe, err := open(len(fds))
	if err != nil {
		unix.Close(pair[0])
		return nil, err
	}
	defer unix.Close(exe)
	pid, err := o.start(exe, fds)
	if err != nil {
		unix.Close(pair[0])
		return nil, err
	}
	return &inner{pid: pid, socket: os.NewFile(uintptr(pair[0]), "socket"), parent: s}, nil
}

// connection makes what the halves talk by.
func connection() (pair [2]int, err error) {
	pair, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	return pair, os.NewSyscallError("socketpair", err)
}

// start forks from a thread that has gone into the namespaces to be joined. The
// thread ends with that; the others stay where we are.
func (o *outfit) start(exe int, fds []uintptr) (pid int, err error) {
	if e := o.enter; e != nil {
		return fork.Enter(o.program(exe, fds), e)
	}
	if len(o.joins) == 0 && o.flags&unix.CLONE_NEWTIME == 0 {
		return o.fork(exe, fds)
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
			if err = setClocks(o.clocks); err != nil {
				return
			}
		}
		pid, err = o.fork(exe, fds)
	}()
	<-done
	return pid, err
}

// setClocks moves the clocks of the time namespace that this thread's children will
// be born in, which nobody is in yet (time_namespaces(7)).
func setClocks(offsets map[string]specs.LinuxTimeOffset) error {
	if len(offsets) == 0 {
		return nil
	}
	var text strings.Builder
	for clock, o := range offsets {
		fmt.Fprintf(&text, "%s %d %d\n", clock, o.Secs, o.Nanosecs)
	}
	// Below thread-self there is no such file, but a thread has a directory of its own by its number.
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/timens_offsets", unix.Gettid()), []byte(text.String()), 0); err != nil {
		return fmt.Errorf("time namespace: offsets: %w", err)
	}
	return nil
}

// program is the half inside, for package fork.
func (o *outfit) program(exe int, fds []uintptr) *fork.Program {
	return &fork.Program{FD: exe, Args: insideArgs, Env: o.env(), Files: fds, Cgroup: o.cgroup}
}

// born are the namespaces (CLONE_NEW*) that are made with the half inside. One of cgroups is
// made once it is in its own.
func (o *outfit) born() uintptr {
	return uintptr(o.flags &^ (unix.CLONE_NEWCGROUP | unix.CLONE_NEWTIME))
}

func (o *outfit) fork(exe int, fds []uintptr) (int, error) {
	// Into a new time namespace nobody may take the memory along, as Go's way of starting has
	// it for a moment: copy_process() refuses that before Linux 6.3.
	if o.users != nil || o.user != nil || o.flags&unix.CLONE_NEWTIME != 0 {
		return o.forkWhole(exe, fds)
	}
	attr := &syscall.SysProcAttr{Cloneflags: o.born()}
	if o.cgroup != nil {
		attr.UseCgroupFD, attr.CgroupFD = true, int(o.cgroup.Fd())
	}
	// The program comes last of the files, or moving these to their places might take its own.
	fds = append(fds, uintptr(exe))
	pid, err := syscall.ForkExec(fmt.Sprintf("/proc/self/fd/%d", len(fds)-1), insideArgs, &syscall.ProcAttr{Env: o.env(), Files: fds, Sys: attr})
	if err != nil {
		return 0, fmt.Errorf("starting in new namespaces: %w", err)
	}
	return pid, nil
}

// end kills the half inside, if it is there still, and collects it.
func (i *inner) end() {
	_ = i.socket.Close()
	i.parent.end(i.pid)
}

func (self) end(pid int) {
	_ = unix.Kill(pid, unix.SIGKILL) // not collected yet: the number is its own
	var ws unix.WaitStatus
	for {
		if _, err := unix.Wait4(pid, &ws, 0, nil); err != unix.EINTR {
			return
		}
	}
}

func (self) givenUp() error { return nil }

func (self) ended(pid int) (ws syscall.WaitStatus, ok bool) {
	var w unix.WaitStatus
	got, err := unix.Wait4(pid, &w, unix.WNOHANG, nil)
	return syscall.WaitStatus(w), err == nil && got == pid
}

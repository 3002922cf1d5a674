// Package fork starts a program in a user namespace, or in a container that runs.
// Go's own ways do not do. A process with several threads may not go into a user
// namespace (setns(2)), and in a new one the program must be executed by its
// descriptor, for no path of the host need be open to the namespace's root. What joins
// a container is to be seen there only when it has the container's root. So the process
// is forked whole, as gVisor does it: the child has one thread, and nothing but system
// calls are made in it until it has become the program. See docs/decisions/0030.
package fork

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

//go:linkname afterForkInChild syscall.runtime_AfterForkInChild
func afterForkInChild()

// Program is what is executed.
type Program struct {
	FD    int // of the file
	Args  []string
	Env   []string
	Files []uintptr // become the descriptors 0, 1, 2 …

	// Cgroup is one of version 2 to be born in, if it is not nil. Whoever writes itself
	// into cgroup.procs instead waits for the kernel's grace period, 7 to 15 ms.
	Cgroup *os.File
}

// raw is a program as the kernel takes it, made before the fork.
type raw struct {
	exe       uintptr
	empty     *byte
	argv, env []*byte
	limit     unix.Rlimit // of open files
	files     []uintptr
	spare     uintptr // descriptors from here on are free for moving files about
	cgroup    uintptr // of version 2, to be born in; none without CLONE_INTO_CGROUP in first

	first uintptr   // flags of the first fork alone
	flags uintptr   // CLONE_NEW* of new namespaces
	ns    uintptr   // to be joined before: a namespace, or a pidfd
	kinds uintptr   // CLONE_NEW* of what is joined; 0: nothing
	of    uintptr   // pidfd of the container that is entered; 0: of none
	pids  uintptr   // a pid namespace to be joined before that; 0: none
	tasks []uintptr // files of cgroups to be joined before that
	at    uintptr   // a directory that becomes the root at last; 0: none
	alone *alone    // is to see nothing of ours
	root  bool      // takes the ids 0, of a user namespace
	twice bool      // the child joins, and forks the one that is meant
	proc  *procfs   // to be mounted, in place of a program
}

func (p *Program) raw() (*raw, error) {
	r := &raw{exe: uintptr(p.FD), spare: max(uintptr(p.FD)+1, uintptr(len(p.Files)))}
	for _, f := range p.Files {
		r.spare = max(r.spare, f+1)
	}
	if p.Cgroup != nil {
		r.cgroup, r.first = p.Cgroup.Fd(), unix.CLONE_INTO_CGROUP
	}
	r.files = append(r.files, p.Files...)
	var err error
	if r.limit, err = given(); err != nil {
		return nil, err
	}
	if r.empty, err = syscall.BytePtrFromString(""); err != nil {
		return nil, err
	}
	if r.argv, err = syscall.SlicePtrFromStrings(p.Args); err != nil {
		return nil, err
	}
	r.env, err = syscall.SlicePtrFromStrings(p.Env)
	return r, err
}

// Maps are the mappings of a user namespace.
type Maps struct{ UIDs, GIDs []specs.LinuxIDMapping }

// New starts a program in new namespaces, flags (CLONE_NEW*), and where there are
// mappings in a new user namespace, too, as its root. The caller waits for the process.
func New(p *Program, flags int, m *Maps) (pid int, err error) {
	r, err := p.raw()
	if err != nil {
		return 0, err
	}
	r.flags = uintptr(flags)
	if m != nil {
		r.flags, r.root = r.flags|unix.CLONE_NEWUSER, true
	}
	pid, hold, err := held(r)
	if err != nil {
		return 0, err
	}
	defer hold.Close()
	if m != nil {
		if err := m.write(pid); err != nil {
			end(pid)
			return 0, err
		}
	}
	return pid, release(pid, hold)
}

// Join starts a program in the user namespace whose descriptor is user, and in new
// namespaces, flags, which will be that one's.
func Join(p *Program, user *os.File, flags int) (pid int, err error) {
	r, err := p.raw()
	if err != nil {
		return 0, err
	}
	r.flags, r.ns, r.kinds, r.root, r.twice = uintptr(flags), user.Fd(), unix.CLONE_NEWUSER, true, true
	pid, hold, err := held(r)
	if err != nil {
		return 0, err
	}
	defer hold.Close()
	return pid, release(pid, hold)
}

// Entry is what a program goes into.
type Entry struct {
	Tasks []*os.File // files of version 1's cgroups
	PIDs  *os.File   // a pid namespace, nil: as Kinds says
	Of    *os.File   // pidfd of the process whose namespaces are joined
	Kinds int        // CLONE_NEW* of these
	Root  *os.File   // becomes the root and the working directory; nil: those of the mount namespace
}

// Enter starts a program in another's cgroups and namespaces. Nobody there ever sees it
// outside of them: it is born in the pid namespace when all others, its root and its
// working directory are those of the container already, and with the descriptors of
// the program only.
func Enter(p *Program, e *Entry) (pid int, err error) {
	r, err := p.raw()
	if err != nil {
		return 0, err
	}
	r.enter(e)
	r.root = e.Kinds&unix.CLONE_NEWUSER != 0
	pid, hold, err := held(r)
	if err != nil {
		return 0, err
	}
	defer hold.Close()
	return pid, release(pid, hold)
}

func (r *raw) enter(e *Entry) {
	r.twice = true
	if e.Of != nil {
		r.ns, r.kinds, r.of = e.Of.Fd(), uintptr(e.Kinds), e.Of.Fd()
	}
	if e.PIDs != nil {
		r.pids = e.PIDs.Fd()
	}
	if e.Root != nil {
		r.at = e.Root.Fd()
	}
	for _, f := range e.Tasks {
		r.tasks = append(r.tasks, f.Fd())
	}
}

// Namespace makes a user namespace that lives as long as the file. Nobody is in it.
func Namespace(m *Maps) (*os.File, error) {
	pid, hold, err := held(&raw{flags: unix.CLONE_NEWUSER})
	if err != nil {
		return nil, err
	}
	defer end(pid)
	defer hold.Close()
	if err := m.write(pid); err != nil {
		return nil, err
	}
	return os.Open("/proc/" + strconv.Itoa(pid) + "/ns/user")
}

func end(pid int) {
	_ = unix.Kill(pid, unix.SIGKILL) // a child of ours that nobody has waited for
	wait(pid)
}

func wait(pid int) (ws unix.WaitStatus) {
	for {
		if _, err := unix.Wait4(pid, &ws, 0, nil); err != unix.EINTR {
			return ws
		}
	}
}

// write sets the mappings of a process' user namespace (user_namespaces(7)).
func (m *Maps) write(pid int) error {
	for name, list := range map[string][]specs.LinuxIDMapping{"uid_map": m.UIDs, "gid_map": m.GIDs} {
		var text strings.Builder
		for _, l := range list {
			fmt.Fprintf(&text, "%d %d %d\n", l.ContainerID, l.HostID, l.Size)
		}
		if err := os.WriteFile("/proc/"+strconv.Itoa(pid)+"/"+name, []byte(text.String()), 0); err != nil {
			return fmt.Errorf("mappings of the user namespace: %w", err)
		}
	}
	return nil
}

// cloneArgs is struct clone_args of clone(2).
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, signal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// fork forks. All that the child needs lies ready: it must not allocate, grow its
// stack or take a lock, for the threads that might hold one are not there.
//
//go:noinline
//go:norace
func fork(r *raw, hold uintptr) (int, unix.Errno) {
	args := cloneArgs{flags: uint64(r.first), signal: uint64(unix.SIGCHLD), cgroup: uint64(r.cgroup)}
	if !r.twice {
		args.flags |= uint64(r.flags)
	}
	beforeFork()
	pid, _, errno := syscall.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args), 0)
	if errno != 0 || pid != 0 {
		afterFork()
		return int(pid), errno
	}
	afterForkInChild()
	child(r, hold)
	return 0, 0 // never
}

// answer is what the child tells: a pid, or an errno and where it came from.
type answer struct{ pid, errno, step uint32 }

// What the child does, for its errors.
const (
	stepCgroup = iota + 1
	stepAlone
	stepPIDs
	stepJoin
	stepRoot
	stepFork
	stepUser
	stepFiles
	stepExec
	stepProcfs
)

var steps = map[uint32]string{stepCgroup: "joining a cgroup", stepAlone: "leaving the mounts", stepPIDs: "joining the pid namespace", stepJoin: "joining namespaces",
	stepRoot: "entering the root", stepFork: "starting in namespaces", stepUser: "becoming root of the user namespace", stepFiles: "handing on descriptors",
	stepExec: "executing the program", stepProcfs: "procfs"}

func (a *answer) err() error {
	switch errno := unix.Errno(a.errno); {
	case errno == 0:
		return nil
	case errno == unix.ENOMEM && a.step == stepFork:
		// A pid namespace whose first process has ended takes nobody (pid_namespaces(7)).
		return fmt.Errorf("%s: %w: the pid namespace may have ended", steps[a.step], errno)
	default:
		return fmt.Errorf("%s: %w", steps[a.step], errno)
	}
}

//go:nosplit
//go:norace
func (a *answer) tell(hold uintptr, step uint32, errno unix.Errno) {
	a.step, a.errno = step, uint32(errno)
	syscall.RawSyscall(unix.SYS_WRITE, hold, uintptr(unsafe.Pointer(a)), unsafe.Sizeof(*a))
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 1, 0, 0)
	}
}

//go:noinline
//go:nosplit
//go:norace
func child(r *raw, hold uintptr) {
	var a answer
	if r.twice {
		r.join(&a, hold)
	}
	// What is seen from here on has the program's descriptors and no others: through a
	// directory of the host who looks into it would get at all of it. Nor has it the other
	// end of what it waits for, which closes when our parent is killed.
	r.place(&a, hold)
	r.close(&a, hold)
	if r.twice {
		pid, _, errno := syscall.RawSyscall6(unix.SYS_CLONE, r.flags|unix.CLONE_PARENT|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		if errno != 0 || pid != 0 {
			a.pid = uint32(pid)
			a.tell(hold, stepFork, errno)
		}
	}
	var b [8]byte
	n, _, _ := syscall.RawSyscall(unix.SYS_READ, hold, uintptr(unsafe.Pointer(&b)), 1)
	if n == 1 && r.proc != nil {
		r.proc.mount(&a, hold)
	}
	if n != 1 || r.exe == 0 {
		for {
			syscall.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}
	}
	// Root of the namespace, or the capabilities would go with execve.
	if r.root {
		if _, _, errno := syscall.RawSyscall(unix.SYS_SETRESGID, 0, 0, 0); errno != 0 {
			a.tell(hold, stepUser, errno)
		}
		if _, _, errno := syscall.RawSyscall(unix.SYS_SETRESUID, 0, 0, 0); errno != 0 {
			a.tell(hold, stepUser, errno)
		}
	}
	// All that it has is open.
	if _, _, errno := syscall.RawSyscall6(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, uintptr(unsafe.Pointer(&r.limit)), 0, 0, 0); errno != 0 {
		a.tell(hold, stepFiles, errno)
	}
	_, _, errno := syscall.RawSyscall6(unix.SYS_EXECVEAT, r.exe, uintptr(unsafe.Pointer(r.empty)), uintptr(unsafe.Pointer(&r.argv[0])),
		uintptr(unsafe.Pointer(&r.env[0])), unix.AT_EMPTY_PATH, 0)
	a.tell(hold, stepExec, errno)
}

// join goes into cgroups and namespaces. The pid namespace is that of who is forked next.
//
//go:nosplit
//go:norace
func (r *raw) join(a *answer, hold uintptr) {
	zero := byte('0') // whoever writes it
	for i := range r.tasks {
		if _, _, errno := syscall.RawSyscall(unix.SYS_WRITE, r.tasks[i], uintptr(unsafe.Pointer(&zero)), 1); errno != 0 {
			a.tell(hold, stepCgroup, errno)
		}
	}
	// Who may not trace us is not to look into us either.
	syscall.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0, 0)
	if r.alone != nil {
		r.alone.leave(a, hold)
	}
	if r.pids != 0 { // before we may have a user namespace that has no say about it
		if _, _, errno := syscall.RawSyscall(unix.SYS_SETNS, r.pids, unix.CLONE_NEWPID, 0); errno != 0 {
			a.tell(hold, stepPIDs, errno)
		}
	}
	if r.kinds != 0 { // else all is the caller's
		if _, _, errno := syscall.RawSyscall(unix.SYS_SETNS, r.ns, r.kinds, 0); errno != 0 {
			a.tell(hold, stepJoin, errno)
		}
	}
	if r.at != 0 {
		if _, _, errno := syscall.RawSyscall(unix.SYS_FCHDIR, r.at, 0, 0); errno != 0 {
			a.tell(hold, stepRoot, errno)
		}
		here := [2]byte{'.'}
		if _, _, errno := syscall.RawSyscall(unix.SYS_CHROOT, uintptr(unsafe.Pointer(&here)), 0, 0); errno != 0 {
			a.tell(hold, stepRoot, errno)
		}
	}
}

// place moves the files to their numbers: first out of each other's way.
//
//go:nosplit
//go:norace
func (r *raw) place(a *answer, hold uintptr) {
	for i := range r.files {
		fd, _, errno := syscall.RawSyscall(unix.SYS_FCNTL, r.files[i], unix.F_DUPFD_CLOEXEC, r.spare)
		if errno != 0 {
			a.tell(hold, stepFiles, errno)
		}
		r.files[i] = fd
	}
	for i := range r.files {
		if _, _, errno := syscall.RawSyscall(unix.SYS_DUP3, r.files[i], uintptr(i), 0); errno != 0 {
			a.tell(hold, stepFiles, errno)
		}
	}
}

// close closes all but the files in their places, the program and what we talk by,
// which is above these.
//
//go:nosplit
//go:norace
func (r *raw) close(a *answer, hold uintptr) {
	const last = 1<<31 - 1
	from := uintptr(len(r.files))
	if r.exe > from {
		if _, _, errno := syscall.RawSyscall(unix.SYS_CLOSE_RANGE, from, r.exe-1, 0); errno != 0 {
			a.tell(hold, stepFiles, errno)
		}
	}
	if from = max(from, r.exe+1); r.exe == 0 {
		from = uintptr(len(r.files))
	}
	if hold > from {
		if _, _, errno := syscall.RawSyscall(unix.SYS_CLOSE_RANGE, from, hold-1, 0); errno != 0 {
			a.tell(hold, stepFiles, errno)
		}
	}
	if _, _, errno := syscall.RawSyscall(unix.SYS_CLOSE_RANGE, hold+1, last, 0); errno != 0 {
		a.tell(hold, stepFiles, errno)
	}
}

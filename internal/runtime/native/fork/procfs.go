package fork

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Param is a parameter of a file system; without a value it is a flag.
type Param struct{ Key, Value string }

// Procfs makes a procfs of another's pid namespace, e.PIDs, with attributes
// (MOUNT_ATTR_*): a mount that lies nowhere yet. A procfs is of the namespace that its
// maker is in (proc(5)). Who looks at the maker from there finds nothing: it has an
// empty root, e's namespaces but for the user's, and nothing open but the socket by
// which the mount comes back. Blocks until that is there. The error holds the kernel's
// number.
func Procfs(e *Entry, params []Param, attributes uint) (*os.File, error) {
	a, err := newAlone()
	if err != nil {
		return nil, err
	}
	defer a.end()
	p, err := newProcfs(params, attributes)
	if err != nil {
		return nil, err
	}
	r := &raw{alone: a, proc: p}
	r.enter(e)
	pid, hold, err := held(r)
	if err != nil {
		return nil, fmt.Errorf("procfs of another's pid namespace: %w", err)
	}
	defer wait(pid)
	defer hold.Close() // it ends, if it waits still
	if _, err := hold.Write([]byte{1}); err != nil {
		return nil, err
	}
	f, err := receive(hold)
	if err != nil {
		return nil, fmt.Errorf("procfs of another's pid namespace: %w", err)
	}
	if err := isProcfs(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// isProcfs checks what has come: the root of one, which has the inode 1.
func isProcfs(f *os.File) error {
	var fs unix.Statfs_t
	var st unix.Stat_t
	if err := errors.Join(unix.Fstatfs(int(f.Fd()), &fs), unix.Fstat(int(f.Fd()), &st)); err != nil || fs.Type != unix.PROC_SUPER_MAGIC || st.Ino != 1 {
		return errors.Join(err, errors.New("procfs of another's pid namespace: is no procfs"))
	}
	return nil
}

// receive takes an answer, with a descriptor where all went well.
func receive(hold *os.File) (*os.File, error) {
	var a answer
	oob := make([]byte, unix.CmsgSpace(4))
	n, size, _, _, err := unix.Recvmsg(int(hold.Fd()), unsafe.Slice((*byte)(unsafe.Pointer(&a)), unsafe.Sizeof(a)), oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_WAITALL)
	if err != nil || n != int(unsafe.Sizeof(a)) {
		return nil, errors.Join(err, fmt.Errorf("answer of %d bytes", n))
	}
	if err := a.err(); err != nil {
		return nil, err
	}
	list, err := unix.ParseSocketControlMessage(oob[:size])
	if err != nil || len(list) != 1 {
		return nil, errors.Join(err, errors.New("no descriptor came"))
	}
	fds, err := unix.ParseUnixRights(&list[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.Join(err, errors.New("no descriptor came"))
	}
	return os.NewFile(uintptr(fds[0]), "proc"), nil
}

// alone is a mount namespace with nothing in it, for who must not show ours.
type alone struct {
	empty            uintptr // a tmpfs
	here, root, none *byte   // paths
}

func newAlone() (_ *alone, err error) {
	a := &alone{}
	for text, p := range map[string]**byte{".": &a.here, "/": &a.root, "": &a.none} {
		if *p, err = syscall.BytePtrFromString(text); err != nil {
			return nil, err
		}
	}
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fs)
	empty := -1
	if err = unix.FsconfigCreate(fs); err == nil {
		empty, err = unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("empty root: %w", err)
	}
	a.empty = uintptr(empty)
	return a, nil
}

func (a *alone) end() {
	_ = unix.Close(int(a.empty))
}

// leave goes where nothing is. The two roots lie over each other for a moment, as with
// pivot_root(".", ".") of pivot_root(2).
//
//go:nosplit
//go:norace
func (a *alone) leave(to *answer, hold uintptr) {
	_, _, errno := syscall.RawSyscall(unix.SYS_UNSHARE, unix.CLONE_NEWNS|unix.CLONE_NEWCGROUP, 0, 0)
	if errno != 0 {
		to.tell(hold, stepAlone, errno)
	}
	const inherit = unix.MS_SLAVE | unix.MS_REC
	if _, _, errno = syscall.RawSyscall6(unix.SYS_MOUNT, 0, uintptr(unsafe.Pointer(a.root)), 0, inherit, 0, 0); errno != 0 {
		to.tell(hold, stepAlone, errno)
	}
	cwd := unix.AT_FDCWD
	if _, _, errno = syscall.RawSyscall6(unix.SYS_MOVE_MOUNT, a.empty, uintptr(unsafe.Pointer(a.none)), uintptr(cwd), uintptr(unsafe.Pointer(a.root)), unix.MOVE_MOUNT_F_EMPTY_PATH, 0); errno != 0 {
		to.tell(hold, stepAlone, errno)
	}
	if _, _, errno = syscall.RawSyscall(unix.SYS_FCHDIR, a.empty, 0, 0); errno != 0 {
		to.tell(hold, stepAlone, errno)
	}
	if _, _, errno = syscall.RawSyscall(unix.SYS_PIVOT_ROOT, uintptr(unsafe.Pointer(a.here)), uintptr(unsafe.Pointer(a.here)), 0); errno != 0 {
		to.tell(hold, stepAlone, errno)
	}
	// What lies over the place: the old root.
	if _, _, errno = syscall.RawSyscall(unix.SYS_UMOUNT2, uintptr(unsafe.Pointer(a.here)), unix.MNT_DETACH, 0); errno != 0 {
		to.tell(hold, stepAlone, errno)
	}
}

// procfs is one to be mounted, with the message that brings it home.
type procfs struct {
	name, source *byte
	params       []rawParam
	attributes   uintptr
	message      *unix.Msghdr
	text         *answer // that of the message
	fd           *int32  // in the message's control
}

// rawParam is a parameter as fsconfig(2) takes it.
type rawParam struct {
	command    uintptr
	key, value *byte
}

func newProcfs(params []Param, attributes uint) (*procfs, error) {
	p := &procfs{attributes: uintptr(attributes)}
	var err error
	if p.name, err = syscall.BytePtrFromString("proc"); err != nil {
		return nil, err
	}
	if p.source, err = syscall.BytePtrFromString("source"); err != nil {
		return nil, err
	}
	p.params = []rawParam{{unix.FSCONFIG_SET_STRING, p.source, p.name}}
	for _, o := range params {
		raw := rawParam{command: unix.FSCONFIG_SET_FLAG}
		if raw.key, err = syscall.BytePtrFromString(o.Key); err != nil {
			return nil, err
		}
		if o.Value != "" {
			raw.command = unix.FSCONFIG_SET_STRING
			if raw.value, err = syscall.BytePtrFromString(o.Value); err != nil {
				return nil, err
			}
		}
		p.params = append(p.params, raw)
	}
	p.params = append(p.params, rawParam{command: unix.FSCONFIG_CMD_CREATE})
	control := unix.UnixRights(0)
	p.text, p.fd = &answer{}, (*int32)(unsafe.Pointer(&control[unix.CmsgLen(0)]))
	vec := &unix.Iovec{Base: (*byte)(unsafe.Pointer(p.text))}
	vec.SetLen(int(unsafe.Sizeof(*p.text)))
	p.message = &unix.Msghdr{Iov: vec, Control: &control[0]}
	p.message.SetIovlen(1)
	p.message.SetControllen(len(control))
	return p, nil
}

// mount makes the procfs and sends it.
//
//go:nosplit
//go:norace
func (p *procfs) mount(a *answer, hold uintptr) {
	fs, _, errno := syscall.RawSyscall(unix.SYS_FSOPEN, uintptr(unsafe.Pointer(p.name)), unix.FSOPEN_CLOEXEC, 0)
	if errno != 0 {
		a.tell(hold, stepProcfs, errno)
	}
	for i := range p.params {
		o := &p.params[i]
		if _, _, errno = syscall.RawSyscall6(unix.SYS_FSCONFIG, fs, o.command, uintptr(unsafe.Pointer(o.key)), uintptr(unsafe.Pointer(o.value)), 0, 0); errno != 0 {
			a.tell(hold, stepProcfs, errno)
		}
	}
	fd, _, errno := syscall.RawSyscall(unix.SYS_FSMOUNT, fs, unix.FSMOUNT_CLOEXEC, p.attributes)
	if errno != 0 {
		a.tell(hold, stepProcfs, errno)
	}
	*p.fd = int32(fd)
	if _, _, errno = syscall.RawSyscall(unix.SYS_SENDMSG, hold, uintptr(unsafe.Pointer(p.message)), 0); errno != 0 {
		a.tell(hold, stepProcfs, errno)
	}
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
}

// Package plan is what the two halves of the runtime say to each other: the one
// that stays outside reads the specification, opens what it names on the host and
// makes a Plan of it; the one inside carries it out and becomes the container's
// process. Numbers called descriptors are those of the inner half; NoFD is none.
package plan

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// FirstFD is the first descriptor after the standard streams. From there on the inner
// half has what the program is to get of the caller's, then its end of the connection.
const FirstFD = 3

// PreservedEnv is the variable that tells the inner half how many of the caller's
// descriptors those are; absent: none.
const PreservedEnv = "ESCALE_PRESERVED"

// SocketFD is the inner half's end of the connection.
func SocketFD(preserved int) int { return FirstFD + preserved }

// NoFD stands where a descriptor could be.
const NoFD = -1

// Plan is all that the inner half has to know.
type Plan struct {
	ID      string
	Exec    bool // one more process in a container that runs
	Leave   bool // only make the container: another half becomes its process
	Built   bool // this is that other half
	Process specs.Process
	Caps    *Caps // nil: what the half has it keeps
	Keyring string
	Listen  int // of the descriptors that the program keeps, sockets that it is told of (sd_listen_fds(3))

	Spaces    []Space // namespaces to go into, but those of mounts, users, pids and time
	Join      []int   // descriptors: "0" is written to each, which puts the writer into a cgroup
	MountNS   int     // a pidfd, or a mount namespace, to go into
	OwnMounts bool    // it has a mount namespace, whose root is exchanged; else it has the host's mounts
	CgroupNS  bool    // to be made, once it is in its cgroups
	Loopback  bool    // the network namespace is new: lo is to be set up

	Hostname, Domainname string
	Sysctl               map[string]string

	Root       Root
	Mounts     []Mount
	SetupDev   bool // nodes and links are to be made; of Built: they have been
	Devices    []Device
	Masked     []string
	ReadOnly   []string
	MountLabel string

	Proc int // the host's procfs; none for Exec, among whose neighbours it would be a way out
	Hold int // a FIFO: a byte from it lets the process go

	SeccompFlags uint
	Filter       []byte `json:"-"` // array of struct sock_filter

	Personality  *specs.LinuxPersonality
	MemoryPolicy *specs.LinuxMemoryPolicy

	HooksOutside    bool // the outer half has hooks to run before the root is changed
	CreateContainer []specs.Hook
	StartContainer  []specs.Hook
	State           specs.State // for hooks
}

// Space is a namespace of another's.
type Space struct {
	FD   int
	Kind int    // CLONE_NEW*
	Path string // for errors
}

// Root is the container's root file system.
type Root struct {
	Path        string // where it lies on the host; where it is put over itself
	Tree        int    // a detached copy of it
	ReadOnly    bool
	Propagation uintptr // MS_* of mount(2); 0: recursive slave
}

// Caps are sets of capabilities as bits.
type Caps struct{ Bounding, Effective, Inheritable, Permitted, Ambient uint64 }

// Device is a node to be made below the root.
type Device struct {
	Path  string
	Mode  uint32 // with the type, as in mknod(2)
	Major uint32
	Minor uint32
	UID   uint32
	GID   uint32
	Tree  int // the host's as a mount, where nodes cannot be made
}

// Mount is one of the container's mounts.
type Mount struct {
	Dest  string
	Tree  int  // a detached tree; NoFD: FS is mounted
	Sent  bool // the tree follows the plan (SendFile)
	Again bool
	FS    string
	// Source and Params go to fsconfig(2); a flag has an empty value.
	Source string
	Params []Param

	Set, Clear       uint64 // MOUNT_ATTR_*
	RecSet, RecClear uint64
	Propagation      []uintptr // MS_*, in turn
	CopyUp           bool      // of a tmpfs: begins with what lay there
	LateReadOnly     bool      // a tree that is made read-only once all is in its place

	Sealed   bool // read-only from the beginning
	Fallback int  // a tree for where FS cannot be mounted; NoFD without one

	Hierarchies []Hierarchy // of a cgroup of version 1
}

// Param is a parameter of a file system.
type Param struct{ Key, Value string }

// Hierarchy is one of version 1: its name below the mount's destination, the
// tree to be seen there, or the controllers when it is mounted in a cgroup namespace.
type Hierarchy struct {
	Name  string
	Tree  int
	Data  string
	Links []string // other names of it
}

// What is said: a kind, the length, and so many bytes.
const (
	KindPlan     = 'p' // out → in: JSON
	KindData     = 'd' // out → in: the filter
	KindTree     = 'm' // out → in: with a tree for the next mount that is sent one
	KindHooks    = 'h' // in → out: run yours; out → in: done
	KindTerminal = 't' // in → out: with the controlling side of the process' terminal
	KindReady    = 'r' // in → out: all is set but the process itself, or built all that was to be; out → in: go on
	KindError    = 'e' // in → out: words
)

// maxMessage bounds what a half takes, in bytes.
const maxMessage = 16 << 20

// Send writes one message; blocks while the other side does not read.
func Send(w io.Writer, kind byte, body []byte) error {
	b := make([]byte, 5, 5+len(body))
	b[0] = kind
	binary.NativeEndian.PutUint32(b[1:], uint32(len(body)))
	_, err := w.Write(append(b, body...))
	return err
}

// Receive reads one message. io.EOF: the other side is gone, or has become the process.
func Receive(r io.Reader) (kind byte, body []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.NativeEndian.Uint32(head[1:])
	if n > maxMessage {
		return 0, nil, fmt.Errorf("message of %d bytes", n)
	}
	body = make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return 0, nil, errors.Join(io.ErrUnexpectedEOF, err)
	}
	return head[0], body, nil
}

// SendFile sends a message of no bytes with a descriptor (unix(7), SCM_RIGHTS).
func SendFile(socket *os.File, kind byte, fd int) error {
	return unix.Sendmsg(int(socket.Fd()), []byte{kind, 0, 0, 0, 0}, unix.UnixRights(fd), nil, 0)
}

// ReceiveFile reads one message of SendFile's; words of the other side's are its error.
func ReceiveFile(socket *os.File, kind byte) (*os.File, error) {
	head, oob := make([]byte, 5), make([]byte, unix.CmsgSpace(4))
	var n, size int
	rc, err := socket.SyscallConn()
	if err != nil {
		return nil, err
	}
	var failed error
	// What is written at once is read at once, by a socket that does not block, too.
	err = rc.Read(func(fd uintptr) bool {
		for {
			if n, size, _, _, failed = unix.Recvmsg(int(fd), head, oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_WAITALL); failed != unix.EINTR {
				return failed != unix.EAGAIN
			}
		}
	})
	if err = errors.Join(err, failed); err != nil {
		return nil, err
	}
	if size == 0 {
		_, err := Expect(io.MultiReader(bytes.NewReader(head[:n]), socket), kind)
		return nil, errors.Join(err, io.ErrUnexpectedEOF)
	}
	list, err := unix.ParseSocketControlMessage(oob[:size])
	if err != nil || len(list) != 1 {
		return nil, errors.Join(err, io.ErrUnexpectedEOF)
	}
	fds, err := unix.ParseUnixRights(&list[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.Join(err, io.ErrUnexpectedEOF)
	}
	f := os.NewFile(uintptr(fds[0]), "terminal")
	if n != len(head) || head[0] != kind {
		f.Close()
		return nil, fmt.Errorf("message %q where %q was due", head[0], kind)
	}
	return f, nil
}

// Expect reads a message of one kind; words of the other side's are its error.
func Expect(r io.Reader, kind byte) ([]byte, error) {
	k, body, err := Receive(r)
	switch {
	case err != nil:
		return nil, err
	case k == KindError:
		return nil, &Refusal{Words: string(body)}
	case k != kind:
		return nil, fmt.Errorf("message %q where %q was due", k, kind)
	}
	return body, nil
}

// Refusal is the error of the inner half.
type Refusal struct{ Words string }

func (r *Refusal) Error() string { return r.Words }

// Socket is the inner half's end as a file.
func Socket(preserved int) *os.File { return os.NewFile(uintptr(SocketFD(preserved)), "socket") }

// Late says whether the mount is read-only in the end and writable until all
// other mounts have their places in it.
func (m *Mount) Late() bool {
	return !m.Sealed && (m.FS == "tmpfs" && m.Set&mountReadOnly != 0 || m.LateReadOnly)
}

const mountReadOnly = 1 // MOUNT_ATTR_RDONLY

// Package runtime is the boundary between the engine and whatever runs a
// container's processes: a monitor process (runtime/shim) that calls an OCI
// runtime, or has the child of a Maker (runtime/native). Callers see only the
// interfaces of this package.
package runtime

import (
	"context"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
)

// Runtime launches monitors and finds those that an earlier engine left.
type Runtime interface {
	// Launch starts the monitor of a container. The container's own process is
	// not started yet: clients may attach first, so that they miss no byte.
	// Blocks for less than 1 ms where a monitor was ready, for about 3 ms else. A monitor whose Task is neither started nor
	// adopted ends when the connection that launched it closes.
	Launch(ctx context.Context, l Launch) (Task, error)

	// Adopt connects to the monitor that an earlier engine left in runDir.
	// NotFound when nothing lives there; the caller then reads LastExit.
	Adopt(ctx context.Context, id, runDir, stateDir string) (Task, error)

	// LastExit reads the exit record that the monitor of the start numbered
	// generation wrote in stateDir; NotFound when that start left none.
	LastExit(stateDir string, generation uint64) (Exit, error)

	// Cleanup removes what the runtime keeps of a container that is not
	// running: the OCI runtime's state, leftover processes, cgroups. It kills
	// whatever still lives in them. Idempotent; blocks until the kernel is done.
	Cleanup(ctx context.Context, c Cleanup) error

	// Update changes the limits of a container that runs. Blocks for about
	// 40 ms. On an error some of them may have changed: the caller puts the old
	// ones back.
	Update(ctx context.Context, u Update) error
}

// Launch says how one start of a container is to be run.
type Launch struct {
	ID         string // 64 hexadecimal digits
	Generation uint64 // number of this start, 1 and up: ties exit records to it
	Bundle     string // OCI bundle; config.json must be there when Task.Start is called
	RunDir     string // this start's directory for sockets and the runtime's state, on tmpfs, made by the caller
	StateDir   string // the container's durable directory: receives the exit record
	Passing    bool   // the container goes when it has ended: the exit record need not survive a power cut

	Runtime Binary // the OCI runtime to call

	Terminal   bool
	Rows, Cols uint16 // first size of the terminal; 0 is unset
	OpenStdin  bool   // keep the standard input open for clients to come
	StdinOnce  bool   // close it when the first attached client closes its side

	Log  LogFile
	Held []*os.File // kept open for the life of the container: the sockets of published ports

	// CgroupPath is the cgroup of the container as in the OCI specification's
	// linux.cgroupsPath ("/docker/<id>"); the monitor reads the kernel's
	// oom_kill count there before the cgroup goes.
	CgroupPath string
}

// Binary is an OCI runtime on disk.
type Binary struct {
	Path string   // absolute
	Args []string // global arguments before the subcommand
}

// LogFile is the json-file log that the monitor writes.
type LogFile struct {
	Path     string // absolute; empty: no log is written
	MaxSize  int64  // bytes at which the file is rotated; 0 or less: never
	MaxFiles int    // files kept, the current one included; at least 1
	Attrs    string // a JSON object put into each line as "attrs"; empty: none
}

// Cleanup names the remains of a container.
type Cleanup struct {
	ID         string
	RunDir     string
	Runtime    Binary
	CgroupPath string
}

// Update is a change of a running container's limits.
type Update struct {
	ID        string
	RunDir    string // of the present start
	Runtime   Binary
	Resources []byte // linux.resources of the OCI specification, JSON; what is absent stays
}

// Task is a container under a monitor. Its methods may be called at once from
// several goroutines. process "" is the container's own process, any other
// string the id of an exec.
type Task interface {
	// Start runs the container's process and returns its pid on the host.
	// Blocks until the runtime has started it. A *StartError says why it could not.
	Start(ctx context.Context) (pid int, err error)

	// Exec starts one more process inside. ErrNotFound when the container has ended.
	Exec(ctx context.Context, e Exec) (pid int, err error)

	// Attach connects to a process' stdio; allowed before Start (for an exec:
	// before Exec, with the same id). The stream carries, from the monitor: raw
	// bytes for a terminal, else Docker's multiplexed frames (8-byte header:
	// stream 1 or 2, three zeros, length big-endian); towards it: standard
	// input, whose end CloseWrite tells. It ends when the process has ended and
	// all its output was sent.
	Attach(ctx context.Context, process string, a Attach) (Stream, error)

	// Signal sends sig to a process: the monitor is its parent, so the pid
	// cannot be another's. NotFound when it has ended.
	Signal(ctx context.Context, process string, sig syscall.Signal) error

	// Resize sets the size of a process' terminal.
	Resize(ctx context.Context, process string, rows, cols uint16) error

	// Wait blocks until the process has ended and its output was logged. When
	// the monitor dies before it could tell, Wait returns ErrMonitorLost.
	Wait(ctx context.Context, process string) (Exit, error)

	// Held gives copies of the files that are kept open for the life of the
	// container, in the order of Launch.Held; the caller closes them.
	// NotImplemented when the monitor is from before it could give them.
	Held(ctx context.Context) ([]*os.File, error)

	// Hold lets the monitor keep more files open until the container ends; they
	// follow those of the launch. The caller closes its own. NotImplemented as with
	// Held. On an error it may have some of them.
	Hold(ctx context.Context, files []*os.File) error

	// Pid is the container's process (0 before Start), Monitor the monitor's.
	Pid() int
	Monitor() int

	// Close lets go of the monitor, which goes on.
	Close() error
}

// Exec is one more process in a running container.
type Exec struct {
	ID       string
	Process  []byte // OCI process, JSON
	Terminal bool
	Rows     uint16
	Cols     uint16
	Stdin    bool // clients will send standard input
}

// Attach says which of the streams a client wants.
type Attach struct{ Stdin, Stdout, Stderr bool }

// Stream is a connection to a process' stdio. Back-pressure reaches the process.
type Stream interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// Exit is how a process ended.
type Exit struct {
	Code      int // 128+n after signal n
	At        time.Time
	OOMKilled bool // the kernel's OOM killer acted in the container's cgroup
}

// ErrMonitorLost is returned by Wait when the monitor died first.
var ErrMonitorLost = fmt.Errorf("monitor lost")

// StartError is the OCI runtime's refusal to start a process.
type StartError struct {
	Code    int    // exit code as Docker gives it: 126 not executable, 127 not found, 128 otherwise
	Message string // the runtime's words
}

func (e *StartError) Error() string { return e.Message }

package runtime

import (
	"context"
	"errors"
	"os"
	"syscall"
)

// ErrNotDelegable: what is to be made only the OCI runtime's program can make.
var ErrNotDelegable = errors.New("only the program can make it")

// Maker does in the engine what an OCI runtime's process would do before the
// container's own is there: it costs that process.
type Maker interface {
	// Make makes a container and sees its first process through until that has become
	// the program. parent is who it is a child of. Errors are an OCI runtime's words,
	// for a *StartError; on one nothing is left but, perhaps, the child, which the caller
	// has ended. ErrNotDelegable: the container is one that only the program
	// can make; nothing was made, and there is no child. Blocks for some 4 ms, or until
	// ctx ends.
	Make(ctx context.Context, m Making, parent Parent) (pid int, err error)
}

// Making is what an OCI runtime is told by its command line.
type Making struct {
	ID     string
	Bundle string
	Root   string   // where it keeps its containers (--root)
	Args   []string // Binary.Args
}

// Parent has a child for a Maker, at most one.
type Parent interface {
	// Fork starts it. ErrNotDelegable: the parent knows nothing of it.
	Fork(ctx context.Context, c Child) (pid int, err error)

	// Terminal takes the controlling side of the process' terminal.
	Terminal(ctx context.Context, f *os.File) error

	// End says how the child ended, and kills it if it lives. Idempotent.
	End(ctx context.Context) (syscall.WaitStatus, error)
}

// Child is a process as a Maker wants it. Whoever made it closes the files.
type Child struct {
	Program *os.File // is executed
	Args    []string
	Env     []string
	Null    *os.File   // for those of the standard streams that are the null device
	Files   []*os.File // its descriptors from the fourth on; at most MaxChildFiles
	Flags   uintptr    // CLONE_NEW* of clone(2)
	Cgroup  *os.File   // of version 2, to be born in; nil: the parent's
}

// MaxChildFiles is how many files a Child can have: with the others they go with one
// message of a socket, which takes 253 (SCM_MAX_FD of the kernel's include/net/scm.h).
const MaxChildFiles = 200

package native

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// holdArg, alone, has the program do nothing, for as long as who started it lives.
const holdArg = "hold"

// hold waits until nobody has the other end of its standard input.
func hold() int {
	var b [1]byte
	for {
		if _, err := unix.Read(0, b[:]); err != unix.EINTR {
			return 0
		}
	}
}

// holder is a process that does nothing: a scope of systemd's, which is there only while somebody
// is in it, is made with it, and the container's process is born into what is there
// then. When we are killed it ends, and the scope with it.
type holder struct {
	pid  int
	pipe int
}

func newHolder(program string) (*holder, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("pipe", err)
	}
	defer unix.Close(p[0])
	pid, err := syscall.ForkExec(program, []string{"escale-runtime", holdArg}, &syscall.ProcAttr{Env: insideEnv, Files: []uintptr{uintptr(p[0])}})
	if err != nil {
		unix.Close(p[1])
		return nil, fmt.Errorf("starting what holds the cgroup: %w", err)
	}
	return &holder{pid, p[1]}, nil
}

// end ends it and collects it. Idempotent, also of none.
func (h *holder) end() {
	if h == nil || h.pid == 0 {
		return
	}
	_ = unix.Close(h.pipe)
	_ = unix.Kill(h.pid, unix.SIGKILL) // not collected yet: the number is its own
	var ws unix.WaitStatus
	for {
		if _, err := unix.Wait4(h.pid, &ws, 0, nil); err != unix.EINTR {
			h.pid = 0
			return
		}
	}
}

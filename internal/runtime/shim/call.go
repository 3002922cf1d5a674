package shim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"escale.dev/escale/internal/runtime"
	"golang.org/x/sys/unix"
)

// callPatience is how long an OCI runtime may take to update or delete a container.
const callPatience = 30 * time.Second

// errHung is how a call of an OCI runtime ends that did not come back.
var errHung = errors.New("it did not come back in time and was ended")

// call runs the OCI runtime and gives what it said. One that does not come back
// is ended with all it has started.
func (r *Runtime) call(ctx context.Context, b runtime.Binary, stdin []byte, args ...string) ([]byte, error) {
	brief, cancel := context.WithTimeout(ctx, r.patience)
	defer cancel()
	cmd := exec.CommandContext(brief, b.Path, append(append([]string{}, b.Args...), args...)...)
	cmd.Env = environ[len(settings):]
	if stdin != nil {
		cmd.Stdin = bytes.NewReader(stdin)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error {
		endTree(cmd.Process.Pid, nil)
		return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // with whom it has lost
	}
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil && brief.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("OCI runtime %s: %w", b.Path, errHung)
	}
	return out, err
}

// endTree kills a process and all that descends from it, unless it is not (any
// more) the one that is meant.
func endTree(pid int, meant func() bool) {
	f, err := pidfdOpen(pid)
	if err != nil {
		return // it has ended
	}
	defer f.Close()
	if meant != nil && !meant() {
		return
	}
	_ = unix.PidfdSendSignal(int(f.Fd()), unix.SIGSTOP, nil, 0) // it starts nobody meanwhile
	killed, _ := killBelow(pid)
	closeAll(killed)
	_ = unix.PidfdSendSignal(int(f.Fd()), unix.SIGKILL, nil, 0) // gone at the worst
}

// endExec ends the OCI runtime that is at work on the exec whose process stands in file.
func (t *Task) endExec(file string) {
	for _, pid := range children(t.Monitor()) {
		meant := func() bool {
			line, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
			return err == nil && bytes.Contains(line, []byte("\x00"+file+"\x00"))
		}
		if meant() {
			endTree(pid, meant)
		}
	}
}

// Package hooks runs the hooks of a bundle (OCI runtime specification,
// config.md, "POSIX-platform Hooks").
package hooks

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime/native/codec"
)

// maxOutput is how much of what a hook prints is kept for its error, in bytes.
const maxOutput = 64 << 10

// Run runs hooks one after the other, with the state on their standard input, and
// blocks until they have ended. All descriptors of the process but the first three are
// closed at execve from then on. The first that fails, or takes longer than it
// may, ends it with an error in runc's words.
func Run(kind string, list []specs.Hook, state *specs.State) error {
	if len(list) == 0 {
		return nil
	}
	// Whatever is open here, of the caller's too, is none of theirs.
	if err := unix.CloseRange(3, 1<<31-1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return os.NewSyscallError("close_range", err)
	}
	in, err := codec.WriteState(state)
	if err != nil {
		return err
	}
	for i, h := range list {
		if err := run(h, in); err != nil {
			return fmt.Errorf("error running %s hook #%d: %w", kind, i, err)
		}
	}
	return nil
}

func run(h specs.Hook, state []byte) error {
	in, tell, err := os.Pipe()
	if err != nil {
		return err
	}
	defer tell.Close()
	said, out, err := os.Pipe()
	if err != nil {
		in.Close()
		return err
	}
	defer said.Close()
	args := h.Args
	if len(args) == 0 {
		args = []string{h.Path}
	}
	env := h.Env
	if env == nil {
		env = []string{}
	}
	p, err := os.StartProcess(h.Path, args, &os.ProcAttr{Env: env, Files: []*os.File{in, out, out}})
	in.Close()
	out.Close()
	if err != nil {
		return err
	}
	go func() {
		_, _ = tell.Write(state) // a hook need not read it
		tell.Close()
	}()
	text := make(chan []byte, 1)
	go func() {
		b, _ := io.ReadAll(io.LimitReader(said, maxOutput)) // what could be read will do
		text <- b
		_, _ = io.Copy(io.Discard, said)
	}()
	return wait(p, h.Timeout, text)
}

// wait waits for a hook, but not for what it has left in the background.
func wait(p *os.Process, timeout *int, text <-chan []byte) error {
	type end struct {
		state *os.ProcessState
		err   error
	}
	ended := make(chan end, 1)
	go func() {
		s, err := p.Wait()
		ended <- end{s, err}
	}()
	var late <-chan time.Time
	if timeout != nil && *timeout > 0 {
		timer := time.NewTimer(time.Duration(*timeout) * time.Second)
		defer timer.Stop()
		late = timer.C
	}
	select {
	case e := <-ended:
		if e.err != nil || e.state.Success() {
			return e.err
		}
		var said []byte
		select {
		case said = <-text:
		case <-time.After(100 * time.Millisecond):
		}
		return fmt.Errorf("%s, stdout: , stderr: %s", e.state, bytes.TrimSpace(said))
	case <-late:
		_ = p.Kill() // it may have ended this moment
		<-ended
		return fmt.Errorf("hook ran past specified timeout of %.1fs", float64(*timeout))
	}
}

package native

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime/native/codec"
	"escale.dev/escale/internal/runtime/native/plan"
)

// conversation is what is said with a half inside until its program runs.
type conversation struct {
	*inner
	plan  *plan.Plan
	trees []*os.File // those that follow the plan
}

// run has the half inside carry out the plan. outside runs the hooks that belong
// there; ready is called when all is set but the program itself. wait: until the
// program runs, or could not.
func (i *conversation) run(outside, ready func() error, wait bool) error {
	if err := i.begin(outside); err != nil {
		return err
	}
	if i.plan.Process.Terminal {
		if err := i.passTerminal(); err != nil {
			return err
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
		return i.parent.givenUp() // by our own end of it nothing is said of the program
	}
	return err
}

// begin says what is to be done, and runs the hooks that belong outside.
func (i *conversation) begin(outside func() error) error {
	if err := codec.SendPlan(i.socket, i.plan); err != nil {
		return i.words(err)
	}
	for _, f := range i.trees {
		if err := plan.SendFile(i.socket, plan.KindTree, int(f.Fd())); err != nil {
			return i.words(err)
		}
	}
	if !i.plan.HooksOutside {
		return nil
	}
	if _, err := plan.Expect(i.socket, plan.KindHooks); err != nil {
		return i.words(err)
	}
	if err := outside(); err != nil {
		return err
	}
	if err := plan.Send(i.socket, plan.KindHooks, nil); err != nil {
		return i.words(err)
	}
	return nil
}

// words is the error of a conversation: what the other half has said, or how it ended.
func (i *conversation) words(err error) error {
	var said *plan.Refusal
	if errors.As(err, &said) {
		return said
	}
	// It may have spoken before it went.
	if kind, body, rerr := plan.Receive(i.socket); rerr == nil && kind == plan.KindError {
		return &plan.Refusal{Words: string(body)}
	}
	gone := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET)
	if !gone {
		return fmt.Errorf("container init: %w", err)
	}
	if ws, ok := i.parent.ended(i.pid); ok && ws.Signaled() {
		return fmt.Errorf("container init was killed by signal %d (memory limit too low?)", ws.Signal())
	}
	return fmt.Errorf("container init: %w", err)
}

// passTerminal hands the controlling side of the terminal to whoever called.
func (i *conversation) passTerminal() error {
	terminal, err := plan.ReceiveFile(i.socket, plan.KindTerminal)
	if err != nil {
		return i.words(err)
	}
	return i.parent.terminal(terminal)
}

// terminal sends it over the socket of --console-socket. It connects only now: who takes
// it may wait for it from the connection on.
func (s self) terminal(terminal *os.File) error {
	defer terminal.Close()
	// It does not wait for who does not accept: meanwhile nobody would collect what is inside
	// should the container end, and that would not be over.
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: s.console}); err != nil {
		return fmt.Errorf("console socket: %w", &os.PathError{Op: "connect", Path: s.console, Err: err})
	}
	if err := unix.Sendmsg(fd, []byte("/dev/ptmx"), unix.UnixRights(int(terminal.Fd())), nil, 0); err != nil {
		return fmt.Errorf("console socket: %w", os.NewSyscallError("sendmsg", err))
	}
	return nil
}

package cli

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/moby/moby/api/types/container"
	moby "github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cli/tty"
)

// attachment says which of a container's streams to join and how.
type attachment struct {
	stdin, stdout, stderr bool
	tty                   bool
	detachKeys            string // the flag's value
}

// stream joins an open connection to this process's streams.
func (a *app) stream(h moby.HijackedResponse, at attachment) (*tty.Stream, error) {
	_, keys, err := a.detachKeys(at.detachKeys)
	if err != nil {
		return nil, err
	}
	s := &tty.Stream{
		Conn: h.Conn, Reader: h.Reader, CloseWrite: h.CloseWrite,
		TTY: at.tty, DetachKeys: keys,
	}
	if at.stdin {
		s.In = a.in
	}
	if at.stdout {
		s.Out = a.out
	}
	if at.stderr {
		s.Err = a.err
		if at.tty {
			s.Err = a.out
		}
	}
	return s, nil
}

// attach opens a container's streams. The connection exists when it returns,
// so that a container started afterwards loses no byte.
func (a *app) attach(ctx context.Context, c *client.Client, id string, at attachment) (*tty.Stream, func(), error) {
	text, _, err := a.detachKeys(at.detachKeys)
	if err != nil {
		return nil, nil, err
	}
	r, err := c.ContainerAttach(ctx, id, moby.ContainerAttachOptions{
		Stream: true, Stdin: at.stdin, Stdout: at.stdout, Stderr: at.stderr, DetachKeys: text,
	})
	if err != nil {
		return nil, nil, err
	}
	s, err := a.stream(r.HijackedResponse, at)
	if err != nil {
		r.Close()
		return nil, nil, err
	}
	return s, r.Close, nil
}

// exitOf waits for a container's exit, or for its removal when it removes
// itself. The engine has taken note of the wish when exitOf returns, so that a
// container started afterwards cannot end unseen. The channel gets one value,
// or none when ctx is done first.
func (a *app) exitOf(ctx context.Context, c *client.Client, id string, removed bool) <-chan int {
	cond := container.WaitConditionNextExit
	if removed {
		cond = container.WaitConditionRemoved
	}
	w := c.ContainerWait(ctx, id, moby.ContainerWaitOptions{Condition: cond})
	code := make(chan int, 1)
	go func() {
		select {
		case r := <-w.Result:
			if r.Error != nil {
				a.complain("Error waiting for container:", r.Error.Message)
				code <- 125
				return
			}
			code <- int(r.StatusCode)
		case err := <-w.Error:
			if errors.Is(err, context.Canceled) {
				return // nobody waits for the answer any more
			}
			a.complain("error waiting for container:", err)
			code <- 125
		}
	}()
	return code
}

// follow runs an attached stream of a started container to its end and gives
// the container's exit code as an error.
func follow(ctx context.Context, cancel func(), s *tty.Stream, done <-chan error, code <-chan int) error {
	select {
	case err := <-done:
		switch {
		case errors.Is(err, tty.ErrDetached):
			return nil
		case err != nil:
			return err
		}
		select {
		case c := <-code:
			return exitWith(c)
		case <-ctx.Done():
			return ctx.Err()
		}
	case c := <-code:
		if s.Out == nil && s.Err == nil {
			cancel() // only input is attached: nothing will end it
		}
		<-done
		return exitWith(c)
	}
}

// forwardSignals sends every signal that comes to this process on to the
// container until stop is called.
func (a *app) forwardSignals(ctx context.Context, c *client.Client, id string) (stop func()) {
	sigs := make(chan os.Signal, 128)
	signal.Notify(sigs)
	ctx = context.WithoutCancel(ctx) // the signal that ended ctx must go out too
	quit := make(chan struct{})
	go func() {
		for {
			select {
			case s := <-sigs:
				if name := forwardable(s); name != "" {
					// A container that has just ended takes no signal; its exit
					// is reported elsewhere.
					_, _ = c.ContainerKill(ctx, id, moby.ContainerKillOptions{Signal: name})
				}
			case <-quit:
				return
			}
		}
	}()
	return func() {
		signal.Stop(sigs)
		close(quit)
	}
}

// forwardable names a signal for the engine; "" for those that are about this
// process alone (its children, its pipes, its window, the Go runtime).
func forwardable(s os.Signal) string {
	n, ok := s.(syscall.Signal)
	if !ok {
		return ""
	}
	switch n {
	case syscall.SIGCHLD, syscall.SIGPIPE, syscall.SIGURG, syscall.SIGWINCH:
		return ""
	}
	if name := unix.SignalName(n); name != "" {
		return strings.TrimPrefix(name, "SIG")
	}
	return strconv.Itoa(int(n))
}

// watchSize keeps a container's terminal as large as this process's: now, and
// whenever the window changes, until ctx is done. resize must not block for
// long.
func (a *app) watchSize(ctx context.Context, resize func(ctx context.Context, rows, cols uint) error) {
	if !tty.IsTerminal(a.out) {
		return
	}
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	now := func() error {
		rows, cols := tty.Size(a.out)
		if rows == 0 && cols == 0 {
			return nil
		}
		return resize(ctx, rows, cols)
	}
	go func() {
		defer signal.Stop(changed)
		// The process may not be there yet when the first size is sent.
		for i := range 10 {
			if now() == nil {
				break
			}
			select {
			case <-time.After(time.Duration(i+1) * 10 * time.Millisecond):
			case <-ctx.Done():
				return
			}
		}
		for {
			select {
			case <-changed:
				_ = now()
			case <-ctx.Done():
				return
			}
		}
	}()
}

func resizeContainer(c *client.Client, id string) func(context.Context, uint, uint) error {
	return func(ctx context.Context, rows, cols uint) error {
		_, err := c.ContainerResize(ctx, id, moby.ContainerResizeOptions{Height: rows, Width: cols})
		return err
	}
}

package verb

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// Terminated is the cause of a context that a signal has ended.
type Terminated struct{ Sig syscall.Signal }

func (t Terminated) Error() string { return t.Sig.String() }

// Is makes it a cancellation for whoever asks.
func (t Terminated) Is(err error) bool { return err == context.Canceled }

// WithSignals ends the context at the first signal that asks the program to end, so
// that every way out restores the terminal and removes half-made files.
func WithSignals(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	go func() {
		if s, ok := <-c; ok {
			cancel(Terminated{s.(syscall.Signal)})
		}
	}()
	return ctx, func() {
		signal.Stop(c)
		close(c)
		cancel(nil)
	}
}

// Interrupted tells whether Ctrl-C has ended the context.
func Interrupted(ctx context.Context) bool {
	t, ok := context.Cause(ctx).(Terminated)
	return ok && t.Sig == syscall.SIGINT
}

package tty

import (
	"context"
	"errors"
	"io"

	"github.com/moby/moby/api/pkg/stdcopy"
)

// Stream is a container's standard streams joined to this process's.
// Streams that are nil stay unattached.
type Stream struct {
	In       io.Reader
	Out, Err io.Writer
	// Conn carries input to the container and Reader what comes from it.
	Conn   io.Writer
	Reader io.Reader
	// CloseWrite tells the other side that no more input comes.
	CloseWrite func() error
	// TTY tells that the container has a terminal: output comes as it is, and
	// input is read raw, watched for DetachKeys.
	TTY        bool
	DetachKeys []byte
}

// Run copies until the container's output ends, the detach keys are typed
// ([ErrDetached]) or ctx is done. It leaves the terminal as it found it.
// Input that is still being read when it returns is left to its fate: nothing
// portable ends a read of a terminal.
func (s *Stream) Run(ctx context.Context) error {
	restore := func() {}
	if s.In != nil && s.TTY {
		var err error
		if restore, err = Raw(s.In); err != nil {
			return err
		}
		s.In = NewDetachReader(s.In, s.DetachKeys)
	}
	defer restore()
	output, input := s.copyOut(), s.copyIn()
	for {
		select {
		case err := <-output:
			return err
		case err := <-input:
			if errors.Is(err, ErrDetached) {
				return err
			}
			if output == nil {
				return nil
			}
			input = nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// copyOut returns nil when no output is attached.
func (s *Stream) copyOut() <-chan error {
	if s.Out == nil && s.Err == nil {
		return nil
	}
	done := make(chan error, 1)
	go func() { done <- s.Output() }()
	return done
}

// Output copies only what comes from the container, until it ends.
func (s *Stream) Output() error {
	var err error
	if s.TTY && s.Out != nil {
		_, err = io.Copy(s.Out, s.Reader)
	} else {
		_, err = stdcopy.StdCopy(orDiscard(s.Out), orDiscard(s.Err), s.Reader)
	}
	return err
}

func (s *Stream) copyIn() <-chan error {
	done := make(chan error, 1)
	go func() {
		if s.In != nil {
			if _, err := io.Copy(s.Conn, s.In); errors.Is(err, ErrDetached) {
				done <- err
				return
			}
		}
		// A failed write means that the container is gone; its output says so.
		_ = s.CloseWrite()
		done <- nil
	}()
	return done
}

func orDiscard(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

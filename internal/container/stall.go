package container

import (
	"io"
	"time"
)

// stallPatience is how long a client that moves files out of a stopped container,
// or into it, may stand still while somebody else wants the container.
const stallPatience = 10 * time.Second

// errStalled is how a client is given up that stood still.
var errStalled = kindf(errConflict, "the transfer stood still while the container was wanted elsewhere, and was given up")

// transfer lets the holder of a container's lock move bytes from or to a client
// without being held up by it: where the client stands still, the move fails, and
// finish waits for it when the lock is given back. Not for concurrent use.
type transfer struct {
	lock *opLock // nil: nothing is held, clients may take their time
	r    io.Reader
	w    io.Writer

	buf   []byte
	stuck chan moved // the move that was given up; nil: none
}

type moved struct {
	n   int
	err error
}

// Read is io.Reader over the client.
func (t *transfer) Read(p []byte) (int, error) {
	if t.lock == nil {
		return t.r.Read(p)
	}
	t.size(len(p))
	m := t.move(t.r.Read)
	return copy(p, t.buf[:m.n]), m.err
}

// Write is io.Writer over the client.
func (t *transfer) Write(p []byte) (int, error) {
	if t.lock == nil {
		return t.w.Write(p)
	}
	if t.stuck != nil {
		return 0, errStalled
	}
	t.size(len(p))
	copy(t.buf, p)
	m := t.move(t.w.Write)
	return m.n, m.err
}

// size makes buf n bytes that are not the caller's: a move that was given up may
// still touch them, and then they stay as they are.
func (t *transfer) size(n int) {
	switch {
	case t.stuck != nil:
	case cap(t.buf) < n:
		t.buf = make([]byte, n)
	default:
		t.buf = t.buf[:n]
	}
}

// move does one move with buf.
func (t *transfer) move(do func([]byte) (int, error)) moved {
	if t.stuck != nil {
		return moved{0, errStalled}
	}
	done := make(chan moved, 1)
	go func() {
		n, err := do(t.buf)
		done <- moved{n, err}
	}()
	wanted, urgent := t.lock.signals()
	select {
	case m := <-done:
		return m
	case <-urgent:
	case <-wanted:
		timer := time.NewTimer(stallPatience)
		defer timer.Stop()
		select {
		case m := <-done:
			return m
		case <-urgent:
		case <-timer.C:
		}
	}
	t.stuck = done
	return moved{0, errStalled}
}

// finish waits for a move that was given up: the client's connection is in use
// until then.
func (t *transfer) finish() {
	if t.stuck != nil {
		<-t.stuck
	}
}

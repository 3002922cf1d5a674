package image

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/go-digest"
)

// hanging is a body that comes to its end, an error, only when it is told.
type hanging struct{ until chan error }

func (h hanging) Read([]byte) (int, error) { return 0, <-h.until }

// A fetch that fails is its caller's alone, one who gives up waiting is gone, and what
// was fetched is everybody's who is there, and then nobody's.
func TestSharedConfig(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeRegistry()
		d := f.blob("application/json", []byte("{}"))
		refused := errors.New("refused")
		until, first := make(chan error), true
		f.body = func(digest.Digest, []byte, int64) io.Reader {
			if first {
				first = false
				return hanging{until}
			}
			return nil
		}
		m := newRemotes(&Store{})
		type got struct {
			data []byte
			err  error
		}
		get := func(ctx context.Context) <-chan got {
			out := make(chan got, 1)
			c, leave := m.useConfig(d.Digest)
			go func() {
				defer leave()
				data, err := c.get(ctx, f, m.bounds.Load(), d)
				out <- got{data, err}
			}()
			synctest.Wait()
			return out
		}
		stays, leave := m.useConfig(d.Digest)
		one := get(t.Context())
		impatient, giveUp := context.WithCancelCause(t.Context())
		two, three := get(impatient), get(t.Context())
		giveUp(refused)
		if r := <-two; !errors.Is(r.err, refused) {
			t.Errorf("given up: %q, %v", r.data, r.err)
		}
		until <- refused
		if r := <-one; !errors.Is(r.err, refused) {
			t.Errorf("the first: %q, %v", r.data, r.err)
		}
		if r := <-three; r.err != nil || string(r.data) != "{}" {
			t.Errorf("the next: %q, %v", r.data, r.err)
		}
		if data, err := stays.get(t.Context(), f, m.bounds.Load(), d); err != nil || string(data) != "{}" {
			t.Errorf("who comes later: %q, %v", data, err)
		}
		if n := f.opened[d.Digest]; n != 2 {
			t.Errorf("fetched %d times, want 2", n)
		}
		leave()
		synctest.Wait()
		if len(m.configs) != 0 {
			t.Errorf("left: %v", m.configs)
		}
	})
}

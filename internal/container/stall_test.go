package container

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"
)

// A client may stand still as long as nobody wants the container, then for
// stallPatience, and not at all where it is removed by force.
func TestTransferThatStandsStill(t *testing.T) {
	for _, c := range []struct {
		name  string
		want  func(l *opLock, ctx context.Context) error
		after time.Duration
	}{
		{"wanted", (*opLock).lock, time.Hour + stallPatience},
		{"by force", (*opLock).force, time.Hour},
	} {
		synctest.Test(t, func(t *testing.T) {
			begun := time.Now()
			l := newOpLock()
			if err := l.lock(t.Context()); err != nil {
				t.Fatal(err)
			}
			r, w := io.Pipe()
			out := transfer{lock: l, w: w}
			got := make(chan error, 1)
			time.AfterFunc(time.Hour, func() { got <- c.want(l, t.Context()) })
			_, err := out.Write([]byte("bytes"))
			if took := time.Since(begun); !errors.Is(err, errStalled) || took != c.after {
				t.Errorf("%s: %v after %s", c.name, err, took)
			}
			if _, err := out.Write(nil); !errors.Is(err, errStalled) {
				t.Errorf("%s: a later write: %v", c.name, err)
			}
			l.unlock()
			if err := <-got; err != nil {
				t.Error(err)
			}
			r.Close() // the client goes
			out.finish()
		})
	}
}

// What moves is moved whole, whoever waits meanwhile.
func TestTransferThatMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newOpLock()
		if err := l.lock(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		waited := make(chan error, 1)
		go func() { waited <- l.lock(ctx) }()
		synctest.Wait()
		want := bytes.Repeat([]byte("0123456789"), 10000)
		r, w := io.Pipe()
		go func() {
			for b := want; len(b) > 0; b = b[min(len(b), 777):] {
				time.Sleep(stallPatience / 2)
				w.Write(b[:min(len(b), 777)])
			}
			w.Close()
		}()
		var got bytes.Buffer
		in := transfer{lock: l, r: r}
		out := transfer{lock: l, w: &got}
		if _, err := io.Copy(struct{ io.Writer }{&out}, struct{ io.Reader }{&in}); err != nil || !bytes.Equal(got.Bytes(), want) {
			t.Errorf("%d bytes of %d, %v", got.Len(), len(want), err)
		}
		cancel()
		if err := <-waited; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if wanted, _ := l.signals(); func() bool {
			select {
			case <-wanted:
				return true
			default:
				return false
			}
		}() {
			t.Error("still wanted by nobody")
		}
	})
}

// Moves of changing sizes carry the caller's bytes: a short one before a long one
// leaves nothing of itself.
func TestTransferOfManySizes(t *testing.T) {
	l := newOpLock()
	if err := l.lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	var got, want bytes.Buffer
	out := transfer{lock: l, w: &got}
	for i, n := range []int{9, 512, 3, 0, 4096, 512, 9} {
		b := bytes.Repeat([]byte{byte('a' + i)}, n)
		want.Write(b)
		if m, err := out.Write(b); m != n || err != nil {
			t.Fatalf("%d bytes: %d, %v", n, m, err)
		}
	}
	if !bytes.Equal(got.Bytes(), want.Bytes()) {
		t.Errorf("%d bytes arrived, not the %d that were sent", got.Len(), want.Len())
	}
}

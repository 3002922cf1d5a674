package tty

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

func TestParseKeys(t *testing.T) {
	for in, want := range map[string]string{
		"ctrl-p,ctrl-q": "\x10\x11", "a": "a", "ctrl-@": "\x00", "ctrl-[": "\x1b", "CTRL-_": "\x1f", "ctrl-\\,x,ctrl-]": "\x1cx\x1d", "ctrl-^": "\x1e",
	} {
		got, err := ParseKeys(in)
		if err != nil || string(got) != want {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"", "ab", "ctrl-", "ctrl-1", "ctrl-pp", "a,,b", "é"} {
		if k, err := ParseKeys(in); err == nil {
			t.Errorf("%q: %q", in, k)
		}
	}
}

func TestDetachReader(t *testing.T) {
	for _, c := range []struct {
		keys, in, want string
		detached       bool
	}{
		{"\x10\x11", "hello", "hello", false},
		{"\x10\x11", "a\x10\x11b", "", true},
		{"\x10\x11", "a\x10b\x10\x10c", "a\x10b\x10\x10c", false},
		{"\x10\x11", "a\x10", "a\x10", false},
		{"\x10\x11", "\x10\x10\x11", "", true},
		{"x", "abx", "", true},
		{"", "a\x10\x11", "a\x10\x11", false},
	} {
		for name, wrap := range map[string]func(io.Reader) io.Reader{
			"whole": func(r io.Reader) io.Reader { return r }, "bytes": iotest.OneByteReader, "data with error": iotest.DataErrReader,
		} {
			var keys []byte
			if c.keys != "" {
				keys = []byte(c.keys)
			}
			got, err := io.ReadAll(NewDetachReader(wrap(strings.NewReader(c.in)), keys))
			if errors.Is(err, ErrDetached) != c.detached || !c.detached && (string(got) != c.want || err != nil) {
				t.Errorf("%q %s: %q, %v", c.in, name, got, err)
			}
		}
	}
}

func FuzzDetachReader(f *testing.F) {
	f.Add([]byte("ab\x10\x11"), []byte("\x10\x11"))
	f.Add([]byte("aab"), []byte("ab"))
	f.Fuzz(func(t *testing.T, in, keys []byte) {
		got, err := io.ReadAll(NewDetachReader(iotest.HalfReader(bytes.NewReader(in)), keys))
		if err == nil && !bytes.Equal(got, in) {
			t.Errorf("%q became %q", in, got)
		}
		if errors.Is(err, ErrDetached) && !bytes.Contains(in, keys) {
			t.Errorf("detached by %q without %q", in, keys)
		}
	})
}

func TestStream(t *testing.T) {
	var out, errw bytes.Buffer
	frames := "\x01\x00\x00\x00\x00\x00\x00\x03out\x02\x00\x00\x00\x00\x00\x00\x03err"
	s := &Stream{Out: &out, Err: &errw, Reader: strings.NewReader(frames), Conn: io.Discard, CloseWrite: func() error { return nil }}
	if err := s.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	if out.String() != "out" || errw.String() != "err" {
		t.Errorf("%q %q", out.String(), errw.String())
	}
	// Input that never ends does not keep the stream, nor does output when the
	// context ends.
	r, w := io.Pipe()
	defer w.Close()
	s = &Stream{In: r, Out: &out, Reader: strings.NewReader(""), Conn: io.Discard, CloseWrite: func() error { return nil }}
	if err := s.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	s = &Stream{Out: &out, Reader: r, Conn: io.Discard, CloseWrite: func() error { return nil }}
	if err := s.Run(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

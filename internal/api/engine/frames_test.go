package engine

import (
	"bytes"
	"errors"
	"testing"
)

// pipeEnd keeps what is written, up to a limit.
type pipeEnd struct {
	bytes.Buffer
	limit int
}

func (p *pipeEnd) Close() error { return nil }
func (p *pipeEnd) Write(b []byte) (int, error) {
	if p.limit > 0 && p.Len()+len(b) > p.limit {
		return 0, errors.New("full")
	}
	return p.Buffer.Write(b)
}

func TestFramesAsAsked(t *testing.T) {
	frames := []byte("\x01\x00\x00\x00\x00\x00\x00\x03out\x02\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x04err\n")
	for size := 1; size <= len(frames); size++ { // cut wherever it may be
		end := &pipeEnd{}
		w := asAsked(end, true, false)
		for b := frames; len(b) > 0; b = b[min(size, len(b)):] {
			n := min(size, len(b))
			if got, err := w.Write(b[:n]); err != nil || got != n {
				t.Fatalf("%d of %d written: %v", got, n, err)
			}
		}
		if end.String() != "out" {
			t.Fatalf("in pieces of %d: %q", size, end.String())
		}
	}
	end := &pipeEnd{}
	if n, err := asAsked(end, false, true).Write([]byte("hi")); n != 2 || err != nil || end.String() != "\x01\x00\x00\x00\x00\x00\x00\x02hi" {
		t.Errorf("%d %v %q", n, err, end.String())
	}
	for _, raw := range []bool{true, false} {
		if end := (&pipeEnd{}); asAsked(end, raw, raw) != end {
			t.Error("a stream that fits is changed")
		}
	}
	if n, err := asAsked(&pipeEnd{limit: 1}, true, false).Write(frames); err == nil || n >= len(frames) {
		t.Errorf("%d bytes written to a full end: %v", n, err)
	}
}

func FuzzUnframed(f *testing.F) {
	f.Add([]byte("\x01\x00\x00\x00\x00\x00\x00\x03out"), 2)
	f.Fuzz(func(t *testing.T, b []byte, size int) {
		whole, cut := &pipeEnd{}, &pipeEnd{}
		w := asAsked(whole, true, false)
		if n, err := w.Write(b); n != len(b) || err != nil {
			t.Fatal(n, err)
		}
		w = asAsked(cut, true, false)
		size = max(1, size%64)
		for rest := b; len(rest) > 0; rest = rest[min(size, len(rest)):] {
			if _, err := w.Write(rest[:min(size, len(rest))]); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(whole.Bytes(), cut.Bytes()) {
			t.Errorf("%q whole, %q in pieces of %d", whole.Bytes(), cut.Bytes(), size)
		}
	})
}

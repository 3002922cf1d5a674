package container

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

func TestDetachReader(t *testing.T) {
	for _, c := range []struct {
		name, in, out string
		detached      bool
	}{
		{"plain", "hello", "hello", false},
		{"keys", "ab\x10\x11cd", "ab", true},
		{"first key alone", "a\x10b", "a\x10b", false},
		{"first key twice", "a\x10\x10\x11", "a\x10", true},
		{"first key at the end", "a\x10", "a\x10", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			for name, r := range map[string]io.Reader{"whole": bytes.NewBufferString(c.in), "byte by byte": iotest.OneByteReader(bytes.NewBufferString(c.in))} {
				got, err := io.ReadAll(&detachReader{r: r, keys: []byte{16, 17}})
				if string(got) != c.out || errors.Is(err, errDetached) != c.detached {
					t.Errorf("%s: got %q, %v; want %q, detached %v", name, got, err, c.out, c.detached)
				}
			}
		})
	}
}

func TestDetachSequence(t *testing.T) {
	for in, want := range map[string]string{"": "\x10\x11", "ctrl-a": "\x01", "a,b": "ab", "ctrl-@,ctrl-[,ctrl-_": "\x00\x1b\x1f", "ctrl-p,x": "\x10x"} {
		got, err := detachSequence(in)
		if err != nil || string(got) != want {
			t.Errorf("%q: got %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"ctrl-", "ctrl-1", "ab", ",", "ctrl-P"} {
		if got, err := detachSequence(in); err == nil {
			t.Errorf("%q: got %q, want an error", in, got)
		}
	}
}

func TestOnlyTerminalsDetach(t *testing.T) {
	for _, terminal := range []bool{true, false} {
		keys, err := detachKeys("", terminal)
		if err != nil || (len(keys) > 0) != terminal {
			t.Errorf("terminal %v: keys %v, %v", terminal, keys, err)
		}
		if _, err := detachKeys("no-such", terminal); err == nil {
			t.Errorf("terminal %v: bad keys are taken", terminal)
		}
	}
}

func FuzzDetachReader(f *testing.F) {
	f.Add([]byte("a\x10\x10\x11b"), []byte{16, 17})
	f.Fuzz(func(t *testing.T, in, keys []byte) {
		if len(keys) == 0 || len(keys) > 8 {
			return
		}
		got, err := io.ReadAll(&detachReader{r: iotest.HalfReader(bytes.NewReader(in)), keys: keys})
		if !bytes.HasPrefix(in, got) {
			t.Fatalf("%q passed on as %q", in, got)
		}
		if err == nil && len(got) != len(in) {
			t.Fatalf("%q lost bytes: %q", in, got)
		}
	})
}

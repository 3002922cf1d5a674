// Package tty deals with the terminal that a command runs on: raw mode, its
// size, the keys that detach from a container, and prompts. Where a stream is
// no terminal its functions do nothing.
package tty

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"golang.org/x/term"
)

// IsTerminal reports whether v, a reader or writer, is a terminal.
func IsTerminal(v any) bool {
	f, ok := v.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// Size gives the rows and columns of the terminal v, zeros where it is none.
func Size(v any) (rows, cols uint) {
	f, ok := v.(*os.File)
	if !ok {
		return 0, 0
	}
	w, h, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0, 0
	}
	return uint(h), uint(w)
}

// Raw puts the terminal v into raw mode. The function it returns restores it;
// it may be called any number of times, from any goroutine.
func Raw(v any) (restore func(), err error) {
	f, ok := v.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) || os.Getenv("NORAW") != "" {
		return func() {}, nil
	}
	state, err := term.MakeRaw(int(f.Fd()))
	if err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	return sync.OnceFunc(func() { _ = term.Restore(int(f.Fd()), state) }), nil
}

// ErrDetached is what a [DetachReader] ends with when the keys were typed.
var ErrDetached = errors.New("read escape sequence")

// DefaultDetachKeys are Ctrl-P, Ctrl-Q.
var DefaultDetachKeys = []byte{16, 17}

// ReadPassword reads a line from a terminal that does not show it. It blocks
// until the line has ended.
func ReadPassword(f *os.File) (string, error) {
	b, err := term.ReadPassword(int(f.Fd()))
	return string(b), err
}

// ParseKeys reads a list of keys joined by commas: single characters and
// ctrl-X, where X is a letter or one of @ [ \ ] ^ _.
func ParseKeys(s string) ([]byte, error) {
	var keys []byte
	for _, k := range strings.Split(s, ",") {
		if len(k) == 1 {
			keys = append(keys, k[0])
			continue
		}
		c, ok := strings.CutPrefix(strings.ToLower(k), "ctrl-")
		if !ok || len(c) != 1 {
			return nil, fmt.Errorf("invalid detach keys (%s): unknown key %q", s, k)
		}
		switch {
		case c[0] >= 'a' && c[0] <= 'z':
			keys = append(keys, c[0]-'a'+1)
		case c[0] == '@':
			keys = append(keys, 0)
		case c[0] >= '[' && c[0] <= '_':
			keys = append(keys, c[0]-'['+27)
		default:
			return nil, fmt.Errorf("invalid detach keys (%s): unknown key %q", s, k)
		}
	}
	return keys, nil
}

// DetachReader hands on what it reads until the detach keys come in a row. A
// part of the sequence is held back until the next key decides what it was.
type DetachReader struct {
	in      io.Reader
	keys    []byte
	held    int    // how many keys of the sequence have come
	pending []byte // decided bytes that did not fit the caller's buffer
}

// NewDetachReader reads from in and watches for keys; without keys it watches
// for nothing.
func NewDetachReader(in io.Reader, keys []byte) *DetachReader {
	return &DetachReader{in: in, keys: keys}
}

// Read returns [ErrDetached] once the sequence is complete.
func (d *DetachReader) Read(p []byte) (int, error) {
	if len(d.keys) == 0 {
		return d.in.Read(p)
	}
	for {
		if len(d.pending) > 0 {
			n := copy(p, d.pending)
			d.pending = d.pending[n:]
			return n, nil
		}
		buf := make([]byte, max(len(p), 1))
		n, err := d.in.Read(buf)
		if detached := d.sift(buf[:n]); detached {
			return 0, ErrDetached
		}
		if err != nil && len(d.pending) == 0 {
			d.pending = append(d.pending, d.keys[:d.held]...)
			d.held = 0
			if len(d.pending) == 0 {
				return 0, err
			}
		}
	}
}

// sift appends to pending what is no part of the sequence.
func (d *DetachReader) sift(b []byte) bool {
	for _, c := range b {
		if c == d.keys[d.held] {
			d.held++
			if d.held == len(d.keys) {
				d.held = 0
				return true
			}
			continue
		}
		d.pending = append(d.pending, d.keys[:d.held]...)
		d.held = 0
		if c == d.keys[0] {
			d.held = 1
			continue
		}
		d.pending = append(d.pending, c)
	}
	return false
}

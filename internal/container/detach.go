package container

import (
	"errors"
	"io"
	"strings"
)

// errDetached ends a client's input when it typed the detach keys.
var errDetached = errors.New("detached")

// detachSequence parses detach keys: "ctrl-p,ctrl-q" or single characters;
// empty is the default.
func detachSequence(keys string) ([]byte, error) {
	if keys == "" {
		return []byte{16, 17}, nil
	}
	var out []byte
	for _, key := range strings.Split(keys, ",") {
		c, ok := strings.CutPrefix(key, "ctrl-")
		switch {
		case !ok && len(key) == 1:
			out = append(out, key[0])
		case ok && len(c) == 1 && c[0] >= 'a' && c[0] <= 'z':
			out = append(out, c[0]-'a'+1)
		case ok && c == "@":
			out = append(out, 0)
		case ok && len(c) == 1 && strings.Contains("[\\]^_", c):
			out = append(out, c[0]-'['+27)
		default:
			return nil, kindf(errInvalid, "Invalid detach keys (%s) provided", keys)
		}
	}
	return out, nil
}

// detachKeys are the keys that a client may detach by: only a terminal has them,
// for in other input the same bytes are data.
func detachKeys(asked string, terminal bool) ([]byte, error) {
	keys, err := detachSequence(asked)
	if err != nil || !terminal {
		return nil, err
	}
	return keys, nil
}

// detachReader passes input on until the keys come in a row; then errDetached.
// Keys typed so far are held back and passed on when another one follows.
type detachReader struct {
	r       io.Reader
	keys    []byte
	matched int
	pending []byte // what is to be passed on first
	err     error
}

func (d *detachReader) Read(p []byte) (int, error) {
	for {
		if len(d.pending) > 0 {
			n := copy(p, d.pending)
			d.pending = d.pending[n:]
			return n, nil
		}
		if d.err != nil {
			return 0, d.err
		}
		n, err := d.r.Read(p)
		d.scan(p[:n])
		if d.err == nil && err != nil {
			d.pending = append(d.pending, d.keys[:d.matched]...)
			d.matched, d.err = 0, err
		}
	}
}

// scan moves b to pending, but for keys that may begin the sequence.
func (d *detachReader) scan(b []byte) {
	d.pending = d.pending[:0]
	for _, c := range b {
		if c == d.keys[d.matched] {
			if d.matched++; d.matched == len(d.keys) {
				d.err = errDetached
				return
			}
			continue
		}
		d.pending = append(d.pending, d.keys[:d.matched]...)
		if d.matched = 0; c == d.keys[0] {
			d.matched = 1
			continue
		}
		d.pending = append(d.pending, c)
	}
}

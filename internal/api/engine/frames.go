package engine

import (
	"encoding/binary"
	"io"
)

// frameHeader is the length of what stands before each piece of a multiplexed
// stream: the number of the stream, three zeroes, the length in four bytes.
const frameHeader = 8

// stderrFrame is the number of standard error in it.
const stderrFrame = 2

// framed turns what is written to it into frames of standard output. A client
// that starts an exec without asking for a terminal reads frames, also when the
// exec has one.
type framed struct{ io.ReadWriteCloser }

func (f framed) Write(p []byte) (int, error) {
	b := append(make([]byte, 0, frameHeader+len(p)), 1, 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, uint32(len(p)))
	n, err := f.ReadWriteCloser.Write(append(b, p...))
	return max(0, n-frameHeader), err
}

// unframed takes the frames off: a client that asks for a terminal when it
// starts an exec reads plain bytes, also when the exec has none. What is standard
// error has no place among them, as with Docker.
type unframed struct {
	io.ReadWriteCloser
	head []byte // of the frame that begins, while it is not whole
	left int    // of the frame under way
	drop bool   // it is standard error
}

func (u *unframed) Write(p []byte) (int, error) {
	written := len(p)
	for len(p) > 0 {
		if u.left == 0 {
			n := min(frameHeader-len(u.head), len(p))
			u.head = append(u.head, p[:n]...)
			p = p[n:]
			if len(u.head) == frameHeader {
				u.left = int(binary.BigEndian.Uint32(u.head[4:]))
				u.drop = u.head[0] == stderrFrame
				u.head = u.head[:0]
			}
			continue
		}
		n := min(u.left, len(p))
		if !u.drop {
			if _, err := u.ReadWriteCloser.Write(p[:n]); err != nil {
				return written - len(p), err
			}
		}
		u.left -= n
		p = p[n:]
	}
	return written, nil
}

// asAsked gives a stream the form the client reads: asked tells whether it wants
// plain bytes, terminal whether they come so.
func asAsked(st io.ReadWriteCloser, asked, terminal bool) io.ReadWriteCloser {
	switch {
	case asked == terminal:
		return st
	case terminal:
		return framed{st}
	}
	return &unframed{ReadWriteCloser: st}
}

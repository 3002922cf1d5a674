package engine

import (
	"encoding/binary"
	"io"
)

// frameHeader is the length of what stands before each piece of a multiplexed
// stream: the number of the stream, three zeroes, the length in four bytes.
const frameHeader = 8

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
// starts an exec reads plain bytes, also when the exec has none.
type unframed struct {
	io.ReadWriteCloser
	head []byte // of the frame that begins, while it is not whole
	left int    // of the frame under way
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
				u.head = u.head[:0]
			}
			continue
		}
		n := min(u.left, len(p))
		if _, err := u.ReadWriteCloser.Write(p[:n]); err != nil {
			return written - len(p), err
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

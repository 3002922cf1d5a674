package backup

import (
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"golang.org/x/crypto/chacha20poly1305"
)

// fileKey seals the pieces of one file, and nothing else ever: that is why their nonces may be
// counted.
type fileKey [chacha20poly1305.KeySize]byte

// piece is how much is sealed at once, in bytes.
const piece = 64 << 10

// lastPiece is the bit of a piece's length that says that no other follows.
const lastPiece = 1 << 31

// counted is the nonce of each piece: its number, and whether it is the last. So pieces cannot
// be left out, put elsewhere or cut off unnoticed (the STREAM construction of Hoang, Reyhanitabar,
// Rogaway and Vizár, 2015).
type counted struct {
	box  cipher.AEAD
	over []byte // what all pieces are bound to: the digest of the heading
	n    uint64
}

func newCounted(key fileKey, head []byte) (counted, error) {
	box, err := chacha20poly1305.NewX(key[:])
	sum := sha256.Sum256(head)
	return counted{box: box, over: sum[:]}, err
}

// next is the nonce of the next piece.
func (c *counted) next(last bool) []byte {
	nonce := make([]byte, chacha20poly1305.NonceSizeX)
	binary.BigEndian.PutUint64(nonce, c.n)
	if last {
		nonce[8] = 1
	}
	c.n++
	return nonce
}

// sealer writes what it is given in sealed pieces. Close writes the last one.
type sealer struct {
	counted
	w   io.Writer
	buf []byte
}

func newSealer(w io.Writer, key fileKey, head []byte) (*sealer, error) {
	c, err := newCounted(key, head)
	return &sealer{counted: c, w: w, buf: make([]byte, 0, piece)}, err
}

// Write implements io.Writer.
func (s *sealer) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		if len(s.buf) == piece {
			if err := s.flush(false); err != nil {
				return n - len(b), err
			}
		}
		m := copy(s.buf[len(s.buf):piece], b)
		s.buf, b = s.buf[:len(s.buf)+m], b[m:]
	}
	return n, nil
}

// Close writes what is left as the last piece.
func (s *sealer) Close() error { return s.flush(true) }

func (s *sealer) flush(last bool) error {
	sealed := s.box.Seal(make([]byte, 4, 4+len(s.buf)+s.box.Overhead()), s.next(last), s.buf, s.over)
	size := uint32(len(sealed) - 4)
	if last {
		size |= lastPiece
	}
	binary.BigEndian.PutUint32(sealed, size)
	s.buf = s.buf[:0]
	_, err := s.w.Write(sealed)
	return err
}

// opener reads what a sealer wrote.
type opener struct {
	counted
	in   *reader
	buf  []byte
	last bool
	err  error
}

func newOpener(in *reader, key fileKey, head []byte) (*opener, error) {
	c, err := newCounted(key, head)
	return &opener{counted: c, in: in}, err
}

// Read implements io.Reader. It gives io.EOF after the last piece only.
func (o *opener) Read(b []byte) (int, error) {
	for len(o.buf) == 0 {
		if o.last {
			return 0, io.EOF
		}
		if o.err == nil {
			o.err = o.more()
		}
		if o.err != nil {
			return 0, o.err
		}
	}
	n := copy(b, o.buf)
	o.buf = o.buf[n:]
	return n, nil
}

// more opens the next piece.
func (o *opener) more() error {
	var size [4]byte
	if err := o.in.full(size[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(size[:])
	last := n&lastPiece != 0
	n &^= lastPiece
	if n > piece+uint32(o.box.Overhead()) {
		return errChanged
	}
	sealed := make([]byte, n)
	if err := o.in.full(sealed); err != nil {
		return err
	}
	plain, err := o.box.Open(sealed[:0], o.next(last), sealed, o.over)
	if err != nil {
		return errChanged
	}
	o.buf, o.last = plain, last
	return nil
}

// why says what is wrong with what was read: that of the pieces, if something is.
func (o *opener) why(err error) error {
	if o.err != nil {
		return o.err
	}
	if errdefs.IsFailedPrecondition(err) || errdefs.IsInvalidArgument(err) {
		return err
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errCutOff
	}
	return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
}

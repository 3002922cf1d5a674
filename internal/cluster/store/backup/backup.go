// Package backup is a cluster's objects in one file, sealed: a heading that anybody may read,
// the objects in pieces that only a passphrase or the cluster's unlock key opens, and a digest
// of all. The format is described in docs/formats.md.
package backup

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
)

// Format is the version of the file (docs/formats.md).
const Format = 1

// magic is the first line.
const magic = "escale cluster backup\n"

// maxHead is the length of the heading, in bytes.
const maxHead = 64 << 10

// Head is what anybody may know of a backup.
type Head struct {
	Format   int
	Cluster  string // id
	Revision uint64 // of the store
	Objects  int
	Made     time.Time
	Version  string // of the engine
	Lock     Lock
}

// Write writes all objects of a view, which have to be of one cluster, so that the secret opens
// them. Of h it takes when it was made, and by which version. It blocks as long as w does.
// InvalidArgument for a secret that is none; NotFound when there is no cluster.
func Write(w io.Writer, v store.View, h Head, s Secret) error {
	c, err := store.Named[*cluster.Cluster](v, cluster.DefaultCluster)
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	h.Format, h.Cluster, h.Revision, h.Objects = Format, c.ID, v.Revision(), len(store.Writes(v))
	var key fileKey
	_, _ = rand.Read(key[:]) // never fails: see crypto/rand
	if h.Lock, err = s.lock(key); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	line, err := json.Marshal(h)
	if err != nil {
		return err
	}
	line = append(append([]byte(magic), line...), '\n')
	digest := sha256.New()
	to := io.MultiWriter(w, digest)
	if _, err := to.Write(line); err != nil {
		return err
	}
	pieces, err := newSealer(to, key, line)
	if err != nil {
		return err
	}
	small := gzip.NewWriter(pieces)
	if err := store.Save(small, v); err != nil {
		return err
	}
	if err := errors.Join(small.Close(), pieces.Close()); err != nil {
		return err
	}
	_, err = w.Write(digest.Sum(nil))
	return err
}

// Read reads what Write wrote, to its end. Kinds: InvalidArgument when it is no backup, was cut
// off or changed; FailedPrecondition when it is of a later version of Escale;
// PermissionDenied for a secret that does not open it. It keeps all objects in memory, as
// every manager does.
func Read(r io.Reader, s Secret) (*store.State, Head, error) {
	in := newReader(r)
	h, line, err := in.head()
	if err != nil {
		return nil, h, fmt.Errorf("backup: %w", err)
	}
	key, err := s.open(h.Lock)
	if err != nil {
		return nil, h, fmt.Errorf("backup: %w", err)
	}
	pieces, err := newOpener(in, key, line)
	if err != nil {
		return nil, h, fmt.Errorf("backup: %w", err)
	}
	state, err := load(pieces)
	if err == nil {
		err = in.end()
	}
	if err == nil {
		err = h.fits(state)
	}
	if err != nil {
		return nil, h, fmt.Errorf("backup: %w", err)
	}
	return state, h, nil
}

// load reads the objects, and the pieces to their end.
func load(pieces *opener) (*store.State, error) {
	large, err := gzip.NewReader(pieces)
	if err != nil {
		return nil, pieces.why(err)
	}
	state, err := store.Load(large)
	if err != nil {
		return nil, pieces.why(err)
	}
	for _, rest := range []io.Reader{large, pieces} {
		if _, err := io.Copy(io.Discard, rest); err != nil {
			return nil, pieces.why(err)
		}
	}
	return state, nil
}

// fits tells whether the objects are those of the heading.
func (h Head) fits(s *store.State) error {
	v := s.View()
	c, err := store.Named[*cluster.Cluster](v, cluster.DefaultCluster)
	if err != nil || c.ID != h.Cluster || len(store.List[*cluster.Cluster](v)) != 1 || v.Revision() != h.Revision || len(store.Writes(v)) != h.Objects {
		return fmt.Errorf("its objects are not those of its heading: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

// reader reads a file, and makes the digest of what it has read.
type reader struct {
	r      *bufio.Reader
	digest hash.Hash
}

func newReader(r io.Reader) *reader { return &reader{r: bufio.NewReader(r), digest: sha256.New()} }

// errCutOff is said of a file that ends too early.
var errCutOff = fmt.Errorf("the file was cut off: %w", errdefs.ErrInvalidArgument)

// errChanged is said of a file that is not what was written.
var errChanged = fmt.Errorf("the file was changed since it was written: %w", errdefs.ErrInvalidArgument)

// full reads just so much as b is long.
func (r *reader) full(b []byte) error {
	if _, err := io.ReadFull(r.r, b); err != nil {
		return short(err)
	}
	_, _ = r.digest.Write(b) // never fails: see hash.Hash
	return nil
}

// short says of the end of a file that it has come too early.
func short(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errCutOff
	}
	return err
}

// line reads one, with its end.
func (r *reader) line() ([]byte, error) {
	var out []byte
	for {
		part, err := r.r.ReadSlice('\n')
		out = append(out, part...)
		switch {
		case len(out) > maxHead:
			return nil, fmt.Errorf("the heading is longer than %d bytes: %w", maxHead, errdefs.ErrInvalidArgument)
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err != nil:
			return nil, short(err)
		}
		_, _ = r.digest.Write(out) // never fails: see hash.Hash
		return out, nil
	}
}

// head reads the heading, and gives it as it was written, too.
func (r *reader) head() (h Head, line []byte, err error) {
	first := make([]byte, len(magic))
	if _, err := io.ReadFull(r.r, first); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return h, nil, err
	}
	if !bytes.Equal(first, []byte(magic)) {
		return h, nil, fmt.Errorf("the file is no backup of a cluster: %w", errdefs.ErrInvalidArgument)
	}
	_, _ = r.digest.Write(first) // never fails: see hash.Hash
	text, err := r.line()
	if err != nil {
		return h, nil, err
	}
	if err := json.Unmarshal(text, &h); err != nil {
		return h, nil, fmt.Errorf("the heading: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	switch {
	case h.Format > Format:
		return h, nil, fmt.Errorf("its format is %d, this version of Escale knows %d: %w", h.Format, Format, errdefs.ErrFailedPrecondition)
	case h.Format != Format || h.Cluster == "":
		return h, nil, fmt.Errorf("the heading is none: %w", errdefs.ErrInvalidArgument)
	}
	return h, append(first, text...), nil
}

// end reads the digest, and wants nothing to follow.
func (r *reader) end() error {
	want := r.digest.Sum(nil)
	is := make([]byte, len(want))
	if err := r.full(is); err != nil {
		return err
	}
	if !bytes.Equal(is, want) {
		return errChanged
	}
	if _, err := r.r.ReadByte(); !errors.Is(err, io.EOF) {
		if err == nil {
			err = errChanged
		}
		return err
	}
	return nil
}

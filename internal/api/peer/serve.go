package peer

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"escale.dev/escale/internal/image"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// wantedOf reads what image is wanted.
func wantedOf(r *http.Request) (image.Wanted, error) {
	q := r.URL.Query()
	w := image.Wanted{ID: digest.Digest(q.Get("id")), Digest: digest.Digest(q.Get("digest")), Name: q.Get("name"), Platform: q.Get("platform")}
	return w, w.Check()
}

func answerJSON(w http.ResponseWriter, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(b) // who has gone misses it
	return nil
}

// image tells of an image that is here.
func (s *Server) image(w http.ResponseWriter, r *http.Request) error {
	wanted, err := wantedOf(r)
	if err != nil {
		return err
	}
	held, err := s.cfg.Images.Find(r.Context(), wanted)
	if err != nil {
		return err
	}
	return answerJSON(w, held)
}

// holders tells which nodes have an image.
func (s *Server) holders(w http.ResponseWriter, r *http.Request) error {
	wanted, err := wantedOf(r)
	if err != nil {
		return err
	}
	if s.cfg.Holders == nil {
		return fmt.Errorf("this node does not know who has images: %w", errdefs.ErrUnavailable)
	}
	found, err := s.cfg.Holders(r.Context(), wanted)
	if err != nil {
		return err
	}
	return answerJSON(w, found)
}

// part sends a blob of an image, from an offset.
func (s *Server) part(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	id, d := digest.Digest(q.Get("id")), digest.Digest(q.Get("digest"))
	offset, err := strconv.ParseInt(q.Get("offset"), 10, 64)
	if err != nil || offset < 0 || id.Validate() != nil || d.Validate() != nil {
		return fmt.Errorf("part %q of image %q from %q: %w", d, id, q.Get("offset"), errdefs.ErrInvalidArgument)
	}
	queue, leave := context.WithTimeout(r.Context(), queueWait)
	defer leave()
	if err := s.uploads.Acquire(queue, 1); err != nil {
		return fmt.Errorf("too many ask at once: %w", errdefs.ErrUnavailable)
	}
	defer s.uploads.Release(1)
	blob, err := s.cfg.Images.Part(r.Context(), id, d)
	if err != nil {
		return err
	}
	defer blob.Close()
	if offset > blob.Size() {
		return fmt.Errorf("part %s: it has %d bytes, asked from %d: %w", d, blob.Size(), offset, errdefs.ErrInvalidArgument)
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(blob.Size()-offset, 10))
	return send(w, r, blob, offset)
}

// piece is how much of a blob is read at once, in bytes.
const piece = 256 << 10

// send sends a blob to its end. A node that does not take it, or may not have it any more,
// is cut off.
func send(w http.ResponseWriter, r *http.Request, blob content.ReaderAt, offset int64) error {
	line := http.NewResponseController(w)
	defer context.AfterFunc(r.Context(), func() { _ = line.SetWriteDeadline(time.Unix(1, 0)) })()
	if line.Flush() != nil {
		return nil // who asked has gone
	}
	from := io.NewSectionReader(blob, offset, blob.Size()-offset)
	buf := make([]byte, piece)
	for r.Context().Err() == nil {
		n, err := from.Read(buf)
		if n > 0 {
			_ = line.SetWriteDeadline(time.Now().Add(sendWait)) // it can be set on every stream
			if _, err := w.Write(buf[:n]); err != nil {
				panic(http.ErrAbortHandler)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			break
		}
	}
	panic(http.ErrAbortHandler) // half a blob must not look whole
}

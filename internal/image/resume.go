package image

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// goodProgress is how many bytes after a failure make the next one count as the first.
const goodProgress = 1 << 20

// maxPause is the longest wait between two attempts.
const maxPause = 30 * time.Second

// resuming reads a blob to its end: where a connection breaks, it goes on from
// there with another.
type resuming struct {
	ctx    context.Context
	src    Source
	blob   ocispec.Descriptor
	bounds *transfers
	retry  func(wait time.Duration) // told of each further attempt

	body   io.ReadCloser
	at     int64
	since  int64 // at, when it failed last
	failed int   // times
	err    error // what ended reading, if not the end of the blob
}

// Read implements io.Reader.
func (r *resuming) Read(p []byte) (int, error) {
	for {
		if r.body == nil {
			body, err := r.src.Blob(r.ctx, r.blob.Digest, r.at)
			if err != nil {
				if err = r.again(err); err != nil {
					return 0, err
				}
				continue
			}
			r.body = body
		}
		n, err := r.body.Read(p)
		r.at += int64(n)
		switch {
		case r.at > r.blob.Size:
			r.err = fmt.Errorf("%s: the registry sends more than its %d bytes: %w", r.blob.Digest, r.blob.Size, errdefs.ErrDataLoss)
			return 0, r.err
		case err == io.EOF && r.at == r.blob.Size:
			return n, io.EOF
		case err == io.EOF:
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			r.Close()
			if err = r.again(err); err != nil {
				return n, err
			}
		}
		if n > 0 {
			return n, nil
		}
	}
}

// again waits before another attempt, or tells why there is none.
func (r *resuming) again(err error) error {
	if r.ctx.Err() != nil {
		return context.Cause(r.ctx)
	}
	if r.at-r.since >= goodProgress {
		r.failed = 0
	}
	r.since = r.at
	r.failed++
	if !r.src.Passing(err) || r.failed >= r.bounds.Attempts {
		r.err = fmt.Errorf("%s: %w", r.blob.Digest, err)
		return r.err
	}
	wait := min(r.bounds.Pause<<min(r.failed-1, 16), maxPause)
	r.retry(wait)
	select {
	case <-time.After(wait):
		return nil
	case <-r.ctx.Done():
		return context.Cause(r.ctx)
	}
}

// Close implements io.Closer.
func (r *resuming) Close() error {
	if r.body == nil {
		return nil
	}
	body := r.body
	r.body = nil
	return body.Close()
}

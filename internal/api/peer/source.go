package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"escale.dev/escale/internal/image"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxManifest bounds a manifest or an index, in bytes.
const maxManifest = 4 << 20

// Source is an image on several nodes, to pull from: image.Source. Each step is tried with
// one node after the other, and a node that gave what it should not have is not asked again.
type Source struct {
	d     *Dialer
	want  image.Wanted
	found Found

	mu       sync.Mutex
	places   []Place // those that are left, the one that is asked first, first
	banned   int
	suspects []Place // that have broken off in the middle of a blob, or were not heard to the end
	docs     map[digest.Digest][]byte
}

var _ image.Source = (*Source)(nil)

// Source gives an image that was found, to pull it. The nodes are asked in no order, so
// that many who pull do not all ask the same.
func (d *Dialer) Source(w image.Wanted, f Found) *Source {
	places := slices.Clone(f.Places)
	rand.Shuffle(len(places), func(i, j int) { places[i], places[j] = places[j], places[i] })
	return &Source{d: d, want: w, found: f, places: places, docs: map[digest.Digest][]byte{}}
}

// Again tells whether another pull may go better than the one that failed: somebody gave,
// or may have given, what he should not have, and others are left.
func (s *Source) Again() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := len(s.places)
	for _, p := range s.suspects {
		s.remove(p)
	}
	again := s.banned > 0 || len(s.places) < before
	s.banned, s.suspects = 0, nil
	return again && len(s.places) > 0
}

// remove asks a node no more. Called with mu held.
func (s *Source) remove(p Place) {
	s.places = slices.DeleteFunc(s.places, func(o Place) bool { return o.Node == p.Node })
}

// ban asks a node no more that has lied.
func (s *Source) ban(p Place) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(p)
	s.banned++
}

// suspect asks a node after the others, and no more should what it has sent be wrong.
func (s *Source) suspect(p Place) {
	s.later(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.suspects = append(s.suspects, p)
}

// later asks a node after the others.
func (s *Source) later(p Place) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.IndexFunc(s.places, func(o Place) bool { return o.Node == p.Node }); i >= 0 {
		s.places = append(slices.Delete(s.places, i, i+1), p)
	}
}

func (s *Source) left() []Place {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.places)
}

// each asks the nodes in turn, until one answers well.
func (s *Source) each(ctx context.Context, ask func(Place) error) error {
	err := fmt.Errorf("image %s%s%s: no node is left that has it: %w", s.want.ID, s.want.Digest, s.want.Name, errdefs.ErrNotFound)
	for _, p := range s.left() {
		if err = ask(p); err == nil || ctx.Err() != nil {
			return err
		}
		if errdefs.IsDataLoss(err) {
			s.ban(p)
		} else {
			s.later(p)
		}
	}
	return err
}

// Resolve implements image.Source: what is wanted is known.
func (s *Source) Resolve(ctx context.Context, _ string) (ocispec.Descriptor, error) {
	top := s.found.Manifest.Digest
	if s.want.Digest != "" {
		top = s.want.Digest
	}
	d, _, err := s.Manifest(ctx, top.String())
	return d, err
}

// Manifest implements image.Source. Of an image that is wanted by its id, it is one whose
// config has that id.
func (s *Source) Manifest(ctx context.Context, ref string) (d ocispec.Descriptor, data []byte, err error) {
	want := digest.Digest(ref)
	s.mu.Lock()
	data = s.docs[want]
	s.mu.Unlock()
	if data != nil {
		d, err = s.describe(Place{}, want, data)
		return d, data, err
	}
	err = s.each(ctx, func(p Place) (err error) {
		if data, err = s.d.small(ctx, p, want); err == nil {
			d, err = s.describe(p, want, data)
		}
		return err
	})
	if err == nil {
		s.mu.Lock()
		s.docs[want] = data
		s.mu.Unlock()
	}
	return d, data, err
}

// describe checks a manifest or index, and tells what it is.
func (s *Source) describe(p Place, want digest.Digest, data []byte) (ocispec.Descriptor, error) {
	var doc struct {
		MediaType string              `json:"mediaType"`
		Config    *ocispec.Descriptor `json:"config"`
		Manifests []json.RawMessage   `json:"manifests"`
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("manifest %s: %w: %w", want, err, errdefs.ErrInvalidArgument)
	}
	if doc.MediaType == "" { // OCI leaves it out at times
		doc.MediaType = ocispec.MediaTypeImageManifest
		if doc.Manifests != nil {
			doc.MediaType = ocispec.MediaTypeImageIndex
		}
	}
	id := s.want.ID
	if s.want.Name != "" {
		id = s.found.ID
	}
	if id != "" && (doc.Config == nil || doc.Config.Digest != id) {
		return ocispec.Descriptor{}, fmt.Errorf("node %s: manifest %s is not of image %s: %w", p.Node, want, id, errdefs.ErrDataLoss)
	}
	return ocispec.Descriptor{MediaType: doc.MediaType, Digest: want, Size: int64(len(data))}, nil
}

// Blob implements image.Source.
func (s *Source) Blob(ctx context.Context, want digest.Digest, offset int64) (body io.ReadCloser, err error) {
	err = s.each(ctx, func(p Place) (err error) {
		body, err = s.d.part(ctx, p, want, offset)
		if err == nil {
			b := &checked{ReadCloser: body, ctx: ctx, s: s, p: p, want: want}
			if offset == 0 {
				b.sum = want.Algorithm().Hash()
			}
			body = b
		}
		return err
	})
	return body, err
}

// Passing implements image.Source.
func (s *Source) Passing(err error) bool {
	return !errdefs.IsNotFound(err) && !errdefs.IsDataLoss(err) && !errdefs.IsPermissionDenied(err) && !errdefs.IsUnauthorized(err) && !errdefs.IsInvalidArgument(err)
}

// checked is a blob on its way, that notes who sends what he should not. That a blob is the
// right one is for the reader to see to: one whose beginning another node has sent is not
// looked at here.
type checked struct {
	io.ReadCloser
	ctx   context.Context // of who reads
	s     *Source
	p     Place
	want  digest.Digest
	sum   hash.Hash // nil: its beginning came from elsewhere
	ended bool
}

// Read implements io.Reader.
func (c *checked) Read(b []byte) (int, error) {
	n, err := c.ReadCloser.Read(b)
	if c.sum != nil {
		c.sum.Write(b[:n])
	}
	if err == nil {
		return n, nil
	}
	c.ended = true
	switch {
	case c.ctx.Err() != nil:
	case !errors.Is(err, io.EOF):
		c.s.suspect(c.p)
	case c.sum != nil && digest.NewDigest(c.want.Algorithm(), c.sum) != c.want:
		c.s.ban(c.p)
	}
	return n, err
}

// Close implements io.Closer. Whom nobody wants to hear to the end may have lied; who has
// gone on where another broke off is not to blame for that one's beginning.
func (c *checked) Close() error {
	if !c.ended && c.sum != nil && c.ctx.Err() == nil {
		c.s.suspect(c.p)
	}
	return c.ReadCloser.Close()
}

// part opens a blob of an image on a node, at an offset.
func (d *Dialer) part(ctx context.Context, p Place, want digest.Digest, offset int64) (io.ReadCloser, error) {
	q := url.Values{"id": {p.ID.String()}, "digest": {want.String()}, "offset": {strconv.FormatInt(offset, 10)}}
	ctx, cancel := context.WithCancelCause(ctx)
	res, err := d.get(ctx, p.Node, pathPart, q)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	silent := fmt.Errorf("node %s: it has sent nothing for %s: %w", p.Node, d.stall, errdefs.ErrUnavailable)
	timer := time.AfterFunc(d.stall, func() { cancel(silent) })
	timer.Stop() // until somebody reads
	return &impatient{ReadCloser: res.Body, ctx: ctx, cancel: cancel, wait: d.stall, timer: timer}, nil
}

// small fetches a manifest or an index, and verifies it.
func (d *Dialer) small(ctx context.Context, p Place, want digest.Digest) ([]byte, error) {
	if err := want.Validate(); err != nil {
		return nil, fmt.Errorf("manifest %q: %w: %w", want, err, errdefs.ErrInvalidArgument)
	}
	body, err := d.part(ctx, p, want, 0)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	data, err := io.ReadAll(io.LimitReader(body, maxManifest+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("node %s: manifest %s: %w: %w", p.Node, want, err, errdefs.ErrUnavailable)
	case len(data) > maxManifest:
		return nil, fmt.Errorf("node %s: manifest %s: larger than %d bytes: %w", p.Node, want, maxManifest, errdefs.ErrDataLoss)
	case want.Algorithm().FromBytes(data) != want:
		return nil, fmt.Errorf("node %s: manifest verification failed for digest %s: %w", p.Node, want, errdefs.ErrDataLoss)
	}
	return data, nil
}

// impatient gives up a node that sends nothing.
type impatient struct {
	io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	wait   time.Duration
	timer  *time.Timer
}

// Read implements io.Reader. While nobody reads nobody is waited for.
func (i *impatient) Read(p []byte) (int, error) {
	i.timer.Reset(i.wait)
	n, err := i.ReadCloser.Read(p)
	i.timer.Stop()
	if err != nil && !errors.Is(err, io.EOF) {
		if why := context.Cause(i.ctx); why != nil {
			err = why
		}
	}
	return n, err
}

// Close implements io.Closer.
func (i *impatient) Close() error {
	i.timer.Stop()
	err := i.ReadCloser.Close()
	i.cancel(nil)
	return err
}

package image

import (
	"context"
	"encoding/json"
	"slices"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Wanted says which image another node wants: exactly one of ID, Digest and Name is set.
type Wanted struct {
	ID     digest.Digest // of the image itself
	Digest digest.Digest // of its manifest, or of an index that lists it
	Name   string        // with its tag, "docker.io/library/debian:12"
	// Platform it has to be for, "linux/amd64"; empty: any.
	Platform string
}

// Check tells why it names no image. Kind: InvalidArgument.
func (w Wanted) Check() error {
	set := 0
	for _, d := range []digest.Digest{w.ID, w.Digest} {
		if d == "" {
			continue
		}
		set++
		if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
			return invalidf("image %q: it is no digest", d)
		}
	}
	if w.Name != "" {
		set++
		named, err := reference.ParseNormalizedNamed(w.Name)
		if err != nil {
			return invalidf("image %q: %s", w.Name, err)
		}
		if _, tagged := named.(reference.Tagged); !tagged || isDigested(named) || named.String() != w.Name {
			return invalidf("image %q: a whole name with a tag is wanted", w.Name)
		}
	}
	if set != 1 {
		return invalidf("an id, a digest or a name is wanted of an image")
	}
	_, err := matcher(w.Platform)
	return err
}

// Held is an image as another node is told of it.
type Held struct {
	ID       digest.Digest      // parts are asked for by it
	Manifest ocispec.Descriptor // of the image; of an index that lists several, of one of them
	Top      ocispec.Descriptor // what was wanted by its digest; else as Manifest
}

// Find finds an image for another node. Kinds: NotFound, InvalidArgument.
func (h Offered) Find(_ context.Context, w Wanted) (Held, error) {
	if err := w.Check(); err != nil {
		return Held{}, err
	}
	match, err := matcher(w.Platform)
	if err != nil {
		return Held{}, err
	}
	s := h.s
	s.mu.RLock()
	defer s.mu.RUnlock()
	switch {
	case w.ID != "":
		if r := s.byID[w.ID]; r != nil {
			return r.held(r.Target), nil
		}
	case w.Name != "":
		if r := s.byID[s.byRef[w.Name]]; r != nil && match.suits(r) {
			return r.held(r.Target), nil
		}
	default:
		for _, id := range s.sorted {
			r := s.byID[id]
			if top, ok := r.top(w.Digest, match); ok {
				return r.held(top), nil
			}
		}
	}
	return Held{}, kindf(errdefs.ErrNotFound, "image %s%s%s is not here", w.ID, w.Digest, w.Name)
}

func (r *record) held(top ocispec.Descriptor) Held {
	return Held{ID: r.ID, Manifest: bare(r.Target), Top: bare(top)}
}

// bare is what of a descriptor others need.
func bare(d ocispec.Descriptor) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
}

// suits tells whether an image is for the platform that was asked for, if any was.
func (m platformMatch) suits(r *record) bool {
	return !m.asked || r.image.Config.OS == "" || m.fits(platformOf(r.image.Config))
}

// top finds what of an image has a digest: its manifest, or an index that leads to it.
func (r *record) top(d digest.Digest, match platformMatch) (ocispec.Descriptor, bool) {
	if r.Target.Digest == d {
		return r.Target, true
	}
	for _, index := range r.Indexes { // all that it lists is here
		if index.Digest == d {
			return index, true
		}
	}
	for _, t := range r.Tops {
		if t.Digest == d && match.suits(r) {
			return t, true
		}
	}
	return ocispec.Descriptor{}, false
}

// Part opens a blob of an image: its manifest, its config, a layer, or an index that leads
// to it. Who opens it closes it; it can be read to its end also when the image is removed
// meanwhile. Kind: NotFound, of others' blobs, too.
func (h Offered) Part(ctx context.Context, id, d digest.Digest) (content.ReaderAt, error) {
	h.s.mu.RLock()
	r := h.s.byID[id]
	h.s.mu.RUnlock()
	none := kindf(errdefs.ErrNotFound, "%s: no such part of image %s here", d, id)
	if r == nil {
		return nil, none
	}
	ctx = h.s.namespace(ctx)
	own := slices.Concat([]ocispec.Descriptor{r.Target, r.Config}, r.Tops)
	for _, l := range r.Layers {
		own = append(own, l.Blob)
	}
	at := slices.IndexFunc(own, func(o ocispec.Descriptor) bool { return o.Digest == d })
	if at >= 0 {
		return h.s.content.ReaderAt(ctx, own[at])
	}
	if len(r.Indexes) == 0 {
		return nil, none
	}
	listed, err := h.listed(ctx, r)
	if err != nil {
		return nil, err
	}
	if at = slices.IndexFunc(listed, func(o ocispec.Descriptor) bool { return o.Digest == d }); at < 0 {
		return nil, none
	}
	return h.s.content.ReaderAt(ctx, listed[at])
}

// listed is all that the indexes of an image lead to.
func (h Offered) listed(ctx context.Context, r *record) ([]ocispec.Descriptor, error) {
	all, err := h.manifestsOf(ctx, r)
	if err != nil {
		return nil, err
	}
	for _, m := range slices.Clone(all) {
		if images.IsIndexType(m.MediaType) {
			continue
		}
		b, err := h.read(ctx, m)
		if errdefs.IsNotFound(err) {
			continue // listed, but not here
		}
		if err != nil {
			return nil, err
		}
		var doc ocispec.Manifest
		if err := json.Unmarshal(b, &doc); err != nil {
			return nil, err
		}
		all = append(append(all, doc.Config), doc.Layers...)
	}
	return all, nil
}

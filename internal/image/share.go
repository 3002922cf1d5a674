package image

import (
	"context"
	"encoding/json"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxShared bounds a manifest that is given to others, in bytes.
const maxShared = 4 << 20

// Offered are the images of a store as a registry gives them to others.
type Offered struct{ s *Store }

// Offer gives a store's images to others.
func Offer(s *Store) Offered { return Offered{s} }

// sharedName tells how well a repository of a registry's API means the one of a
// reference: 0 not at all, 3 by its whole name, 2 by the short name of Docker's
// own, 1 by its path, whatever its domain.
func sharedName(named reference.Named, repository string) int {
	switch repository {
	case named.Name():
		return 3
	case reference.FamiliarName(named):
		return 2
	case reference.Path(named):
		if reference.Domain(named) == "docker.io" {
			return 2
		}
		return 1
	}
	return 0
}

// of are the images that have a name in a repository, and its tags. Of two
// images that a tag could mean it means the one whose name fits better.
func (h Offered) of(repository string) (found []*record, tags map[string]*record) {
	s := h.s
	s.mu.RLock()
	defer s.mu.RUnlock()
	tags = map[string]*record{}
	fit := map[string]int{}
	for _, id := range s.sorted {
		r, mine := s.byID[id], false
		for _, text := range slices.Concat(r.Tags, r.Digests) {
			named, err := reference.ParseNormalizedNamed(text)
			if err != nil {
				continue
			}
			f := sharedName(reference.TrimNamed(named), repository)
			if f == 0 {
				continue
			}
			mine = true
			if t, ok := named.(reference.Tagged); ok && f > fit[t.Tag()] {
				tags[t.Tag()], fit[t.Tag()] = r, f
			}
		}
		if mine {
			found = append(found, r)
		}
	}
	return found, tags
}

// indexIn is the index that a tag of a repository stands for; zero: none.
func indexIn(r *record, repository, tag string) (found ocispec.Descriptor) {
	best := 0
	for text := range r.Indexes {
		named, err := reference.ParseNormalizedNamed(text)
		if err != nil {
			continue
		}
		t, ok := named.(reference.NamedTagged)
		if !ok || t.Tag() != tag {
			continue
		}
		if f := sharedName(reference.TrimNamed(named), repository); f > best {
			best, found = f, r.Indexes[text]
		}
	}
	return found
}

// Tags lists the tags that the images here have in a repository, sorted.
// Kind: NotFound.
func (h Offered) Tags(_ context.Context, repository string) ([]string, error) {
	found, tags := h.of(repository)
	if len(found) == 0 {
		return nil, kindf(errdefs.ErrNotFound, "repository %s: no image here", repository)
	}
	out := make([]string, 0, len(tags))
	for t := range tags {
		out = append(out, t)
	}
	slices.Sort(out)
	return out, nil
}

// Manifest gives the manifest or index that a tag or digest of a
// repository means. Kind: NotFound.
func (h Offered) Manifest(ctx context.Context, repository, ref string) (ocispec.Descriptor, []byte, error) {
	ctx = h.s.namespace(ctx)
	found, tags := h.of(repository)
	none := kindf(errdefs.ErrNotFound, "%s: no such manifest of %s here", ref, repository)
	if r := tags[ref]; r != nil {
		d := r.Target
		if index := indexIn(r, repository, ref); index.Digest != "" {
			d = index
		}
		b, err := h.read(ctx, d)
		return d, b, err
	}
	d := digest.Digest(ref)
	if !strings.Contains(ref, ":") || d.Validate() != nil {
		return ocispec.Descriptor{}, nil, none
	}
	for _, r := range found {
		all, err := h.manifestsOf(ctx, r)
		if errdefs.IsNotFound(err) {
			continue // removed since
		}
		if err != nil {
			return ocispec.Descriptor{}, nil, err
		}
		for _, m := range all {
			if m.Digest == d {
				b, err := h.read(ctx, m)
				return m, b, err
			}
		}
	}
	return ocispec.Descriptor{}, nil, none
}

// Blob opens a blob of an image of a repository; of others it says
// NotFound. Who opens it closes it. It can be read to its end also when the
// image is removed meanwhile.
func (h Offered) Blob(ctx context.Context, repository string, d digest.Digest) (content.ReaderAt, error) {
	ctx = h.s.namespace(ctx)
	found, _ := h.of(repository)
	for _, r := range found {
		all, err := h.manifestsOf(ctx, r)
		if errdefs.IsNotFound(err) {
			continue // removed since
		}
		if err != nil {
			return nil, err
		}
		for _, m := range all {
			if images.IsIndexType(m.MediaType) {
				continue
			}
			b, err := h.read(ctx, m)
			if errdefs.IsNotFound(err) {
				continue
			}
			if err != nil {
				return nil, err
			}
			var doc ocispec.Manifest
			if err := json.Unmarshal(b, &doc); err != nil {
				return nil, err
			}
			for _, l := range append(doc.Layers, doc.Config) {
				if l.Digest == d {
					return h.s.content.ReaderAt(ctx, l)
				}
			}
		}
	}
	return nil, kindf(errdefs.ErrNotFound, "%s: no such blob of %s here", d, repository)
}

// manifestsOf are an image's manifest, the indexes that its tags stand for, and
// those of their manifests that are here.
func (h Offered) manifestsOf(ctx context.Context, r *record) ([]ocispec.Descriptor, error) {
	out := []ocispec.Descriptor{r.Target}
	for _, index := range r.Indexes {
		out = append(out, index)
	}
	for _, d := range slices.Clone(out) {
		if !images.IsIndexType(d.MediaType) {
			continue
		}
		b, err := h.read(ctx, d)
		if err != nil {
			return nil, err
		}
		var index ocispec.Index
		if err := json.Unmarshal(b, &index); err != nil {
			return nil, err
		}
		for _, m := range index.Manifests {
			if _, err := h.s.content.Info(ctx, m.Digest); err == nil {
				out = append(out, m)
			} else if !errdefs.IsNotFound(err) {
				return nil, err
			}
		}
	}
	return out, nil
}

func (h Offered) read(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	if d.Size > maxShared {
		return nil, kindf(errdefs.ErrNotFound, "manifest %s: %d bytes are too many", d.Digest, d.Size)
	}
	return content.ReadBlob(ctx, h.s.content, d)
}

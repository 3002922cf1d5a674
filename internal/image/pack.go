package image

import (
	"io"
	"slices"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// packed gives the record of an image whose layers are compressed. Those of an
// image that was never in a registry are if they were not, and the image has
// these and a manifest that names them from then on. The work holds both.
func (w *work) packed(rec *record) (*record, error) {
	plain := func(l layerRecord) bool { return l.Blob.MediaType == ocispec.MediaTypeImageLayer }
	if len(rec.Digests) > 0 || !slices.ContainsFunc(rec.Layers, plain) {
		return rec, nil
	}
	layers := slices.Clone(rec.Layers)
	for i, l := range layers {
		if !plain(l) {
			continue
		}
		if err := w.s.space(); err != nil {
			return nil, err
		}
		blob, err := w.pack(l)
		if err != nil {
			return nil, err
		}
		layers[i].Blob = blob
	}
	config, err := content.ReadBlob(w.ctx, w.s.content, rec.Config)
	if err != nil {
		return nil, err
	}
	next, err := w.record(config, layers, nil, "")
	if err != nil {
		return nil, err
	}
	return w.replace(rec, next)
}

// replace lets an image consist of what next does.
func (w *work) replace(old, next *record) (*record, error) {
	s := w.s
	s.write.Lock()
	defer s.write.Unlock()
	c := newChange(s)
	now := c.current(old.ID)
	switch {
	case now == nil: // removed meanwhile: what was asked for is done all the same
		return next, nil
	case now.Target.Digest != old.Target.Digest:
		if len(now.Digests) == 0 && now.Target.Digest != next.Target.Digest {
			return nil, kindf(errdefs.ErrConflict, "image %s was changed meanwhile", short(old.ID.String()))
		}
		// Another push was faster.
		return now, w.retain([]saved{{record: now}})
	}
	r := c.edit(old.ID)
	r.Layers, r.Target = next.Layers, next.Target
	r.image.Target = next.Target
	c.renew(r.ID)
	if err := c.commit(w.ctx, nil); err != nil {
		return nil, err
	}
	s.gc.kick(false) // the layers as they were
	return r, nil
}

// pack compresses a layer, unless another image has it so.
func (w *work) pack(l layerRecord) (ocispec.Descriptor, error) {
	if have, ok := w.s.remotes.packedLayer(l.DiffID); ok {
		if ok, err := w.hold(have.Digest); ok || err != nil {
			return have, err
		}
	}
	ra, err := w.s.content.ReaderAt(w.ctx, l.Blob)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer ra.Close()
	blob, err := w.s.content.Writer(w.ctx, content.WithRef(w.key()))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer blob.Close()
	// The same bytes whenever and wherever: no name, no time.
	z := gzip.NewWriter(blob)
	in := &watched{r: &interruptible{ctx: w.ctx, r: content.NewReader(ra)}, check: w.s.space}
	if _, err := io.Copy(z, in); err != nil {
		return ocispec.Descriptor{}, err
	}
	if err := z.Close(); err != nil {
		return ocispec.Descriptor{}, err
	}
	st, err := blob.Status()
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: blob.Digest(), Size: st.Offset}
	err = blob.Commit(w.ctx, st.Offset, "", content.WithLabels(map[string]string{labelDiffID: l.DiffID.String()}))
	if errdefs.IsAlreadyExists(err) {
		err = nil
	}
	return d, err
}

// packedLayer finds a compressed form of a layer among all images.
func (m *Remotes) packedLayer(diff digest.Digest) (ocispec.Descriptor, bool) {
	s := m.s
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, r := range s.byID {
		for _, l := range r.Layers {
			if l.DiffID == diff && (l.Blob.MediaType == ocispec.MediaTypeImageLayerGzip || l.Blob.MediaType == ocispec.MediaTypeImageLayerZstd) {
				return ocispec.Descriptor{MediaType: l.Blob.MediaType, Digest: l.Blob.Digest, Size: l.Blob.Size}, true
			}
		}
	}
	return ocispec.Descriptor{}, false
}

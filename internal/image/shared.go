package image

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	"escale.dev/escale/internal/image/layer"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Builds is the store as a builder has it.
type Builds struct{ *Store }

// Shared is what the store is made of, for a builder that works in it: what is
// built is then an image with no copy. All of it is used in Namespace, under
// leases of the builder's own, whose names must not begin with "image/",
// "container/" or "work/".
type Shared struct {
	Content     content.Store
	Snapshotter snapshots.Snapshotter
	Name        string // of the snapshotter
	Leases      leases.Manager
}

// Shared gives what the store is made of; it is closed with the store.
func (s Builds) Shared() Shared {
	return Shared{Content: s.content, Snapshotter: s.snaps, Name: snapshotterName, Leases: s.leases}
}

// Adopted is an image whose manifest, config, blobs and snapshots are in the
// store already.
type Adopted struct {
	Manifest ocispec.Descriptor
	// Index is what the image's names are to stand for, if that is not the image
	// alone: an index whose labels, and those of its manifests, lead to all of it.
	Index ocispec.Descriptor
	// Snapshot is the key of the committed snapshot of all layers; "" for an
	// image without layers.
	Snapshot string
	// Names it gets; with none it is dangling.
	Names []string
}

// Adopt makes the record of an image that was built in the store. What it
// consists of has to be held by a lease of the caller's until Adopt returns.
// Kinds: InvalidArgument (a name, or what does not fit together), NotFound
// (a part is missing).
func (s Builds) Adopt(ctx context.Context, a Adopted) (Image, error) {
	var names []reference.NamedTagged
	for _, n := range a.Names {
		name, err := parseTag(n)
		if err != nil {
			return Image{}, err
		}
		names = append(names, name)
	}
	if err := s.space(); err != nil {
		return Image{}, err
	}
	rec, err := s.adoptable(s.namespace(ctx), a)
	if err != nil {
		return Image{}, err
	}
	s.write.Lock()
	defer s.write.Unlock()
	c := newChange(s.Store)
	made := rec
	rec = c.add(rec)
	if a.Index.Digest != "" && len(rec.Digests) == 0 && rec.Target.Digest != made.Target.Digest {
		// The same image was built alone before: now it is as the index has it.
		rec = c.edit(rec.ID)
		rec.Layers, rec.Target, rec.image.Target = made.Layers, made.Target, made.Target
		c.renew(rec.ID)
	}
	a.Index.Annotations, a.Index.Platform = nil, nil
	for _, name := range names {
		c.tag(rec, name)
		c.index(c.puts[rec.ID], name.String(), a.Index)
	}
	if err := c.commit(ctx, nil); err != nil {
		return Image{}, err
	}
	s.gc.kick(false)
	return c.current(rec.ID).image, nil
}

// adoptable reads the parts of an image into a record.
func (s Builds) adoptable(ctx context.Context, a Adopted) (*record, error) {
	data, err := content.ReadBlob(ctx, s.content, a.Manifest)
	if err != nil {
		return nil, fmt.Errorf("manifest %s: %w", a.Manifest.Digest, err)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, invalidf("manifest %s: %s", a.Manifest.Digest, err)
	}
	config, err := content.ReadBlob(ctx, s.content, m.Config)
	if err != nil {
		return nil, fmt.Errorf("config %s: %w", m.Config.Digest, err)
	}
	var conf dockerspec.DockerOCIImage
	if err := json.Unmarshal(config, &conf); err != nil {
		return nil, invalidf("config %s: %s", m.Config.Digest, err)
	}
	diffs := conf.RootFS.DiffIDs
	switch {
	case len(diffs) != len(m.Layers):
		return nil, invalidf("manifest %s: %d layers, the config tells of %d", a.Manifest.Digest, len(m.Layers), len(diffs))
	case len(diffs) > maxLayers:
		return nil, invalidf("max depth exceeded")
	}
	target := a.Manifest
	target.Annotations, target.Platform = nil, nil
	r := &record{ID: m.Config.Digest, Config: m.Config, Target: target, Snapshot: a.Snapshot, Boot: s.boot}
	for i, d := range m.Layers {
		d.Annotations = nil
		l := layerRecord{DiffID: diffs[i], ChainID: identity.ChainID(diffs[:i+1]), Blob: d}
		if l.Size, err = s.layerSize(ctx, l); err != nil {
			return nil, fmt.Errorf("layer %s: %w", d.Digest, err)
		}
		r.Layers = append(r.Layers, l)
	}
	if r.chain() != "" {
		if err := s.noteSize(ctx, r); err != nil {
			return nil, err
		}
	}
	return r, r.fill(config)
}

// layerSize is the bytes of the files of a layer: as another image has them, else
// as its archive tells.
func (s Builds) layerSize(ctx context.Context, l layerRecord) (int64, error) {
	s.mu.RLock()
	for _, r := range s.byID {
		for _, other := range r.Layers {
			if other.ChainID == l.ChainID {
				s.mu.RUnlock()
				return other.Size, nil
			}
		}
	}
	s.mu.RUnlock()
	ra, err := s.content.ReaderAt(ctx, l.Blob)
	if err != nil {
		return 0, err
	}
	defer ra.Close()
	plain, _, err := layer.Decompress(ctx, content.NewReader(ra), s.maxLayer())
	if err != nil {
		return 0, err
	}
	defer plain.Close()
	var size int64
	for r := tar.NewReader(plain); ; {
		h, err := r.Next()
		switch {
		case errors.Is(err, io.EOF):
			return size, nil
		case err != nil:
			return 0, err
		case h.Typeflag == tar.TypeReg:
			size += h.Size
		}
	}
}

// noteSize writes a layer's bytes on the top snapshot, as every layer has them.
func (s Builds) noteSize(ctx context.Context, r *record) error {
	info, err := s.snaps.Stat(ctx, r.chain().String())
	if err != nil {
		return fmt.Errorf("snapshot %s: %w", r.chain(), err)
	}
	if info.Kind != snapshots.KindCommitted {
		return fmt.Errorf("snapshot %s is not committed: %w", r.chain(), errdefs.ErrFailedPrecondition)
	}
	if info.Labels[labelSize] != "" {
		return nil
	}
	size := r.Layers[len(r.Layers)-1].Size
	_, err = s.snaps.Update(ctx, snapshots.Info{Name: info.Name, Labels: map[string]string{labelSize: strconv.FormatInt(size, 10)}}, "labels."+labelSize)
	return err
}

// ByDigest finds the image that has a manifest or an index of this digest.
func (s Builds) ByDigest(d digest.Digest) (Image, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, id := range s.sorted {
		r := s.byID[id]
		img := r.image
		if r.Target.Digest == d {
			return img, true
		}
		for _, index := range r.Indexes {
			if index.Digest == d {
				img.Index = index
				return img, true
			}
		}
	}
	return Image{}, false
}

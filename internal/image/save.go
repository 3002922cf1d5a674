package image

import (
	"context"
	"io"
	"slices"

	"escale.dev/escale/internal/image/archive"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
)

// Save writes an archive with the images that refs name to w, as it goes: a
// name without a tag means all its tags, an id the image without names. The
// images are held until it is done, also when they are removed meanwhile.
// Before the first byte is written all refs are known to be there. Kinds:
// NotFound, InvalidArgument.
func (s *Store) Save(ctx context.Context, w io.Writer, refs []string) (err error) {
	images, err := s.toSave(refs)
	if err != nil {
		return err
	}
	held, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer func() {
		// Detached: the lease goes also when the client is gone.
		if err1 := s.leases.Delete(context.WithoutCancel(held.ctx), held.lease); err == nil {
			err = err1
		}
		s.gc.kick(false)
	}()
	if err := held.retain(images); err != nil {
		return err
	}
	out := archive.NewWriter(w)
	for _, i := range images {
		if err := s.saveOne(held.ctx, out, i); err != nil {
			return err
		}
	}
	return out.Close()
}

// saved is an image to save, with the names that go along.
type saved struct {
	*record
	tags []reference.NamedTagged
}

// toSave resolves refs as Docker does.
func (s *Store) toSave(refs []string) ([]saved, error) {
	var out []saved
	add := func(r *record, tag reference.NamedTagged) {
		i := slices.IndexFunc(out, func(o saved) bool { return o.ID == r.ID })
		if i < 0 {
			i = len(out)
			out = append(out, saved{record: r})
		}
		if tag != nil && !slices.ContainsFunc(out[i].tags, func(t reference.NamedTagged) bool { return t.String() == tag.String() }) {
			out[i].tags = append(out[i].tags, tag)
		}
	}
	for _, ref := range refs {
		parsed, err := reference.ParseAnyReference(ref)
		if err != nil {
			return nil, invalidf("%s", err)
		}
		named, ok := parsed.(reference.Named)
		if ok && reference.IsNameOnly(named) {
			if s.addRepository(named, add) {
				continue
			}
		}
		r, err := s.lookup(ref)
		if err != nil {
			return nil, err
		}
		tagged, ok := parsed.(reference.NamedTagged)
		if _, digested := parsed.(reference.Digested); !ok || digested || isPrefix(r.ID, ref) {
			add(r, nil)
			continue
		}
		add(r, tagged)
	}
	for _, i := range out {
		if len(i.Layers) == 0 {
			return nil, invalidf("empty export - not implemented")
		}
	}
	return out, nil
}

// addRepository adds all tags of a name, and tells whether there is one.
func (s *Store) addRepository(named reference.Named, add func(*record, reference.NamedTagged)) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	found := false
	for _, id := range s.sorted {
		r := s.byID[id]
		for _, t := range r.Tags {
			tag, err := reference.ParseNormalizedNamed(t)
			if err != nil || tag.Name() != named.Name() {
				continue
			}
			if tagged, ok := tag.(reference.NamedTagged); ok {
				found = true
				add(r, tagged)
			}
		}
	}
	return found
}

// retain leases the blobs of images.
func (w *work) retain(images []saved) error {
	return w.s.update(w.ctx, func(ctx context.Context, _ *bolt.Tx) error {
		for _, i := range images {
			all := []digest.Digest{i.Target.Digest, i.Config.Digest}
			for _, l := range i.Layers {
				all = append(all, l.Blob.Digest)
			}
			for _, d := range all {
				if _, err := w.s.content.Info(ctx, d); err != nil {
					return err
				}
				if err := w.s.leases.AddResource(ctx, leases.Lease{ID: w.lease.ID}, contentResource(d)); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

func (s *Store) saveOne(ctx context.Context, out *archive.Writer, i saved) error {
	img := archive.Image{Manifest: i.Target, Config: i.Config, Tags: i.tags}
	for _, l := range i.Layers {
		img.Layers, img.DiffIDs = append(img.Layers, l.Blob), append(img.DiffIDs, l.DiffID)
	}
	for _, d := range append(slices.Clone(img.Layers), i.Config, i.Target) {
		if err := s.saveBlob(ctx, out, d); err != nil {
			return err
		}
	}
	out.Image(img)
	return nil
}

func (s *Store) saveBlob(ctx context.Context, out *archive.Writer, d ocispec.Descriptor) error {
	if out.Has(d.Digest) {
		return nil
	}
	ra, err := s.content.ReaderAt(ctx, d)
	if err != nil {
		return err
	}
	defer ra.Close()
	return out.Blob(d, &interruptible{ctx: ctx, r: content.NewReader(ra)})
}

// interruptible ends a copy when its context ends.
type interruptible struct {
	ctx context.Context
	r   io.Reader
}

func (i *interruptible) Read(p []byte) (int, error) {
	if err := i.ctx.Err(); err != nil {
		return 0, context.Cause(i.ctx)
	}
	return i.r.Read(p)
}

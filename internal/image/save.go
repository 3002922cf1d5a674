package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"escale.dev/escale/internal/image/archive"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
)

// Save writes an archive with the images that refs name to w, as it goes: a
// name without a tag means all its tags, an id the image without names. A tag
// that stands for an index brings all that it lists, or with a platform ("" is
// all) what it has for that; an image for another platform is refused. The
// images are held until it is done, also when they are removed meanwhile.
// Before the first byte is written all refs are known to be there. Kinds:
// NotFound, InvalidArgument.
func (s *Store) Save(ctx context.Context, w io.Writer, refs []string, platform string) (err error) {
	match, err := matcher(platform)
	if err != nil {
		return err
	}
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
	plans := make([]savePlan, len(images))
	for n, i := range images {
		if plans[n], err = i.plan(held.ctx, s.content, match); err != nil {
			return err
		}
	}
	out := archive.NewWriter(w)
	for _, p := range plans {
		for _, d := range p.blobs {
			if err := s.saveBlob(held.ctx, out, d); err != nil {
				return err
			}
		}
		out.Image(p.image)
	}
	return out.Close()
}

// saved is an image to save, with the names that go along.
type saved struct {
	*record
	tags  []reference.NamedTagged
	index ocispec.Descriptor // that the names stand for; zero: the image alone
}

// toSave resolves refs as Docker does.
func (s *Store) toSave(refs []string) ([]saved, error) {
	var out []saved
	add := func(r *record, tag reference.NamedTagged) {
		var index ocispec.Descriptor
		if tag != nil {
			index = r.Indexes[tag.String()]
		}
		i := slices.IndexFunc(out, func(o saved) bool { return o.ID == r.ID && o.index.Digest == index.Digest })
		if i < 0 {
			i = len(out)
			out = append(out, saved{record: r, index: index})
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
			if i.index.Digest != "" {
				all = append(all, i.index.Digest) // whose labels lead to the rest
			}
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

// savePlan is what an image brings into an archive.
type savePlan struct {
	image archive.Image
	blobs []ocispec.Descriptor
}

// plan looks up what to save of an image.
func (i saved) plan(ctx context.Context, contents content.Provider, match platformMatch) (savePlan, error) {
	img := archive.Image{Manifest: i.Target, Config: i.Config, Tags: i.tags}
	if i.index.Digest != "" {
		return i.planIndex(ctx, contents, match, img)
	}
	if match.asked && !match.fits(platformOf(i.image.Config)) {
		return savePlan{}, kindf(errdefs.ErrNotFound, "image with reference %s was found but does not provide the specified platform (%s)", i.label(), match.name)
	}
	for _, l := range i.Layers {
		img.Layers, img.DiffIDs = append(img.Layers, l.Blob), append(img.DiffIDs, l.DiffID)
	}
	return savePlan{img, append(slices.Clone(img.Layers), i.Config, i.Target)}, nil
}

// label is what the image is called in errors.
func (i saved) label() string {
	if len(i.tags) > 0 {
		return reference.FamiliarString(i.tags[0])
	}
	return i.ID.String()
}

// planIndex is for a tag that stands for an index. Programs that read only
// manifest.json find the image that runs here, or the one that was asked for.
func (i saved) planIndex(ctx context.Context, contents content.Provider, match platformMatch, img archive.Image) (savePlan, error) {
	x, err := readIndex(ctx, contents, i.index)
	if err != nil {
		return savePlan{}, err
	}
	var one listed
	p := savePlan{}
	if match.asked {
		if one, err = x.choose(match, i.label()); err != nil {
			return p, err
		}
		x.manifests, img.Manifest = []listed{one}, one.desc
	} else {
		n := slices.IndexFunc(x.manifests, func(l listed) bool { return l.doc.Config.Digest == i.ID })
		if n < 0 {
			return p, fmt.Errorf("index %s: nothing of image %s: %w", i.index.Digest, i.ID, errdefs.ErrNotFound)
		}
		one, img.Manifest = x.manifests[n], x.desc
		p.blobs = append(p.blobs, x.desc)
	}
	for _, m := range x.manifests {
		p.blobs = append(append(p.blobs, m.doc.Layers...), m.doc.Config, m.desc)
	}
	data, err := content.ReadBlob(ctx, contents, one.doc.Config)
	if err != nil {
		return p, err
	}
	var conf dockerspec.DockerOCIImage
	if err := json.Unmarshal(data, &conf); err != nil {
		return p, fmt.Errorf("config %s: %w", one.doc.Config.Digest, err)
	}
	img.Config, img.Layers, img.DiffIDs = one.doc.Config, one.doc.Layers, conf.RootFS.DiffIDs
	if len(img.Layers) != len(img.DiffIDs) || len(img.Layers) == 0 {
		return p, fmt.Errorf("config %s: %d layers, the manifest has %d: %w", img.Config.Digest, len(img.DiffIDs), len(img.Layers), errdefs.ErrDataLoss)
	}
	p.image = img
	return p, nil
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

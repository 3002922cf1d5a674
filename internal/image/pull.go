package image

import (
	"context"
	"encoding/json"
	"runtime"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Pull brings an image from a registry: ref has a tag or a digest. Layers come
// side by side, are stored and unpacked as they come, and not fetched when they
// are there or on their way for another pull. The image becomes visible when it
// is whole; an image that had the tag loses it. After an error or the end of ctx
// nothing is left. Kinds: those of o.Source, InvalidArgument, NotFound,
// ResourceExhausted; a full disk is ENOSPC.
func (m *Remotes) Pull(ctx context.Context, ref reference.Named, o PullOptions) (out Pulled, err error) {
	match, err := matcher(o.Platform)
	if err != nil {
		return Pulled{}, err
	}
	top, err := o.Source.Resolve(ctx, wanted(ref))
	if err != nil {
		return Pulled{}, err
	}
	s := m.s
	if err := s.space(); err != nil {
		return Pulled{}, err
	}
	w, err := s.begin(ctx)
	if err != nil {
		return Pulled{}, err
	}
	defer func() {
		if err != nil {
			w.abandon()
		}
	}()
	mail := newMailbox(o.Progress)
	defer mail.close()
	p := &pulling{w: w, o: o, match: match, ref: ref, mail: mail, leave: func() {}}
	defer func() { p.leave() }()
	mail.post(Progress{ID: wanted(ref), Status: "Pulling from " + reference.Path(ref)})
	rec, err := p.known(top)
	if err == nil && rec == nil {
		rec, err = p.record(top)
	}
	if err != nil {
		return Pulled{}, err
	}
	out.Digest = top.Digest
	out.Image, out.New, err = p.register(ctx, rec, top.Digest)
	if err == nil {
		s.gc.kick(false)
	}
	return out, err
}

// wanted is the tag or digest that a name asks for.
func wanted(ref reference.Named) string {
	if d, ok := ref.(reference.Digested); ok {
		return d.Digest().String()
	}
	if t, ok := ref.(reference.Tagged); ok {
		return t.Tag()
	}
	return "latest"
}

// pulling is a pull under way.
type pulling struct {
	w     *work
	o     PullOptions
	match platformMatch
	ref   reference.Named
	mail  *mailbox
	leave func()      // those who need the config
	tops  []topRecord // indexes on the way to the manifest
}

// topRecord is an index with its bytes.
type topRecord struct {
	ocispec.Descriptor
	data []byte
}

// name is what is pulled, for people.
func (p *pulling) name() string { return reference.FamiliarString(p.ref) }

// known finds the image that was pulled by this digest before, and holds it;
// nil: there is none for the platform.
func (p *pulling) known(top ocispec.Descriptor) (*record, error) {
	canonical, err := reference.WithDigest(reference.TrimNamed(p.ref), top.Digest)
	if err != nil {
		return nil, invalidf("%s", err)
	}
	s := p.w.s
	s.mu.RLock()
	r := s.byID[s.byRef[canonical.String()]]
	s.mu.RUnlock()
	if r == nil || !p.match.fits(platformOf(r.image.Config)) {
		return nil, nil
	}
	if ok, err := p.w.retainRecord(r); !ok || err != nil {
		return nil, err
	}
	return r, nil
}

func platformOf(c dockerspec.DockerOCIImage) ocispec.Platform {
	return platforms.Normalize(ocispec.Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant})
}

// record brings all that the image consists of.
func (p *pulling) record(top ocispec.Descriptor) (*record, error) {
	doc, d, manifest, err := p.manifest(p.w.ctx, top)
	if err != nil {
		return nil, err
	}
	s := p.w.s
	// Joined before the look, and left when the image is registered: who finds none finds the config.
	config, leave := s.remotes.useConfig(doc.Config.Digest)
	p.leave = leave
	s.mu.RLock()
	r := s.byID[doc.Config.Digest]
	s.mu.RUnlock()
	if r != nil {
		if err := p.checkPlatform(r.image.Config); err != nil {
			return nil, err
		}
		if ok, err := p.w.retainRecord(r); ok || err != nil {
			return r, err
		}
	}
	data, err := config.get(p.w.ctx, p.o.Source, s.remotes.bounds.Load(), *doc.Config)
	if err != nil {
		return nil, err
	}
	diffs, err := p.checkConfig(data, doc)
	if err != nil {
		return nil, err
	}
	layers, err := p.layers(doc, diffs)
	if err != nil {
		return nil, err
	}
	return p.w.record(data, layers, manifest, d.MediaType)
}

// checkConfig verifies a config against its manifest and the platform.
func (p *pulling) checkConfig(data []byte, doc *document) ([]digest.Digest, error) {
	var conf dockerspec.DockerOCIImage
	if err := json.Unmarshal(data, &conf); err != nil {
		return nil, invalidf("invalid image config %s: %s", doc.Config.Digest, err)
	}
	diffs := conf.RootFS.DiffIDs
	switch {
	case conf.RootFS.Type == "" && diffs == nil:
		return nil, invalidf("invalid image JSON, no RootFS key")
	case conf.OS != "" && conf.OS != "linux":
		return nil, invalidf("image operating system %q cannot be used on this platform: this is %s", conf.OS, runtime.GOOS)
	case len(diffs) != len(doc.Layers):
		return nil, invalidf("invalid manifest, layers length mismatch: expected %d, got %d", len(doc.Layers), len(diffs))
	}
	for _, d := range diffs {
		if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
			return nil, invalidf("invalid image config %s: diff id %q", doc.Config.Digest, d)
		}
	}
	return diffs, p.checkPlatform(conf)
}

// checkPlatform refuses an image for another platform than the one asked for.
func (p *pulling) checkPlatform(conf dockerspec.DockerOCIImage) error {
	if on := platformOf(conf); p.match.asked && conf.Architecture != "" && !p.match.fits(on) {
		return kindf(errdefs.ErrNotFound, "image with reference %s was found but does not match the specified platform: wanted %s, actual: %s",
			p.name(), p.match.name, platforms.Format(on))
	}
	return nil
}

// layers brings the layers, side by side.
func (p *pulling) layers(doc *document, diffs []digest.Digest) ([]layerRecord, error) {
	out := make([]layerRecord, len(diffs))
	on := make([]*flight, len(diffs)) // nil: it is there
	defer func() {
		// From the top: who waits for a layer below has gone then.
		for _, f := range slices.Backward(on) {
			if f != nil {
				f.leave(p.mail)
			}
		}
	}()
	for i, d := range doc.Layers {
		l := layerRecord{DiffID: diffs[i], ChainID: identity.ChainID(diffs[:i+1]), Blob: ocispec.Descriptor{
			MediaType: d.MediaType, Digest: d.Digest, Size: d.Size, Annotations: d.Annotations,
		}}
		size, ok, err := p.w.placed(l.ChainID)
		if err == nil && ok {
			ok, err = p.w.hold(d.Digest)
		}
		if err != nil {
			return nil, err
		}
		if ok {
			l.Size, out[i] = size, l
			p.mail.post(Progress{ID: short(d.Digest.String()), Status: "Already exists"})
			continue
		}
		var below digest.Digest
		var parent *flight
		if i > 0 {
			below, parent = identity.ChainID(diffs[:i]), on[i-1]
		}
		on[i] = p.w.s.remotes.join(p.w.ctx, p.o.Source, l, below, parent, p.mail)
	}
	for i, f := range on {
		if f == nil {
			continue
		}
		l, err := p.w.take(f)
		if err != nil {
			return nil, err
		}
		out[i] = l
		out[i].Blob = ocispec.Descriptor{MediaType: doc.Layers[i].MediaType, Digest: l.Blob.Digest, Size: l.Blob.Size, Annotations: doc.Layers[i].Annotations}
	}
	return out, nil
}

// register makes the image visible under its names.
func (p *pulling) register(ctx context.Context, rec *record, top digest.Digest) (Image, bool, error) {
	canonical, err := reference.WithDigest(reference.TrimNamed(p.ref), top)
	if err != nil {
		return Image{}, false, invalidf("%s", err)
	}
	s := p.w.s
	for _, t := range p.tops {
		if _, err := p.w.blob(t.MediaType, t.data, nil); err != nil && !errdefs.IsAlreadyExists(err) {
			return Image{}, false, err
		}
	}
	s.write.Lock()
	defer s.write.Unlock()
	c := newChange(s)
	rec = c.add(rec)
	changed := len(c.puts) > 0
	for _, t := range p.tops {
		c.top(rec.ID, t.Descriptor)
	}
	if tagged, ok := p.ref.(reference.NamedTagged); ok && !isDigested(p.ref) && c.holder(tagged.String()) != rec.ID {
		c.tag(rec, tagged)
		changed = true
	} else if index, has := rec.Indexes[p.ref.String()]; has && index.Digest != top {
		// What was built here under this name is not what the registry has.
		c.index(c.edit(rec.ID), p.ref.String(), ocispec.Descriptor{})
		changed = true
	}
	if c.holderOf(canonical.String()) != rec.ID && (isDigested(p.ref) || !p.o.Unlisted) {
		c.name(rec, canonical)
		changed = changed || isDigested(p.ref)
	}
	if err := c.commit(ctx, p.w.end); err != nil {
		return Image{}, false, err
	}
	return c.current(rec.ID).image, changed, nil
}

func isDigested(ref reference.Named) bool {
	_, ok := ref.(reference.Digested)
	return ok
}

// holderOf is the image that a digest reference means.
func (c *change) holderOf(key string) digest.Digest {
	for id, r := range c.puts {
		if slices.Contains(r.Digests, key) {
			return id
		}
	}
	c.s.mu.RLock()
	defer c.s.mu.RUnlock()
	return c.s.byRef[key]
}

// name lets a digest reference mean an image: of an index for several platforms
// the one that came last.
func (c *change) name(r *record, canonical reference.Canonical) {
	key := canonical.String()
	if had := c.holderOf(key); had != "" && had != r.ID && c.current(had) != nil {
		old := c.edit(had)
		old.Digests = without(old.Digests, key)
		old.name()
	}
	r = c.edit(r.ID)
	r.Digests = with(r.Digests, key)
	r.name()
}

package image

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// Tags lists the names of a repository that images have, sorted. Kind NotFound
// when there are none, or not the one that ref says.
func (m *Remotes) Tags(ref reference.Named) ([]reference.NamedTagged, error) {
	var out []reference.NamedTagged
	m.s.addRepository(reference.TrimNamed(ref), func(_ *record, t reference.NamedTagged) {
		if !isDigested(t) {
			out = append(out, t)
		}
	})
	if len(out) == 0 {
		return nil, kindf(errdefs.ErrNotFound, "An image does not exist locally with the tag: %s", reference.FamiliarName(ref))
	}
	if _, ok := ref.(reference.Tagged); ok {
		out = slices.DeleteFunc(out, func(t reference.NamedTagged) bool { return t.String() != ref.String() })
		if len(out) == 0 {
			return nil, kindf(errdefs.ErrNotFound, "tag does not exist: %s", reference.FamiliarString(ref))
		}
	}
	slices.SortFunc(out, func(a, b reference.NamedTagged) int { return compare(a.Tag(), b.Tag()) })
	return out, nil
}

func compare(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// Push sends an image to a registry under one of its names. What came from a
// registry goes back as it came; layers that were never packed are, once, and
// kept so: the digest stays the same from then on. The image is held meanwhile.
// Kinds: those of o.Target, NotFound.
func (m *Remotes) Push(ctx context.Context, ref reference.NamedTagged, o PushOptions) (out Pushed, err error) {
	match, err := matcher(o.Platform)
	if err != nil {
		return Pushed{}, err
	}
	s := m.s
	rec, err := s.lookup(ref.String())
	if err != nil {
		return Pushed{}, err
	}
	index := rec.Indexes[ref.String()]
	if on := platformOf(rec.image.Config); match.asked && index.Digest == "" && !match.fits(on) {
		return Pushed{}, kindf(errdefs.ErrNotFound, "image with reference %s was found but does not match the specified platform: wanted %s, actual: %s",
			reference.FamiliarString(ref), match.name, platforms.Format(on))
	}
	w, err := s.begin(ctx)
	if err != nil {
		return Pushed{}, err
	}
	defer w.finish()
	if err := w.retain([]saved{{record: rec, index: index}}); err != nil {
		return Pushed{}, err
	}
	mail := newMailbox(o.Progress)
	defer mail.close()
	p := &pushing{w: w, o: o, ref: ref, mail: mail, bounds: m.bounds.Load(), from: m.blobRepositories(ref)}
	if index.Digest != "" {
		out, err := p.index(index, ref.Tag(), match)
		if err != nil {
			return Pushed{}, err
		}
		return out, w.known(ctx, rec, ref, out.Digest)
	}
	for i := len(rec.Layers) - 1; i >= 0; i-- {
		p.tell(rec.Layers[i], "Preparing", 0, 0)
	}
	if rec, err = w.packed(rec); err != nil {
		return Pushed{}, err
	}
	if err := p.blobs(rec.parts()); err != nil {
		return Pushed{}, err
	}
	data, err := content.ReadBlob(w.ctx, s.content, rec.Target)
	if err != nil {
		return Pushed{}, err
	}
	if err := o.Target.PushManifest(w.ctx, ref.Tag(), rec.Target, data); err != nil {
		return Pushed{}, err
	}
	return Pushed{Tag: ref.Tag(), Digest: rec.Target.Digest, Size: int64(len(data))}, w.known(ctx, rec, ref, rec.Target.Digest)
}

// pushing is a push under way.
type pushing struct {
	w      *work
	o      PushOptions
	ref    reference.Named
	mail   *mailbox
	bounds *transfers
	from   map[digest.Digest][]string
}

func (p *pushing) tell(l layerRecord, status string, current, total int64) {
	p.mail.post(Progress{ID: short(l.DiffID.String()), Status: status, Current: current, Total: total})
}

// blobRepositories tells which other repositories of the same registry are known
// to have a blob.
func (m *Remotes) blobRepositories(ref reference.Named) map[digest.Digest][]string {
	s := m.s
	out := map[digest.Digest][]string{}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, id := range s.sorted {
		r := s.byID[id]
		for _, d := range r.Digests {
			named, err := reference.ParseNormalizedNamed(d)
			if err != nil || reference.Domain(named) != reference.Domain(ref) || reference.Path(named) == reference.Path(ref) {
				continue
			}
			for _, l := range r.Layers {
				if path := reference.Path(named); !slices.Contains(out[l.Blob.Digest], path) {
					out[l.Blob.Digest] = append(out[l.Blob.Digest], path)
				}
			}
		}
	}
	return out
}

// parts are what a manifest names: layers, bottom first, and the config.
type parts struct {
	layers []layerRecord
	config ocispec.Descriptor
}

func (r *record) parts() parts { return parts{r.Layers, r.Config} }

// blobs sends layers, side by side, and the config.
func (p *pushing) blobs(what parts) error {
	group, ctx := errgroup.WithContext(p.w.ctx)
	same := map[digest.Digest][]layerRecord{} // that are one blob
	var order []digest.Digest
	for i := len(what.layers) - 1; i >= 0; i-- {
		l := what.layers[i]
		if same[l.Blob.Digest] == nil {
			order = append(order, l.Blob.Digest)
		}
		same[l.Blob.Digest] = append(same[l.Blob.Digest], l)
	}
	for _, d := range order {
		group.Go(func() error {
			all := same[d]
			tell := func(status string, current, total int64) {
				for _, l := range all {
					p.tell(l, status, current, total)
				}
			}
			return p.blob(ctx, all[0].Blob, p.from[d], tell)
		})
	}
	group.Go(func() error { return p.blob(ctx, what.config, nil, func(string, int64, int64) {}) })
	return group.Wait()
}

// blob sends a blob, in several attempts.
func (p *pushing) blob(ctx context.Context, d ocispec.Descriptor, from []string, tell func(string, int64, int64)) error {
	if !p.bounds.up.TryAcquire(1) {
		tell("Waiting", 0, 0)
		if err := p.bounds.up.Acquire(ctx, 1); err != nil {
			return err
		}
	}
	defer p.bounds.up.Release(1)
	open := func() (io.ReadCloser, error) {
		ra, err := p.w.s.content.ReaderAt(p.w.ctx, d)
		if err != nil {
			return nil, err
		}
		tell("Pushing", 0, d.Size)
		count := func(s Progress) { tell("Pushing", s.Current, s.Total) }
		return readCloser{counted(content.NewReader(ra), count, Progress{Total: d.Size}, time.Now()), ra}, nil
	}
	for n := 1; ; n++ {
		sent, err := p.o.Target.Push(ctx, d, from, open)
		switch {
		case err == nil && sent.Existed:
			tell("Layer already exists", 0, 0)
			return nil
		case err == nil && sent.Mounted != "":
			tell("Mounted from "+sent.Mounted, 0, 0)
			return nil
		case err == nil:
			tell("Pushed", 0, 0)
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case n >= p.bounds.Attempts || !p.o.Target.Passing(err):
			return err
		}
		wait := min(p.bounds.Pause<<min(n-1, 16), maxPause)
		tell(retrying(wait), 0, 0)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

type readCloser struct {
	io.Reader
	io.Closer
}

// known notes the digest that an image has in a registry from now on.
func (w *work) known(ctx context.Context, rec *record, ref reference.Named, d digest.Digest) error {
	canonical, err := reference.WithDigest(reference.TrimNamed(ref), d)
	if err != nil {
		return err
	}
	s := w.s
	s.write.Lock()
	defer s.write.Unlock()
	c := newChange(s)
	now := c.current(rec.ID)
	if now == nil || now.Target.Digest != rec.Target.Digest || c.holderOf(canonical.String()) == rec.ID {
		return nil // it was removed meanwhile, or this is known
	}
	c.name(now, canonical)
	if err := c.commit(ctx, nil); err != nil {
		return fmt.Errorf("image %s: %w", rec.ID, err)
	}
	return nil
}

package builder

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"escale.dev/escale/internal/image"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/source"
	"github.com/moby/buildkit/source/containerimage"
	"github.com/moby/buildkit/util/resolver"
	"github.com/opencontainers/go-digest"
)

// localFirst is BuildKit's source of images that looks into our records before it
// asks a registry, unless the client wants to pull.
type localFirst struct {
	*containerimage.Source
	images Images
}

// Identifier implements source.Source.
func (l localFirst) Identifier(scheme, ref string, attrs map[string]string, platform *pb.Platform) (source.Identifier, error) {
	id, err := l.Source.Identifier(scheme, ref, attrs, platform)
	if err != nil {
		return nil, err
	}
	img, ok := id.(*containerimage.ImageIdentifier)
	if !ok || img.ResolveMode == resolver.ResolveModeForcePull {
		return id, nil
	}
	img.ResolveMode = resolver.ResolveModePreferLocal
	return img, nil
}

// Resolve implements source.Source. BuildKit looks for a digest among tags only:
// one that tells the digest stands for it. It does so here and not in the
// identifier, whose words BuildKit finds the lines of the Dockerfile by.
func (l localFirst) Resolve(ctx context.Context, id source.Identifier, sessions *session.Manager, vertex solver.Vertex) (source.SourceInstance, error) {
	if img, ok := id.(*containerimage.ImageIdentifier); ok && img.ResolveMode == resolver.ResolveModePreferLocal {
		if d := img.Reference.Digest(); d != "" {
			if _, ok := l.images.ByDigest(d); ok {
				pinned := *img
				pinned.Reference.Object = digestTag(d)
				here, err := l.Source.Resolve(ctx, &pinned, sessions, vertex)
				if err != nil {
					return nil, err
				}
				return &passing{here: here, away: func() (source.SourceInstance, error) { return l.Source.Resolve(ctx, id, sessions, vertex) }}, nil
			}
		}
	}
	return l.Source.Resolve(ctx, id, sessions, vertex)
}

// passing is an image of ours that may be removed while a build wants it: from then on
// it is the registry's, by its digest. The keys of both are the same.
type passing struct {
	away func() (source.SourceInstance, error)

	mu   sync.Mutex
	here source.SourceInstance
	gone bool
}

// now is what the image is at present.
func (p *passing) now() source.SourceInstance {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.here
}

// follow makes it the registry's, once.
func (p *passing) follow() (source.SourceInstance, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone {
		return p.here, nil
	}
	away, err := p.away()
	if err == nil {
		p.here, p.gone = away, true
	}
	return away, err
}

// CacheKey implements source.SourceInstance.
func (p *passing) CacheKey(ctx context.Context, job solver.JobContext, index int) (string, string, solver.CacheOpts, bool, error) {
	key, pin, opts, done, err := p.now().CacheKey(ctx, job, index)
	if !errdefs.IsNotFound(err) {
		return key, pin, opts, done, err
	}
	away, followed := p.follow()
	if followed != nil {
		return key, pin, opts, done, err
	}
	return away.CacheKey(ctx, job, index)
}

// Snapshot implements source.SourceInstance.
func (p *passing) Snapshot(ctx context.Context, job solver.JobContext) (cache.ImmutableRef, error) {
	ref, err := p.now().Snapshot(ctx, job)
	if !errdefs.IsNotFound(err) {
		return ref, err
	}
	away, followed := p.follow()
	if followed != nil {
		return nil, err
	}
	if _, _, _, _, err := away.CacheKey(ctx, job, 0); err != nil { // which reads what Snapshot needs
		return nil, err
	}
	return away.Snapshot(ctx, job)
}

const digestTagPrefix = "escale-digest-"

func digestTag(d digest.Digest) string {
	return digestTagPrefix + d.Algorithm().String() + "-" + d.Encoded()
}

// imageNames are our records in the form in which containerd keeps images.
// Names are only looked up: records are made by Adopt.
type imageNames struct{ images Images }

// Get implements images.Store.
func (n imageNames) Get(ctx context.Context, name string) (images.Image, error) {
	img, err := n.find(ctx, name)
	if err != nil {
		return images.Image{}, err
	}
	target := img.Target
	if img.Index.Digest != "" {
		target = img.Index
	}
	return images.Image{Name: name, Target: target, CreatedAt: img.LastTagged, UpdatedAt: img.LastTagged}, nil
}

func (n imageNames) find(ctx context.Context, name string) (image.Image, error) {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return image.Image{}, fmt.Errorf("%s: %w", err, errdefs.ErrInvalidArgument)
	}
	if t, ok := named.(reference.Tagged); ok {
		if rest, ok := strings.CutPrefix(t.Tag(), digestTagPrefix); ok {
			algorithm, hex, _ := strings.Cut(rest, "-")
			if img, ok := n.images.ByDigest(digest.NewDigestFromEncoded(digest.Algorithm(algorithm), hex)); ok {
				return img, nil
			}
		}
	}
	img, err := n.images.Get(ctx, name)
	if err == nil || !errdefs.IsNotFound(err) {
		return img, err
	}
	// FROM takes an image's id, or the beginning of it, too.
	if id, ok := strings.CutSuffix(reference.FamiliarString(named), ":latest"); ok {
		return n.images.Get(ctx, id)
	}
	return n.images.Get(ctx, reference.FamiliarString(named))
}

// List implements images.Store: what images consist of is kept by a prune that
// does not want all.
func (n imageNames) List(ctx context.Context, _ ...string) ([]images.Image, error) {
	list, err := n.images.List(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]images.Image, 0, len(list))
	for _, img := range list {
		out = append(out, images.Image{Name: img.ID, Target: img.Target})
	}
	return out, nil
}

// Create implements images.Store.
func (imageNames) Create(context.Context, images.Image) (images.Image, error) {
	return images.Image{}, errdefs.ErrNotImplemented
}

// Update implements images.Store.
func (imageNames) Update(context.Context, images.Image, ...string) (images.Image, error) {
	return images.Image{}, errdefs.ErrNotImplemented
}

// Delete implements images.Store.
func (imageNames) Delete(context.Context, string, ...images.DeleteOpt) error {
	return errdefs.ErrNotImplemented
}

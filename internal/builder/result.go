package builder

import (
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/exporter"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/solver/result"
)

// built is a result as an image is made of it.
type built struct {
	ref   cache.ImmutableRef // of the image that runs here, or the first one; nil: it has no layers
	at    int                // its place among the platforms
	all   []exptypes.Platform
	index bool // it is an index: of several platforms, or with attestations
}

// resultOf finds the image for this host in a result.
func resultOf(src *exporter.Source) (built, error) {
	ps, err := exptypes.ParsePlatforms(src.Metadata)
	if err != nil {
		return built{}, err
	}
	if len(ps.Platforms) == 0 {
		return built{}, fmt.Errorf("a result without a platform: %w", errdefs.ErrInternal)
	}
	out := built{all: ps.Platforms, ref: src.Ref, index: len(ps.Platforms) > 1}
	host := platforms.Only(platforms.DefaultSpec())
	best := -1
	for i, p := range ps.Platforms {
		out.index = out.index || len(src.Attestations[p.ID]) > 0
		if on := platforms.Normalize(p.Platform); host.Match(on) && (best < 0 || host.Less(on, platforms.Normalize(ps.Platforms[best].Platform))) {
			best = i
		}
	}
	out.at = max(best, 0)
	if len(src.Refs) > 0 {
		out.ref, _ = src.FindRef(ps.Platforms[out.at].ID)
	}
	return out, nil
}

// platform is that of the image.
func (b built) platform() string { return platforms.Format(b.all[b.at].Platform) }

// alone leaves of src nothing but the image.
func (b built) alone(src *exporter.Source) (built, error) {
	p := b.all[b.at]
	src.Attestations, src.Refs, src.Ref = nil, nil, b.ref
	config := exptypes.ParseKey(src.Metadata, exptypes.ExporterImageConfigKey, &p)
	base := exptypes.ParseKey(src.Metadata, exptypes.ExporterImageBaseConfigKey, &p)
	for _, q := range b.all {
		delete(src.Metadata, exptypes.ExporterImageConfigKey+"/"+q.ID)
		delete(src.Metadata, exptypes.ExporterImageBaseConfigKey+"/"+q.ID)
	}
	delete(src.Metadata, exptypes.ExporterPlatformsKey)
	src.AddMeta(exptypes.ExporterImageConfigKey, config)
	if base != nil {
		src.AddMeta(exptypes.ExporterImageBaseConfigKey, base)
	}
	return resultOf(src)
}

// asked leaves out what clients ask to be told along with every result, wanted or
// not: an image that was built for itself is one manifest.
func asked(all map[string][]exporter.Attestation) map[string][]exporter.Attestation {
	out := map[string][]exporter.Attestation{}
	for id, list := range all {
		for _, a := range list {
			if string(a.Metadata[result.AttestationInlineOnlyKey]) != "true" {
				out[id] = append(out[id], a)
			}
		}
	}
	return out
}

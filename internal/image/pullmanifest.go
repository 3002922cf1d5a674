package image

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Kinds of documents beside OCI's.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	schemaOne      = "application/vnd.docker.distribution.manifest.v1+"
	maxIndexDepth  = 3
	maxIndexed     = 1000
)

// layerTypes are the kinds of layers that can be unpacked.
var layerTypes = map[string]bool{
	ocispec.MediaTypeImageLayer: true, ocispec.MediaTypeImageLayerGzip: true, ocispec.MediaTypeImageLayerZstd: true,
	"application/vnd.docker.image.rootfs.diff.tar": true, "application/vnd.docker.image.rootfs.diff.tar.gzip": true,
	"application/vnd.docker.image.rootfs.diff.tar.zstd": true,
}

// document is a manifest or an index.
type document struct {
	SchemaVersion int                  `json:"schemaVersion"`
	MediaType     string               `json:"mediaType"`
	ArtifactType  string               `json:"artifactType"`
	Config        *ocispec.Descriptor  `json:"config"`
	Layers        []ocispec.Descriptor `json:"layers"`
	Manifests     []ocispec.Descriptor `json:"manifests"`
}

// parseDocument reads what a registry gave as a manifest or index, and checks
// all of it that is used. mediaType is what the registry calls it.
func parseDocument(mediaType string, data []byte) (*document, error) {
	doc := new(document)
	if err := json.Unmarshal(data, doc); err != nil {
		return nil, invalidf("invalid manifest: %s", err)
	}
	if strings.HasPrefix(mediaType, schemaOne) || doc.SchemaVersion == 1 {
		return nil, kindf(errdefs.ErrNotImplemented, "its manifest is of schema version 1, which is not supported any more: it must be pushed again by a newer client")
	}
	if doc.SchemaVersion != 2 {
		return nil, invalidf("invalid manifest: schema version %d, not 2", doc.SchemaVersion)
	}
	if doc.MediaType == "" {
		doc.MediaType = mediaType
	}
	switch doc.MediaType {
	case ocispec.MediaTypeImageIndex, dockerList:
		return doc, doc.checkIndex()
	case ocispec.MediaTypeImageManifest, dockerManifest:
		return doc, doc.checkManifest()
	}
	return nil, invalidf("unsupported media type %s: it is no image", doc.MediaType)
}

func (doc *document) checkIndex() error {
	if len(doc.Manifests) > maxIndexed {
		return invalidf("invalid index: %d manifests, more than %d", len(doc.Manifests), maxIndexed)
	}
	for _, d := range doc.Manifests {
		if err := checkDigest(d); err != nil {
			return err
		}
	}
	return nil
}

func (doc *document) checkManifest() error {
	if doc.Config == nil {
		return invalidf("invalid manifest: no config")
	}
	switch doc.Config.MediaType {
	case ocispec.MediaTypeImageConfig, dockerConfig:
	default:
		return invalidf("unsupported media type %s: it is no image's config", doc.Config.MediaType)
	}
	if doc.Config.Size > maxDocument {
		return invalidf("invalid manifest: a config of %d bytes, more than %d", doc.Config.Size, maxDocument)
	}
	if len(doc.Layers) > maxLayers {
		return invalidf("max depth exceeded")
	}
	for _, d := range append(slices.Clone(doc.Layers), *doc.Config) {
		if err := checkDigest(d); err != nil {
			return err
		}
	}
	for _, d := range doc.Layers {
		if !layerTypes[d.MediaType] {
			return invalidf("unsupported media type %s of layer %s", d.MediaType, d.Digest)
		}
	}
	return nil
}

func checkDigest(d ocispec.Descriptor) error {
	if err := d.Digest.Validate(); err != nil {
		return invalidf("invalid manifest: digest %q: %s", d.Digest, err)
	}
	if d.Digest.Algorithm() != digest.SHA256 {
		return invalidf("invalid manifest: digest %s: only sha256 is supported", d.Digest)
	}
	if d.Size < 0 {
		return invalidf("invalid manifest: %s has %d bytes", d.Digest, d.Size)
	}
	return nil
}

// choose gives the manifest of an index that is best for the platform.
func (m platformMatch) choose(doc *document) (ocispec.Descriptor, error) {
	var best *ocispec.Descriptor
	var bestOn ocispec.Platform
	for i := range doc.Manifests {
		d := &doc.Manifests[i]
		if d.Annotations["vnd.docker.reference.type"] != "" || d.Platform != nil && d.Platform.OS == "unknown" {
			continue
		}
		on := ocispec.Platform{}
		if d.Platform != nil {
			on = platforms.Normalize(*d.Platform)
			if !m.fits(on) {
				continue
			}
		}
		if best == nil || best.Platform == nil && d.Platform != nil || d.Platform != nil && m.better(on, bestOn) {
			best, bestOn = d, on
		}
	}
	if best == nil {
		return ocispec.Descriptor{}, kindf(errdefs.ErrNotFound, "no matching manifest for %s in the manifest list entries", m.name)
	}
	return *best, nil
}

// manifest fetches the manifest for the platform that top, perhaps an index, stands for.
func (p *pulling) manifest(ctx context.Context, top ocispec.Descriptor) (*document, ocispec.Descriptor, []byte, error) {
	at := top
	for range maxIndexDepth {
		d, data, err := p.o.Source.Manifest(ctx, at.Digest.String())
		if err != nil {
			return nil, at, nil, err
		}
		kind := at.MediaType
		if kind == "" || !strings.Contains(kind, "vnd.") {
			kind = d.MediaType
		}
		doc, err := parseDocument(kind, data)
		if err != nil {
			return nil, at, nil, fmt.Errorf("%s: %w", p.name(), err)
		}
		if doc.Manifests == nil {
			at.MediaType, at.Size = doc.MediaType, int64(len(data))
			return doc, at, data, nil
		}
		p.tops = append(p.tops, topRecord{ocispec.Descriptor{MediaType: doc.MediaType, Digest: at.Digest, Size: int64(len(data))}, data})
		if at, err = p.match.choose(doc); err != nil {
			return nil, at, nil, err
		}
	}
	return nil, at, nil, invalidf("invalid index %s: indexes within indexes within indexes", top.Digest)
}

package server

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxManifest bounds a manifest, in bytes: what the specification asks for.
const maxManifest = 4 << 20

// document is what of a manifest or an index concerns us.
type document struct {
	MediaType    string               `json:"mediaType"`
	ArtifactType string               `json:"artifactType"`
	Config       *ocispec.Descriptor  `json:"config"`
	Layers       []ocispec.Descriptor `json:"layers"`
	Blobs        []ocispec.Descriptor `json:"blobs"` // of artifact manifests, which had no config
	Manifests    []ocispec.Descriptor `json:"manifests"`
	Subject      *ocispec.Descriptor  `json:"subject"`
	Annotations  map[string]string    `json:"annotations"`
	FSLayers     []struct {
		BlobSum digest.Digest `json:"blobSum"`
	} `json:"fsLayers"` // of Docker's first schema, which the library serves no more: kept in directories taken over
}

// parseDocument reads a manifest. One of which a digest is none is refused:
// nothing can be kept of it.
func parseDocument(b []byte) (*document, error) {
	d := new(document)
	if err := json.Unmarshal(b, d); err != nil {
		return nil, err
	}
	for _, ref := range d.references() {
		if err := ref.Validate(); err != nil {
			return nil, fmt.Errorf("digest %.100q: %w", string(ref), err)
		}
	}
	if d.Subject != nil {
		if err := d.Subject.Digest.Validate(); err != nil {
			return nil, fmt.Errorf("subject %.100q: %w", string(d.Subject.Digest), err)
		}
	}
	return d, nil
}

// references are the blobs and manifests that it cannot be without; the subject
// is none of them.
func (d *document) references() []digest.Digest {
	var out []digest.Digest
	if d.Config != nil {
		out = append(out, d.Config.Digest)
	}
	for _, desc := range slices.Concat(d.Layers, d.Blobs, d.Manifests) {
		out = append(out, desc.Digest)
	}
	for _, l := range d.FSLayers {
		out = append(out, l.BlobSum)
	}
	return out
}

// descriptor is how the list of referrers shows it.
func (d *document) descriptor(mediaType string, dg digest.Digest, size int64) ocispec.Descriptor {
	artifact := d.ArtifactType
	if artifact == "" && d.Config != nil {
		artifact = d.Config.MediaType
	}
	return ocispec.Descriptor{MediaType: mediaType, Digest: dg, Size: size, ArtifactType: artifact, Annotations: d.Annotations}
}

// mediaTypeOf is a stored manifest's: what it says itself, or what its parts tell.
func (d *document) mediaTypeOf() string {
	switch {
	case d.MediaType != "":
		return d.MediaType
	case d.Manifests != nil:
		return ocispec.MediaTypeImageIndex
	}
	return ocispec.MediaTypeImageManifest
}

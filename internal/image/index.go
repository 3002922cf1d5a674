package image

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// indexed is an index of the store with its manifests.
type indexed struct {
	desc      ocispec.Descriptor
	data      []byte
	manifests []listed
}

// listed is a manifest that an index lists.
type listed struct {
	desc ocispec.Descriptor // with its platform
	data []byte
	doc  ocispec.Manifest
}

// attestation tells whether the manifest is what is told of another one.
func (l listed) attestation() bool {
	return l.desc.Annotations["vnd.docker.reference.type"] != "" || l.desc.Platform != nil && l.desc.Platform.OS == "unknown"
}

// readIndex reads an index with all its manifests, which must be here. ctx has
// the namespace.
func readIndex(ctx context.Context, contents content.Provider, d ocispec.Descriptor) (indexed, error) {
	out := indexed{desc: d}
	var err error
	if out.data, err = content.ReadBlob(ctx, contents, d); err != nil {
		return out, fmt.Errorf("index %s: %w", d.Digest, err)
	}
	var index ocispec.Index
	if err := json.Unmarshal(out.data, &index); err != nil {
		return out, fmt.Errorf("index %s: %w", d.Digest, err)
	}
	for _, m := range index.Manifests {
		if images.IsIndexType(m.MediaType) {
			return out, fmt.Errorf("index %s: an index within: %w", d.Digest, errdefs.ErrNotImplemented)
		}
		l := listed{desc: m}
		if l.data, err = content.ReadBlob(ctx, contents, m); err == nil {
			err = json.Unmarshal(l.data, &l.doc)
		}
		if err != nil {
			return out, fmt.Errorf("manifest %s: %w", m.Digest, err)
		}
		out.manifests = append(out.manifests, l)
	}
	return out, nil
}

// choose gives the manifest that is best for a platform; name is what is looked in.
func (x indexed) choose(match platformMatch, name string) (listed, error) {
	doc := &document{}
	for _, m := range x.manifests {
		doc.Manifests = append(doc.Manifests, m.desc)
	}
	d, err := match.choose(doc)
	if err != nil {
		return listed{}, kindf(errdefs.ErrNotFound, "image with reference %s was found but does not provide the specified platform (%s)", name, match.name)
	}
	for _, m := range x.manifests {
		if m.desc.Digest == d.Digest {
			return m, nil
		}
	}
	return listed{}, fmt.Errorf("manifest %s: %w", d.Digest, errdefs.ErrNotFound)
}

// parts are the blobs of a manifest. Layers are known by their blobs here.
func (l listed) parts() parts {
	out := parts{config: l.doc.Config}
	for _, d := range l.doc.Layers {
		out.layers = append(out.layers, layerRecord{DiffID: d.Digest, Blob: d})
	}
	return out
}

// index sends an index with all that it lists, or of it the manifest for the
// platform that was asked for. Nothing is under the tag before all is there.
func (p *pushing) index(d ocispec.Descriptor, tag string, match platformMatch) (Pushed, error) {
	x, err := readIndex(p.w.ctx, p.w.s.content, d)
	if err != nil {
		return Pushed{}, err
	}
	send, top, data := x.manifests, x.desc, x.data
	if match.asked {
		one, err := x.choose(match, reference.FamiliarString(p.ref))
		if err != nil {
			return Pushed{}, err
		}
		send, top, data = []listed{one}, one.desc, one.data
	}
	for _, m := range send {
		for _, l := range m.parts().layers {
			p.tell(l, "Preparing", 0, 0)
		}
	}
	for _, m := range send {
		if err := p.blobs(m.parts()); err != nil {
			return Pushed{}, err
		}
		if m.desc.Digest == top.Digest {
			continue
		}
		if err := p.o.Target.PushManifest(p.w.ctx, m.desc.Digest.String(), m.desc, m.data); err != nil {
			return Pushed{}, err
		}
	}
	if err := p.o.Target.PushManifest(p.w.ctx, tag, top, data); err != nil {
		return Pushed{}, err
	}
	return Pushed{Tag: tag, Digest: top.Digest, Size: int64(len(data))}, nil
}

// Part is a manifest of an index: an image for a platform, or what is told of one.
type Part struct {
	Manifest ocispec.Descriptor // with its platform
	Size     int64              // bytes of manifest, config and layers as they are stored
	Of       digest.Digest      // of an attestation: the manifest that it is about
	Here     bool               // it can be run from: its layers are unpacked
}

// Parts lists what an image consists of: the manifests of its index, or the one
// that it has. Kind: NotFound, when it was removed meanwhile.
func (s *Store) Parts(ctx context.Context, img Image) ([]Part, error) {
	ctx = s.namespace(ctx)
	x := indexed{}
	if img.Index.Digest != "" {
		var err error
		if x, err = readIndex(ctx, s.content, img.Index); err != nil {
			return nil, err
		}
	} else {
		l := listed{desc: img.Target}
		var err error
		if l.data, err = content.ReadBlob(ctx, s.content, img.Target); err == nil {
			err = json.Unmarshal(l.data, &l.doc)
		}
		if err != nil {
			return nil, fmt.Errorf("manifest %s: %w", img.Target.Digest, err)
		}
		p := platforms.Normalize(img.Config.Platform)
		l.desc.Platform = &p
		x.manifests = []listed{l}
	}
	var out []Part
	for _, m := range x.manifests {
		p := Part{Manifest: m.desc, Size: m.desc.Size + m.doc.Config.Size, Here: m.doc.Config.Digest.String() == img.ID}
		for _, l := range m.doc.Layers {
			p.Size += l.Size
		}
		if m.attestation() {
			p.Of = digest.Digest(m.desc.Annotations["vnd.docker.reference.digest"])
		}
		out = append(out, p)
	}
	return out, nil
}

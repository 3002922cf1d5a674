package image

import (
	"encoding/json"
	"fmt"
	"runtime"

	"escale.dev/escale/internal/image/archive"
	"escale.dev/escale/internal/image/layer"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/platforms"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxLayers is how many layers an image may have, as with Docker: overlayfs
// takes no more by mount(2).
const maxLayers = 127

// platformMatch tells which platforms to load.
type platformMatch struct {
	name  string
	asked bool // by the caller, not the host's
	cmp   platforms.MatchComparer
}

func (m platformMatch) fits(p ocispec.Platform) bool      { return m.cmp.Match(p) }
func (m platformMatch) better(a, b ocispec.Platform) bool { return m.cmp.Less(a, b) }

func matcher(platform string) (platformMatch, error) {
	p, err := parsePlatform(platform)
	if err != nil {
		return platformMatch{}, err
	}
	m := platformMatch{name: platforms.Format(p), asked: platform != "", cmp: platforms.Only(p)}
	if m.asked {
		m.cmp = platforms.OnlyStrict(p)
	}
	return m, nil
}

// manifestOf finds the OCI manifest that the archive has for an image of
// manifest.json, so that its digest stays; nil: there is none that fits.
func (l *loading) manifestOf(config []byte, layers []*member) *archive.Manifest {
	index, ok := l.docs[archive.IndexFile]
	if !ok {
		return nil
	}
	any := func(ocispec.Platform) bool { return true }
	var list []archive.Manifest
	for _, fits := range []func(ocispec.Platform) bool{l.match.fits, any} {
		found, err := archive.Manifests(index, l.blob, fits, l.match.better)
		if err != nil {
			return nil // manifest.json is enough
		}
		list = append(list, found...)
	}
	want := digest.FromBytes(config)
next:
	for _, m := range list {
		if m.Config.Digest != want || len(m.Layers) != len(layers) {
			continue
		}
		for i, d := range m.Layers {
			if d.Digest != layers[i].blob.Digest {
				continue next
			}
		}
		return &m
	}
	return nil
}

// image verifies an image against its config and gives its layers their place.
// m is its manifest, or nil.
func (l *loading) image(config []byte, members []*member, m *archive.Manifest) (*record, error) {
	var conf dockerspec.DockerOCIImage
	if err := json.Unmarshal(config, &conf); err != nil {
		return nil, err
	}
	diffs := conf.RootFS.DiffIDs
	switch {
	case conf.RootFS.Type == "" && diffs == nil:
		return nil, invalidf("invalid image JSON, no RootFS key")
	case conf.OS != "" && conf.OS != "linux":
		return nil, invalidf("cannot load %s image on %s", conf.OS, runtime.GOOS)
	case len(diffs) != len(members):
		return nil, invalidf("invalid manifest, layers length mismatch: expected %d, got %d", len(members), len(diffs))
	case len(diffs) > maxLayers:
		return nil, invalidf("max depth exceeded")
	}
	layers := make([]layerRecord, len(diffs))
	for i, u := range members {
		if u.diffID != diffs[i] {
			return nil, invalidf("invalid diffID for layer %d: expected %q, got %q", i, diffs[i], u.diffID)
		}
		lay := layerRecord{DiffID: u.diffID, Blob: u.blob, ChainID: identity.ChainID(diffs[:i+1])}
		if m != nil { // as its manifest calls it
			lay.Blob.MediaType, lay.Blob.Annotations = m.Layers[i].MediaType, m.Layers[i].Annotations
		}
		var parent digest.Digest
		if i > 0 {
			parent = layers[i-1].ChainID
		}
		var err error
		if lay.Size, err = l.place(u, parent, lay.ChainID); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
		layers[i] = lay
	}
	if m != nil {
		return l.w.record(config, layers, m.Data, m.Desc.MediaType)
	}
	return l.w.record(config, layers, nil, "")
}

// place puts a layer on top of parent. One that has its place in another image
// already is unpacked once more, from its blob.
func (l *loading) place(m *member, parent, chain digest.Digest) (int64, error) {
	if size, ok, err := l.w.placed(chain); ok || err != nil {
		return size, err
	}
	u := m.unpacked
	if u.key == "" {
		again, err := l.w.unpackBlob(u.blob)
		if err != nil {
			return 0, err
		}
		u = again
	}
	return l.w.place(u, parent, chain)
}

// unpackBlob unpacks a layer from its blob.
func (w *work) unpackBlob(blob ocispec.Descriptor) (*unpacked, error) {
	u := &unpacked{key: w.key(), blob: blob}
	mounts, err := w.s.snaps.Prepare(w.ctx, u.key, "")
	if err != nil {
		return nil, err
	}
	u.dir = mounts[0].Source
	ra, err := w.s.content.ReaderAt(w.ctx, blob)
	if err != nil {
		return nil, err
	}
	defer ra.Close()
	plain, _, err := layer.Decompress(w.ctx, content.NewReader(ra), w.s.maxLayer())
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	return u, w.apply(u)(plain)
}

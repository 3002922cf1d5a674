// Package archive knows the files in which images travel: Docker's
// (manifest.json beside layers and configs) and OCI's image layout (index.json
// beside blobs). It reads their descriptions, which are foreign bytes, and
// writes an archive that is both at once.
//
// Formats: https://github.com/moby/docker-image-spec,
// https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md.
package archive

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Files of an archive that describe the others.
const (
	ManifestFile     = "manifest.json"
	IndexFile        = ocispec.ImageIndexFile
	LayoutFile       = ocispec.ImageLayoutFile
	RepositoriesFile = "repositories"
)

// annotationImageName is where an OCI index keeps a full name.
const annotationImageName = "io.containerd.image.name"

// Media types of Docker's registry format 2.2, which OCI layouts hold too.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// Bounds of an OCI index.
const (
	maxDepth     = 4
	maxManifests = 4096
)

// problem is an error in Docker's words, of kind InvalidArgument.
type problem struct{ text string }

func (p *problem) Error() string { return p.text }
func (p *problem) Unwrap() error { return errdefs.ErrInvalidArgument }

func problemf(format string, args ...any) error {
	return &problem{text: fmt.Sprintf(format, args...)}
}

// Item is an image in manifest.json. Paths are those of the archive.
type Item struct {
	Config       string
	RepoTags     []string
	Layers       []string
	Parent       string                               `json:",omitempty"`
	LayerSources map[digest.Digest]ocispec.Descriptor `json:",omitempty"`
}

// ParseManifest reads manifest.json. Kind of errors: InvalidArgument.
func ParseManifest(data []byte) ([]Item, error) {
	var items []Item
	if err := json.NewDecoder(bytes.NewReader(data)).Decode(&items); err != nil {
		return nil, problemf("invalid archive: failed to decode %s: %s", ManifestFile, err)
	}
	if items == nil {
		return nil, problemf("invalid manifest, manifest cannot be null (but can be [])")
	}
	return items, nil
}

// Tags reads the item's names.
func (i Item) Tags() ([]reference.NamedTagged, error) {
	var out []reference.NamedTagged
	for _, t := range i.RepoTags {
		named, err := reference.ParseNormalizedNamed(t)
		if err != nil {
			return nil, problemf("%s", err)
		}
		tagged, ok := named.(reference.NamedTagged)
		if _, digested := named.(reference.Digested); !ok || digested {
			return nil, problemf("invalid tag %q", t)
		}
		out = append(out, tagged)
	}
	return out, nil
}

// Name normalizes the name of a file in an archive: relative, without "..".
func Name(s string) string { return strings.TrimPrefix(path.Clean("/"+s), "/") }

// BlobName is where a layout keeps a blob.
func BlobName(d digest.Digest) string {
	return path.Join(ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

// BlobDigest is the digest that the name of a file claims; "" if none.
func BlobDigest(name string) digest.Digest {
	dir, hex := path.Split(name)
	if d := digest.NewDigestFromEncoded(digest.SHA256, hex); dir == ocispec.ImageBlobsDir+"/sha256/" && d.Validate() == nil {
		return d
	}
	return ""
}

// Manifest is an image in an OCI layout.
type Manifest struct {
	Desc ocispec.Descriptor
	Data []byte // as it stands in the archive
	ocispec.Manifest
	Tags []reference.NamedTagged
}

// Blob gives a small file of the archive by digest, verified; nil: there is none.
type Blob func(d digest.Digest) ([]byte, error)

// Manifests lists the images that index.json names, of an image for several
// platforms the one that better says is best (it compares like less; nil: all
// are equally good) of those that fit. Attestations are left out.
func Manifests(index []byte, blob Blob, fits func(ocispec.Platform) bool, better func(a, b ocispec.Platform) bool) ([]Manifest, error) {
	idx, err := parseIndex(index, IndexFile)
	if err != nil {
		return nil, err
	}
	w := &walker{blob: blob, fits: fits, better: better}
	var out []Manifest
	for _, d := range idx.Manifests {
		m, err := w.find(d, 0)
		if err != nil {
			return nil, err
		}
		if m == nil {
			continue
		}
		if name := tagOf(d); name != nil {
			m.Tags = append(m.Tags, name)
		}
		out = append(out, *m)
	}
	return out, nil
}

func parseIndex(data []byte, name string) (ocispec.Index, error) {
	var idx ocispec.Index
	if err := json.Unmarshal(data, &idx); err != nil {
		return idx, problemf("invalid archive: failed to decode %s: %s", name, err)
	}
	if idx.SchemaVersion != 2 {
		return idx, problemf("invalid archive: %s has schema version %d, not 2", name, idx.SchemaVersion)
	}
	return idx, nil
}

// walker goes from an index to its manifests.
type walker struct {
	blob   Blob
	fits   func(ocispec.Platform) bool
	better func(a, b ocispec.Platform) bool
	seen   int
}

// find gives the manifest that d means on this platform; nil: an attestation,
// or not in the archive, or for another platform.
func (w *walker) find(d ocispec.Descriptor, depth int) (*Manifest, error) {
	if w.seen++; w.seen > maxManifests || depth > maxDepth {
		return nil, problemf("invalid archive: %s names too many images", IndexFile)
	}
	if d.Annotations["vnd.docker.reference.type"] != "" || d.Platform != nil && (d.Platform.OS == "unknown" || !w.fits(*d.Platform)) {
		return nil, nil
	}
	if err := d.Digest.Validate(); err != nil {
		return nil, problemf("invalid archive: digest %q: %s", d.Digest, err)
	}
	data, err := w.blob(d.Digest)
	if err != nil || data == nil {
		return nil, err
	}
	switch d.MediaType {
	case ocispec.MediaTypeImageManifest, dockerManifest:
		m := &Manifest{Desc: ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: int64(len(data)), Platform: d.Platform}, Data: data}
		if err := json.Unmarshal(data, &m.Manifest); err != nil {
			return nil, problemf("invalid archive: failed to decode manifest %s: %s", d.Digest, err)
		}
		return m, nil
	case ocispec.MediaTypeImageIndex, dockerIndex:
		return w.best(d, data, depth)
	}
	return nil, nil
}

// best looks through an index within the index.
func (w *walker) best(d ocispec.Descriptor, data []byte, depth int) (*Manifest, error) {
	idx, err := parseIndex(data, "index "+d.Digest.String())
	if err != nil {
		return nil, err
	}
	var best *Manifest
	for _, sub := range idx.Manifests {
		m, err := w.find(sub, depth+1)
		if err != nil {
			return nil, err
		}
		if m == nil {
			continue
		}
		if best == nil || m.Desc.Platform != nil && best.Desc.Platform != nil && w.better(*m.Desc.Platform, *best.Desc.Platform) {
			best = m
		}
	}
	return best, nil
}

// tagOf reads the name that an entry of index.json carries; nil: none.
func tagOf(d ocispec.Descriptor) reference.NamedTagged {
	for _, s := range []string{d.Annotations[annotationImageName], d.Annotations[ocispec.AnnotationRefName]} {
		if !strings.ContainsAny(s, ":/") {
			continue // a tag without a name, as some tools write
		}
		named, err := reference.ParseNormalizedNamed(s)
		if err != nil {
			continue
		}
		if tagged, ok := reference.TagNameOnly(named).(reference.NamedTagged); ok {
			return tagged
		}
	}
	return nil
}

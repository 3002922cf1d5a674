package archive

import (
	"archive/tar"
	"encoding/json"
	"io"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is an image to be written.
type Image struct {
	Manifest ocispec.Descriptor
	Config   ocispec.Descriptor
	Layers   []ocispec.Descriptor
	DiffIDs  []digest.Digest
	Tags     []reference.NamedTagged
}

// Writer writes an archive that Docker, podman, skopeo and containerd read.
// Blobs first, as they come; the files that name them at the end.
type Writer struct {
	tw     *tar.Writer
	has    map[digest.Digest]bool
	dirs   bool
	images []Image
}

// NewWriter writes to w.
func NewWriter(w io.Writer) *Writer {
	return &Writer{tw: tar.NewWriter(w), has: map[digest.Digest]bool{}}
}

// Has tells whether a blob was written.
func (w *Writer) Has(d digest.Digest) bool { return w.has[d] }

// Blob writes a blob, once. r must hold exactly d.Size bytes.
func (w *Writer) Blob(d ocispec.Descriptor, r io.Reader) error {
	if w.has[d.Digest] {
		return nil
	}
	if !w.dirs {
		w.dirs = true
		for _, dir := range []string{ocispec.ImageBlobsDir + "/", ocispec.ImageBlobsDir + "/sha256/"} {
			if err := w.tw.WriteHeader(header(dir, tar.TypeDir, 0o755, 0)); err != nil {
				return err
			}
		}
	}
	if err := w.tw.WriteHeader(header(BlobName(d.Digest), tar.TypeReg, 0o644, d.Size)); err != nil {
		return err
	}
	if _, err := io.CopyBuffer(struct{ io.Writer }{w.tw}, struct{ io.Reader }{r}, make([]byte, 1<<20)); err != nil {
		return err
	}
	w.has[d.Digest] = true
	return nil
}

// header of an entry; the time is fixed, so that equal images make equal archives.
func header(name string, kind byte, mode, size int64) *tar.Header {
	return &tar.Header{Name: name, Typeflag: kind, Mode: mode, Size: size, ModTime: time.Unix(0, 0)}
}

// Image names an image whose blobs have been written, or will be.
func (w *Writer) Image(i Image) { w.images = append(w.images, i) }

// Close writes what names the blobs and ends the archive.
func (w *Writer) Close() error {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	items := []Item{}
	repositories := map[string]map[string]string{}
	for _, i := range w.images {
		item := Item{Config: BlobName(i.Config.Digest), LayerSources: map[digest.Digest]ocispec.Descriptor{}}
		for n, l := range i.Layers {
			item.Layers = append(item.Layers, BlobName(l.Digest))
			item.LayerSources[i.DiffIDs[n]] = l
		}
		for _, t := range i.Tags {
			item.RepoTags = append(item.RepoTags, reference.FamiliarString(t))
			d := i.Manifest
			d.Annotations = map[string]string{annotationImageName: t.String(), ocispec.AnnotationRefName: t.Tag()}
			index.Manifests = append(index.Manifests, d)
			repo := reference.FamiliarName(t)
			if repositories[repo] == nil {
				repositories[repo] = map[string]string{}
			}
			repositories[repo][t.Tag()] = i.DiffIDs[len(i.DiffIDs)-1].Encoded()
		}
		if len(i.Tags) == 0 {
			index.Manifests = append(index.Manifests, i.Manifest)
		}
		items = append(items, item)
	}
	files := []struct {
		name string
		v    any
	}{{IndexFile, index}, {ManifestFile, items}, {LayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}}}
	if len(repositories) > 0 {
		files = append(files, struct {
			name string
			v    any
		}{RepositoriesFile, repositories})
	}
	for _, f := range files {
		data, err := json.Marshal(f.v)
		if err != nil {
			return err
		}
		if err := w.tw.WriteHeader(header(f.name, tar.TypeReg, 0o644, int64(len(data)))); err != nil {
			return err
		}
		if _, err := w.tw.Write(data); err != nil {
			return err
		}
	}
	return w.tw.Close()
}

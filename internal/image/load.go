package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"escale.dev/escale/internal/image/archive"
	"escale.dev/escale/internal/image/layer"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// Bounds of what an archive may have beside its layers.
const (
	maxDocument  = 16 << 20 // bytes of one JSON file
	maxDocuments = 64 << 20 // bytes of all of them
	maxMembers   = 100_000
	maxTrailer   = 64 << 20 // bytes read on after the archive's end
)

// Load adds the images of an archive, Docker's or OCI's, plain or compressed.
// The archive is read once, as it comes: layers are stored and unpacked on the
// way, whatever their order. All images become visible together; after an error
// nothing is left of any. Kinds: as Import.
func (s *Store) Load(ctx context.Context, r io.Reader, o LoadOptions) (err error) {
	match, err := matcher(o.Platform)
	if err != nil {
		return err
	}
	if err := s.space(); err != nil {
		return err
	}
	w, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			w.abandon()
		}
	}()
	l := &loading{w: w, o: o, match: match, docs: map[string][]byte{}, layers: map[string]*member{}, links: map[string]string{},
		byDigest: map[digest.Digest]*member{}, known: s.knownLayers()}
	if err := l.read(r); err != nil {
		return asInvalid(err)
	}
	images, err := l.images()
	if err != nil {
		return asInvalid(err)
	}
	lines, err := l.register(ctx, images)
	if err != nil {
		return err
	}
	s.gc.kick(false) // layers of other platforms, and those that were there
	if o.Loaded != nil {
		for _, line := range lines {
			o.Loaded(line)
		}
	}
	return nil
}

// member is a layer found in the archive, or one that is in the store already.
type member struct {
	*unpacked
}

// loading is an archive being read.
type loading struct {
	w     *work
	o     LoadOptions
	match platformMatch

	docs     map[string][]byte  // small files by name
	docBytes int                // their sum
	layers   map[string]*member // by name
	links    map[string]string  // name → name
	byDigest map[digest.Digest]*member
	known    map[digest.Digest]layerRecord // layers in the store, by blob
}

// knownLayers lists the layers of all images by their blobs.
func (s *Store) knownLayers() map[digest.Digest]layerRecord {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := map[digest.Digest]layerRecord{}
	for _, r := range s.byID {
		for _, l := range r.Layers {
			out[l.Blob.Digest] = l
		}
	}
	return out
}

// read takes in the whole archive.
func (l *loading) read(r io.Reader) error {
	plain, _, err := layer.Decompress(l.w.ctx, r, 1<<62)
	if err != nil {
		return err
	}
	defer plain.Close()
	tr := tar.NewReader(&interruptible{ctx: l.w.ctx, r: plain})
	for n := 0; ; n++ {
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if n > maxMembers {
			return fmt.Errorf("archive: more than %d files: %w", maxMembers, unix.E2BIG)
		}
		name := archive.Name(hdr.Name)
		switch hdr.Typeflag {
		case tar.TypeReg:
			if err := l.file(name, hdr.Size, tr); err != nil {
				return err
			}
		case tar.TypeSymlink:
			dir := name[:strings.LastIndexByte(name, '/')+1]
			l.links[name] = archive.Name(dir + hdr.Linkname)
		case tar.TypeLink:
			l.links[name] = archive.Name(hdr.Linkname)
		}
	}
	// What compresses the archive may say at its end that it is damaged.
	if _, err = io.CopyN(io.Discard, plain, maxTrailer); err == io.EOF {
		return nil
	}
	return err
}

// file takes in one file: a description is kept in memory, a layer unpacked,
// anything else passed over.
func (l *loading) file(name string, size int64, r io.Reader) error {
	if d := archive.BlobDigest(name); d != "" {
		if have, ok := l.known[d]; ok {
			if ok, err := l.w.hold(d); ok || err != nil {
				m := &member{&unpacked{blob: have.Blob, diffID: have.DiffID}}
				l.layers[name], l.byDigest[d] = m, m
				return err
			}
		}
	}
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(512)
	if err != nil && err != io.EOF {
		return err
	}
	if !isLayer(name, head) {
		if isDocument(name, head) {
			return l.document(name, size, br)
		}
		return nil
	}
	var id string
	if d := archive.BlobDigest(name); d != "" {
		id = d.Encoded()
	} else {
		id = strings.TrimSuffix(strings.TrimSuffix(name, "/layer.tar"), ".tar")
	}
	var in io.Reader = br
	if !l.o.Quiet {
		in = counted(br, l.o.Progress, Progress{ID: short(id), Status: "Loading layer", Total: size}, time.Now().Add(progressEvery))
	}
	u, err := l.w.unpack(in, true)
	if err != nil {
		return err
	}
	m := &member{u}
	l.layers[name], l.byDigest[u.blob.Digest] = m, m
	return nil
}

// isDocument tells a description from what else may lie in an archive.
func isDocument(name string, head []byte) bool {
	head = bytes.TrimLeft(head, " \t\r\n")
	return strings.HasSuffix(name, ".json") || len(head) > 0 && (head[0] == '{' || head[0] == '[')
}

// isLayer tells whether a file may be a layer: a tar, or compressed.
func isLayer(name string, head []byte) bool {
	if strings.HasSuffix(name, "/layer.tar") || layer.Detect(head) != layer.None {
		return true
	}
	if len(head) < 512 {
		return false
	}
	// The header is all there is to read: what it announces may be missing.
	_, err := tar.NewReader(bytes.NewReader(head)).Next()
	return err == nil || err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF)
}

func (l *loading) document(name string, size int64, r io.Reader) error {
	if size > maxDocument || l.docBytes+int(size) > maxDocuments {
		return invalidf("invalid archive: %s is too large", name)
	}
	data, err := io.ReadAll(r)
	l.docs[name] = data
	l.docBytes += len(data)
	return err
}

// hold leases a blob of the store; false: it is not there any more.
func (w *work) hold(d digest.Digest) (ok bool, err error) {
	err = w.s.update(w.ctx, func(ctx context.Context, _ *bolt.Tx) error {
		_, err := w.s.content.Info(ctx, d)
		if errdefs.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		ok = true
		return w.s.leases.AddResource(ctx, leases.Lease{ID: w.lease.ID}, contentResource(d))
	})
	return ok, err
}

// resolve follows links between the archive's files.
func (l *loading) resolve(name string) string {
	name = archive.Name(name)
	for range 16 {
		to, ok := l.links[name]
		if !ok {
			break
		}
		name = to
	}
	return name
}

// doc finds a small file.
func (l *loading) doc(name string) ([]byte, error) {
	if data, ok := l.docs[l.resolve(name)]; ok {
		return data, nil
	}
	return nil, &os.PathError{Op: "open", Path: name, Err: unix.ENOENT}
}

// blob finds a small file by its digest and verifies it.
func (l *loading) blob(d digest.Digest) ([]byte, error) {
	data, ok := l.docs[l.resolve(archive.BlobName(d))]
	if !ok {
		return nil, nil
	}
	if got := d.Algorithm().FromBytes(data); got != d {
		return nil, invalidf("invalid archive: %s has digest %s", archive.BlobName(d), got)
	}
	return data, nil
}

// register makes the images visible and tells what to say of them.
func (l *loading) register(ctx context.Context, images []loaded) (lines []string, err error) {
	s := l.w.s
	s.write.Lock()
	defer s.write.Unlock()
	c := newChange(s)
	for _, i := range images {
		r := c.add(i.record)
		for _, t := range i.tags {
			if had := c.tag(r, t); had != "" && had != r.ID {
				lines = append(lines, fmt.Sprintf("The image %s already exists, renaming the old one with ID %s to empty string", reference.FamiliarString(t), had))
			}
			lines = append(lines, "Loaded image: "+reference.FamiliarString(t))
		}
		if len(i.tags) == 0 {
			lines = append(lines, "Loaded image ID: "+r.ID.String())
		}
	}
	return lines, c.commit(ctx, l.w.end)
}

// loaded is an image found in the archive, whose layers have their place.
type loaded struct {
	*record
	tags []reference.NamedTagged
}

// images finds the images in what was read.
func (l *loading) images() ([]loaded, error) {
	data, ok := l.docs[archive.IndexFile]
	if named, has := l.docs[archive.ManifestFile]; has {
		// Of an image for several platforms manifest.json names one.
		out, err := l.dockerImages(named)
		if err != nil || len(out) > 0 || !ok || !l.match.asked {
			return out, err
		}
	}
	if !ok {
		return nil, invalidf("invalid archive: does not contain a %s", archive.ManifestFile)
	}
	manifests, err := archive.Manifests(data, l.blob, l.match.fits, l.match.better)
	if err != nil {
		return nil, err
	}
	if len(manifests) == 0 {
		return nil, kindf(errdefs.ErrNotFound, "the archive has no image for platform %s", l.match.name)
	}
	var out []loaded
	for _, m := range manifests {
		config, err := l.blob(m.Config.Digest)
		if err == nil && config == nil {
			err = invalidf("invalid archive: config %s is missing", m.Config.Digest)
		}
		if err != nil {
			return nil, err
		}
		layers := make([]*member, len(m.Layers))
		for i, d := range m.Layers {
			if layers[i] = l.byDigest[d.Digest]; layers[i] == nil {
				return nil, invalidf("invalid archive: layer %s is missing", d.Digest)
			}
		}
		rec, err := l.image(config, layers, &m)
		if err != nil {
			return nil, err
		}
		out = append(out, loaded{rec, m.Tags})
	}
	return out, nil
}

// dockerImages reads what manifest.json names.
func (l *loading) dockerImages(data []byte) ([]loaded, error) {
	items, err := archive.ParseManifest(data)
	if err != nil {
		return nil, err
	}
	var out []loaded
	for _, item := range items {
		tags, err := item.Tags()
		if err != nil {
			return nil, err
		}
		config, err := l.doc(item.Config)
		if err != nil {
			return nil, err
		}
		var platform ocispec.Platform
		if err := json.Unmarshal(config, &platform); err != nil {
			return nil, err
		}
		if l.match.asked && !l.match.fits(platform) {
			continue
		}
		layers := make([]*member, len(item.Layers))
		for i, name := range item.Layers {
			if layers[i] = l.layers[l.resolve(name)]; layers[i] == nil {
				return nil, &os.PathError{Op: "open", Path: name, Err: unix.ENOENT}
			}
		}
		rec, err := l.image(config, layers, l.manifestOf(config, layers))
		if err != nil {
			return nil, err
		}
		out = append(out, loaded{rec, tags})
	}
	return out, nil
}

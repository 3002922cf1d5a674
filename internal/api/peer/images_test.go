package peer

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster/ca"
	"escale.dev/escale/internal/image"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	pulledAs = "r.test/app:1"
	amd64    = "linux/amd64"
)

// shelf is what a registry has: image.Source, and what a node has, without its records.
type shelf struct {
	blobs map[digest.Digest][]byte
	index ocispec.Descriptor
	held  image.Held                                           // of amd64
	spoil func(d digest.Digest, whole []byte) content.ReaderAt // nil from it: not spoiled
}

// newShelf has an index of two platforms, of an image of three layers each.
func newShelf(t *testing.T) *shelf {
	t.Helper()
	s := &shelf{blobs: map[digest.Digest][]byte{}}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, arch := range []string{"arm64", "amd64"} {
		conf := dockerspec.DockerOCIImage{}
		conf.OS, conf.Architecture, conf.RootFS.Type = "linux", arch, "layers"
		m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
		for i := range 3 {
			plain := layerOf(t, fmt.Sprintf("%s-%d", arch, i), 600_000)
			conf.RootFS.DiffIDs = append(conf.RootFS.DiffIDs, digest.FromBytes(plain))
			m.Layers = append(m.Layers, s.put(t, ocispec.MediaTypeImageLayerGzip, packed(t, plain)))
		}
		m.Config = s.put(t, ocispec.MediaTypeImageConfig, conf)
		d := s.put(t, m.MediaType, m)
		s.held = image.Held{ID: m.Config.Digest, Manifest: d, Top: d}
		d.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
		index.Manifests = append(index.Manifests, d)
	}
	s.index = s.put(t, index.MediaType, index)
	return s
}

func layerOf(t *testing.T, name string, size int) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(size), ModTime: time.Unix(1_700_000_000, 0)}); err != nil {
		t.Fatal(err)
	}
	_, err := w.Write(data)
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func packed(t *testing.T, plain []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, err := z.Write(plain)
	if err := errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func (s *shelf) put(t *testing.T, mediaType string, v any) ocispec.Descriptor {
	t.Helper()
	data, ok := v.([]byte)
	if !ok {
		var err error
		if data, err = json.Marshal(v); err != nil {
			t.Fatal(err)
		}
	}
	d := digest.FromBytes(data)
	s.blobs[d] = data
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}

// As a registry.

func (s *shelf) Resolve(context.Context, string) (ocispec.Descriptor, error) { return s.index, nil }

func (s *shelf) Manifest(_ context.Context, ref string) (ocispec.Descriptor, []byte, error) {
	b := s.blobs[digest.Digest(ref)]
	var doc struct {
		MediaType string `json:"mediaType"`
	}
	err := json.Unmarshal(b, &doc)
	return ocispec.Descriptor{MediaType: doc.MediaType, Digest: digest.Digest(ref), Size: int64(len(b))}, b, err
}

func (s *shelf) Blob(_ context.Context, d digest.Digest, offset int64) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(s.blobs[d][offset:])), nil
}
func (s *shelf) Passing(error) bool { return false }

// As a node.

func (s *shelf) Find(_ context.Context, w image.Wanted) (image.Held, error) {
	h := s.held
	switch w.Digest {
	case "":
	case s.index.Digest:
		h.Top = s.index
	default:
		return h, fmt.Errorf("image: %w", errdefs.ErrNotFound)
	}
	return h, nil
}

func (s *shelf) Part(_ context.Context, _, d digest.Digest) (content.ReaderAt, error) {
	b, ok := s.blobs[d]
	if !ok {
		return nil, fmt.Errorf("part: %w", errdefs.ErrNotFound)
	}
	if s.spoil != nil {
		if bad := s.spoil(d, b); bad != nil {
			return bad, nil
		}
	}
	return &blob{Reader: bytes.NewReader(b)}, nil
}

type blob struct {
	*bytes.Reader
	before func(off int64) error
}

func (b *blob) ReadAt(p []byte, off int64) (int, error) {
	if b.before != nil {
		if err := b.before(off); err != nil {
			return 0, err
		}
	}
	return b.Reader.ReadAt(p, off)
}
func (b *blob) Close() error { return nil }

// counting counts the parts that a node is asked for.
type counting struct {
	image.Offered
	mu    sync.Mutex
	parts map[digest.Digest]int
}

func (c *counting) Part(ctx context.Context, id, d digest.Digest) (content.ReaderAt, error) {
	c.mu.Lock()
	c.parts[d]++
	c.mu.Unlock()
	return c.Offered.Part(ctx, id, d)
}

func openStore(t *testing.T) *image.Store {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: overlayfs, owners and devices")
	}
	s, err := image.Open(context.Background(), image.Config{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func named(t *testing.T, s string) reference.Named {
	t.Helper()
	n, err := reference.ParseDockerRef(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// fetch brings an image from nodes as an engine does.
func fetch(t *testing.T, s *image.Store, d *Dialer, w image.Wanted, places []Place, as string) error {
	t.Helper()
	h, err := d.Has(t.Context(), places[0].Node, w)
	if err != nil {
		return err
	}
	for i := range places {
		places[i].ID = h.ID
	}
	src := d.Source(w, Found{h, places})
	src.places = slices.Clone(places) // in this order
	for {
		_, err = s.Remotes().Pull(t.Context(), named(t, as), image.PullOptions{Source: src, Platform: amd64, Unlisted: true})
		if err == nil || !src.Again() {
			return err
		}
	}
}

// What one node has pulled, imported or made, all have: by its id, by its digests and by its
// name, under the names that it was asked by, and each part once.
func TestImages(t *testing.T) {
	first, s := openStore(t), newSite(t)
	reg := newShelf(t)
	first.Remotes().Set(image.Transfers{})
	if _, err := first.Remotes().Pull(t.Context(), named(t, pulledAs), image.PullOptions{Source: reg, Platform: amd64}); err != nil {
		t.Fatal(err)
	}
	own, err := first.Import(t.Context(), bytes.NewReader(layerOf(t, "f", 3_000_000)), image.ImportOptions{Ref: "made:2"})
	if err != nil {
		t.Fatal(err)
	}
	count := &counting{Offered: image.Offer(first), parts: map[digest.Digest]int{}}
	s.node("w1", ca.Worker, Config{Images: count})
	d := s.dialer(s.keeper("w2", "c1", ca.Worker))
	place := []Place{{Node: "w1"}}
	pulled, err := first.Get(t.Context(), pulledAs)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what   string
		want   image.Wanted
		as     string
		id     string
		listed bool // its digest is a name of it
		parts  int
	}{
		{"an index", image.Wanted{Digest: reg.index.Digest, Platform: amd64}, "r.test/app@" + reg.index.Digest.String(), pulled.ID, true, 6},
		{"a manifest", image.Wanted{Digest: reg.held.Manifest.Digest, Platform: amd64}, "r.test/app@" + reg.held.Manifest.Digest.String(), pulled.ID, true, 5},
		{"a name", image.Wanted{Name: pulledAs, Platform: amd64}, pulledAs, pulled.ID, false, 5},
		{"an id", image.Wanted{ID: digest.Digest(own.ID)}, "docker.io/library/made:2", own.ID, false, 3},
	} {
		second := openStore(t)
		clear(count.parts)
		if err := fetch(t, second, d, c.want, place, c.as); err != nil {
			t.Errorf("%s: %v", c.what, err)
			continue
		}
		img, err := second.Get(t.Context(), c.as)
		if err != nil || img.ID != c.id || (len(img.RepoDigests) > 0) != c.listed {
			t.Errorf("%s: %s %v %v, %v", c.what, img.ID, img.RepoTags, img.RepoDigests, err)
		}
		if len(count.parts) != c.parts {
			t.Errorf("%s: %d parts came, want %d", c.what, len(count.parts), c.parts)
		}
		for d, n := range count.parts {
			if n != 1 {
				t.Errorf("%s: %s came %d times", c.what, d, n)
			}
		}
		clear(count.parts)
		if err := fetch(t, second, d, c.want, place, c.as); err != nil || len(count.parts) > 2 { // what it stands for is looked at
			t.Errorf("%s again: %d parts came, %v", c.what, len(count.parts), err)
		}
		// And from there to a third.
		if _, err := image.Offer(second).Find(t.Context(), c.want); err != nil {
			t.Errorf("%s: not for others: %v", c.what, err)
		}
	}
	for what, w := range map[string]image.Wanted{
		"of another platform": {Digest: reg.index.Digest, Platform: "linux/arm64"},
		"unknown":             {ID: someID},
		"of another name":     {Name: "r.test/app:2"},
	} {
		if _, err := d.Has(t.Context(), "w1", w); !errdefs.IsNotFound(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, w := range map[string]image.Wanted{
		"nothing": {}, "two": {ID: someID, Name: pulledAs}, "a short name": {Name: "app"}, "no digest": {ID: "sha256:x"}, "no platform": {ID: someID, Platform: "a/b/c/d"},
	} {
		if _, err := d.Has(t.Context(), "w1", w); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// Blobs are given out as parts of an image only.
	if _, err := d.small(t.Context(), Place{Node: "w1", ID: digest.Digest(own.ID)}, reg.held.Manifest.Digest); !errdefs.IsNotFound(err) {
		t.Errorf("a part of another image: %v", err)
	}
}

// Nodes that lie, break off or fall silent leave nothing behind, and do not keep an image
// from who has another node to ask.
func TestHostileNodes(t *testing.T) {
	honest := newShelf(t)
	conf := honest.held.ID
	var layers []digest.Digest
	var m ocispec.Manifest
	if err := json.Unmarshal(honest.blobs[honest.held.Manifest.Digest], &m); err != nil {
		t.Fatal(err)
	}
	for _, l := range m.Layers {
		layers = append(layers, l.Digest)
	}
	silent := make(chan struct{})
	t.Cleanup(func() { close(silent) })
	garbage := func(b []byte) content.ReaderAt {
		return &blob{Reader: bytes.NewReader(bytes.Repeat([]byte{7}, len(b)))}
	}
	only := func(of []digest.Digest, f func([]byte) content.ReaderAt) func(digest.Digest, []byte) content.ReaderAt {
		return func(d digest.Digest, b []byte) content.ReaderAt {
			if slices.Contains(of, d) {
				return f(b)
			}
			return nil
		}
	}
	flipped := func(b []byte) content.ReaderAt {
		b = slices.Clone(b)
		b[len(b)/2] ^= 1
		return &blob{Reader: bytes.NewReader(b)}
	}
	for what, spoil := range map[string]func(digest.Digest, []byte) content.ReaderAt{
		"another manifest": only([]digest.Digest{honest.held.Manifest.Digest}, garbage),
		"another config":   only([]digest.Digest{conf}, flipped),
		"another layer":    only(layers[1:2], flipped),
		"garbage layers":   only(layers, garbage),
		"too short":        only(layers[2:], func(b []byte) content.ReaderAt { return &blob{Reader: bytes.NewReader(b[:len(b)/3])} }),
		"too long":         only(layers[2:], func(b []byte) content.ReaderAt { return &blob{Reader: bytes.NewReader(append(slices.Clone(b), 0))} }),
		"breaking off": only(layers[:1], func(b []byte) content.ReaderAt {
			return &blob{bytes.NewReader(b), func(off int64) error { return failAfter(off, 0) }}
		}),
		"a bad beginning": only(layers[:1], func(b []byte) content.ReaderAt {
			bad := bytes.Repeat([]byte{9}, len(b)+piece)
			copy(bad, b[:100])
			return &blob{bytes.NewReader(bad[:len(b)]), func(off int64) error { return failAfter(off, piece-1) }}
		}),
		"silent": only(layers[:1], func(b []byte) content.ReaderAt {
			return &blob{bytes.NewReader(b), func(int64) error { <-silent; return errors.New("over") }}
		}),
	} {
		t.Run(what, func(t *testing.T) {
			s, store := newSite(t), openStore(t)
			store.Remotes().Set(image.Transfers{Attempts: 3, Pause: time.Millisecond})
			liar := &shelf{blobs: honest.blobs, held: honest.held, index: honest.index, spoil: spoil}
			s.node("w1", ca.Worker, Config{Images: liar})
			d := s.dialer(s.keeper("w9", "c1", ca.Worker))
			d.stall, d.head = 300*time.Millisecond, time.Second
			w := image.Wanted{ID: conf}
			if err := fetch(t, store, d, w, []Place{{Node: "w1"}}, pulledAs); err == nil {
				t.Error("it was believed")
			}
			if list, err := store.List(t.Context()); err != nil || len(list) != 0 {
				t.Errorf("left: %v, %v", list, err)
			}
			s.node("w2", ca.Worker, Config{Images: &shelf{blobs: honest.blobs, held: honest.held}})
			if err := fetch(t, store, d, w, []Place{{Node: "w1"}, {Node: "w2"}}, pulledAs); err != nil {
				t.Errorf("with another node: %v", err)
			}
			if img, err := store.Get(t.Context(), pulledAs); err != nil || img.ID != conf.String() {
				t.Errorf("%s, %v", img.ID, err)
			}
		})
	}
}

func failAfter(off, n int64) error {
	if off > n {
		return errors.New("broken off")
	}
	return nil
}

// A node that names another image than the one that is wanted is not believed.
func TestAnotherImage(t *testing.T) {
	s, reg := newSite(t), newShelf(t)
	s.node("w1", ca.Worker, Config{Images: reg})
	d := s.dialer(s.keeper("w9", "c1", ca.Worker))
	if _, err := d.Has(t.Context(), "w1", image.Wanted{ID: someID}); !errdefs.IsDataLoss(err) {
		t.Errorf("another id: %v", err)
	}
	// Its manifest is whole, but of another image.
	store := openStore(t)
	src := d.Source(image.Wanted{ID: someID}, Found{image.Held{ID: someID, Manifest: reg.held.Manifest, Top: reg.held.Top}, []Place{{Node: "w1", ID: someID}}})
	_, err := store.Remotes().Pull(t.Context(), named(t, pulledAs), image.PullOptions{Source: src})
	if !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), "is not of image") {
		t.Errorf("another manifest: %v", err)
	}
}

// Whatever a node gives as a manifest is described or refused.
func FuzzDescribe(f *testing.F) {
	for _, s := range []string{`{}`, `{"mediaType":"x","config":{"digest":"sha256:1"}}`, `{"manifests":[]}`, `[`, `{"config":null}`, `null`} {
		f.Add([]byte(s))
	}
	s := &Source{want: image.Wanted{ID: someID}}
	f.Fuzz(func(t *testing.T, raw []byte) {
		d, err := s.describe(Place{Node: "n"}, someID, raw)
		if err == nil && (d.MediaType == "" || d.Size != int64(len(raw)) || !bytes.Contains(raw, []byte("config"))) {
			t.Errorf("%q: %+v", raw, d)
		}
	})
}

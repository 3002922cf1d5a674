package image

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// putIndex puts an index of an image that is here, another for arm64 and an
// attestation into a store, as a builder does, and lets names stand for it.
func putIndex(t *testing.T, s *Store, img Image, names ...string) ocispec.Descriptor {
	t.Helper()
	w, err := s.begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer w.finish()
	put := func(kind string, data []byte, refs ...digest.Digest) ocispec.Descriptor {
		t.Helper()
		labels := map[string]string{}
		for i, d := range refs {
			labels["containerd.io/gc.ref.content."+string(rune('0'+i))] = d.String()
		}
		d, err := w.blob(kind, data, labels)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	asJSON := func(v any) []byte {
		t.Helper()
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	plain := makeTar(t, file{name: "arm", data: "other"})
	layer := put(ocispec.MediaTypeImageLayerGzip, packedTar(t, plain))
	conf := dockerspec.DockerOCIImage{Image: ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "arm64"},
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(plain)}}}}
	config := put(ocispec.MediaTypeImageConfig, asJSON(conf))
	manifest := func(c, l ocispec.Descriptor) ocispec.Descriptor {
		return put(ocispec.MediaTypeImageManifest, asJSON(ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2},
			MediaType: ocispec.MediaTypeImageManifest, Config: c, Layers: []ocispec.Descriptor{l}}), c.Digest, l.Digest)
	}
	here, arm := img.Target, manifest(config, layer)
	told := manifest(put(ocispec.MediaTypeImageConfig, []byte(`{"rootfs":{"type":"layers","diff_ids":[]}}`)), put("application/vnd.in-toto+json", []byte(`{"told":1}`)))
	here.Platform, arm.Platform = &ocispec.Platform{OS: "linux", Architecture: "amd64"}, &conf.Platform
	told.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
	told.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": here.Digest.String()}
	index := put(ocispec.MediaTypeImageIndex, asJSON(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{here, arm, told}}), here.Digest, arm.Digest, told.Digest)
	if _, err := (Builds{s}).Adopt(leases.WithLease(t.Context(), w.lease.ID), Adopted{Manifest: img.Target, Index: index, Snapshot: img.ChainID, Names: names}); err != nil {
		t.Fatal(err)
	}
	return index
}

// TestIndexes: a tag stands for an index, by itself, until it means something else
// or is removed; then all of that goes, also when the engine was restarted between.
func TestIndexes(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	s := open(t, Config{Root: root})
	img := importTar(t, s, "r.test/x:alone", file{name: "a", data: "here"})
	alone := count(t, s)
	index := putIndex(t, s, img, "r.test/x:1")
	whole := count(t, s)
	if whole.blobs != alone.blobs+7 || whole.images != 1 || whole.leases != alone.leases {
		t.Fatalf("with an index there is %+v, without %+v", whole, alone)
	}
	of := func(ref string) digest.Digest {
		t.Helper()
		got, err := s.Get(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		return got.Index.Digest
	}
	if err := s.Tag(t.Context(), "r.test/x:1", "r.test/x:2"); err != nil {
		t.Fatal(err)
	}
	if err := s.Tag(t.Context(), img.ID, "r.test/x:byid"); err != nil {
		t.Fatal(err)
	}
	if of("r.test/x:1") != index.Digest || of("r.test/x:2") != index.Digest || of("r.test/x:alone") != "" || of("r.test/x:byid") != "" || of(img.ID) != "" {
		t.Error("names stand for something else than they were given to")
	}
	parts, err := s.Parts(t.Context(), Image{ID: img.ID, Index: index})
	if err != nil || len(parts) != 3 || !parts[0].Here || parts[1].Here || parts[2].Of != img.Target.Digest {
		t.Errorf("its parts: %+v, %v", parts, err)
	}
	if parts, err := s.Parts(t.Context(), img); err != nil || len(parts) != 1 || !parts[0].Here || parts[0].Manifest.Platform == nil {
		t.Errorf("the parts of the image alone: %+v, %v", parts, err)
	}
	pushIndex(t, s, index)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, Config{Root: root})
	if got := count(t, s); got != whole {
		t.Errorf("after a restart there is %+v, before %+v", got, whole)
	}
	d, _, err := Offer(s).Manifest(t.Context(), "r.test/x", "2")
	if err != nil || d.Digest != index.Digest {
		t.Errorf("others are given %s, %v", d.Digest, err)
	}
	savedIndex(t, s)
	// One name is taken for something else, the other removed.
	importTar(t, s, "r.test/x:1", file{name: "b", data: "new"})
	if got := of("r.test/x:1"); got != "" {
		t.Errorf("a name that moved stands for %s", got)
	}
	for _, ref := range []string{"r.test/x:2", "r.test/x:1"} {
		if _, err := s.Remove(t.Context(), ref, RemoveOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if got := count(t, s); got != alone {
		t.Errorf("without the names there is %+v, before there was %+v", got, alone)
	}
}

// pushIndex pushes all, and one platform.
func pushIndex(t *testing.T, s *Store, index ocispec.Descriptor) {
	t.Helper()
	f := newFakeRegistry()
	ref := named(t, "r.test/x:2").(reference.NamedTagged)
	out, err := s.Remotes().Push(t.Context(), ref, PushOptions{Target: f})
	if err != nil || out.Digest != index.Digest || len(f.blobs) != 6 || f.docs["2"] == nil || len(f.docs) != 5 {
		t.Errorf("pushed %+v, %v: %d blobs, %d documents", out, err, len(f.blobs), len(f.docs))
	}
	f = newFakeRegistry()
	if _, err := s.Remotes().Push(t.Context(), ref, PushOptions{Target: f, Platform: "linux/arm64"}); err != nil || len(f.blobs) != 2 || !bytes.Contains(f.docs["2"], []byte(`"layers"`)) {
		t.Errorf("pushed for arm64: %v, %d blobs, %s", err, len(f.blobs), f.docs["2"])
	}
	if _, err := s.Remotes().Push(t.Context(), ref, PushOptions{Target: f, Platform: "linux/s390x"}); !errdefs.IsNotFound(err) {
		t.Errorf("pushed for a platform that is not there: %v", err)
	}
}

// savedIndex saves what is loaded elsewhere, for either platform.
func savedIndex(t *testing.T, s *Store) {
	t.Helper()
	for platform, want := range map[string]string{"": "amd64", "linux/arm64": "arm64"} {
		for _, saved := range []string{"", platform} {
			var b bytes.Buffer
			if err := s.Save(t.Context(), &b, []string{"r.test/x:2"}, saved); err != nil {
				t.Fatal(err)
			}
			other := open(t, Config{})
			err := other.Load(t.Context(), &b, LoadOptions{Platform: platform})
			got, getErr := other.Get(t.Context(), "r.test/x:2")
			if err != nil || getErr != nil || got.Config.Architecture != want {
				t.Errorf("saved for %q, loaded for %q: %v, %v, an image for %q", saved, platform, err, getErr, got.Config.Architecture)
			}
		}
	}
	err := s.Save(t.Context(), io.Discard, []string{"r.test/x:2"}, "linux/s390x")
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "does not provide the specified platform (linux/s390x)") {
		t.Errorf("saved for a platform that is not there: %v", err)
	}
}

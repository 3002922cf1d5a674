package archive

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func all(ocispec.Platform) bool        { return true }
func never(_, _ ocispec.Platform) bool { return false }

func TestParseManifest(t *testing.T) {
	items, err := ParseManifest([]byte(`[{"Config":"c.json","RepoTags":["a:1","docker.io/library/b:2"],"Layers":["x/layer.tar"]}]`))
	if err != nil || len(items) != 1 {
		t.Fatal(items, err)
	}
	tags, err := items[0].Tags()
	if err != nil || len(tags) != 2 || reference.FamiliarString(tags[1]) != "b:2" {
		t.Errorf("%v %v", tags, err)
	}
	for in, want := range map[string]string{
		"null": "invalid manifest, manifest cannot be null (but can be [])", "{}": "", "[": "", `[{"Layers":1}]`: "", "": "",
	} {
		if _, err := ParseManifest([]byte(in)); err == nil || !errdefs.IsInvalidArgument(err) || want != "" && err.Error() != want {
			t.Errorf("%q: %v", in, err)
		}
	}
	for tag, want := range map[string]string{"a": `invalid tag "a"`, "A:1": "", "a@sha256:" + strings.Repeat("0", 64): ""} {
		if _, err := (Item{RepoTags: []string{tag}}).Tags(); err == nil || !errdefs.IsInvalidArgument(err) || want != "" && err.Error() != want {
			t.Errorf("tag %q: %v", tag, err)
		}
	}
}

// TestLoop: an index within itself ends.
func TestLoop(t *testing.T) {
	d := digest.FromString("x")
	index := []byte(`{"schemaVersion":2,"manifests":[{"mediaType":"` + ocispec.MediaTypeImageIndex + `","digest":"` + d.String() + `"}]}`)
	calls := 0
	_, err := Manifests(index, func(digest.Digest) ([]byte, error) { calls++; return index, nil }, all, never)
	if !errdefs.IsInvalidArgument(err) || calls > 10 {
		t.Errorf("%v after %d calls", err, calls)
	}
}

func TestNames(t *testing.T) {
	for in, want := range map[string]string{"./a/b": "a/b", "/a": "a", "../../a": "a", "a/../b": "b", "": ""} {
		if got := Name(in); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
	d := digest.FromString("x")
	if BlobDigest(BlobName(d)) != d || BlobDigest("blobs/sha256/zz") != "" || BlobDigest("x/"+d.Encoded()) != "" {
		t.Error("digest of a name")
	}
}

// TestWriter: what is written is read again, each blob once.
func TestWriter(t *testing.T) {
	var b bytes.Buffer
	w := NewWriter(&b)
	blob := func(s string) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromString(s), Size: int64(len(s))}
		if err := w.Blob(d, strings.NewReader(s)); err != nil {
			t.Fatal(err)
		}
		return d
	}
	layer, config := blob("layer"), blob("config")
	blob("layer")
	manifest := blob(`{"schemaVersion":2}`)
	manifest.MediaType = ocispec.MediaTypeImageManifest
	name, err := reference.ParseNormalizedNamed("x:1")
	if err != nil {
		t.Fatal(err)
	}
	w.Image(Image{Manifest: manifest, Config: config, Layers: []ocispec.Descriptor{layer}, DiffIDs: []digest.Digest{layer.Digest}, Tags: []reference.NamedTagged{name.(reference.NamedTagged)}})
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	docs := map[string][]byte{}
	tr := tar.NewReader(&b)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if docs[h.Name] != nil {
			t.Errorf("%s stands twice", h.Name)
		}
		if docs[h.Name], err = io.ReadAll(tr); err != nil {
			t.Fatal(err)
		}
	}
	items, err := ParseManifest(docs[ManifestFile])
	if err != nil || items[0].RepoTags[0] != "x:1" || string(docs[items[0].Layers[0]]) != "layer" || string(docs[items[0].Config]) != "config" {
		t.Errorf("%+v %v", items, err)
	}
	list, err := Manifests(docs[IndexFile], func(d digest.Digest) ([]byte, error) { return docs[BlobName(d)], nil }, all, never)
	if err != nil || len(list) != 1 || len(list[0].Tags) != 1 || list[0].Tags[0].String() != "docker.io/library/x:1" {
		t.Errorf("%+v %v", list, err)
	}
	if want := `{"x":{"1":"` + layer.Digest.Encoded() + `"}}`; string(docs[RepositoriesFile]) != want {
		t.Errorf("repositories: %s", docs[RepositoriesFile])
	}
	if !json.Valid(docs[LayoutFile]) {
		t.Errorf("layout: %s", docs[LayoutFile])
	}
}

func FuzzManifests(f *testing.F) {
	d := digest.FromString("x")
	f.Add([]byte(`[{"Config":"c.json","RepoTags":["a:1"],"Layers":["x"]}]`), []byte(`{}`))
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"mediaType":"`+ocispec.MediaTypeImageIndex+`","digest":"`+d.String()+`"}]}`),
		[]byte(`{"schemaVersion":2,"manifests":[{"mediaType":"`+ocispec.MediaTypeImageManifest+`","digest":"`+d.String()+`","platform":{"os":"linux"}}]}`))
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"annotations":{"io.containerd.image.name":"a/b"},"digest":"sha256:0"}]}`), []byte(`null`))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		if items, err := ParseManifest(a); err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Fatalf("kind of %v", err)
			}
		} else {
			for _, i := range items {
				if _, err := i.Tags(); err != nil && !errdefs.IsInvalidArgument(err) {
					t.Fatalf("kind of %v", err)
				}
				for _, l := range append(i.Layers, i.Config) {
					if n := Name(l); strings.HasPrefix(n, "/") || strings.HasPrefix(n, "../") || n == ".." {
						t.Fatalf("%q becomes %q", l, n)
					}
				}
			}
		}
		calls := 0
		list, err := Manifests(a, func(digest.Digest) ([]byte, error) {
			calls++
			return b, nil
		}, all, never)
		if err != nil && !errdefs.IsInvalidArgument(err) {
			t.Fatalf("kind of %v", err)
		}
		if calls > maxManifests {
			t.Fatalf("%d blobs were asked for", calls)
		}
		for _, m := range list {
			if m.Desc.Digest.Validate() != nil {
				t.Fatalf("digest %q", m.Desc.Digest)
			}
		}
	})
}

package image

import (
	"encoding/json"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// The index by which an image was pulled is kept as long as the image is, and given to
// others with the rest of it; of what else it lists nothing is here.
func TestHeld(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	s, f := open(t, Config{Root: root}), newFakeRegistry()
	index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex}
	index.SchemaVersion = 2
	arm := f.image(t, "arm", "arm64", nil, makeTar(t, file{name: "a", data: "arm"}))
	amd := f.image(t, "amd", "amd64", nil, someLayers(t)...)
	index.Manifests = []ocispec.Descriptor{arm, amd}
	raw, err := json.Marshal(index)
	if err != nil {
		t.Fatal(err)
	}
	top := f.put("1", index.MediaType, raw)
	for range 2 {
		if _, err := s.Remotes().Pull(t.Context(), named(t, "r.test/x:1"), PullOptions{Source: f, Platform: "linux/amd64"}); err != nil {
			t.Fatal(err)
		}
	}
	if got := count(t, s); got.blobs != 6 {
		t.Errorf("%+v: want three layers, config, manifest and index", got)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, Config{Root: root})
	if err := s.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	o := Offer(s)
	held, err := o.Find(t.Context(), Wanted{Digest: top.Digest, Platform: "linux/amd64"})
	if err != nil || held.Top.Digest != top.Digest || held.Manifest.Digest != amd.Digest {
		t.Fatalf("%+v, %v", held, err)
	}
	if _, err := o.Find(t.Context(), Wanted{Digest: top.Digest, Platform: "linux/arm64"}); !errdefs.IsNotFound(err) {
		t.Errorf("for a platform that is not here: %v", err)
	}
	for d, there := range map[digest.Digest]bool{top.Digest: true, amd.Digest: true, held.ID: true, arm.Digest: false, digest.FromString("x"): false} {
		r, err := o.Part(t.Context(), held.ID, d)
		if (err == nil) != there || !there && !errdefs.IsNotFound(err) {
			t.Errorf("part %s: %v", d, err)
		}
		if err == nil {
			r.Close()
		}
	}
	if _, err := s.Remove(t.Context(), "r.test/x:1", RemoveOptions{Force: true, Users: func(string) []User { return nil }}); err != nil {
		t.Fatal(err)
	}
	if got := count(t, s); got.blobs != 0 || got.leases != 0 {
		t.Errorf("left: %+v", got)
	}
}

// What is wanted comes from other nodes.
func FuzzWanted(f *testing.F) {
	sum := digest.FromString("x").String()
	for _, w := range [][4]string{{sum}, {"", sum, "", "linux/amd64"}, {"", "", "docker.io/library/a:1", ""}, {"sha512:1"}, {"", "", "a", "/"}, {}} {
		f.Add(w[0], w[1], w[2], w[3])
	}
	o := Offer(&Store{byID: map[digest.Digest]*record{}, byRef: map[string]digest.Digest{}})
	f.Fuzz(func(t *testing.T, id, d, name, platform string) {
		w := Wanted{ID: digest.Digest(id), Digest: digest.Digest(d), Name: name, Platform: platform}
		_, err := o.Find(t.Context(), w)
		if bad := w.Check(); bad == nil && !errdefs.IsNotFound(err) || bad != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v, %v", w, bad, err)
		}
	})
}

package image

import (
	"encoding/json"
	"io"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Images are given to others by their names, with what belongs to them and
// nothing else.
func TestOffer(t *testing.T) {
	s := open(t, Config{})
	importTar(t, s, "lab/x:v1", file{name: "a", data: "one"})
	importTar(t, s, "elsewhere.example/lab/x:v1", file{name: "a", data: "two"})
	importTar(t, s, "elsewhere.example/lab/x:v2", file{name: "a", data: "three"})
	importTar(t, s, "short:v1", file{name: "a", data: "four"})
	o := Offer(s)
	for _, c := range []struct {
		name string
		tags []string
	}{
		{"lab/x", []string{"v1", "v2"}}, {"docker.io/lab/x", []string{"v1"}}, {"elsewhere.example/lab/x", []string{"v1", "v2"}},
		{"short", []string{"v1"}}, {"library/short", []string{"v1"}}, {"x", nil}, {"lab", nil},
	} {
		got, err := o.Tags(t.Context(), c.name)
		if !slices.Equal(got, c.tags) || (c.tags == nil) != errdefs.IsNotFound(err) {
			t.Errorf("tags of %s: %v %v, want %v", c.name, got, err, c.tags)
		}
	}
	layer := func(name, ref string) digest.Digest {
		t.Helper()
		d, body, err := o.Manifest(t.Context(), name, ref)
		if err != nil || digest.FromBytes(body) != d.Digest {
			t.Fatalf("%s:%s: %v %v", name, ref, d, err)
		}
		if again, _, err := o.Manifest(t.Context(), name, string(d.Digest)); err != nil || again.Digest != d.Digest {
			t.Errorf("%s@%s: %v %v", name, d.Digest, again, err)
		}
		var m ocispec.Manifest
		if err := json.Unmarshal(body, &m); err != nil || len(m.Layers) != 1 {
			t.Fatalf("%s: %v", body, err)
		}
		for _, part := range append(m.Layers, m.Config) {
			b, err := o.Blob(t.Context(), name, part.Digest)
			if err != nil {
				t.Fatalf("%s of %s: %v", part.Digest, name, err)
			}
			defer b.Close()
			if got, err := digest.FromReader(io.NewSectionReader(b, 0, b.Size())); err != nil || got != part.Digest {
				t.Errorf("%s of %s: is %s %v", part.Digest, name, got, err)
			}
		}
		return m.Layers[0].Digest
	}
	// The name that fits better wins.
	own, other := layer("lab/x", "v1"), layer("elsewhere.example/lab/x", "v1")
	if own == other {
		t.Error("two images of one path are mixed up")
	}
	short := layer("library/short", "v1")
	if _, err := o.Blob(t.Context(), "lab/x", short); !errdefs.IsNotFound(err) {
		t.Errorf("a layer under a name that is not its image's: %v", err)
	}
	for _, ref := range []string{"nosuch", "", "sha256:", string(short)} {
		if _, _, err := o.Manifest(t.Context(), "lab/x", ref); !errdefs.IsNotFound(err) {
			t.Errorf("manifest %q: %v", ref, err)
		}
	}
}

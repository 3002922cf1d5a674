package server

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func referrer(subject digest.Digest, artifactType string, annotations map[string]string) []byte {
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, ArtifactType: artifactType, Config: ocispec.DescriptorEmptyJSON,
		Layers: []ocispec.Descriptor{ocispec.DescriptorEmptyJSON}, Subject: &ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: subject, Size: 2}, Annotations: annotations}
	m.SchemaVersion = 2
	b, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return b
}

// refer pushes an artifact that refers to a manifest.
func (r *rig) refer(name string, subject digest.Digest, artifactType string, annotations map[string]string) digest.Digest {
	r.t.Helper()
	r.mustBlob(name, []byte("{}"))
	m := referrer(subject, artifactType, annotations)
	d := digest.FromBytes(m)
	h, _ := r.want(201, "PUT", "/v2/"+name+"/manifests/"+string(d), m, "Content-Type", ocispec.MediaTypeImageManifest)
	if h.Get("OCI-Subject") != string(subject) {
		r.t.Errorf("OCI-Subject %q, want %s", h.Get("OCI-Subject"), subject)
	}
	return d
}

func (r *rig) referrers(name string, subject digest.Digest, query string) []ocispec.Descriptor {
	r.t.Helper()
	var all []ocispec.Descriptor
	for path := "/v2/" + name + "/referrers/" + string(subject) + query; path != ""; {
		h, b := r.want(200, "GET", path, nil)
		var index ocispec.Index
		if err := json.Unmarshal(b, &index); err != nil || index.SchemaVersion != 2 || h.Get("Content-Type") != ocispec.MediaTypeImageIndex {
			r.t.Fatalf("%s: %v %v", b, err, h)
		}
		all = append(all, index.Manifests...)
		link, _, _ := strings.Cut(strings.TrimPrefix(h.Get("Link"), "<"), ">")
		path = link
	}
	return all
}

func TestReferrers(t *testing.T) {
	r := start(t, nil)
	subject := r.mustPush("lab/x", "v1", []byte("{}"), []byte("layer"))
	if got := r.referrers("lab/x", subject, ""); len(got) != 0 {
		t.Errorf("before: %v", got)
	}
	sbom := r.refer("lab/x", subject, "application/x.sbom", map[string]string{"k": "v"})
	sign := r.refer("lab/x", subject, "application/x.sign", nil)
	missing := r.refer("lab/x", digest.FromString("pushed later"), "application/x.sign", nil)
	if got := r.referrers("lab/x", subject, ""); len(got) != 2 {
		t.Errorf("all: %v", got)
	}
	h, _ := r.want(200, "GET", "/v2/lab/x/referrers/"+string(subject)+"?artifactType=application/x.sbom", nil)
	if h.Get("OCI-Filters-Applied") != "artifactType" {
		t.Errorf("headers: %v", h)
	}
	got := r.referrers("lab/x", subject, "?artifactType=application/x.sbom")
	if len(got) != 1 || got[0].Digest != sbom || got[0].ArtifactType != "application/x.sbom" || got[0].Annotations["k"] != "v" || got[0].MediaType != ocispec.MediaTypeImageManifest {
		t.Errorf("filtered: %+v", got)
	}
	if got := r.referrers("lab/x", digest.FromString("pushed later"), ""); len(got) != 1 || got[0].Digest != missing {
		t.Errorf("of a subject that is not there: %v", got)
	}
	if got := r.referrers("other", subject, ""); len(got) != 0 {
		t.Errorf("of another repository: %v", got)
	}
	// Durable: another registry on the same directory has them.
	root := r.s.cfg.Root
	if err := r.s.close(); err != nil {
		t.Fatal(err)
	}
	r = start(t, func(c *Config) { c.Root = root })
	r.want(202, "DELETE", "/v2/lab/x/manifests/"+string(sign), nil)
	if got := r.referrers("lab/x", subject, ""); len(got) != 1 || got[0].Digest != sbom {
		t.Errorf("after a removal: %v", got)
	}
	r.want(400, "GET", "/v2/lab/x/referrers/nodigest", nil)
	r.want(405, "DELETE", "/v2/lab/x/referrers/"+string(subject), nil)
}

// A manifest that is refused leaves no entry.
func TestReferrerRefused(t *testing.T) {
	r := start(t, nil)
	subject := digest.FromString("x")
	status, h, b := r.do("PUT", "/v2/lab/x/manifests/v1", referrer(subject, "a/b", nil), "Content-Type", ocispec.MediaTypeImageManifest)
	if status != http.StatusNotFound && status != http.StatusBadRequest || h.Get("OCI-Subject") != "" {
		t.Errorf("manifest without its blobs: %d %s %v", status, b, h)
	}
	files, err := r.s.store.list(t.Context(), referrersDir("lab/x", subject))
	if err != nil || len(files) != 0 {
		t.Errorf("entries left: %v %v", files, err)
	}
	r.want(400, "PUT", "/v2/lab/x/manifests/v1", []byte(`{"schemaVersion":2,"subject":{"digest":"sha256:../../x"}}`), "Content-Type", ocispec.MediaTypeImageManifest)
}

func TestReferrersByPage(t *testing.T) {
	r := start(t, nil)
	subject := digest.FromString("x")
	for i := range 7 {
		r.refer("p", subject, "a/b", map[string]string{"n": fmt.Sprint(i)})
	}
	r.refer("p", subject, "c/d", nil)
	h, _ := r.want(200, "GET", "/v2/p/referrers/"+string(subject)+"?n=3&artifactType="+url.QueryEscape("a/b"), nil)
	if h.Get("Link") == "" {
		t.Error("no link to the next page")
	}
	if got := r.referrers("p", subject, "?n=3&artifactType="+url.QueryEscape("a/b")); len(got) != 7 {
		t.Errorf("%d in all pages, want 7", len(got))
	}
}

// What clients kept under the fallback tag in a registry without the API, and
// that came here with its directory, is listed too.
func TestReferrersOfTheFallbackTag(t *testing.T) {
	r := start(t, nil)
	subject := r.mustPush("f", "v1", []byte("{}"), []byte("layer"))
	d := r.refer("f", subject, "a/b", nil)
	if err := r.s.store.remove(t.Context(), referrerFile("f", subject, d)); err != nil {
		t.Fatal(err)
	}
	index := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
		ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, d, len(referrer(subject, "a/b", nil)))
	r.want(201, "PUT", "/v2/f/manifests/"+fallbackTag(subject), []byte(index), "Content-Type", ocispec.MediaTypeImageIndex)
	if got := r.referrers("f", subject, ""); len(got) != 1 || got[0].Digest != d || got[0].ArtifactType != "a/b" {
		t.Errorf("listed %+v", got)
	}
}

func FuzzDocument(f *testing.F) {
	f.Add(image([]byte("{}"), []byte("x")))
	f.Add(referrer(digest.FromString("x"), "a/b", nil))
	f.Add([]byte(`{"manifests":[{"digest":"sha512:00"}],"subject":{}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := parseDocument(b)
		if err != nil {
			return
		}
		for _, ref := range d.references() {
			if ref.Validate() != nil || strings.Contains(blobDir(ref), "..") {
				t.Errorf("%q is taken for a digest", ref)
			}
		}
		if d.Subject != nil && strings.Contains(referrerFile("x", d.Subject.Digest, digest.FromBytes(b)), "..") {
			t.Errorf("subject %q", d.Subject.Digest)
		}
	})
}

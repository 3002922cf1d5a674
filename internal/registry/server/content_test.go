package server

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestMirrors(t *testing.T) {
	up := start(t, nil)
	up.mustPush("lib/x", "v1", []byte("{}"), []byte("layer of the upstream"))
	gate := httptest.NewServer(up.s)
	down := httptest.NewServer(http.NotFoundHandler())
	down.Close() // nobody answers there
	r := start(t, func(c *Config) { c.Mirrors = []string{down.URL, gate.URL} })
	r.mustPush("own", "v1", []byte("{}"), []byte("own layer"))
	r.mustPull("own", "v1")
	r.mustPull("lib/x", "v1")
	r.want(404, "GET", "/v2/lib/x/manifests/nosuch", nil, "Accept", accept)
	gate.Close() // what was fetched is kept
	r.mustPull("lib/x", "v1")
}

// A mirror that takes a connection and says nothing is given up.
func TestMirrorHangs(t *testing.T) {
	was, transport := mirrorSilence, http.DefaultTransport
	mirrorSilence = 100 * time.Millisecond
	t.Cleanup(func() { mirrorSilence, http.DefaultTransport = was, transport })
	silent, end := make(chan struct{}), make(chan struct{})
	var quiet atomic.Bool
	up := start(t, nil)
	up.mustPush("lib/x", "v1", []byte("{}"))
	gate := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if quiet.Load() {
			<-end
			return
		}
		up.s.ServeHTTP(w, r)
	}))
	hang := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-silent }))
	t.Cleanup(func() { close(silent); close(end); hang.Close(); gate.Close() })
	r := start(t, func(c *Config) { c.Mirrors = []string{hang.URL, gate.URL} })
	r.mustPull("lib/x", "v1")
	quiet.Store(true) // also one that has answered before
	status, _, b := r.do("GET", "/v2/lib/x/manifests/other", nil, "Accept", accept)
	if status < 400 {
		t.Errorf("%d %s", status, b)
	}
	r.mustPull("lib/x", "v1")
}

// fakeContent is an engine with one image.
type fakeContent struct {
	manifest []byte
	blobs    map[digest.Digest][]byte
}

type fakeBlob struct{ *bytes.Reader }

func (fakeBlob) Close() error { return nil }

func (f fakeContent) Resolve(_ context.Context, name, ref string) (Manifest, error) {
	d := digest.FromBytes(f.manifest)
	if name != "local/x" || ref != "v1" && ref != string(d) {
		return Manifest{}, errdefs.ErrNotFound
	}
	return Manifest{ocispec.MediaTypeImageManifest, d, f.manifest}, nil
}

func (f fakeContent) Open(_ context.Context, name string, d digest.Digest) (Blob, error) {
	b, ok := f.blobs[d]
	if !ok || name != "local/x" {
		return nil, errdefs.ErrNotFound
	}
	return fakeBlob{bytes.NewReader(b)}, nil
}

func (f fakeContent) Tags(_ context.Context, name string) ([]string, error) {
	if name != "local/x" {
		return nil, errdefs.ErrNotFound
	}
	return []string{"v1", "v2", "v3"}, nil
}

func TestContentOfTheEngine(t *testing.T) {
	config, layer := []byte("{}"), []byte("layer")
	f := fakeContent{image(config, layer), map[digest.Digest][]byte{digest.FromBytes(config): config, digest.FromBytes(layer): layer}}
	r := start(t, func(c *Config) { c.Content = f })
	r.mustPull("local/x", "v1")
	r.mustPull("local/x", string(digest.FromBytes(f.manifest)))
	h, b := r.want(200, "HEAD", "/v2/local/x/manifests/v1", nil)
	if h.Get("Docker-Content-Digest") != string(digest.FromBytes(f.manifest)) || h.Get("Content-Length") != fmt.Sprint(len(f.manifest)) || len(b) != 0 {
		t.Errorf("HEAD: %v", h)
	}
	if _, b := r.want(206, "GET", "/v2/local/x/blobs/"+string(digest.FromBytes(layer)), nil, "Range", "bytes=1-2"); string(b) != "ay" {
		t.Errorf("range: %q", b)
	}
	h, b = r.want(200, "GET", "/v2/local/x/tags/list?n=1&last=v1", nil)
	if !strings.Contains(string(b), `["v2"]`) || !strings.Contains(h.Get("Link"), "last=v2") {
		t.Errorf("tags: %s %v", b, h)
	}
	r.want(404, "GET", "/v2/local/y/manifests/v1", nil)
	r.want(404, "GET", "/v2/other/blobs/"+string(digest.FromBytes(layer)), nil)
	// What was pushed goes first.
	r.mustPush("local/x", "v1", []byte(`{"pushed":1}`))
	if _, b := r.want(200, "GET", "/v2/local/x/manifests/v1", nil, "Accept", accept); bytes.Equal(b, f.manifest) {
		t.Error("the engine's image hides the one that was pushed")
	}
}

// Who pushes asks what is there, and need not push what the engine or a mirror has.
func TestPushOfWhatOthersHave(t *testing.T) {
	config, layer := []byte("{}"), random(100000)
	f := fakeContent{image(config, layer), map[digest.Digest][]byte{digest.FromBytes(config): config, digest.FromBytes(layer): layer}}
	up := start(t, nil)
	up.mustPush("lib/x", "v1", []byte(`{"up":1}`), []byte("layer of the upstream"))
	for _, c := range []struct {
		what, name, ref string
		change          func(*Config)
	}{
		{"engine", "local/x", "v1", func(c *Config) { c.Content = f }},
		{"mirror", "lib/x", "v1", func(c *Config) { c.Mirrors = []string{up.url} }},
	} {
		r := start(t, c.change)
		h, b := r.want(200, "GET", "/v2/"+c.name+"/manifests/"+c.ref, nil, "Accept", accept)
		d := h.Get("Docker-Content-Digest")
		index := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
			ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageManifest, d, len(b))
		r.want(201, "PUT", "/v2/"+c.name+"/manifests/multi", index, "Content-Type", ocispec.MediaTypeImageIndex)
		r.want(201, "PUT", "/v2/"+c.name+"/manifests/mine", b, "Content-Type", ocispec.MediaTypeImageManifest)
		root := r.s.cfg.Root
		if err := r.s.close(); err != nil {
			t.Fatal(err)
		}
		r = start(t, func(c *Config) { c.Root = root }) // with nobody else to ask
		for _, tag := range []string{"multi", "mine", d} {
			if err := r.pull(c.name, tag); err != nil {
				t.Errorf("%s: %v", c.what, err)
			}
		}
		r.want(404, "GET", "/v2/"+c.name+"/manifests/"+"nosuch", nil, "Accept", accept)
		r.empty()
	}
	// One who lies is found out, and nothing is left.
	f.blobs[digest.FromBytes(layer)] = []byte("a lie")
	r := start(t, func(c *Config) { c.Content = f })
	r.want(500, "PUT", "/v2/local/x/manifests/mine", f.manifest, "Content-Type", ocispec.MediaTypeImageManifest)
	if left, err := filepath.Glob(filepath.Join(r.s.cfg.Root, "tmp", "*")); err != nil || len(left) != 0 {
		t.Errorf("left: %v %v", left, err)
	}
}

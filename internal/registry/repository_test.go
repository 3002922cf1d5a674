package registry

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"escale.dev/escale/test/testregistry"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// quick is a configuration that does not wait long.
func quick() Config {
	return Config{Pause: time.Millisecond, Stall: 300 * time.Millisecond, Attempts: 3}
}

func openRepo(t *testing.T, c Config, name string, login registry.AuthConfig) *Repository {
	t.Helper()
	cl, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		t.Fatal(err)
	}
	r, err := cl.Open(t.Context(), ref, login, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// What registries do wrong is got over where that can be, and said where it cannot.
func TestBrokenRegistries(t *testing.T) {
	manifest := []byte(`{"schemaVersion":2}`)
	first := func(n int32, do http.HandlerFunc) func(http.ResponseWriter, *http.Request) bool {
		var seen atomic.Int32
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/manifests/") || seen.Add(1) > n {
				return false
			}
			do(w, r)
			return true
		}
	}
	status := func(code int, header ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if len(header) > 0 {
				w.Header().Set(header[0], header[1])
			}
			testregistry.Refuse(w, code, "TOOMANYREQUESTS", "slow down")
		}
	}
	say := func(code int, name, words string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { testregistry.Refuse(w, code, name, words) }
	}
	for _, c := range []struct {
		name  string
		fault func(http.ResponseWriter, *http.Request) bool
		want  string // of the error; empty: none
		kind  error
		least time.Duration
	}{
		{"well", nil, "", nil, 0},
		{"429, then fine", first(2, status(429)), "", nil, 0},
		{"429 with a time", first(1, status(429, "Retry-After", "1")), "", nil, time.Second},
		{"500, then fine", first(2, status(500)), "", nil, 0},
		{"503 for ever", first(1<<20, status(503)), "toomanyrequests: slow down", errdefs.ErrUnavailable, 0},
		{"hangs", first(1<<20, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }), "nothing came from the registry for 300ms", errdefs.ErrUnavailable, 0},
		{"hangs once", first(1, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }), "", nil, 0},
		{"breaks off", first(1, func(w http.ResponseWriter, _ *http.Request) { panic(http.ErrAbortHandler) }), "", nil, 0},
		{"unknown", first(1<<20, say(404, "MANIFEST_UNKNOWN", "manifest unknown")), "manifest for HOST/a/b:1 not found: manifest unknown: manifest unknown", errdefs.ErrNotFound, 0},
		{"unknown name", first(1<<20, say(404, "NAME_UNKNOWN", "no such")), "repository HOST/a/b not found: name unknown: no such", errdefs.ErrNotFound, 0},
		{"denied", first(1<<20, say(403, "DENIED", "requested access to the resource is denied")),
			"pull access denied for HOST/a/b, repository does not exist or may require 'docker login': denied: requested access to the resource is denied", errdefs.ErrNotFound, 0},
		{"no words", first(1<<20, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(418) }), "received unexpected HTTP status: 418 I'm a teapot", nil, 0},
		{"another digest", first(1<<20, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Docker-Content-Digest", digest.FromString("other").String())
			_, _ = w.Write(manifest)
		}), "manifest verification failed for digest", errdefs.ErrDataLoss, 0},
		{"no digest", first(1<<20, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Docker-Content-Digest", "sha256:nonsense")
			_, _ = w.Write(manifest)
		}), "digest", nil, 0},
		{"huge", first(1<<20, func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.Copy(w, io.LimitReader(zeros{}, MaxManifest+100))
		}), "larger than", errdefs.ErrInvalidArgument, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			reg := testregistry.New(t)
			reg.PutManifest("a/b", "1", ocispec.MediaTypeImageManifest, manifest)
			reg.SetFault(c.fault)
			r := openRepo(t, quick(), reg.Host()+"/a/b:1", registry.AuthConfig{})
			begun := time.Now()
			_, data, err := r.Manifest(t.Context(), "1")
			want := strings.ReplaceAll(c.want, "HOST", reg.Host())
			switch {
			case c.want == "" && (err != nil || string(data) != string(manifest)):
				t.Errorf("%q, %v", data, err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), want) || c.kind != nil && !errors.Is(err, c.kind)):
				t.Errorf("%v, want %s of kind %v", err, want, c.kind)
			}
			if took := time.Since(begun); took < c.least || took > 20*time.Second {
				t.Errorf("took %s", took)
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// A blob goes on from an offset, also where the registry knows no ranges, and
// from where it redirects to, which does not see the login.
func TestBlobs(t *testing.T) {
	reg := testregistry.New(t)
	reg.Protect("ann", "secret", false)
	data := strings.Repeat("0123456789", 1000)
	d := reg.PutBlob("a/b", []byte(data))
	r := openRepo(t, quick(), reg.Host()+"/a/b", registry.AuthConfig{Username: "ann", Password: "secret"})
	read := func(offset int64) string {
		t.Helper()
		body, err := r.Blob(t.Context(), d, offset)
		if err != nil {
			t.Fatal(err)
		}
		defer body.Close()
		got, err := io.ReadAll(body)
		if err != nil {
			t.Fatal(err)
		}
		return string(got)
	}
	if read(0) != data || read(9_995) != "56789" {
		t.Error("a range is another")
	}
	var leaked atomic.Bool
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		leaked.Store(leaked.Load() || req.Header.Get("Authorization") != "")
		_, _ = io.WriteString(w, data) // without ranges
	}))
	defer store.Close()
	reg.SetFault(func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.Contains(req.URL.Path, "/blobs/") {
			return false
		}
		http.Redirect(w, req, strings.Replace(store.URL, "127.0.0.1", "localhost", 1)+"/x", http.StatusTemporaryRedirect)
		return true
	})
	if read(0) != data || read(9_995) != "56789" {
		t.Error("behind a redirection there is another blob")
	}
	if leaked.Load() {
		t.Error("the login went to another host")
	}
	reg.SetFault(func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.Contains(req.URL.Path, "/blobs/") {
			return false
		}
		w.Header().Set("Content-Length", "10000")
		_, _ = io.WriteString(w, data[:100])
		w.(http.Flusher).Flush()
		<-req.Context().Done()
		return true
	})
	body, err := r.Blob(t.Context(), d, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if got, err := io.ReadAll(body); len(got) != 100 || !errdefs.IsUnavailable(err) || !r.Passing(err) {
		t.Errorf("silence amid a blob: %d bytes, %v", len(got), err)
	}
}

// Tokens that have run out are renewed; a wrong login and none are told apart
// from a registry that fails.
func TestTokens(t *testing.T) {
	reg := testregistry.New(t)
	reg.Protect("ann", "secret", true)
	reg.PutManifest("a/b", "1", ocispec.MediaTypeImageManifest, []byte(`{}`))
	r := openRepo(t, quick(), reg.Host()+"/a/b", registry.AuthConfig{Username: "ann", Password: "secret"})
	for range 2 {
		if _, err := r.Resolve(t.Context(), "1"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(1100 * time.Millisecond) // the registry's tokens live for a second, whatever it says
	}
	for _, a := range []registry.AuthConfig{{}, {Username: "ann", Password: "guess"}} {
		_, err := openRepo(t, quick(), reg.Host()+"/a/b", a).Resolve(t.Context(), "1")
		if err == nil || !strings.Contains(err.Error(), "unauthorized") || errdefs.IsUnauthorized(err) {
			t.Errorf("%+v: %v", a, err)
		}
	}
	reg.Protect("ann", "secret", false)
	_, err := openRepo(t, quick(), reg.Host()+"/a/b", registry.AuthConfig{}).Resolve(t.Context(), "1")
	if err == nil || !strings.HasSuffix(err.Error(), `/v2/a/b/manifests/1": no basic auth credentials`) {
		t.Errorf("without a login: %v", err)
	}
}

func TestTagPages(t *testing.T) {
	reg := testregistry.New(t)
	for _, tag := range []string{"5", "3", "1", "2", "4"} {
		reg.PutManifest("a/b", tag, ocispec.MediaTypeImageManifest, []byte(`{}`))
	}
	got, err := openRepo(t, quick(), reg.Host()+"/a/b", registry.AuthConfig{}).Tags(t.Context())
	if err != nil || strings.Join(got, "") != "12345" {
		t.Errorf("%q, %v", got, err)
	}
}

// Docker Hub's mirrors are asked first, and passed over when they cannot help;
// what is configured anew counts from then on.
func TestMirrors(t *testing.T) {
	broken, good := testregistry.New(t), testregistry.New(t)
	broken.SetFault(func(w http.ResponseWriter, r *http.Request) bool { w.WriteHeader(500); return true })
	good.PutManifest("library/x", "1", ocispec.MediaTypeImageManifest, []byte(`{"schemaVersion":2}`))
	c := quick()
	cl, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	// Nothing reaches the Hub in a test: its address is a proxy that refuses.
	c.HTTPSProxy = "http://127.0.0.1:1"
	c.NoProxy = "127.0.0.1"
	c.Mirrors = []string{"http://127.0.0.1:1", broken.URL, good.URL + "/"}
	if err := cl.Set(c); err != nil {
		t.Fatal(err)
	}
	ref, _ := reference.ParseNormalizedNamed("x")
	r, err := cl.Open(t.Context(), ref, registry.AuthConfig{}, false)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if d, err := r.Resolve(t.Context(), "1"); err != nil || d.Digest != digest.FromString(`{"schemaVersion":2}`) {
		t.Errorf("%+v, %v", d, err)
	}
	c.Mirrors = nil
	if err := cl.Set(c); err != nil {
		t.Fatal(err)
	}
	if _, err := cl.Open(t.Context(), ref, registry.AuthConfig{}, false); err == nil || !strings.Contains(err.Error(), "127.0.0.1:1: connect: connection refused") {
		t.Errorf("the Hub by a proxy that is not there: %v", err)
	}
	for _, bad := range []string{"ftp://x", "x", "http://", "http://x?y=z", "http://u:p@x"} {
		if err := Check(Config{Mirrors: []string{bad}}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("mirror %q: %v", bad, err)
		}
	}
}

// A push leaves out what is there and takes over what another repository has;
// one that breaks leaves no upload behind.
func TestPushing(t *testing.T) {
	reg := testregistry.New(t)
	r := openRepo(t, quick(), reg.Host()+"/a/b", registry.AuthConfig{})
	data := []byte("a layer")
	desc := ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}
	other := reg.PutBlob("c/d", []byte("theirs"))
	if got, err := r.Push(t.Context(), desc, []string{"c/d"}, bytesBody(data)); err != nil || got.Existed || got.Mounted != "" {
		t.Errorf("new: %+v, %v", got, err)
	}
	if got, err := r.Push(t.Context(), desc, nil, bytesBody(data)); err != nil || !got.Existed {
		t.Errorf("there: %+v, %v", got, err)
	}
	if got, err := r.Push(t.Context(), ocispec.Descriptor{Digest: other, Size: 6}, []string{"no/such", "c/d"}, nil); err != nil || got.Mounted != "c/d" {
		t.Errorf("elsewhere: %+v, %v", got, err)
	}
	_, err := r.Push(t.Context(), ocispec.Descriptor{Digest: digest.FromString("x"), Size: 7}, nil, bytesBody(data))
	if err == nil || !strings.Contains(err.Error(), "digest invalid: provided digest did not match") {
		t.Errorf("wrong bytes: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	_, err = r.Push(ctx, ocispec.Descriptor{Digest: digest.FromString("y"), Size: 1 << 20}, nil, func() (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(strings.NewReader("begin"), stopping{cancel})), nil
	})
	if err == nil {
		t.Error("given up, and fine")
	}
	if n := reg.Uploads(); n != 0 {
		t.Errorf("%d uploads left", n)
	}
}

type stopping struct{ stop func() }

func (s stopping) Read([]byte) (int, error) {
	s.stop()
	return 0, io.ErrUnexpectedEOF
}

// No password goes without TLS to where that is not allowed.
func TestGuard(t *testing.T) {
	for _, c := range []struct {
		method, auth string
		refused      bool
	}{{"GET", "", false}, {"GET", "Basic x", true}, {"POST", "", true}} {
		req := httptest.NewRequest(c.method, "http://127.0.0.1:1/", nil)
		if c.auth != "" {
			req.Header.Set("Authorization", c.auth)
		}
		_, err := guard{false, &http.Transport{}}.RoundTrip(req)
		if errdefs.IsInvalidArgument(err) != c.refused {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestDistribution(t *testing.T) {
	reg := testregistry.New(t)
	config := reg.PutBlob("a/b", []byte(`{"os":"linux","architecture":"arm64"}`))
	one, _ := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageManifest, "config": ocispec.Descriptor{Digest: config}})
	reg.PutManifest("a/b", "one", ocispec.MediaTypeImageManifest, one)
	reg.PutManifest("a/b", "many", ocispec.MediaTypeImageIndex, []byte(`{"schemaVersion":2,"manifests":[{"platform":{"os":"linux","architecture":"amd64"}},{"platform":{"os":"linux","architecture":"arm"}}]}`))
	r := openRepo(t, quick(), reg.Host()+"/a/b", registry.AuthConfig{})
	for tag, want := range map[string]string{"one": "arm64", "many": "amd64 arm"} {
		d, err := r.Distribution(t.Context(), tag)
		var got []string
		for _, p := range d.Platforms {
			got = append(got, p.Architecture)
		}
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("%s: %v, %v", tag, got, err)
		}
	}
}

// FuzzRefusal feeds what registries may say instead of an answer.
func FuzzRefusal(f *testing.F) {
	f.Add(404, []byte(`{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{"Tag":"x"}}]}`))
	f.Add(500, []byte(`<html>`))
	f.Add(401, []byte(`{"errors":[]}`))
	ref, err := reference.ParseNormalizedNamed("r.test/x:1")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, status int, data []byte) {
		r := parseRefusal(status, data)
		if r.Error() == "" || r.Unwrap() == nil || explain(ref, r).Error() == "" {
			t.Fatalf("%d %q says nothing: %+v", status, data, r)
		}
	})
}

// FuzzNextPage feeds the links of lists.
func FuzzNextPage(f *testing.F) {
	f.Add(`</v2/a/tags/list?last=b>; rel="next"`)
	f.Add(`<http://elsewhere/>; rel="next"`)
	f.Fuzz(func(t *testing.T, link string) {
		u, _ := url.Parse("http://r.test/v2/a/tags/list")
		next := nextPage(&http.Response{Header: http.Header{"Link": {link}}, Request: &http.Request{URL: u}})
		if next != "" && hasScheme(next) {
			t.Fatalf("%q leads elsewhere: %q", link, next)
		}
	})
}

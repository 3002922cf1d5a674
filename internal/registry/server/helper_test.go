package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// rig is a registry under test, and a client of it.
type rig struct {
	t   testing.TB
	s   *Server
	url string
}

func start(t testing.TB, change func(*Config)) *rig {
	t.Helper()
	c := Config{Root: t.TempDir(), Addr: "127.0.0.1:0", Logger: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&c)
	}
	if inBucket != nil {
		inBucket(&c)
	}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return serve(t, s)
}

func serve(t testing.TB, s *Server) *rig {
	t.Helper()
	h := httptest.NewServer(s)
	t.Cleanup(func() {
		h.Close()
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
	return &rig{t, s, h.URL}
}

// client is the tests' own: a registry with mirrors changes the process's.
var client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 10}}

// do sends a request and gives status, header and body.
func (r *rig) do(method, path string, body []byte, header ...string) (int, http.Header, []byte) {
	status, h, b, err := r.try(method, path, body, header...)
	if err != nil {
		r.t.Fatal(err)
	}
	return status, h, b
}

func (r *rig) try(method, path string, body []byte, header ...string) (int, http.Header, []byte, error) {
	if !strings.HasPrefix(path, "http") {
		path = r.url + path
	}
	req, err := http.NewRequest(method, path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, nil, err
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header, b, err
}

func (r *rig) want(status int, method, path string, body []byte, header ...string) (http.Header, []byte) {
	r.t.Helper()
	got, h, b := r.do(method, path, body, header...)
	if got != status {
		r.t.Fatalf("%s %s: %d %s, want %d", method, path, got, b, status)
	}
	return h, b
}

// blob pushes a blob as clients do: is it there, begin, write, finish.
func (r *rig) blob(name string, content []byte) (digest.Digest, error) {
	d := digest.FromBytes(content)
	if status, _, _, err := r.try("HEAD", "/v2/"+name+"/blobs/"+string(d), nil); err != nil || status == http.StatusOK {
		return d, err
	}
	status, h, b, err := r.try("POST", "/v2/"+name+"/blobs/uploads/", nil)
	if err != nil || status != http.StatusAccepted {
		return d, fmt.Errorf("POST: %d %s %w", status, b, err)
	}
	u, err := url.Parse(h.Get("Location"))
	if err != nil {
		return d, err
	}
	q := u.Query()
	q.Set("digest", string(d))
	u.RawQuery = q.Encode()
	status, _, b, err = r.try("PUT", u.String(), content, "Content-Type", "application/octet-stream")
	if err != nil || status != http.StatusCreated {
		return d, fmt.Errorf("PUT: %d %s %w", status, b, err)
	}
	return d, nil
}

func (r *rig) mustBlob(name string, content []byte) digest.Digest {
	r.t.Helper()
	d, err := r.blob(name, content)
	if err != nil {
		r.t.Fatal(err)
	}
	return d
}

func desc(mediaType string, content []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(content), Size: int64(len(content))}
}

// image makes a manifest of a config and layers.
func image(config []byte, layers ...[]byte) []byte {
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: desc(ocispec.MediaTypeImageConfig, config)}
	m.SchemaVersion = 2
	for _, l := range layers {
		m.Layers = append(m.Layers, desc(ocispec.MediaTypeImageLayerGzip, l))
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return b
}

// push pushes an image with its blobs.
func (r *rig) push(name, ref string, config []byte, layers ...[]byte) (digest.Digest, error) {
	for _, b := range append([][]byte{config}, layers...) {
		if _, err := r.blob(name, b); err != nil {
			return "", err
		}
	}
	m := image(config, layers...)
	d := digest.FromBytes(m)
	if ref == "" {
		ref = string(d)
	}
	status, _, b, err := r.try("PUT", "/v2/"+name+"/manifests/"+ref, m, "Content-Type", ocispec.MediaTypeImageManifest)
	if err != nil || status != http.StatusCreated {
		return "", fmt.Errorf("PUT manifest: %d %s %w", status, b, err)
	}
	return d, nil
}

func (r *rig) mustPush(name, ref string, config []byte, layers ...[]byte) digest.Digest {
	r.t.Helper()
	d, err := r.push(name, ref, config, layers...)
	if err != nil {
		r.t.Fatal(err)
	}
	return d
}

const accept = ocispec.MediaTypeImageManifest + ", " + ocispec.MediaTypeImageIndex

// pull reads an image whole, each blob checked.
func (r *rig) pull(name, ref string) error {
	status, _, b, err := r.try("GET", "/v2/"+name+"/manifests/"+ref, nil, "Accept", accept)
	if err != nil || status != http.StatusOK {
		return fmt.Errorf("manifest %s: %d %s %w", ref, status, b, err)
	}
	doc, err := parseDocument(b)
	if err != nil {
		return err
	}
	for _, m := range doc.Manifests {
		if err := r.pull(name, string(m.Digest)); err != nil {
			return err
		}
	}
	for _, d := range doc.references() {
		if len(doc.Manifests) > 0 {
			break
		}
		status, _, b, err := r.try("GET", "/v2/"+name+"/blobs/"+string(d), nil)
		if err != nil || status != http.StatusOK || digest.FromBytes(b) != d {
			return fmt.Errorf("blob %s of %s: %d %w", d, ref, status, err)
		}
	}
	return nil
}

func (r *rig) mustPull(name, ref string) {
	r.t.Helper()
	if err := r.pull(name, ref); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) collect(o Options) *Collected {
	r.t.Helper()
	c, err := r.s.Collect(r.t.Context(), o)
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

// clock is one that tests turn.
type clock struct{ off atomic.Int64 }

func (c *clock) now() time.Time       { return time.Now().Add(time.Duration(c.off.Load())) }
func (c *clock) turn(d time.Duration) { c.off.Add(int64(d)) }

func (r *rig) withClock() *clock {
	c := new(clock)
	r.s.now, r.s.leases.now = c.now, c.now
	return c
}

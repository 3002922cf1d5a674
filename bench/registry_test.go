package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// shelf is a registry that takes whatever it is given.
type shelf struct {
	mu        sync.Mutex
	blobs     map[string][]byte
	manifests map[string][]byte
}

func (s *shelf) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	data, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	switch last := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]; {
	case r.Method == http.MethodPost:
		w.Header().Set("Location", r.URL.Path+"1?state=x")
		w.WriteHeader(http.StatusAccepted)
	case r.Method == http.MethodGet:
		_, _ = w.Write(s.blobs[last])
	case strings.Contains(r.URL.Path, "/manifests/"):
		s.manifests[last] = data
		w.WriteHeader(http.StatusCreated)
	case r.URL.Query().Get("state") != "x" || int64(len(data)) != r.ContentLength:
		http.Error(w, "not the upload that was begun", http.StatusBadRequest)
	default:
		s.blobs[r.URL.Query().Get("digest")] = data
		w.WriteHeader(http.StatusCreated)
	}
}

// someTar is a tar of some files that do not compress to nothing.
func someTar(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "some.tar")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(f)
	for i := range 20 {
		data := bytes.Repeat(fmt.Appendf(nil, "%d\n", i), 1000)
		if err := errors.Join(w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprint("f", i), Mode: 0o644, Size: int64(len(data))}), second(w.Write(data))); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	return file
}

func second[T any](_ T, err error) error { return err }

// names are the files in a tar.
func names(t *testing.T, r io.Reader) (out []string) {
	t.Helper()
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, h.Name)
	}
}

func TestSource(t *testing.T) {
	src, err := newSource(someTar(t), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := &shelf{blobs: map[string][]byte{}, manifests: map[string][]byte{}}
	srv := httptest.NewServer(s)
	defer srv.Close()
	addr := strings.TrimPrefix(srv.URL, "http://")
	blobs := 0
	for range 2 {
		tag := src.next()
		if err := src.put(t.Context(), addr, "r", tag); err != nil {
			t.Fatal(err)
		}
		var m struct {
			Config struct{ Digest string }
			Layers []struct {
				Digest string
				Size   int
			}
		}
		var c struct {
			RootFS struct {
				DiffIDs []string `json:"diff_ids"`
			} `json:"rootfs"`
		}
		if err := errors.Join(json.Unmarshal(s.manifests[tag], &m), json.Unmarshal(s.blobs[m.Config.Digest], &c)); err != nil {
			t.Fatal(err)
		}
		if len(m.Layers) != len(c.RootFS.DiffIDs) || len(m.Layers) < layers {
			t.Fatalf("%d layers, %d diff ids", len(m.Layers), len(c.RootFS.DiffIDs))
		}
		files := map[string]int{}
		for i, l := range m.Layers {
			blob := s.blobs[l.Digest]
			if got := fmt.Sprintf("sha256:%x", sha256.Sum256(blob)); got != l.Digest || len(blob) != l.Size {
				t.Errorf("layer %d is %s of %d bytes, said to be %s of %d", i, got, len(blob), l.Digest, l.Size)
			}
			r, err := gzip.NewReader(bytes.NewReader(blob))
			if err != nil {
				t.Fatal(err)
			}
			plain, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			if got := fmt.Sprintf("sha256:%x", sha256.Sum256(plain)); got != c.RootFS.DiffIDs[i] {
				t.Errorf("layer %d: diff id %s, said to be %s", i, got, c.RootFS.DiffIDs[i])
			}
			for _, n := range names(t, bytes.NewReader(plain)) {
				files[n]++
			}
		}
		if len(files) != 21 || files["mark"] != len(m.Layers) || files["f0"] != 1 || files["f19"] != 1 {
			t.Errorf("files %v", files)
		}
		if blobs += len(m.Layers) + 1; len(s.blobs) != blobs {
			t.Errorf("%d blobs, want %d: two images have something in common", len(s.blobs), blobs)
		}
	}
}

func TestCountBlobs(t *testing.T) {
	s := &shelf{blobs: map[string][]byte{"sha256:1": []byte("one")}}
	srv := httptest.NewServer(s)
	defer srv.Close()
	var n atomic.Int64
	addr, stop, err := countBlobs(strings.TrimPrefix(srv.URL, "http://"), &n)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stop() }()
	for path, want := range map[string]int64{"/v2/r/blobs/sha256:1": 1, "/v2/r/manifests/1": 0, "/v2/": 0} {
		n.Store(0)
		res, err := http.Get("http://" + addr + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || n.Load() != want || (want == 1) != (string(body) == "one") {
			t.Errorf("%s: counted %d, body %q, %v", path, n.Load(), body, err)
		}
	}
}

// A registry that ends, or never answers, is an error and leaves nothing.
func TestRegistryThatEnds(t *testing.T) {
	root := filepath.Join(t.TempDir(), "root")
	p := registryProgram{"none", "/bin/false", func(string, string) ([]string, error) { return nil, nil }}
	if addr, _, err := p.start(t.Context(), root); err == nil || !strings.Contains(err.Error(), "ended before it answered") {
		t.Errorf("%q, %v", addr, err)
	}
	if _, err := os.Stat(root); !os.IsNotExist(err) {
		t.Errorf("its root: %v", err)
	}
}

func TestBuildContext(t *testing.T) {
	archive, err := buildContext("some:1")
	if err != nil {
		t.Fatal(err)
	}
	if n := len(names(t, bytes.NewReader(archive))); n != 102 {
		t.Errorf("%d files", n)
	}
	if steps := strings.Count(dockerfile("some:1"), "\n"); steps != 10 {
		t.Errorf("%d steps", steps)
	}
	again, err := buildContext("some:1")
	if err != nil || !bytes.Equal(archive, again) {
		t.Errorf("a context is not like the one before: %v", err)
	}
}

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"time"
)

// layers is how many the images in the registry have.
const layers = 4

// source makes images of one size of which no engine has any part: each has a mark of its
// own at the beginning of every layer.
type source struct {
	tar    string   // the whole as a tar
	plain  []string // layers, uncompressed
	packed []string // the same, compressed
	made   int
}

// newSource splits the tar into layers, in dir. It takes seconds.
func newSource(file, dir string) (*source, error) {
	s := &source{tar: file}
	in, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return nil, err
	}
	r := tar.NewReader(in)
	for i, more := 0, true; more; i++ {
		s.plain = append(s.plain, filepath.Join(dir, fmt.Sprintf("layer%d.tar", i)))
		if more, err = splitOff(s.plain[i], r, st.Size()/layers); err != nil {
			return nil, err
		}
		s.packed = append(s.packed, s.plain[i]+".gz")
	}
	return s, parallel(runtime.NumCPU(), len(s.plain), func(i int) error { return pack(s.packed[i], s.plain[i]) })
}

// splitOff copies what comes next of a tar, until it is as large as size, into a file;
// more says that something is left.
func splitOff(file string, r *tar.Reader, size int64) (more bool, err error) {
	f, err := os.Create(file)
	if err != nil {
		return false, err
	}
	defer f.Close()
	w := tar.NewWriter(f)
	for n := int64(0); n < size; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return false, w.Close()
		}
		if err != nil {
			return false, err
		}
		if err := w.WriteHeader(h); err != nil {
			return false, err
		}
		m, err := io.Copy(w, r)
		if err != nil {
			return false, err
		}
		n += m + 512
	}
	return true, w.Close()
}

func pack(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	w, err := gzip.NewWriterLevel(out, gzip.BestSpeed)
	if err != nil {
		return err
	}
	if _, err := io.Copy(w, in); err != nil {
		return err
	}
	return errors.Join(w.Close(), out.Close())
}

// next names an image that was not there before.
func (s *source) next() string {
	s.made++
	return fmt.Sprintf("i%d", s.made)
}

// mark is the beginning of a tar, a file with the image's name in it; the tar goes on
// with what is read after it.
func (s *source) mark(image string) io.Reader {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	text := fmt.Appendf(nil, "%s of %d at %d\n", image, os.Getpid(), time.Now().UnixNano())
	// A buffer refuses nothing, and the header is one that the format can say.
	_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "mark", Mode: 0o644, Size: int64(len(text))})
	_, _ = w.Write(text)
	_ = w.Flush()
	return &buf
}

// described is a blob as manifests have it.
type described struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
}

const dockerTypes = "application/vnd.docker."

// put puts an image that was not there before into the registry at addr.
func (s *source) put(ctx context.Context, addr, repo, tag string) error {
	config := struct {
		Architecture string   `json:"architecture"`
		OS           string   `json:"os"`
		Config       struct{} `json:"config"`
		RootFS       struct {
			Type    string   `json:"type"`
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}{Architecture: runtime.GOARCH, OS: "linux"}
	config.RootFS.Type = "layers"
	manifest := struct {
		SchemaVersion int         `json:"schemaVersion"`
		MediaType     string      `json:"mediaType"`
		Config        described   `json:"config"`
		Layers        []described `json:"layers"`
	}{SchemaVersion: 2, MediaType: dockerTypes + "distribution.manifest.v2+json"}
	base := "http://" + addr + "/v2/" + repo
	for i := range s.plain {
		diff, blob, err := s.putLayer(ctx, base, tag, i)
		if err != nil {
			return err
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diff)
		manifest.Layers = append(manifest.Layers, blob)
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return err
	}
	manifest.Config = described{dockerTypes + "container.image.v1+json", fmt.Sprintf("sha256:%x", sha256.Sum256(raw)), int64(len(raw))}
	if err := putBlob(ctx, base, manifest.Config, bytes.NewReader(raw)); err != nil {
		return err
	}
	if raw, err = json.Marshal(manifest); err != nil {
		return err
	}
	return send(ctx, "PUT", base+"/manifests/"+tag, manifest.MediaType, int64(len(raw)), bytes.NewReader(raw), nil)
}

// putLayer puts a layer with a mark of the image; both its digests are returned.
func (s *source) putLayer(ctx context.Context, base, tag string, i int) (diff string, blob described, err error) {
	mark, err := io.ReadAll(s.mark(tag))
	if err != nil {
		return "", blob, err
	}
	// What is compressed in two pieces is, put together, compressed as a whole.
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err := w.Write(mark); err != nil {
		return "", blob, err
	}
	if err := w.Close(); err != nil {
		return "", blob, err
	}
	if diff, _, err = digestOf(mark, s.plain[i]); err != nil {
		return "", blob, err
	}
	blob.MediaType = dockerTypes + "image.rootfs.diff.tar.gzip"
	if blob.Digest, blob.Size, err = digestOf(packed.Bytes(), s.packed[i]); err != nil {
		return "", blob, err
	}
	f, err := os.Open(s.packed[i])
	if err != nil {
		return "", blob, err
	}
	defer f.Close()
	return diff, blob, putBlob(ctx, base, blob, io.MultiReader(&packed, f))
}

// digestOf is the digest and the size of head and then the file.
func digestOf(head []byte, file string) (digest string, size int64, err error) {
	f, err := os.Open(file)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	h.Write(head)
	n, err := io.Copy(h, f)
	return fmt.Sprintf("sha256:%x", h.Sum(nil)), n + int64(len(head)), err
}

// putBlob uploads a blob in one piece.
func putBlob(ctx context.Context, base string, d described, body io.Reader) error {
	var at string
	if err := send(ctx, "POST", base+"/blobs/uploads/", "", 0, nil, &at); err != nil {
		return err
	}
	from, err := url.Parse(base + "/blobs/uploads/")
	if err != nil {
		return err
	}
	to, err := from.Parse(at)
	if err != nil {
		return err
	}
	q := to.Query()
	q.Set("digest", d.Digest)
	to.RawQuery = q.Encode()
	return send(ctx, "PUT", to.String(), "application/octet-stream", d.Size, body, nil)
}

// send sends a request that has to succeed, and keeps where the answer leads.
func send(ctx context.Context, method, url, kind string, size int64, body io.Reader, location *string) error {
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return err
	}
	req.ContentLength = size
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(res.Body, 1<<12))
	if res.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s: %s", method, url, res.Status, bytes.TrimSpace(text))
	}
	if location != nil {
		*location = res.Header.Get("Location")
	}
	return nil
}

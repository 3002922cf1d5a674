package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxNested bounds how deep indexes may list indexes that are adopted.
const maxNested = 8

// adopt takes into a repository what a manifest leads to and is not there, but
// was said to be: by the engine's images or a mirror, for which a client that
// pushes asks the same way. What nobody has is left out: the library says so.
// Callers hold what the manifest refers to.
func (s *Server) adopt(ctx context.Context, name string, doc *document, depth int) error {
	if s.cfg.Content == nil && len(s.mirrors) == 0 || depth > maxNested {
		return nil
	}
	for _, m := range doc.Manifests {
		if err := s.adoptManifest(ctx, name, m.Digest, depth); err != nil {
			return err
		}
	}
	own := *doc
	own.Manifests = nil
	for _, d := range own.references() {
		link := path.Join(layersDir(name), split(d))
		if _, err := s.store.link(ctx, link); !missing(err) {
			continue // there, or the library tells what is wrong with it
		}
		at := route{blobs, name, string(d)}
		ok, err := s.adoptBlob(ctx, d, func(w io.Writer) (bool, error) { return s.fetchOther(ctx, at, w) })
		if err == nil && ok {
			err = s.store.driver.PutContent(ctx, path.Join(link, "link"), []byte(d))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) adoptManifest(ctx context.Context, name string, d digest.Digest, depth int) error {
	if ok, err := s.store.has(ctx, name, d); err != nil || ok {
		return err
	}
	var body bytes.Buffer
	ok, err := s.fetchOther(ctx, route{manifests, name, string(d)}, &limited{&body, maxManifest})
	if err != nil || !ok {
		return err
	}
	doc, err := parseDocument(body.Bytes())
	if err != nil {
		return fmt.Errorf("manifest %s: %w", d, err)
	}
	var keys []string
	for _, ref := range doc.references() {
		keys = append(keys, string(ref))
	}
	release := s.leases.hold(keys...)
	defer release(true)
	if err := s.adopt(ctx, name, doc, depth+1); err != nil {
		return err
	}
	if _, err := s.adoptBlob(ctx, d, func(w io.Writer) (bool, error) {
		_, err := w.Write(body.Bytes())
		return true, err
	}); err != nil {
		return err
	}
	return s.store.driver.PutContent(ctx, path.Join(revision(name, d), "link"), []byte(d))
}

// adoptBlob puts a blob to its place if it is not there. It reports whether it
// is there now.
func (s *Server) adoptBlob(ctx context.Context, d digest.Digest, fetch func(io.Writer) (bool, error)) (ok bool, err error) {
	to := path.Join(blobDir(d), "data")
	if _, err := s.store.driver.Stat(ctx, to); !missing(err) {
		return err == nil, err
	}
	tmp := "/tmp/" + rand.Text()
	w, err := s.store.driver.Writer(ctx, tmp, false)
	if err != nil {
		return false, err
	}
	defer func() {
		if !ok {
			err = errors.Join(err, w.Cancel(ctx))
		}
	}()
	sum := d.Verifier()
	found, err := fetch(io.MultiWriter(w, sum))
	if err != nil || !found {
		return false, err
	}
	if !sum.Verified() {
		return false, fmt.Errorf("blob %s: what was fetched is something else", d)
	}
	if err := w.Commit(ctx); err != nil {
		return false, err
	}
	if err := w.Close(); err != nil {
		return false, err
	}
	return true, s.store.driver.Move(ctx, tmp, to)
}

// fetchOther reads a blob or a manifest of the engine's or of a mirror's. It
// reports whether anybody has it.
func (s *Server) fetchOther(ctx context.Context, at route, w io.Writer) (bool, error) {
	kind := "blobs"
	if at.kind == manifests {
		kind = "manifests"
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://registry/v2/"+at.name+"/"+kind+"/"+at.ref, nil)
	if err != nil {
		return false, err
	}
	r.Header["Accept"] = []string{ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex,
		"application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.distribution.manifest.list.v2+json"}
	answer := &sink{to: w}
	if !s.fromOthers(answer, r, at) {
		return false, nil
	}
	if answer.err == nil && answer.status != http.StatusOK {
		answer.err = fmt.Errorf("%s: status %d", r.URL.Path, answer.status)
	}
	return answer.err == nil, answer.err
}

// sink is an http.ResponseWriter of our own, for the body of an answer that is good.
type sink struct {
	to     io.Writer
	head   http.Header
	status int
	err    error
}

// Header is as http.ResponseWriter has it; so are the others.
func (s *sink) Header() http.Header {
	if s.head == nil {
		s.head = http.Header{}
	}
	return s.head
}

func (s *sink) WriteHeader(status int) {
	if s.status == 0 {
		s.status = status
	}
}

func (s *sink) Write(b []byte) (int, error) {
	s.WriteHeader(http.StatusOK)
	if s.status != http.StatusOK {
		return len(b), nil
	}
	n, err := s.to.Write(b)
	s.err = errors.Join(s.err, err)
	return n, err
}

// limited lets so many bytes through, and then none.
type limited struct {
	to   io.Writer
	left int
}

func (l *limited) Write(b []byte) (int, error) {
	if l.left -= len(b); l.left < 0 {
		return 0, errors.New("manifest larger than 4 MiB")
	}
	return l.to.Write(b)
}

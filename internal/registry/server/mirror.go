package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/distribution/v3/configuration"
	"github.com/opencontainers/go-digest"
)

// Content is what the engine has itself: images that need no push to be pulled.
type Content interface {
	// Resolve gives the manifest that a tag or a digest of a repository means.
	Resolve(ctx context.Context, name, ref string) (Manifest, error)
	// Open opens a blob that belongs to an image of a repository.
	Open(ctx context.Context, name string, d digest.Digest) (Blob, error)
	// Tags lists the tags of a repository, sorted. All three: NotFound.
	Tags(ctx context.Context, name string) ([]string, error)
}

// Manifest is a manifest of the engine's.
type Manifest struct {
	MediaType string
	Digest    digest.Digest
	Body      []byte
}

// Blob is a blob of the engine's. Who opens it closes it.
type Blob interface {
	io.ReaderAt
	io.Closer
	Size() int64
}

// elsewhere answers a question from the registry's own content, then from the
// engine's, then from the mirrors, in this order: the first that has it.
func (s *Server) elsewhere(w http.ResponseWriter, r *http.Request, at route) {
	reads := r.Method == http.MethodGet || r.Method == http.MethodHead
	if reads && at.kind == tags {
		if _, err := s.store.driver.Stat(r.Context(), tagsDir(at.name)); missing(err) {
			// The library lists no tags of what is not there, if asked for a page.
			if !s.fromOthers(w, r, at) {
				refuse(w, http.StatusNotFound, "NAME_UNKNOWN", "repository name not known to registry")
			}
			return
		}
	}
	if !reads || s.cfg.Content == nil && len(s.mirrors) == 0 {
		s.app.ServeHTTP(w, r)
		return
	}
	rec := record(w, true)
	s.app.ServeHTTP(rec, r)
	if !rec.missed() || s.fromOthers(w, r, at) {
		return
	}
	s.app.ServeHTTP(w, r) // for its 404
}

// fromOthers answers what is not here from the engine's images or a mirror;
// false when they do not have it either.
func (s *Server) fromOthers(w http.ResponseWriter, r *http.Request, at route) bool {
	if s.cfg.Content != nil && s.serveContent(w, r, at) {
		return true
	}
	for _, m := range s.mirrors {
		app, err := m.open(r.Context())
		if err != nil {
			continue // said when it happened
		}
		rec := record(w, true)
		app.ServeHTTP(rec, r)
		if !rec.missed() {
			return true
		}
	}
	return false
}

// serveContent answers from the engine's images; false when they do not have it.
func (s *Server) serveContent(w http.ResponseWriter, r *http.Request, at route) bool {
	ctx := r.Context()
	switch at.kind {
	case manifests:
		m, err := s.cfg.Content.Resolve(ctx, at.name, at.ref)
		if err != nil {
			return s.lacking(w, r, err)
		}
		w.Header().Set("Content-Type", m.MediaType)
		w.Header().Set("Content-Length", strconv.Itoa(len(m.Body)))
		w.Header().Set("Docker-Content-Digest", string(m.Digest))
		w.Header().Set("Docker-Distribution-API-Version", "registry/2.0")
		if r.Method == http.MethodGet {
			_, _ = w.Write(m.Body) // the client is gone: nobody to tell
		}
	case blobs:
		d := digest.Digest(at.ref)
		b, err := s.cfg.Content.Open(ctx, at.name, d)
		if err != nil {
			return s.lacking(w, r, err)
		}
		defer b.Close()
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Docker-Content-Digest", string(d))
		w.Header().Set("Etag", `"`+string(d)+`"`)
		http.ServeContent(w, r, "", time.Time{}, io.NewSectionReader(b, 0, b.Size()))
	case tags:
		list, err := s.cfg.Content.Tags(ctx, at.name)
		if err != nil {
			return s.lacking(w, r, err)
		}
		serveTags(w, r, at.name, list)
	default:
		return false
	}
	return true
}

// lacking reports that others are to be asked; an error of another kind is answered.
func (s *Server) lacking(w http.ResponseWriter, r *http.Request, err error) bool {
	if errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) {
		return false
	}
	s.fail(w, r, err)
	return true
}

// serveTags answers a list of tags, a page of it if one was asked for.
func serveTags(w http.ResponseWriter, r *http.Request, name string, list []string) {
	q := r.URL.Query()
	if last := q.Get("last"); last != "" {
		list = slices.DeleteFunc(slices.Clone(list), func(t string) bool { return t <= last })
	}
	if text := q.Get("n"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			refuse(w, http.StatusBadRequest, "PAGINATION_NUMBER_INVALID", "invalid number of results requested")
			return
		}
		if n < len(list) {
			list = list[:n]
			if n > 0 {
				w.Header().Set("Link", "</v2/"+name+"/tags/list?n="+text+"&last="+list[n-1]+`>; rel="next"`)
			}
		}
	}
	answerJSON(w, map[string]any{"name": name, "tags": append([]string{}, list...)})
}

// mirror is a registry whose content is kept here: the library's pull-through
// cache, in a directory of its own. It asks its registry when it is opened, so
// that is done at the first need, and again later when it failed.
type mirror struct {
	url string
	s   *Server

	mu    sync.Mutex
	app   http.Handler
	retry time.Time
	err   error
}

// mirrorPause is how long a mirror that cannot be opened is left alone.
const mirrorPause = 10 * time.Second

// mirrorSilence is how long a mirror may take to begin an answer.
var mirrorSilence = 20 * time.Second

// boundSilence makes the library give up a mirror that does not answer. The
// library asks by the process's transport, and lets nobody choose another.
func boundSilence() {
	t, ok := http.DefaultTransport.(*http.Transport)
	if !ok || t.ResponseHeaderTimeout == mirrorSilence {
		return
	}
	t = t.Clone()
	t.ResponseHeaderTimeout = mirrorSilence
	http.DefaultTransport = t
}

func (m *mirror) open(ctx context.Context) (http.Handler, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.app != nil {
		return m.app, nil
	}
	if m.err != nil && m.s.now().Before(m.retry) {
		return nil, m.err
	}
	sum := sha256.Sum256([]byte(m.url))
	root := filepath.Join(m.s.cfg.Root, "mirrors", hex.EncodeToString(sum[:8]))
	if err := os.RemoveAll(filepath.Join(root, "tmp")); err != nil { // what a killed registry was about to write
		return nil, err
	}
	c := libraryConfig(newDisk(root), "unused")
	c.Proxy = configuration.Proxy{RemoteURL: m.url}
	if err := m.login(&c.Proxy); err != nil {
		return nil, err
	}
	app, err := newApp(ctx, c)
	if err != nil {
		m.err, m.retry = err, m.s.now().Add(mirrorPause)
		m.s.log.Warn("mirror", "url", m.url, "error", err)
		return nil, err
	}
	m.app, m.err = app, nil
	m.s.opening.Lock()
	defer m.s.opening.Unlock()
	m.s.closing = append(m.s.closing, app.Shutdown)
	return app, nil
}

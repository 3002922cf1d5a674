// Package testregistry is a registry in memory for tests: it speaks the
// distribution protocol, counts what it is asked for, and errs when it is told to.
package testregistry

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// Registry is a registry that answers until its test has ended.
type Registry struct {
	*httptest.Server

	// Found is what every search finds; nil: it cannot be searched.
	Found []map[string]any

	user, password string // empty: everybody
	tokens         bool   // else basic

	mu        sync.Mutex
	fault     func(http.ResponseWriter, *http.Request) bool
	blobs     map[string][]byte            // repository@digest
	manifests map[string][]byte            // repository@digest
	types     map[string]string            // of manifests
	tags      map[string]map[string]string // repository → tag → digest
	uploads   map[string]string            // id → repository
	counts    map[string]int
	given     map[string]time.Time // tokens, until when
}

// New starts a registry without TLS.
func New(t testing.TB) *Registry {
	t.Helper()
	r := &Registry{blobs: map[string][]byte{}, manifests: map[string][]byte{}, types: map[string]string{}, tags: map[string]map[string]string{},
		uploads: map[string]string{}, counts: map[string]int{}, given: map[string]time.Time{}}
	r.Server = httptest.NewServer(r)
	t.Cleanup(func() { r.CloseClientConnections(); r.Close() })
	return r
}

// Protect asks for a login from now on: by tokens, which live for a second, or by
// the password itself.
func (r *Registry) Protect(user, password string, tokens bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.user, r.password, r.tokens = user, password, tokens
}

// Expire lets all tokens run out that were given so far.
func (r *Registry) Expire() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.given)
}

// Host is host:port of the registry.
func (r *Registry) Host() string { return strings.TrimPrefix(r.URL, "http://") }

// Count tells how often something was asked for: "GET blobs", "PUT manifests".
func (r *Registry) Count(what string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.counts[what]
}

// Reset forgets the counts.
func (r *Registry) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.counts)
}

// PutBlob stores a blob.
func (r *Registry) PutBlob(repo string, data []byte) digest.Digest {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := digest.FromBytes(data)
	r.blobs[repo+"@"+d.String()] = data
	return d
}

// PutManifest stores a manifest, under a tag unless that is empty.
func (r *Registry) PutManifest(repo, tag, mediaType string, data []byte) digest.Digest {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.putManifest(repo, tag, mediaType, data)
}

func (r *Registry) putManifest(repo, tag, mediaType string, data []byte) digest.Digest {
	d := digest.FromBytes(data)
	r.manifests[repo+"@"+d.String()], r.types[d.String()] = data, mediaType
	if r.tags[repo] == nil {
		r.tags[repo] = map[string]string{}
	}
	if tag != "" {
		r.tags[repo][tag] = d.String()
	}
	return d
}

// Blob gives a blob by its digest; nil: there is none.
func (r *Registry) Blob(repo, ref string) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.blobs[repo+"@"+ref]
}

// SetFault lets fault be asked before each request; true: it has answered.
func (r *Registry) SetFault(fault func(http.ResponseWriter, *http.Request) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fault = fault
}

// Manifest gives what a tag or digest stands for; nil: nothing.
func (r *Registry) Manifest(repo, ref string) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	if d, ok := r.tags[repo][ref]; ok {
		ref = d
	}
	return r.manifests[repo+"@"+ref]
}

// Uploads tells how many uploads were begun and not ended.
func (r *Registry) Uploads() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.uploads)
}

// Refuse answers as registries refuse.
func Refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []any{map[string]string{"code": code, "message": message}}})
}

// ServeHTTP implements http.Handler.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	repo, what, ref := split(req.URL.Path)
	r.mu.Lock()
	r.counts[req.Method+" "+what]++
	fault := r.fault
	r.mu.Unlock()
	if fault != nil && fault(w, req) {
		return
	}
	if req.URL.Path == "/token" {
		r.token(w, req)
		return
	}
	if req.URL.Path == "/v1/search" && r.Found != nil {
		_ = json.NewEncoder(w).Encode(map[string]any{"query": req.URL.Query().Get("q"), "num_results": len(r.Found), "results": r.Found})
		return
	}
	if !r.allowed(w, req) {
		return
	}
	switch what {
	case "":
		w.WriteHeader(http.StatusOK)
	case "manifests":
		r.serveManifest(w, req, repo, ref)
	case "blobs":
		r.serveBlob(w, req, repo, ref)
	case "uploads":
		r.upload(w, req, repo, ref)
	case "tags":
		r.serveTags(w, req, repo)
	default:
		Refuse(w, http.StatusNotFound, "UNSUPPORTED", "no such route")
	}
}

// split takes a path apart: /v2/<repo>/<what>/<ref>.
func split(path string) (repo, what, ref string) {
	path = strings.TrimPrefix(path, "/v2/")
	for _, w := range []string{"/blobs/uploads/", "/manifests/", "/blobs/", "/tags/"} {
		if i := strings.LastIndex(path, w); i >= 0 {
			what = strings.Trim(w, "/")
			return path[:i], what[strings.LastIndexByte(what, '/')+1:], path[i+len(w):]
		}
	}
	return "", path, ""
}

func (r *Registry) allowed(w http.ResponseWriter, req *http.Request) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.user == "" {
		return true
	}
	if !r.tokens {
		user, password, _ := req.BasicAuth()
		if user == r.user && password == r.password {
			return true
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
	} else {
		until, ok := r.given[strings.TrimPrefix(req.Header.Get("Authorization"), "Bearer ")]
		if ok && time.Now().Before(until) {
			return true
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="test"`, r.URL))
	}
	Refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
	return false
}

func (r *Registry) token(w http.ResponseWriter, req *http.Request) {
	user, password, _ := req.BasicAuth()
	if req.Method == http.MethodPost {
		user, password = req.PostFormValue("username"), req.PostFormValue("password")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if user != r.user || password != r.password {
		Refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
		return
	}
	token := rand.Text()
	r.given[token] = time.Now().Add(time.Second)
	_ = json.NewEncoder(w).Encode(map[string]any{"token": token, "access_token": token, "expires_in": 60})
}

func (r *Registry) serveManifest(w http.ResponseWriter, req *http.Request, repo, ref string) {
	if req.Method == http.MethodPut {
		data, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		tag := ref
		if strings.Contains(ref, ":") {
			tag = ""
		}
		d := r.PutManifest(repo, tag, req.Header.Get("Content-Type"), data)
		w.Header().Set("Docker-Content-Digest", d.String())
		w.WriteHeader(http.StatusCreated)
		return
	}
	data := r.Manifest(repo, ref)
	if data == nil {
		Refuse(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "manifest unknown")
		return
	}
	d := digest.FromBytes(data)
	r.mu.Lock()
	kind := r.types[d.String()]
	r.mu.Unlock()
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Docker-Content-Digest", d.String())
	http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(data))
}

func (r *Registry) serveBlob(w http.ResponseWriter, req *http.Request, repo, ref string) {
	r.mu.Lock()
	data, ok := r.blobs[repo+"@"+ref]
	r.mu.Unlock()
	if !ok {
		Refuse(w, http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown to registry")
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Docker-Content-Digest", ref)
	http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(data))
}

func (r *Registry) upload(w http.ResponseWriter, req *http.Request, repo, id string) {
	q := req.URL.Query()
	switch req.Method {
	case http.MethodPost:
		r.mu.Lock()
		defer r.mu.Unlock()
		if data, ok := r.blobs[q.Get("from")+"@"+q.Get("mount")]; ok && q.Get("mount") != "" {
			r.blobs[repo+"@"+q.Get("mount")] = data
			r.counts["mount"]++
			w.WriteHeader(http.StatusCreated)
			return
		}
		id := rand.Text()
		r.uploads[id] = repo
		w.Header().Set("Location", "/v2/"+repo+"/blobs/uploads/"+id+"?state=x")
		w.WriteHeader(http.StatusAccepted)
	case http.MethodPut:
		data, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		if d := digest.FromBytes(data); d.String() != q.Get("digest") {
			Refuse(w, http.StatusBadRequest, "DIGEST_INVALID", "provided digest did not match uploaded content")
			return
		}
		r.PutBlob(repo, data)
		r.forget(id)
		w.WriteHeader(http.StatusCreated)
	case http.MethodDelete:
		r.forget(id)
		w.WriteHeader(http.StatusNoContent)
	}
}

func (r *Registry) forget(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.uploads, id)
}

// pageSize is how many tags a page of a list has.
const pageSize = 2

func (r *Registry) serveTags(w http.ResponseWriter, req *http.Request, repo string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tags[repo] == nil {
		Refuse(w, http.StatusNotFound, "NAME_UNKNOWN", "repository name not known to registry")
		return
	}
	var list []string
	for tag := range r.tags[repo] {
		if tag > req.URL.Query().Get("last") {
			list = append(list, tag)
		}
	}
	slices.Sort(list)
	if len(list) > pageSize {
		list = list[:pageSize]
		w.Header().Set("Link", fmt.Sprintf(`</v2/%s/tags/list?last=%s>; rel="next"`, repo, list[pageSize-1]))
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"name": repo, "tags": list})
}

package server

import (
	"bytes"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
)

// serveManifest puts, gets and removes manifests.
func (s *Server) serveManifest(w http.ResponseWriter, r *http.Request, at route) {
	d, err := digest.Parse(at.ref)
	if err != nil && !tagRule.MatchString(at.ref) {
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			refuse(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "manifest unknown")
			return
		}
		refuse(w, http.StatusBadRequest, codeManifest, "reference is neither a tag nor a digest")
		return
	}
	if err != nil {
		d = "" // a tag
	}
	switch r.Method {
	case http.MethodPut:
		s.putManifest(w, r, at)
	case http.MethodDelete:
		s.deleteManifest(w, r, at, d)
	default:
		if d != "" {
			s.asked(w, r, at, d)
			return
		}
		s.askedTag(w, r, at)
	}
}

// askedTag answers a question for a tag, and keeps collections off the manifest
// that it means, also when the tag goes before the client has it all.
func (s *Server) askedTag(w http.ResponseWriter, r *http.Request, at route) {
	rec := record(w, false)
	s.elsewhere(rec, r, at)
	if d := rec.Header().Get("Docker-Content-Digest"); rec.status < http.StatusBadRequest && d != "" {
		s.leases.hold(d)(true)
	}
}

// asked answers a question for a digest, and keeps collections off it: the
// client may rely on it being there in what it pushes next.
func (s *Server) asked(w http.ResponseWriter, r *http.Request, at route, d digest.Digest) {
	rec := record(w, false)
	release := s.leases.hold(string(d))
	last := s.leases.last(string(d))
	s.elsewhere(rec, r, at)
	used := rec.status < http.StatusBadRequest
	release(used)
	if now := s.now(); used && now.Sub(last) > s.cfg.Grace/8 {
		s.store.use(d, now)
	}
}

// putManifest takes a manifest. What it refers to is held before the library
// looks whether it is there.
func (s *Server) putManifest(w http.ResponseWriter, r *http.Request, at route) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxManifest+1))
	if err != nil {
		refuse(w, http.StatusBadRequest, codeManifest, "reading the manifest: "+err.Error())
		return
	}
	if len(body) > maxManifest {
		w.Header().Set("Connection", "close")
		refuse(w, http.StatusRequestEntityTooLarge, codeManifest, "the manifest is larger than 4 MiB")
		return
	}
	doc, err := parseDocument(body)
	if err != nil {
		refuse(w, http.StatusBadRequest, codeManifest, err.Error())
		return
	}
	d := digest.FromBytes(body)
	keys := []string{string(d), at.name + ":" + at.ref}
	for _, ref := range doc.references() {
		if ref.Algorithm() != digest.Canonical {
			refuse(w, http.StatusBadRequest, codeManifest, "digest "+string(ref)+": blobs are kept by digests of sha256 only")
			return
		}
		keys = append(keys, string(ref))
	}
	rec := record(w, false)
	release := s.leases.hold(keys...)
	defer func() { release(rec.status == http.StatusCreated) }()
	if err := s.adopt(r.Context(), at.name, doc, 0); err != nil {
		s.fail(w, r, err)
		return
	}
	defer s.repos.lock(at.name, doc.Subject != nil)()
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	if doc.Subject == nil {
		s.app.ServeHTTP(rec, r)
		return
	}
	subject := doc.Subject.Digest
	before, err := s.store.has(r.Context(), at.name, d)
	if err == nil && !before {
		err = s.store.putReferrer(r.Context(), at.name, subject, doc.descriptor(r.Header.Get("Content-Type"), d, int64(len(body))))
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	rec.on201 = func(h http.Header) { h.Set("OCI-Subject", string(subject)) }
	s.app.ServeHTTP(rec, r)
	if rec.status != http.StatusCreated && !before {
		_ = s.store.remove(r.Context(), referrerFile(at.name, subject, d)) // or it is passed over, and collected
	}
}

// deleteManifest removes a tag, or a manifest with all its tags. The tags go
// first: killed in between, the registry has a manifest without a tag, and not a
// tag without a manifest, as the library would.
func (s *Server) deleteManifest(w http.ResponseWriter, r *http.Request, at route, d digest.Digest) {
	defer s.leases.hold(string(d), at.name+":"+at.ref)(false)
	defer s.repos.lock(at.name, true)()
	if d == "" {
		s.app.ServeHTTP(w, r)
		return
	}
	there, err := s.store.has(r.Context(), at.name, d)
	if err == nil && there {
		err = s.store.untag(r.Context(), at.name, d)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	rec := record(w, false)
	doc, _ := s.store.document(r.Context(), d) // without it there is no entry to remove
	s.app.ServeHTTP(rec, r)
	if rec.status == http.StatusAccepted && doc != nil && doc.Subject != nil {
		if err := s.store.remove(r.Context(), referrerFile(at.name, doc.Subject.Digest, d)); err != nil {
			s.log.Warn("entry of a referrer", "repository", at.name, "digest", d, "error", err)
		}
	}
}

// serveBlob gets and removes blobs.
func (s *Server) serveBlob(w http.ResponseWriter, r *http.Request, at route) {
	d, err := digest.Parse(at.ref)
	if err != nil {
		refuse(w, http.StatusBadRequest, codeDigest, "no digest")
		return
	}
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		s.asked(w, r, at, d)
		return
	}
	s.app.ServeHTTP(w, r)
}

// serveUpload takes blobs. The digest is held before the blob comes to its
// place, and the upload while it is written to.
func (s *Server) serveUpload(w http.ResponseWriter, r *http.Request, at route) {
	q := r.URL.Query()
	keys := []string{"upload:" + at.ref}
	for _, word := range []string{q.Get("digest"), q.Get("mount")} {
		if word == "" {
			continue
		}
		d, err := digest.Parse(word)
		if err != nil || d.Algorithm() != digest.Canonical {
			refuse(w, http.StatusBadRequest, codeDigest, "no digest of the algorithm sha256")
			return
		}
		keys = append(keys, string(d))
	}
	rec := record(w, false)
	release := s.leases.hold(keys...)
	defer func() { release(rec.status == http.StatusCreated) }()
	s.app.ServeHTTP(rec, r)
	if rec.status == http.StatusCreated {
		for _, k := range slices.DeleteFunc(keys, func(k string) bool { return strings.HasPrefix(k, "upload:") }) {
			s.store.use(digest.Digest(k), s.now()) // it may have been there already, old
		}
	}
}

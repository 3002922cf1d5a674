package server

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// pageOfReferrers bounds a list of referrers, in entries; a client asks for the
// next page by the link it is given.
const pageOfReferrers = 500

// An entry of the index is a file named after subject and referrer that holds
// the referrer's descriptor. It is written before the manifest and removed after
// it: an entry whose manifest is not there is not shown.
func referrersDir(name string, subject digest.Digest) string {
	return repoDir(name, path.Join("_referrers", split(subject)))
}

func referrerFile(name string, subject, d digest.Digest) string {
	return path.Join(referrersDir(name, subject), d.Algorithm().String()+"-"+d.Encoded())
}

// fallbackTag is the tag under which clients keep the referrers of a subject in
// registries without the API.
func fallbackTag(subject digest.Digest) string {
	t := subject.Algorithm().String() + "-" + subject.Encoded()
	return t[:min(len(t), 128)]
}

// putReferrer notes that a manifest refers to a subject.
func (s *store) putReferrer(ctx context.Context, name string, subject digest.Digest, desc ocispec.Descriptor) error {
	b, err := json.Marshal(desc)
	if err != nil {
		return err
	}
	return s.driver.PutContent(ctx, referrerFile(name, subject, desc.Digest), b)
}

// referrers lists the manifests that refer to a subject, by digest: those of the
// index, and those that a client has listed under the fallback tag and that the
// index does not know, since they were pushed to another registry's directory.
func (s *store) referrers(ctx context.Context, name string, subject digest.Digest) ([]ocispec.Descriptor, error) {
	files, err := s.list(ctx, referrersDir(name, subject))
	if err != nil {
		return nil, err
	}
	found := map[digest.Digest]ocispec.Descriptor{}
	for _, f := range files {
		a, hex, _ := strings.Cut(f, "-")
		d := digest.NewDigestFromEncoded(digest.Algorithm(a), hex)
		if d.Validate() != nil {
			continue // half-written when the power went
		}
		if ok, err := s.has(ctx, name, d); err != nil {
			return nil, err
		} else if !ok {
			continue
		}
		b, err := s.driver.GetContent(ctx, referrerFile(name, subject, d))
		if missing(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		var desc ocispec.Descriptor
		if json.Unmarshal(b, &desc) == nil && desc.Digest == d {
			found[d] = desc
		}
	}
	if err := s.addFallback(ctx, name, subject, found); err != nil {
		return nil, err
	}
	out := make([]ocispec.Descriptor, 0, len(found))
	for _, d := range found {
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b ocispec.Descriptor) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	return out, nil
}

func (s *store) addFallback(ctx context.Context, name string, subject digest.Digest, found map[digest.Digest]ocispec.Descriptor) error {
	d, _, err := s.tagged(ctx, name, fallbackTag(subject))
	if missing(err) {
		return nil
	}
	if err != nil {
		return err
	}
	doc, err := s.document(ctx, d)
	if err != nil {
		return nil //nolint:nilerr // a tag of this name that is no index of referrers
	}
	for _, desc := range doc.Manifests {
		if _, ok := found[desc.Digest]; ok {
			continue
		}
		if ok, err := s.has(ctx, name, desc.Digest); err != nil || !ok {
			continue
		}
		b, err := s.manifest(ctx, desc.Digest)
		if err != nil {
			continue
		}
		if m, err := parseDocument(b); err == nil && m.Subject != nil && m.Subject.Digest == subject {
			found[desc.Digest] = m.descriptor(m.mediaTypeOf(), desc.Digest, int64(len(b)))
		}
	}
	return nil
}

func (s *store) document(ctx context.Context, d digest.Digest) (*document, error) {
	b, err := s.manifest(ctx, d)
	if err != nil {
		return nil, err
	}
	return parseDocument(b)
}

// serveReferrers answers GET /v2/<name>/referrers/<digest>.
func (s *Server) serveReferrers(w http.ResponseWriter, r *http.Request, at route) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		refuse(w, http.StatusMethodNotAllowed, codeUnsupported, "the list of referrers is only read")
		return
	}
	subject, err := digest.Parse(at.ref)
	if err != nil {
		refuse(w, http.StatusBadRequest, codeDigest, "referrers of what is no digest")
		return
	}
	all, err := s.store.referrers(r.Context(), at.name, subject)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	q := r.URL.Query()
	if want := q.Get("artifactType"); want != "" {
		all = slices.DeleteFunc(all, func(d ocispec.Descriptor) bool { return d.ArtifactType != want })
		w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	page := pageOfReferrers
	if n, err := strconv.Atoi(q.Get("n")); err == nil && n > 0 {
		page = min(n, page)
	}
	if last := q.Get("last"); last != "" {
		i, _ := slices.BinarySearchFunc(all, last, func(d ocispec.Descriptor, l string) int { return strings.Compare(string(d.Digest), l) })
		if i < len(all) && string(all[i].Digest) == last {
			i++
		}
		all = all[i:]
	}
	if len(all) > page {
		all = all[:page]
		next := url.Values{"n": {strconv.Itoa(page)}, "last": {string(all[page-1].Digest)}}
		if want := q.Get("artifactType"); want != "" {
			next.Set("artifactType", want)
		}
		w.Header().Set("Link", "</v2/"+at.name+"/referrers/"+string(subject)+"?"+next.Encode()+`>; rel="next"`)
	}
	w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
	_ = json.NewEncoder(w).Encode(ocispec.Index{ // the client is gone: nobody to tell
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: all,
	})
}

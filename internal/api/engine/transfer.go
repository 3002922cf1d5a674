package engine

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"escale.dev/escale/internal/image"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/registry"
	"github.com/opencontainers/go-digest"
)

// transferRoutes answer for what goes on between images and registries.
type transferRoutes struct{ imageRoutes }

func (t transferRoutes) routes() []route {
	return []route{
		{http.MethodPost, "/images/{name...}/push", t.push},
		{http.MethodGet, "/images/search", t.search},
		{http.MethodGet, "/distribution/{name...}/json", t.distribution},
	}
}

// registryAuth reads the login that a client sends along. What cannot be read
// is none, as with Docker.
func registryAuth(r *request) registry.AuthConfig {
	var auth registry.AuthConfig
	header := strings.TrimRight(r.Header.Get(registry.AuthHeader), "=")
	raw, err := base64.RawURLEncoding.DecodeString(header)
	if err != nil {
		raw, err = base64.RawStdEncoding.DecodeString(header)
	}
	if err != nil || json.Unmarshal(raw, &auth) != nil {
		return registry.AuthConfig{}
	}
	return auth
}

// pullName reads what to pull; without tag and digest it is all tags.
func pullName(from, tag string) (reference.Named, error) {
	named, err := reference.ParseNormalizedNamed(strings.TrimSuffix(from, ":"))
	if err != nil {
		return nil, invalidf("%s", err)
	}
	if tag == "" {
		return named, nil
	}
	if d, err := digest.Parse(tag); err == nil {
		ref, err := reference.WithDigest(reference.TrimNamed(named), d)
		if err != nil {
			return nil, invalidf("%s", err)
		}
		return ref, nil
	}
	ref, err := reference.WithTag(reference.TrimNamed(named), tag)
	if err != nil {
		return nil, invalidf("%s", err)
	}
	return ref, nil
}

// pull brings an image from a registry, with its progress as the answer. What
// goes wrong before the first step has a status.
func (i imageRoutes) pull(out *progressStream, r *request, from string) error {
	ref, err := pullName(from, r.query.get("tag"))
	if err != nil {
		return err
	}
	platform, err := platformParam(r.query)
	if err != nil {
		return err
	}
	err = i.cfg.Registries.Pull(r.Context(), ref, PullOptions{
		All: reference.IsNameOnly(ref), Platform: platform, Auth: registryAuth(r), Progress: out.note,
		Done: func(name string, p image.Pulled) {
			out.say("Digest: " + p.Digest.String())
			if p.New {
				out.say("Status: Downloaded newer image for " + name)
			} else {
				out.say("Status: Image is up to date for " + name)
			}
		},
	})
	if err != nil && !out.begun() {
		return err
	}
	if err != nil {
		out.fail(err)
	}
	return nil
}

func (p *progressStream) say(status string) {
	p.send(progressLine{Message: jsonstream.Message{Status: status}})
}

// note sends a step; one that counts no bytes has no figures.
func (p *progressStream) note(s image.Progress) {
	line := jsonstream.Message{ID: s.ID, Status: s.Status, Progress: &jsonstream.Progress{Current: s.Current, Total: s.Total}}
	if strings.HasPrefix(s.Status, "Pulling from ") {
		line.Progress = nil
	}
	p.send(progressLine{Message: line})
}

func (t transferRoutes) push(w *response, r *request) error {
	named, err := reference.ParseNormalizedNamed(r.name)
	if err != nil {
		return invalidf("%s", err)
	}
	if _, digested := named.(reference.Digested); digested {
		return invalidf("cannot push a digest reference")
	}
	if tag := r.query.get("tag"); tag != "" {
		if named, err = reference.WithTag(reference.TrimNamed(named), tag); err != nil {
			return invalidf("%s", err)
		}
	}
	platform, err := platformObject(r.query)
	if err != nil {
		return err
	}
	out := &progressStream{w: w}
	out.say("The push refers to repository [" + named.Name() + "]")
	err = t.cfg.Registries.Push(r.Context(), named, PushOptions{Auth: registryAuth(r), Platform: platform, Progress: out.note, Done: func(p image.Pushed) {
		out.say(fmt.Sprintf("%s: digest: %s size: %d", p.Tag, p.Digest, p.Size))
		aux, err := json.Marshal(struct {
			Tag, Digest string
			Size        int64
		}{p.Tag, p.Digest.String(), p.Size})
		if err == nil {
			out.send(progressLine{Message: jsonstream.Message{Progress: &jsonstream.Progress{}, Aux: (*json.RawMessage)(&aux)}})
		}
	}})
	if err != nil {
		out.fail(err)
	}
	return nil
}

func (t transferRoutes) distribution(w *response, r *request) error {
	ref, err := reference.ParseAnyReference(r.name)
	if err != nil {
		return invalidf("%s", err)
	}
	named, ok := ref.(reference.Named)
	if !ok {
		return invalidf("unknown image reference format: %s", r.name)
	}
	answer, err := t.cfg.Registries.Distribution(r.Context(), reference.TagNameOnly(named), registryAuth(r))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, answer)
}

// Bounds of the results of a search.
const (
	defaultSearch = 25
	maxSearch     = 100
)

func (t transferRoutes) search(w *response, r *request) error {
	limit := defaultSearch
	if s := r.query.get("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			return invalidf("strconv.Atoi: parsing %q: invalid syntax", s)
		}
		if n != 0 {
			limit = n
		}
	}
	if limit < 1 || limit > maxSearch {
		return invalidf("limit %d is outside the range of [1, 100]", limit)
	}
	f, err := parseFilters(r.query.get("filters"), []string{"is-official", "is-automated", "stars"})
	if err != nil {
		return err
	}
	match, err := searchMatch(f)
	if err != nil {
		return err
	}
	found, err := t.cfg.Registries.Search(r.Context(), r.query.get("term"), limit, registryAuth(r))
	if err != nil {
		return err
	}
	answer := make([]registry.SearchResult, 0, len(found))
	for _, s := range found {
		//lint:ignore SA1019 clients still look at it; registries do not tell any more
		s.IsAutomated = false
		if match(s) {
			answer = append(answer, s)
		}
	}
	return writeJSON(w, http.StatusOK, answer)
}

func searchMatch(f filters) (func(registry.SearchResult) bool, error) {
	official, automated, stars := -1, false, 0
	if f.has("is-official") {
		want, err := f.truth("is-official", false)
		if err != nil {
			return nil, err
		}
		official = map[bool]int{false: 0, true: 1}[want]
	}
	if f.has("is-automated") {
		want, err := f.truth("is-automated", false)
		if err != nil {
			return nil, err
		}
		automated = want
	}
	for _, s := range f["stars"] {
		n, err := strconv.Atoi(s)
		if err != nil {
			return nil, invalidf("invalid filter 'stars=%s'", s)
		}
		stars = max(stars, n)
	}
	return func(r registry.SearchResult) bool {
		return !automated && r.StarCount >= stars && (official < 0 || r.IsOfficial == (official == 1))
	}, nil
}

package engine

import (
	"net/http"
	"path"
	"slices"
	"strings"
	"time"

	"escale.dev/escale/internal/image"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	apiimage "github.com/moby/moby/api/types/image"
)

// imageRoutes answer for images.
type imageRoutes struct{ *Server }

func (i imageRoutes) routes() []route {
	return []route{
		{http.MethodGet, "/images/json", i.list},
		{http.MethodPost, "/images/create", i.create},
		{http.MethodPost, "/images/load", i.load},
		{http.MethodPost, "/images/prune", i.prune},
		{http.MethodGet, "/images/get", i.save},
		{http.MethodGet, "/images/{name...}/get", i.save},
		{http.MethodGet, "/images/{name...}/json", i.inspect},
		{http.MethodGet, "/images/{name...}/history", i.history},
		{http.MethodPost, "/images/{name...}/tag", i.tag},
		{http.MethodDelete, "/images/{name...}", i.remove},
	}
}

// summary is an image of a list with the fields of older versions.
type summary struct {
	apiimage.Summary
	VirtualSize *int64 `json:"VirtualSize,omitempty"`
}

func (i imageRoutes) list(w *response, r *request) error {
	f, err := parseFilters(r.query.get("filters"), []string{"dangling", "label", "label!", "before", "since", "reference", "until"})
	if err != nil {
		return err
	}
	if old := r.query.get("filter"); old != "" && r.version.before(41) {
		f["reference"] = append(f["reference"], old)
	}
	match, err := i.imageMatch(r, f)
	if err != nil {
		return err
	}
	images, err := i.cfg.Images.List(r.Context())
	if err != nil {
		return err
	}
	users := func(string) []image.User { return nil }
	if !r.version.before(51) {
		users = i.users()
	}
	var shared map[string]int
	if r.query.bool("shared-size") && !r.version.before(42) {
		shared = layerUse(images)
	}
	answer := make([]summary, 0, len(images))
	for n := range images {
		img := &images[n]
		tags, digests, ok := match(img)
		if !ok {
			continue
		}
		line := i.summary(img, r.version, tags, digests, users, shared)
		if r.query.bool("manifests") && !r.version.before(47) {
			line.Manifests, err = i.manifests(r.Context(), img)
			if errdefs.IsNotFound(err) {
				continue // removed since
			}
			if err != nil {
				return err
			}
		}
		answer = append(answer, line)
	}
	slices.SortStableFunc(answer, func(a, b summary) int { return int(b.Created - a.Created) })
	return writeJSON(w, http.StatusOK, answer)
}

func (i imageRoutes) summary(img *image.Image, ver version, tags, digests []string, users func(string) []image.User, shared map[string]int) summary {
	a := summary{Summary: apiimage.Summary{
		ID: img.ID, Created: created(img).Unix(), Labels: img.Config.Config.Labels,
		RepoTags: tags, RepoDigests: digests, Size: img.Size, SharedSize: -1, Containers: -1,
	}}
	if img.Config.Created == nil {
		a.Created = 0
	}
	if !ver.before(51) {
		a.Containers = int64(len(users(img.ID)))
	}
	if shared != nil {
		a.SharedSize = sharedSize(img, shared)
	}
	if ver.before(43) && len(tags) == 0 && len(digests) == 0 {
		a.RepoTags, a.RepoDigests = []string{"<none>:<none>"}, []string{"<none>@<none>"}
	}
	if ver.before(44) {
		a.VirtualSize = &img.Size
	}
	if !ver.before(48) && img.Target.Digest != "" {
		a.Descriptor = descriptor(img)
	}
	return a
}

func created(img *image.Image) time.Time {
	if img.Config.Created == nil {
		return time.Time{}
	}
	return *img.Config.Created
}

// imageMatch prepares the filters of a list: it gives an image's names as far as
// they were asked for.
func (i imageRoutes) imageMatch(r *request, f filters) (func(*image.Image) (tags, digests []string, ok bool), error) {
	var dangling *bool
	if f.has("dangling") {
		want, err := f.truth("dangling", false)
		if err != nil {
			return nil, err
		}
		dangling = &want
	}
	until, err := f.time("until", time.Now())
	if err != nil {
		return nil, err
	}
	var after time.Time
	for _, key := range []string{"before", "since"} {
		for _, ref := range f[key] {
			img, err := i.cfg.Images.Get(r.Context(), ref)
			if err != nil {
				return nil, err
			}
			at := created(&img)
			if key == "since" && at.After(after) {
				after = at
			}
			if key == "before" && (until.IsZero() || at.Before(until)) {
				until = at
			}
		}
	}
	for _, pattern := range f["reference"] {
		if _, err := path.Match(pattern, ""); err != nil {
			return nil, invalidf("invalid filter 'reference=%s': %s", pattern, err)
		}
	}
	return func(img *image.Image) ([]string, []string, bool) {
		labels, at := img.Config.Config.Labels, created(img)
		tags, digests := slices.Clone(img.RepoTags), slices.Clone(img.RepoDigests)
		if tags == nil {
			tags = []string{}
		}
		if digests == nil {
			digests = []string{}
		}
		switch {
		case dangling != nil && *dangling != (len(tags) == 0),
			!f.labels("label", labels), !f.unlabelled("label!", labels),
			!until.IsZero() && !at.Before(until),
			!after.IsZero() && !at.After(after):
			return nil, nil, false
		}
		if f.has("reference") {
			tags = slices.DeleteFunc(tags, func(n string) bool { return !referenceMatch(f["reference"], n) })
			digests = slices.DeleteFunc(digests, func(n string) bool { return !referenceMatch(f["reference"], n) })
			return tags, digests, len(tags)+len(digests) > 0
		}
		return tags, digests, true
	}, nil
}

// referenceMatch matches a name in its familiar form, with and without tag.
func referenceMatch(patterns []string, name string) bool {
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return false
	}
	for _, p := range patterns {
		if ok, _ := reference.FamiliarMatch(p, ref); ok {
			return true
		}
	}
	return false
}

func (i imageRoutes) history(w *response, r *request) error {
	items, err := i.cfg.Images.History(r.Context(), r.name)
	if err != nil {
		return err
	}
	answer := make([]apiimage.HistoryResponseItem, 0, len(items))
	for _, it := range items {
		line := apiimage.HistoryResponseItem{
			ID: it.ID, CreatedBy: it.CreatedBy, Tags: it.Tags, Size: it.Size, Comment: it.Comment,
		}
		if !it.Created.IsZero() {
			line.Created = it.Created.Unix()
		}
		answer = append(answer, line)
	}
	return writeJSON(w, http.StatusOK, answer)
}

func (i imageRoutes) tag(w *response, r *request) error {
	target, err := targetName(r.query.get("repo"), r.query.get("tag"))
	if err != nil {
		return err
	}
	if target == "" {
		return invalidf("repository name must have at least one component")
	}
	if err := i.cfg.Images.Tag(detached(r), r.name, target); err != nil {
		return err
	}
	w.WriteHeader(http.StatusCreated)
	return nil
}

// targetName joins a repository and a tag to the familiar form of a name;
// no repository is no name.
func targetName(repo, tag string) (string, error) {
	if repo == "" {
		return "", nil
	}
	ref, err := reference.ParseNormalizedNamed(repo)
	if err != nil {
		return "", invalidf("%s", err)
	}
	if _, digested := ref.(reference.Digested); digested {
		return "", invalidf("refusing to create a tag with a digest reference")
	}
	if tag != "" {
		if ref, err = reference.WithTag(reference.TrimNamed(ref), tag); err != nil {
			return "", invalidf("%s", err)
		}
	}
	return reference.FamiliarString(reference.TagNameOnly(ref)), nil
}

func (i imageRoutes) remove(w *response, r *request) error {
	if strings.TrimSpace(r.name) == "" {
		return invalidf("image name cannot be blank")
	}
	deleted, err := i.cfg.Images.Remove(detached(r), r.name, image.RemoveOptions{
		Force: r.query.bool("force"), NoPrune: r.query.bool("noprune"), Users: i.users(),
	})
	if err != nil {
		return err
	}
	answer := make([]apiimage.DeleteResponse, 0, len(deleted))
	for _, d := range deleted {
		answer = append(answer, apiimage.DeleteResponse{Untagged: d.Untagged, Deleted: d.Deleted})
	}
	return writeJSON(w, http.StatusOK, answer)
}

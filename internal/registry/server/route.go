package server

import (
	"regexp"
	"strings"
)

// kind is what a path of the API is about.
type kind int

const (
	other kind = iota // the base, the catalog, and what the library shall answer
	manifests
	blobs
	uploads
	tags
	referrers
)

// route is a path of the API, taken apart.
type route struct {
	kind kind
	name string // of the repository
	ref  string // tag, digest or upload
}

// nameRule is the specification's for names of repositories; tagRule for tags.
var (
	nameRule = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagRule  = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
)

// maxName bounds the name of a repository, in bytes.
const maxName = 255

// parseRoute takes a path apart. A name with parts like "blobs" is allowed, so
// it is read from its end. ok is false for a name that cannot be one: nothing
// below the root but a repository's own directory is ever reached by a name.
func parseRoute(path string) (r route, ok bool) {
	rest, found := strings.CutPrefix(path, "/v2/")
	if !found || rest == "" || rest == "_catalog" {
		return route{}, true
	}
	parts := strings.Split(rest, "/")
	n := len(parts)
	at := func(i int) string {
		if n+i < 0 {
			return ""
		}
		return parts[n+i]
	}
	switch {
	case at(-2) == "tags" && at(-1) == "list":
		r = route{tags, strings.Join(parts[:n-2], "/"), ""}
	case at(-3) == "blobs" && at(-2) == "uploads":
		r = route{uploads, strings.Join(parts[:n-3], "/"), at(-1)}
	case at(-2) == "blobs" && at(-1) == "uploads":
		r = route{uploads, strings.Join(parts[:n-2], "/"), ""}
	case at(-2) == "manifests":
		r = route{manifests, strings.Join(parts[:n-2], "/"), at(-1)}
	case at(-2) == "blobs":
		r = route{blobs, strings.Join(parts[:n-2], "/"), at(-1)}
	case at(-2) == "referrers":
		r = route{referrers, strings.Join(parts[:n-2], "/"), at(-1)}
	default:
		return route{}, true
	}
	return r, len(r.name) <= maxName && nameRule.MatchString(r.name)
}

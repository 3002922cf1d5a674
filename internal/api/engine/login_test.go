package engine

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/iotest"

	"escale.dev/escale/internal/image"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/registry"
)

type fakeRegistries struct{}

func (fakeRegistries) Login(_ context.Context, a registry.AuthConfig) (string, error) {
	if a.Password != "secret" {
		return "", errdefs.ErrUnauthenticated.WithMessage("unauthorized: incorrect username or password")
	}
	return "for " + a.Username, nil
}

func (fakeRegistries) Pull(_ context.Context, ref reference.Named, o PullOptions) error {
	if o.Auth.Username != "ann" {
		return errdefs.ErrNotFound.WithMessage("pull access denied for " + reference.FamiliarName(ref))
	}
	o.Progress(image.Progress{ID: "1", Status: "Pulling from " + reference.Path(ref)})
	if o.Platform != "" {
		return errdefs.ErrNotFound.WithMessage("nothing for " + o.Platform)
	}
	o.Progress(image.Progress{ID: "abc", Status: "Downloading", Current: 1, Total: 2})
	o.Done(reference.FamiliarString(ref), image.Pulled{Digest: "sha256:1234", New: o.All})
	return nil
}

func (fakeRegistries) Push(_ context.Context, ref reference.Named, o PushOptions) error {
	if reference.IsNameOnly(ref) {
		return errdefs.ErrNotFound.WithMessage("no tags")
	}
	o.Progress(image.Progress{ID: "abc", Status: "Pushed"})
	o.Done(image.Pushed{Tag: "1", Digest: "sha256:1234", Size: 5})
	return nil
}

func (fakeRegistries) Distribution(_ context.Context, ref reference.Named, _ registry.AuthConfig) (out registry.DistributionInspect, err error) {
	out.Descriptor.MediaType = ref.String()
	return out, nil
}

func (fakeRegistries) Download(_ context.Context, from url.URL) (io.ReadCloser, int64, error) {
	switch from.Path {
	case "/nosuch":
		return nil, 0, errdefs.ErrNotFound.WithMessage("failed to GET " + from.String() + " with status 404 Not Found: gone")
	case "/cut":
		return io.NopCloser(iotest.ErrReader(errors.New("the download broke off"))), 9, nil
	case "/silent":
		return io.NopCloser(strings.NewReader("archive")), -1, nil
	}
	return io.NopCloser(strings.NewReader("archive")), 7, nil
}

func (fakeRegistries) Search(_ context.Context, term string, limit int, _ registry.AuthConfig) ([]registry.SearchResult, error) {
	return []registry.SearchResult{{Name: term, StarCount: limit, IsOfficial: true}, {Name: "few"}}, nil
}

// What goes on with registries, byte by byte: the streams of pull and push, and
// what is refused before they begin.
func TestTransferRoutes(t *testing.T) {
	r := newRig(t, func(r *rig) { r.server.cfg.Registries = fakeRegistries{} })
	ann := base64.URLEncoding.EncodeToString([]byte(`{"username":"ann"}`))
	for _, c := range []struct {
		method, path, auth string
		status             int
		want               string
	}{
		{"POST", "/images/create?fromImage=x&tag=1", ann, 200, `{"status":"Pulling from library/x","id":"1"}` + "\r\n" +
			`{"status":"Downloading","progressDetail":{"current":1,"total":2},"id":"abc"}` + "\r\n" + `{"status":"Digest: sha256:1234"}` + "\r\n" + `{"status":"Status: Image is up to date for x:1"}` + "\r\n"},
		{"POST", "/images/create?fromImage=x", ann, 200, `{"status":"Status: Downloaded newer image for x"}`},
		{"POST", "/images/create?fromImage=x&tag=sha256:" + strings.Repeat("a", 64), ann, 200, `for x@sha256:aaaa`},
		{"POST", "/images/create?fromImage=x&tag=1&platform=linux/arm64", ann, 200, `{"errorDetail":{"message":"nothing for linux/arm64"},"error":"nothing for linux/arm64"}`},
		{"POST", "/images/create?fromImage=x&tag=1", "", 404, `{"message":"pull access denied for x"}`},
		{"POST", "/images/create?fromImage=x&tag=1", "%%", 404, `pull access denied`},
		{"POST", "/images/create?fromImage=X", ann, 400, `must be lowercase`},
		{"POST", "/images/create?fromImage=x&tag=a+b", ann, 400, `invalid tag format`},
		{"POST", "/images/create?fromImage=x&tag=1&platform=a/b/c/d", ann, 400, `invalid platform`},
		{"POST", "/images/r.test/a/x/push?tag=1", "", 200, `{"status":"The push refers to repository [r.test/a/x]"}` + "\r\n" + `{"status":"Pushed","progressDetail":{},"id":"abc"}` + "\r\n" +
			`{"status":"1: digest: sha256:1234 size: 5"}` + "\r\n" + `{"progressDetail":{},"aux":{"Tag":"1","Digest":"sha256:1234","Size":5}}` + "\r\n"},
		{"POST", "/images/x/push", "", 200, `{"errorDetail":{"message":"no tags"},"error":"no tags"}`},
		{"POST", "/images/X/push", "", 400, `must be lowercase`},
		{"POST", "/images/x/push?tag=a+b", "", 400, `invalid tag format`},
		{"GET", "/distribution/x/json", "", 200, `"mediaType":"docker.io/library/x:latest"`},
		{"GET", "/distribution/" + strings.Repeat("a", 64) + "/json", "", 400, `unknown image reference format`},
		{"GET", "/images/search?term=y&limit=7", "", 200, `[{"star_count":7,"is_official":true,"name":"y","is_automated":false,"description":""},{"star_count":0`},
		{"GET", "/images/search?term=y&filters=" + url.QueryEscape(`{"stars":["5"]}`), "", 200, `"name":"y","is_automated":false,"description":""}]`},
		{"GET", "/images/search?term=y&filters=" + url.QueryEscape(`{"is-official":["false"]}`), "", 200, `[{"star_count":0,"is_official":false,"name":"few"`},
		{"GET", "/images/search?term=y&filters=" + url.QueryEscape(`{"stars":["x"]}`), "", 400, `invalid filter 'stars=x'`},
		{"GET", "/images/search?term=y&limit=101", "", 400, `limit 101 is outside the range of [1, 100]`},
	} {
		req, err := http.NewRequest(c.method, "http://engine"+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set(registry.AuthHeader, c.auth)
		res, err := r.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != c.status || !strings.Contains(string(body), c.want) {
			t.Errorf("%s %s: %d %s\nwant %d %s", c.method, c.path, res.StatusCode, body, c.status, c.want)
		}
	}
}

func TestLoginRoute(t *testing.T) {
	r := newRig(t, func(r *rig) { r.server.cfg.Registries = fakeRegistries{} })
	for _, c := range []struct {
		body   string
		status int
		want   string
	}{
		{`{"username":"ann","password":"secret"}`, 200, `{"IdentityToken":"for ann","Status":"Login Succeeded"}`},
		{`{"username":"ann"}`, 401, `incorrect username or password`},
		{`{`, 400, `invalid JSON`},
	} {
		if status, _, body := r.do("POST", "/auth", c.body); status != c.status || !strings.Contains(body, c.want) {
			t.Errorf("%s: %d %s", c.body, status, body)
		}
	}
}

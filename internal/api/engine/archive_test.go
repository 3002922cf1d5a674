package engine

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"escale.dev/escale/internal/container"
	"github.com/containerd/errdefs"
	apicontainer "github.com/moby/moby/api/types/container"
)

// fakeArchives has one file, /f, and a root that nothing can be put in.
type fakeArchives struct{ got *container.WriteFiles }

type kinded struct {
	error
	kind error
}

func (k kinded) Unwrap() error { return k.kind }

func (fakeArchives) Stat(_ context.Context, ref, path string) (apicontainer.PathStat, error) {
	if path != "/f" {
		return apicontainer.PathStat{}, kinded{errors.New("Could not find the file " + path + " in container " + ref), errdefs.ErrNotFound} //nolint:staticcheck // Docker's words.
	}
	return apicontainer.PathStat{Name: "f", Size: 3, Mode: 0o644}, nil
}

func (f fakeArchives) Read(ctx context.Context, ref, path string, open func(apicontainer.PathStat) (io.Writer, error)) error {
	st, err := f.Stat(ctx, ref, path)
	if err != nil {
		return err
	}
	w, err := open(st)
	if err == nil {
		_, err = io.WriteString(w, "tar")
	}
	return err
}

func (f fakeArchives) Write(_ context.Context, _, path string, r io.Reader, o container.WriteFiles) error {
	if path == "/ro" {
		return kinded{errors.New("container rootfs is marked read-only"), errdefs.ErrPermissionDenied}
	}
	*f.got = o
	_, err := io.Copy(io.Discard, r)
	return err
}

func (fakeArchives) Changes(_ context.Context, ref string) ([]apicontainer.FilesystemChange, error) {
	if ref == "untouched" {
		return nil, nil
	}
	return []apicontainer.FilesystemChange{{Kind: apicontainer.ChangeAdd, Path: "/f"}}, nil
}

func (fakeArchives) Commit(_ context.Context, ref string, o container.Commit) (string, error) {
	if ref == "" {
		return "", noSuch("container: ")
	}
	b, err := json.Marshal(o)
	return ref + " " + string(b), err
}
func (fakeArchives) Export(_ context.Context, ref string, w io.Writer) error {
	_, err := io.WriteString(w, "tree")
	if ref == "broken" {
		return errors.New("disk on fire")
	}
	return err
}

func TestArchiveRoutes(t *testing.T) {
	var got container.WriteFiles
	s := New(Config{System: fakeSystem{}, Archives: fakeArchives{&got}})
	srv := httptest.NewServer(s.Handler())
	defer srv.Close()
	for _, c := range []struct {
		method, url string
		status      int
		body        string
	}{
		{"HEAD", "/containers/c/archive?path=/f", 200, ""},
		{"GET", "/containers/c/archive?path=/f", 200, "tar"},
		{"GET", "/containers/c/archive?path=/x", 404, `{"message":"Could not find the file /x in container c"}`},
		{"GET", "/containers/c/archive", 400, `{"message":"bad parameter: 'path' cannot be empty"}`},
		{"HEAD", "/containers/c/archive", 400, ""},
		{"PUT", "/containers/c/archive?path=/&noOverwriteDirNonDir=true&copyUIDGID=1", 200, ""},
		{"PUT", "/containers/c/archive?path=/ro", 403, `{"message":"container rootfs is marked read-only"}`},
		{"GET", "/v1.41/containers/c/changes", 200, `[{"Kind":1,"Path":"/f"}]`},
		{"GET", "/containers/untouched/changes", 200, "null"},
		{"GET", "/containers/c/export", 200, "tree"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, srv.URL+c.url, strings.NewReader(""))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != c.status || strings.TrimSpace(string(b)) != c.body {
			t.Errorf("%s %s: %d %q %v", c.method, c.url, resp.StatusCode, b, err)
		}
		if strings.Contains(c.url, "path=/f") {
			st, err := base64.StdEncoding.DecodeString(resp.Header.Get(statHeader))
			if err != nil || !strings.HasPrefix(string(st), `{"name":"f","size":3,"mode":420,`) {
				t.Errorf("%s: stat %q %v", c.url, st, err)
			}
		}
	}
	if !got.NoOverwriteDirNonDir || !got.CopyUIDGID {
		t.Errorf("options %+v", got)
	}
	resp, err := http.Get(srv.URL + "/containers/broken/export")
	if err == nil {
		_, err = io.ReadAll(resp.Body)
		resp.Body.Close()
	}
	if err == nil {
		t.Error("half an export looks whole")
	}
}

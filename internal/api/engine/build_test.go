package engine

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	ask "escale.dev/escale/internal/builder/request"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/build"
)

// fakeBuilder remembers what it was asked.
type fakeBuilder struct {
	asked    ask.Build
	body     string
	err      error
	pruned   ask.Prune
	canceled string
	records  []build.CacheRecord
}

func (f *fakeBuilder) Build(_ context.Context, o ask.Build, told ask.Told) error {
	f.asked = o
	if o.Context != nil {
		b, _ := io.ReadAll(o.Context)
		f.body = string(b)
	}
	if f.err != nil && errdefs.IsInvalidArgument(f.err) {
		return f.err
	}
	told.Stream("Step 1/1 : FROM x\n")
	if f.err != nil {
		return f.err
	}
	told.Aux("", ask.ImageID{ID: "sha256:12"})
	return nil
}
func (f *fakeBuilder) Cancel(id string) { f.canceled = id }
func (f *fakeBuilder) Prune(_ context.Context, o ask.Prune) (ask.Pruned, error) {
	f.pruned = o
	return ask.Pruned{IDs: []string{"a"}, Bytes: 9}, nil
}
func (f *fakeBuilder) DiskUsage(context.Context) ([]build.CacheRecord, error) { return f.records, nil }
func (f *fakeBuilder) ServeSession(_ context.Context, w ask.Hijacker, _ *http.Request) error {
	return errdefs.ErrInvalidArgument.WithMessage("no upgrade proto in request")
}
func (f *fakeBuilder) ServeGRPC(_ context.Context, w ask.Hijacker, _ *http.Request) error {
	conn, _, err := w.Hijack()
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
	return err
}

func TestBuildRoute(t *testing.T) {
	b := &fakeBuilder{}
	r := newRig(t, func(r *rig) { r.server.cfg.Builder = b })
	auth := base64.URLEncoding.EncodeToString([]byte(`{"reg:5000":{"username":"u","password":"p"}}`))
	req, err := http.NewRequest("POST", "http://escale/build?"+url.Values{
		"t": {"a", "b:1"}, "dockerfile": {"D"}, "target": {"s"}, "nocache": {"1"}, "memory": {"7000000"}, "cpuquota": {"5"}, "networkmode": {"none"},
		"extrahosts": {"h:1.2.3.4"}, "buildargs": {`{"A":"1","B":null}`}, "labels": {`{"l":"v"}`}, "cachefrom": {`["c"]`}, "ulimits": {`[{"Name":"nofile","Soft":5,"Hard":6}]`},
		"platform": {"linux/amd64"}, "buildid": {"me"},
	}.Encode(), strings.NewReader("tar"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Registry-Config", auth)
	resp, err := r.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if want := "{\"stream\":\"Step 1/1 : FROM x\\n\"}\r\n{\"aux\":{\"ID\":\"sha256:12\"}}\r\n"; string(body) != want {
		t.Errorf("answer %q, want %q", body, want)
	}
	o := b.asked
	if got := fmt.Sprintln(o.ID, o.Tags, o.Dockerfile, o.Target, o.NoCache, o.Memory, o.CPUQuota, o.Network, o.ExtraHosts, *o.Args["A"], o.Args["B"] == nil, o.Labels, o.CacheFrom,
		o.Ulimits[0], o.Platform, o.Auth["reg:5000"].Password, b.body); got != "me [a b:1] D s true 7000000 5 none [h:1.2.3.4] 1 true map[l:v] [c] nofile=5:6 linux/amd64 p tar\n" {
		t.Errorf("asked: %s", got)
	}
	if _, _, body := r.do("POST", "/build?q=1", ""); body != "{\"aux\":{\"ID\":\"sha256:12\"}}\r\n{\"stream\":\"sha256:12\\n\"}\r\n" {
		t.Errorf("quiet: %q", body)
	}
	b.err = &ask.StepError{Command: "/bin/sh -c false", Code: 3}
	if status, _, body := r.do("POST", "/build", ""); status != 200 || !strings.Contains(body,
		`{"errorDetail":{"code":3,"message":"The command '/bin/sh -c false' returned a non-zero code: 3"},"error":"The command '/bin/sh -c false' returned a non-zero code: 3"}`) {
		t.Errorf("failed step: %d %q", status, body)
	}
}

func TestBuildRefuses(t *testing.T) {
	b := &fakeBuilder{err: errdefs.ErrInvalidArgument.WithMessage("invalid reference format")}
	r := newRig(t, func(r *rig) { r.server.cfg.Builder = b })
	for path, want := range map[string]string{
		"/build?t=UP":                                  "invalid reference format",
		"/build?squash=1":                              "squash is only supported with experimental mode",
		"/build?version=3":                             `invalid version \"3\"`,
		"/build?version=2":                             "version 2 needs a context",
		"/build?version=2&remote=client-session":       "needs the session's id",
		"/build?remote=upload-request&version=2":       "send it with this one",
		"/build?isolation=hyperv":                      `unsupported isolation: \"hyperv\"`,
		"/build?memory=lots":                           "invalid value for memory",
		"/build?buildargs=%7B":                         "error reading buildargs",
		"/build/cancel":                                "build ID not specified",
		"/session":                                     "no upgrade proto in request",
		"/build/prune?filters=" + url.QueryEscape("x"): "invalid",
	} {
		if status, _, body := r.do("POST", path, ""); status != 400 || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	if r.do("POST", "/build/cancel?id=me", ""); b.canceled != "me" {
		t.Errorf("canceled %q", b.canceled)
	}
}

func TestBuildPruneRoute(t *testing.T) {
	b := &fakeBuilder{records: []build.CacheRecord{{ID: "a", Size: 5, InUse: true}, {ID: "b", Size: 7}, {ID: "c", Size: 100, Shared: true}}}
	r := newRig(t, func(r *rig) { r.server.cfg.Builder = b })
	_, _, body := r.do("POST", "/build/prune?all=1&keep-storage=5&max-used-space=6&min-free-space=7&filters="+url.QueryEscape(`{"until":{"1h":true},"id":{"x":true}}`), "")
	if !strings.Contains(body, `{"CachesDeleted":["a"],"SpaceReclaimed":9}`) {
		t.Errorf("pruned: %s", body)
	}
	p := b.pruned
	if p.UnusedFor.Round(time.Minute) != time.Hour || !p.All || p.ReservedSpace != 5 || p.MaxUsedSpace != 6 || p.MinFreeSpace != 7 || fmt.Sprint(p.Filters["id"]) != "[x]" {
		t.Errorf("asked: %+v", p)
	}
	_, _, body = r.do("GET", "/v1.56/system/df?type=build-cache", "")
	if !strings.Contains(body, `"BuildCacheUsage":{"ActiveCount":1,"Reclaimable":7,"TotalCount":3,"TotalSize":12}`) {
		t.Errorf("df: %s", body)
	}
}

// FuzzBuildQuery asks for builds with any query and header: what is read can be
// passed on, all else is the client's fault.
func FuzzBuildQuery(f *testing.F) {
	for _, q := range []string{
		"t=a&t=b:1&buildargs=%7B%22A%22%3Anull%7D&nocache=1", "version=2&remote=client-session&session=x", "ulimits=%5Bnull%5D", "memory=-1&cpuquota=9223372036854775808",
		"labels=%7B%7D&cachefrom=%5B%22a%22%5D&outputs=%5B%7B%22Type%22%3A%22local%22%7D%5D", "squash=1", "remote=upload-request", "outputs=null",
	} {
		f.Add(q, "e30=")
	}
	f.Add("", "bm90IGpzb24=")
	f.Fuzz(func(t *testing.T, raw, header string) {
		query, err := parseParams(raw)
		if err != nil {
			return
		}
		o, err := buildOptions(&request{Request: &http.Request{Header: http.Header{"X-Registry-Config": {header}}, Body: http.NoBody}, query: query})
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("of no kind: %v", err)
			}
			return
		}
		for _, u := range o.Ulimits {
			_ = u.String()
		}
		if o.Context == nil && o.Remote == "" {
			t.Error("a build of nothing")
		}
	})
}

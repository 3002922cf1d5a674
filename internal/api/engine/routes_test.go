package engine

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/container"
	"github.com/containerd/errdefs"
)

func wrap(kind error, msg string) error { return &kindError{kind: kind, msg: msg} }

var (
	errBusy     = wrap(errdefs.ErrConflict, "busy")
	errModified = fmt.Errorf("x: %w", container.ErrNotModified)
)

// Each row is a request and what comes of it: status, body (or its beginning,
// with "…" at the end) and the call that reached the engine.
var routeTests = []struct {
	method, path, body string
	fail               map[string]error
	status             int
	want               string
	call               string
}{
	{"GET", "/nope", "", nil, 404, `{"message":"page not found"}`, ""},
	{"PUT", "/containers/json", "", nil, 404, `{"message":"page not found"}`, ""},
	{"GET", "/v1.99/nope", "", nil, 404, `{"message":"page not found"}`, ""},
	{"GET", "/v1.99/info", "", nil, 400, `{"message":"client version 1.99 is too new. Maximum supported API version is 1.56"}`, ""},
	{"GET", "/v1.57/_ping", "", nil, 400, `{"message":"client version 1.57 is too new. Maximum supported API version is 1.56"}`, ""},
	{"GET", "/v2.0/info", "", nil, 400, `{"message":"client version 2.0 is too new. Maximum…`, ""},
	{"OPTIONS", "/anything", "", nil, 200, "", ""},
	{"GET", "/containers/nope/alias/json", "", nil, 404, `{"message":"No such container: nope/alias"}`, ""},
	{"POST", "/containers/create", `{"Image":"i","Cmd":"true","Entrypoint":["a"]}`, nil, 201, `{"Id":"c0ffee","Warnings":["careful"]}`, "Create"},
	{"POST", "/containers/web/exec", "", nil, 400, `{"message":"No exec command specified"}`, ""},
	{"GET", "/v1.12/info", "", nil, 400, "client version 1.12 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version", ""},
	{"GET", "/v1.24/_ping", "", nil, 200, "OK", ""},
	{"GET", "/_ping?a=%zz", "", nil, 400, `{"message":"invalid query…`, ""},

	{"POST", "/containers/web/start", "", nil, 204, "", "Start web"},
	{"POST", "/v1.24/containers/web/start", "", map[string]error{"Start": errModified}, 304, "", "Start web"},
	{"POST", "/containers/web/start", "", map[string]error{"Start": noSuch("container: web")}, 404, `{"message":"No such container: web"}`, "Start web"},
	{"POST", "/containers/web/start", "{}", nil, 204, "", "Start web"},
	{"POST", "/containers/web/start", `{"Binds":["/a:/b"]}`, nil, 400, `{"message":"starting container with non-empty…`, ""},
	{"POST", "/containers/web/start?checkpoint=a", "", nil, 400, `{"message":"checkpoint…`, ""},
	{"POST", "/containers/web/stop", "", nil, 204, "", "Stop web  default"},
	{"POST", "/containers/web/stop?t=3&signal=INT", "", nil, 204, "", "Stop web INT 3"},
	{"POST", "/v1.41/containers/web/stop?t=3&signal=INT", "", nil, 204, "", "Stop web  3"},
	{"POST", "/containers/web/stop?t=-1", "", map[string]error{"Stop": errModified}, 304, "", "Stop web  -1"},
	{"POST", "/containers/web/stop?t=x", "", nil, 400, `{"message":"invalid value for t: \"x\" is not a number"}`, ""},
	{"POST", "/containers/web/restart?t=1", "", nil, 204, "", "Restart web  1"},
	{"POST", "/containers/web/restart?t=y", "", nil, 400, `{"message":"invalid value for t…`, ""},
	{"POST", "/containers/web/kill?signal=HUP", "", nil, 204, "", "Kill web HUP"},
	{"POST", "/containers/web/kill", "", map[string]error{"Kill": errBusy}, 409, `{"message":"cannot kill container: web: busy"}`, "Kill web"},
	{"POST", "/containers/web/kill", "", map[string]error{"Kill": wrap(errdefs.ErrInvalidArgument, "Invalid signal: X")}, 400, `{"message":"cannot kill container: web: Invalid signal: X"}`, "Kill web"},
	{"POST", "/containers/web/pause", "", nil, 204, "", "Pause web"},
	{"POST", "/containers/web/unpause", "", map[string]error{"Unpause": errBoom}, 500, `{"message":"boom"}`, "Unpause web"},
	{"POST", "/containers/web/rename?name=x", "", nil, 204, "", "Rename web x"},
	{"POST", "/containers/web/rename", "", map[string]error{"Rename": wrap(errdefs.ErrInvalidArgument, "Neither old nor new names may be empty")}, 400, `{"message":"Neither old nor new names may be empty"}`, "Rename web"},
	{"DELETE", "/containers/web?force=1&v=true", "", nil, 204, "", "Remove web true true"},
	{"DELETE", "/containers/web", "", map[string]error{"Remove": errBusy}, 409, `{"message":"busy"}`, "Remove web false false"},
	{"GET", "/escale/safe-mode", "", nil, 200, `{"SafeMode":true,"Reason":"it crashed"}`, ""},
	{"POST", "/escale/safe-mode?on=false", "", nil, 204, "", "SetSafeMode false"},
	{"POST", "/v1.44/escale/safe-mode?on=1", "", map[string]error{"SetSafeMode": errBoom}, 500, `{"message":"boom"}`, "SetSafeMode true"},
	{"POST", "/escale/safe-mode", "", nil, 400, `{"message":"invalid value \"\" of on: want true or false"}`, ""},
	{"DELETE", "/containers/web/db?link=1", "", nil, 204, "", "Unlink web/db"},
	{"POST", "/containers/web/resize?h=10&w=20", "", nil, 200, "", "Resize web 10 20"},
	{"POST", "/containers/web/resize?h=10", "", nil, 400, `{"message":"invalid resize width \"\": invalid syntax"}`, ""},
	{"POST", "/containers/web/resize?h=70000&w=1", "", nil, 400, `{"message":"invalid resize height \"70000\"…`, ""},
	{"GET", "/containers/nope/json", "", nil, 404, `{"message":"No such container: nope"}`, ""},
	{"GET", "/containers/web/json?size=1", "", map[string]error{"Size": errBoom}, 500, `{"message":"boom"}`, ""},
	{"GET", "/containers/web/logs", "", nil, 400, `{"message":"Bad parameters: you must choose at least one stream"}`, ""},
	{"GET", "/containers/web/logs?stdout=1&since=abc", "", nil, 400, `{"message":"invalid value for since: \"abc\" is neither…`, ""},
	{"GET", "/containers/web/logs?stdout=1", "", map[string]error{"Logs": wrap(errdefs.ErrNotImplemented, "configured logging driver does not support reading")}, 501, `{"message":"configured logging driver does not support reading"}`, "Logs web true false -1 false false - -"},
	{"POST", "/containers/nope/attach?stream=1", "", nil, 404, `{"message":"No such container: nope"}`, ""},
	{"POST", "/containers/web/attach?stream=1", "", map[string]error{"Attach": errBusy}, 409, `{"message":"busy"}`, "Attach web {Stdin:false Stdout:false Stderr:false Stream:true Logs:false DetachKeys:}"},
	{"POST", "/containers/web/wait?condition=foo", "", nil, 400, `{"message":"invalid condition: \"foo\""}`, ""},
	{"POST", "/containers/web/wait", "", map[string]error{"Wait": noSuch("container: web")}, 404, `{"message":"No such container: web"}`, "Wait web"},

	{"POST", "/containers/web/exec", `{"Cmd":[]}`, nil, 400, `{"message":"No exec command specified"}`, ""},
	{"POST", "/containers/web/exec", `{"Cmd":["ls"],"Env":["A=b"],"WorkingDir":"/","Tty":true,"ConsoleSize":[3,4]}`, nil, 201, `{"Id":"e1"}`, "ExecCreate web {Cmd:[ls] Env:[A=b] WorkingDir:/ User: Tty:true AttachStdin:false AttachStdout:false AttachStderr:false Privileged:false DetachKeys: ConsoleSize:[3 4]}"},
	{"POST", "/v1.24/containers/web/exec", `{"Cmd":["ls"],"Env":["A=b"],"WorkingDir":"/","ConsoleSize":[3,4]}`, nil, 201, `{"Id":"e1"}`, "ExecCreate web {Cmd:[ls] Env:[A=b] WorkingDir:/ User: Tty:false AttachStdin:false AttachStdout:false AttachStderr:false Privileged:false DetachKeys: ConsoleSize:[0 0]}"},
	{"POST", "/containers/web/exec", `{"Cmd":["ls"],"ConsoleSize":[99999,4]}`, nil, 400, `{"message":"invalid console size…`, ""},
	{"POST", "/containers/web/exec", `{"Cmd":["ls"]}`, map[string]error{"ExecCreate": errBusy}, 409, `{"message":"busy"}`, "ExecCreate web {Cmd:[ls] Env:[] WorkingDir: User: Tty:false AttachStdin:false AttachStdout:false AttachStderr:false Privileged:false DetachKeys: ConsoleSize:[0 0]}"},
	{"POST", "/exec/nope/start", `{}`, nil, 404, `{"message":"No such exec instance: nope"}`, ""},
	{"POST", "/exec/e1/start", `{"Detach":true}`, nil, 200, "", "ExecStart e1 [0 0] true"},
	{"POST", "/exec/e1/start", `{"Detach":true,"Tty":true,"ConsoleSize":[5,6]}`, nil, 200, "", "ExecStart e1 [5 6] true"},
	{"POST", "/exec/e1/start", `{"ConsoleSize":[5,6]}`, nil, 400, `{"message":"console size is only supported when TTY is enabled"}`, ""},
	{"POST", "/exec/e1/start", `{}`, map[string]error{"ExecStart": errBusy}, 409, `{"message":"busy"}`, "ExecStart e1 [0 0] false"},
	{"POST", "/exec/e1/resize?h=1&w=2", "", nil, 200, "", "ExecResize e1 1 2"},
	{"GET", "/exec/nope/json", "", nil, 404, `{"message":"No such exec instance: nope"}`, ""},
	{"GET", "/exec/e1/json", "", nil, 200, `{"ID":"e1","Running":true,"ExitCode":null,"ProcessConfig":{"tty":true,"entrypoint":"ls","arguments":[],"privileged":false}…`, ""},

	{"POST", "/containers/create", ``, nil, 400, `{"message":"invalid JSON: got EOF while reading request body"}`, ""},
	{"POST", "/containers/create", `{bad`, nil, 400, `{"message":"invalid JSON: invalid character 'b' looking for beginning of object key string"}`, ""},
	{"POST", "/containers/create", `{"Image":"a"} x`, nil, 400, `{"message":"unexpected content after JSON"}`, ""},
	{"POST", "/containers/create", `{"Image":1}`, nil, 400, `{"message":"invalid JSON: json: cannot unmarshal number…`, ""},
	{"POST", "/containers/create", `{}`, nil, 400, `{"message":"config cannot be empty in order to create a container"}`, ""},
	{"POST", "/containers/create?name=n", `{"Image":"a"}`, nil, 201, `{"Id":"c0ffee","Warnings":["careful"]}`, "Create n"},
	{"POST", "/containers/create?platform=linux/a/b/c/d", `{"Image":"a"}`, nil, 400, `{"message":"invalid platform…`, ""},
	{"POST", "/containers/create", `{"Image":"` + strings.Repeat("x", maxBody) + `"}`, nil, 413, `{"message":"http: request body too large"}`, ""},
	{"POST", "/containers/create", `{"Image":"a"}` + strings.Repeat(" ", maxBody), nil, 413, `{"message":"http: request body too large"}`, ""},
	{"POST", "/containers/create", `{"Image":"a"}`, map[string]error{"Create": noSuch("image: a:latest")}, 404, `{"message":"No such image: a:latest"}`, "Create"},

	{"POST", `/containers/prune?filters={"foo":["bar"]}`, "", nil, 400, `{"message":"invalid filter 'foo'"}`, ""},
	{"POST", `/containers/prune?filters={"label":["nope"]}`, "", nil, 200, `{"ContainersDeleted":null,"SpaceReclaimed":0}`, ""},
	{"POST", `/containers/prune`, "", nil, 200, `{"ContainersDeleted":["` + string(id("b")) + `","` + string(id("c")) + `"],"SpaceReclaimed":84}`, "Remove " + string(id("c")) + " false false"},
	{"POST", `/containers/prune?filters={"until":["1795240030"]}`, "", nil, 200, `{"ContainersDeleted":null,"SpaceReclaimed":0}`, ""},
	{"POST", `/containers/prune`, "", map[string]error{"Remove": errBusy}, 200, `{"ContainersDeleted":null,"SpaceReclaimed":0}`, "Remove " + string(id("c")) + " false false"},
	{"POST", `/containers/prune?filters={"until":["x"]}`, "", nil, 400, `{"message":"invalid value for until filter…`, ""},
}

func TestRoutes(t *testing.T) {
	for _, tt := range routeTests {
		t.Run(tt.method+" "+tt.path[:min(len(tt.path), 60)], func(t *testing.T) {
			r := newRig(t)
			r.con.fail = tt.fail
			r.con.exec = container.Exec{ID: "e1", Running: true, Entrypoint: "ls", Config: container.ExecConfig{Tty: true}}
			header := []string{}
			if tt.path == "/containers/create" && tt.body == "" {
				header = []string{"Content-Type", "application/json"}
			}
			status, h, body := r.do(tt.method, strings.ReplaceAll(tt.path, `"`, "%22"), tt.body, header...)
			check(t, status, body, tt.status, tt.want)
			if got := r.con.last(); got != tt.call {
				t.Errorf("call %q, want %q", got, tt.call)
			}
			media := "application/json"
			if !strings.HasPrefix(body, "{") {
				media = "text/plain; charset=utf-8"
			}
			if status >= 400 && h.Get("Content-Type") != media {
				t.Errorf("Content-Type %q", h.Get("Content-Type"))
			}
		})
	}
}

func check(t *testing.T, status int, body string, wantStatus int, want string) {
	t.Helper()
	body = strings.TrimSuffix(body, "\n")
	begin, open := strings.CutSuffix(want, "…")
	if status != wantStatus || (open && !strings.HasPrefix(body, begin)) || (!open && body != want) {
		t.Errorf("%d %s\nwant %d %s", status, body, wantStatus, want)
	}
}

func TestImageRoutes(t *testing.T) {
	inUse := wrap(errdefs.ErrConflict, "conflict: unable to remove repository reference")
	tests := []struct {
		method, path, body string
		fail               map[string]error
		status             int
		want               string
		call               string
	}{
		{"GET", "/images/nope/json", "", nil, 404, `{"message":"No such image: nope"}`, ""},
		{"GET", "/images/registry.example/app:1/json", "", nil, 200, `{"Id":"sha256:2222…`, ""},
		{"GET", "/images/debian/json?manifests=1&platform=linux/amd64", "", nil, 400, `{"message":"conflicting options…`, ""},
		{"GET", "/images/debian/json?platform=linux/arm64", "", nil, 404, `{"message":"image with reference debian was found but does not provide the specified platform (linux/arm64)"}`, ""},
		{"GET", `/images/debian/json?platform={"os":"linux","architecture":"amd64"}`, "", nil, 200, `{"Id":"sha256:1111…`, ""},
		{"GET", `/images/debian/json?platform={"os":"linux"}`, "", nil, 400, `{"message":"invalid platform…`, ""},
		{"GET", `/v1.48/images/debian/json?platform=linux/arm64`, "", nil, 200, `{"Id":"sha256:1111…`, ""},
		{"GET", "/images/a/b/history", "", nil, 200, `[{"Comment":"hi","Created":1795240082,"CreatedBy":"import","Id":"sha256:1","Size":7,"Tags":["a/b"]},{"Comment":"","Created":0,"CreatedBy":"","Id":"<missing>","Size":0,"Tags":null}]`, ""},
		{"GET", "/images/a/history", "", map[string]error{"History": noSuch("image: a:latest")}, 404, `{"message":"No such image: a:latest"}`, ""},
		{"POST", "/images/debian/tag?repo=localhost:5000/x&tag=2", "", nil, 201, "", "Tag debian localhost:5000/x:2"},
		{"POST", "/images/debian/tag?repo=x", "", nil, 201, "", "Tag debian x:latest"},
		{"POST", "/images/debian/tag?repo=A", "", nil, 400, `{"message":"invalid reference format: repository name (library/A) must be lowercase"}`, ""},
		{"POST", "/images/debian/tag", "", nil, 400, `{"message":"repository name must have at least one component"}`, ""},
		{"POST", "/images/debian/tag?repo=x&tag=@", "", nil, 400, `{"message":"invalid tag format"}`, ""},
		{"POST", "/images/debian/tag?repo=x@sha256:" + strings.Repeat("1", 64), "", nil, 400, `{"message":"refusing to create a tag with a digest reference"}`, ""},
		{"DELETE", "/images/debian?force=1&noprune=1", "", nil, 200, `[{"Untagged":"debian"},{"Deleted":"sha256:feed"}]`, "Remove debian true true [{Container:" + string(id("b")) + " Running:false}]"},
		{"DELETE", "/images/debian", "", map[string]error{"Remove": inUse}, 409, `{"message":"conflict: unable to remove repository reference"}`, "Remove debian false false [{Container:" + string(id("b")) + " Running:false}]"},
		{"POST", "/images/prune", "", nil, 200, `{"ImagesDeleted":[{"Deleted":"sha256:3333…`, ""},
		{"POST", `/images/prune?filters={"dangling":["false"]}`, "", nil, 200, `{"ImagesDeleted":[{"Deleted":"sha256:3333333333333333333333333333333333333333333333333333333333333333"}],"SpaceReclaimed":7}`, ""},
		{"POST", `/images/prune?filters={"dangling":["maybe"]}`, "", nil, 400, `{"message":"invalid filter 'dangling=[maybe]'"}`, ""},
		{"POST", `/images/prune?filters={"until":["2020-01-01"]}`, "", nil, 200, `{"ImagesDeleted":null,"SpaceReclaimed":0}`, ""},
		{"GET", `/images/json?filters={"foo":["bar"]}`, "", nil, 400, `{"message":"invalid filter 'foo'"}`, ""},
		{"GET", `/images/json?filters={"before":["nope"]}`, "", nil, 404, `{"message":"No such image: nope"}`, ""},
		{"GET", `/images/json?filters={"reference":["["]}`, "", nil, 400, `{"message":"invalid filter 'reference=[': syntax error in pattern"}`, ""},

		{"POST", "/images/create", "", nil, 400, `{"message":"one of fromImage and fromSrc is needed"}`, ""},
		{"POST", "/images/create?fromSrc=ftp://x", "tar", nil, 400, `{"message":"invalid import source \"ftp://x\""}`, ""},
		{"POST", "/images/create?fromSrc=http:///y", "", nil, 400, `{"message":"invalid import source \"http:///y\""}`, ""},
		{"POST", "/images/create?fromSrc=http://x/nosuch", "", nil, 404, `{"message":"failed to GET http://x/nosuch with status 404 Not Found: gone"}`, ""},
		{"POST", "/images/create?fromSrc=https://ann:secret@x/y&repo=foo&message=hi&changes=CMD+a&platform=linux/arm64", "", nil, 200, `{"status":"Downloading from https://ann:xxxxx@x/y"}` + "\r\n" + `{"status":"Importing","progressDetail":{"current":7,"total":7}}` + "\r\n" + `{"status":"sha256:feed"}` + "\r", `Import foo:latest "hi" ["CMD a"] linux/arm64`},
		{"POST", "/images/create?fromSrc=x/silent", "", nil, 200, `{"status":"Downloading from http://x/silent"}` + "\r\n" + `{"status":"Importing","progressDetail":{"current":7}}` + "\r\n" + `{"status":"sha256:feed"}` + "\r", `Import  "Imported from http://x/silent" []`},
		{"POST", "/images/create?fromSrc=http://x/cut", "", nil, 200, `{"status":"Downloading from http://x/cut"}` + "\r\n" + `{"errorDetail":{"message":"the download broke off"},"error":"the download broke off"}` + "\r", `Import  "Imported from http://x/cut" []`},
		{"POST", "/images/create?fromSrc=http://x/y&repo=FOO", "", nil, 400, `{"message":"invalid reference format: repository name (library/FOO) must be lowercase"}`, ""},
		{"POST", "/images/create?fromSrc=-&repo=foo&tag=1&message=hi&changes=CMD+a&changes=USER+b&platform=linux/arm64", "tar", nil, 200, `{"status":"Importing","progressDetail":{"current":3}}` + "\r\n" + `{"status":"sha256:feed"}` + "\r", `Import foo:1 "hi" ["CMD a" "USER b"] linux/arm64`},
		{"POST", "/images/create?fromSrc=-", "tar", nil, 200, `{"status":"Importing…`, `Import  "Imported from -" []`},
		{"POST", "/images/create?fromSrc=-&repo=FOO", "tar", nil, 400, `{"message":"invalid reference format: repository name (library/FOO) must be lowercase"}`, ""},
		{"POST", "/images/create?fromSrc=-", "tar", map[string]error{"Import": errBoom}, 200, `{"status":"Importing","progressDetail":{"current":3}}` + "\r\n" + `{"errorDetail":{"message":"boom"},"error":"boom"}` + "\r", `Import  "Imported from -" []`},
		{"POST", "/images/load", "tar", nil, 200, `{"stream":"Loaded image: debian:latest\n"}` + "\r", "Load"},
		{"POST", "/images/load?quiet=0", "tar", nil, 200, `{"status":"Loading layer","progressDetail":{"current":1,"total":2},"id":"abc"}` + "\r\n" + `{"stream":"Loaded image: debian:latest\n"}` + "\r", "Load"},
		{"POST", "/images/load?quiet=1&platform=linux/amd64", "tar", nil, 200, `{"stream":"Loaded image: debian:latest\n"}` + "\r", "Load linux/amd64"},
		{"POST", "/images/load?quiet=1", "tar", map[string]error{"Load": errBoom}, 200, `{"errorDetail":{"message":"boom"},"error":"boom"}` + "\r", ""},
		{"POST", "/images/load?platform=a&platform=b", "tar", nil, 400, `{"message":"only one platform can be selected"}`, ""},
		{"GET", "/images/get?names=a&names=b/c:1", "", nil, 200, "tar of a b/c:1", "Save a b/c:1"},
		{"GET", "/images/b/c:1/get", "", nil, 200, "tar of b/c:1", "Save b/c:1"},
		{"GET", "/images/get", "", nil, 400, `{"message":"no image names given…`, ""},
		{"GET", "/images/a/get", "", map[string]error{"Save": noSuch("image: a")}, 404, `{"message":"No such image: a"}`, "Save a"},
	}
	for _, tt := range tests {
		t.Run(tt.method+" "+tt.path, func(t *testing.T) {
			r := newRig(t, func(r *rig) { r.server.cfg.Registries = fakeRegistries{} })
			r.con.views[0].ImageID = "sha256:" + strings.Repeat("2", 64)
			r.img.fail = tt.fail
			status, _, body := r.do(tt.method, strings.ReplaceAll(tt.path, `"`, "%22"), tt.body)
			check(t, status, body, tt.status, tt.want)
			if got := strings.TrimSpace(r.img.last); got != tt.call {
				t.Errorf("call %q, want %q", got, tt.call)
			}
		})
	}
}

// An archive that ends early must not look whole.
func TestSaveFailsLate(t *testing.T) {
	r := newRig(t)
	r.img.fail["SaveLate"] = errBoom
	res, err := r.client.Get("http://engine/images/a/get")
	if err == nil {
		defer res.Body.Close()
		_, err = res.Body.Read(make([]byte, 100))
		for err == nil {
			_, err = res.Body.Read(make([]byte, 100))
		}
	}
	if err == nil || err.Error() == "EOF" {
		t.Errorf("a cut archive ended with %v", err)
	}
}

func TestContentType(t *testing.T) {
	r := newRig(t)
	for _, tt := range []struct {
		ct     string
		status int
		want   string
	}{
		{"application/json", 201, `{"Id"…`},
		{"application/json; charset=utf-8", 201, `{"Id"…`},
		{"text/plain", 400, `{"message":"unsupported Content-Type header (text/plain): must be 'application/json'"}`},
		{"a b c", 400, `{"message":"malformed Content-Type header (a b c): …`},
	} {
		status, _, body := r.do("POST", "/containers/create", `{"Image":"a"}`, "Content-Type", tt.ct)
		check(t, status, body, tt.status, tt.want)
	}
}

func TestPing(t *testing.T) {
	r := newRig(t)
	for _, method := range []string{"GET", "HEAD"} {
		status, h, body := r.do(method, "/_ping", "")
		want := map[string]string{"GET": "OK"}[method]
		if status != 200 || body != want {
			t.Errorf("%s: %d %q", method, status, body)
		}
		for k, v := range map[string]string{
			"Api-Version": "1.56", "Ostype": "linux", "Docker-Experimental": "false", "Builder-Version": "2", "Swarm": "inactive",
			"Cache-Control": "no-cache, no-store, must-revalidate", "Pragma": "no-cache", "Server": "Escale/0.1 (linux)",
			"Content-Type": "text/plain; charset=utf-8",
		} {
			if h.Get(k) != v {
				t.Errorf("%s: %s: %q, want %q", method, k, h.Get(k), v)
			}
		}
	}
}

func TestInfoByVersion(t *testing.T) {
	r := newRig(t)
	get := func(version string) map[string]any {
		_, _, body := r.do("GET", "/"+version+"/info", "")
		var m map[string]any
		if err := json.Unmarshal([]byte(body), &m); err != nil {
			t.Fatal(err)
		}
		return m
	}
	oldest, middle, newest := get("v1.24"), get("v1.48"), get("v1.56")
	if got := fmt.Sprint(oldest["SecurityOptions"], newest["SecurityOptions"]); got != "[seccomp] [name=seccomp,profile=builtin]" {
		t.Error(got)
	}
	if got := fmt.Sprint(middle["RuncCommit"], newest["RuncCommit"]); got != "map[Expected:1.5.2 ID:1.5.2] map[ID:1.5.2]" {
		t.Error(got)
	}
	if got := fmt.Sprint(oldest["Runtimes"], newest["Runtimes"]); got != "map[runc:map[path:runc]] map[runc:map[path:runc status:map[a:b]]]" {
		t.Error(got)
	}
	if got := fmt.Sprint(middle["BridgeNfIptables"], newest["BridgeNfIptables"], middle["FirewallBackend"], oldest["Containerd"]); got != "false <nil> <nil> <nil>" {
		t.Error(got)
	}
	if newest["Name"] != "host" || newest["FirewallBackend"] == nil {
		t.Error(newest)
	}
}

func TestVersion(t *testing.T) {
	r := newRig(t)
	_, _, body := r.do("GET", "/v1.30/version", "")
	if !strings.Contains(body, `"ApiVersion":"1.56","MinAPIVersion":"1.24"`) {
		t.Error(body)
	}
}

func TestPanic(t *testing.T) {
	r := newRig(t)
	r.con.views[0].Config = nil // what no record has
	status, _, body := r.do("GET", "/containers/web/json", "")
	check(t, status, body, 500, `{"message":"internal error…`)
	if status, _, _ := r.do("GET", "/_ping", ""); status != http.StatusOK {
		t.Errorf("after a panic: %d", status)
	}
}

func TestWait(t *testing.T) {
	for _, tt := range []struct {
		path, call string
		early      bool
		result     container.WaitResult
		want       string
	}{
		{"/containers/web/wait?condition=next-exit", "Wait web next-exit", true, container.WaitResult{ExitCode: 3}, `{"StatusCode":3}`},
		{"/containers/web/wait?condition=removed", "Wait web removed", true, container.WaitResult{ExitCode: 1, Err: errBoom}, `{"Error":{"Message":"boom"},"StatusCode":1}`},
		{"/v1.29/containers/web/wait?condition=removed", "Wait web", false, container.WaitResult{}, `{"StatusCode":0}`},
		{"/v1.41/containers/web/wait?condition=foo", "Wait web", true, container.WaitResult{}, `{"StatusCode":0}`},
	} {
		r := newRig(t)
		c := r.dial()
		fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", tt.path)
		c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		buf := make([]byte, 4096)
		n, err := c.Read(buf)
		if early := err == nil && strings.HasPrefix(string(buf[:n]), "HTTP/1.1 200 OK"); early != tt.early {
			t.Errorf("%s: header early: %v (%v)", tt.path, early, err)
		}
		if got := r.con.last(); got != tt.call {
			t.Errorf("call %q", got)
		}
		r.con.result <- tt.result
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		all := string(buf[:n])
		for {
			n, err := c.Read(buf)
			all += string(buf[:n])
			if err != nil {
				break
			}
		}
		if !strings.Contains(all, tt.want) {
			t.Errorf("%s: %q", tt.path, all)
		}
	}
}

// A path that is not clean is answered with where the clean one is; clients
// that put a container's name with its slash into a path follow that.
func TestUncleanPath(t *testing.T) {
	for in, want := range map[string]string{
		"/v1.41/containers//web/json?size=1": "/v1.41/containers/web/json?size=1",
		"/containers/%2Fweb/json":            "/containers/web/json",
		"/containers/../info":                "/info",
		"//info/":                            "/info/",
		"/images/a%2Fb/json":                 "",
		"/containers/web/archive?path=/../x": "",
	} {
		r := newRig(t)
		c := r.dial()
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", in)
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(in, err)
		}
		res.Body.Close()
		if got := res.Header.Get("Location"); got != want || (res.StatusCode == http.StatusMovedPermanently) != (want != "") {
			t.Errorf("%s: %d %q, want %q", in, res.StatusCode, got, want)
		}
	}
}

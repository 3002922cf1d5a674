package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
)

// built is what a client was told of a build.
type built struct {
	text  string // of the classic builder
	id    string
	fault string
	code  int
}

// contextOf makes a build context: names and contents.
func contextOf(t *testing.T, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, text := range files {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(text)), ModTime: time.Unix(1700000000, 0)}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// build runs a build as classic clients ask for it; see may look at each line.
func build(ctx context.Context, t *testing.T, e *harness.Engine, query string, files map[string]string, see func(line string)) built {
	t.Helper()
	api := e.API()
	defer api.Close()
	resp, err := api.Ask(ctx, "POST", "/build?"+query, http.Header{"Content-Type": {"application/x-tar"}}, bytes.NewReader(contextOf(t, files)))
	if err != nil {
		return built{fault: err.Error()}
	}
	defer resp.Body.Close()
	var out built
	for dec := json.NewDecoder(resp.Body); ; {
		var line struct {
			Stream, Error, Message string
			Aux                    struct{ ID string }
			ErrorDetail            struct{ Code int }
		}
		if err := dec.Decode(&line); err != nil {
			if !errors.Is(err, io.EOF) && out.fault == "" {
				out.fault = err.Error()
			}
			return out
		}
		out.text += line.Stream
		if line.Aux.ID != "" {
			out.id = line.Aux.ID
		}
		if line.Error != "" || line.Message != "" {
			out.fault, out.code = line.Error+line.Message, line.ErrorDetail.Code
		}
		if see != nil {
			see(line.Stream)
		}
	}
}

// runImage runs a command of an image and gives its output.
func runImage(ctx context.Context, t *testing.T, api *harness.API, img string, cmd ...string) string {
	t.Helper()
	spec := map[string]any{"Image": img}
	if len(cmd) > 0 {
		spec["Cmd"] = cmd
	}
	var made struct{ ID string }
	if err := api.Do(ctx, "POST", "/containers/create", spec, &made); err != nil {
		t.Fatalf("%s: %v", img, err)
	}
	defer api.Do(context.WithoutCancel(ctx), "DELETE", "/containers/"+made.ID+"?force=1&v=1", nil, nil)
	if err := api.Do(ctx, "POST", "/containers/"+made.ID+"/start", nil, nil); err != nil {
		t.Fatalf("%s: %v", img, err)
	}
	var ended struct{ StatusCode int }
	if err := api.Do(ctx, "POST", "/containers/"+made.ID+"/wait", nil, &ended); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, err := api.Logs(ctx, made.ID)
	if err != nil {
		t.Fatal(err)
	}
	if ended.StatusCode != 0 {
		return fmt.Sprintf("%s%sexit %d", stdout, stderr, ended.StatusCode)
	}
	return string(stdout)
}

// startBuilder runs an engine that has built once, so that what a builder has is
// no leak.
func startBuilder(t *testing.T, o ...harness.Options) *harness.Engine {
	t.Helper()
	e := start(t, append(o, harness.Options{})[0])
	if b := build(context.Background(), t, e, "t=first", map[string]string{"Dockerfile": from + "RUN true\n"}, nil); b.fault != "" {
		t.Fatal(b.fault)
	}
	clean(t, e)
	if err := e.Mark(); err != nil {
		t.Fatal(err)
	}
	return e
}

// clean removes what was built, and the cache.
func clean(t *testing.T, e *harness.Engine) {
	t.Helper()
	api := e.API()
	defer api.Close()
	ctx := context.Background()
	var images []struct {
		ID       string `json:"Id"`
		RepoTags []string
	}
	if err := api.Do(ctx, "GET", "/images/json", nil, &images); err != nil {
		t.Fatal(err)
	}
	for _, i := range images {
		if len(i.RepoTags) == 1 && i.RepoTags[0] == image {
			continue
		}
		if err := api.Do(ctx, "DELETE", "/images/"+i.ID+"?force=1", nil, nil); err != nil {
			t.Error(err)
		}
	}
	// What a build that ended just now has used is let go of a moment later.
	for end := time.Now().Add(harness.Patience(10 * time.Second)); ; time.Sleep(50 * time.Millisecond) {
		if err := api.Do(ctx, "POST", "/build/prune?all=1", nil, nil); err != nil {
			t.Fatal(err)
		}
		var usage struct{ BuildCache []any }
		if err := api.Do(ctx, "GET", "/v1.50/system/df?type=build-cache", nil, &usage); err != nil {
			t.Fatal(err)
		}
		if len(usage.BuildCache) == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("in the cache after a prune of all: %v", usage.BuildCache)
		}
	}
}

const from = "FROM " + image + "\n"

// TestBuild builds as classic clients do: what instructions do is seen in the
// image, and the client is told in the classic builder's form.
func TestBuild(t *testing.T) {
	e := startBuilder(t)
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(2*time.Minute))
	defer cancel()
	api := e.API()
	defer api.Close()
	for _, c := range []struct{ name, query, dockerfile, want string }{
		{"stages", "", "FROM " + image + " AS b\nRUN mkdir /o && echo made > /o/app\nFROM scratch AS none\nFROM " + image + "\nCOPY --from=b /o/app /app\nENTRYPOINT [\"cat\"]\nCMD [\"/app\"]\n", "made\n"},
		{"target", "target=b", "FROM " + image + " AS b\nCMD [\"echo\",\"b\"]\nFROM b\nCMD [\"echo\",\"last\"]\n", "b\n"},
		{"arguments", "buildargs=%7B%22WHO%22%3A%22me%22%7D", "ARG IMG=" + image + "\nFROM $IMG\nARG WHO=nobody\nRUN echo $WHO > /who\nCMD [\"cat\",\"/who\"]\n", "me\n"},
		{"heredoc", "", from + "RUN <<EOF\necho one > /h\necho two >> /h\nEOF\nCOPY <<EOF /i\nthree\nEOF\nCMD [\"cat\",\"/h\",\"/i\"]\n", "one\ntwo\nthree\n"},
		{"user and directory", "", from + "WORKDIR /home\nUSER alice\nRUN id -un > /tmp/u; pwd >> /tmp/u\nCMD [\"cat\",\"/tmp/u\"]\n", "alice\n/home\n"},
		{"mounts", "", from + "RUN --mount=type=tmpfs,target=/t --mount=type=cache,target=/c --mount=type=bind,source=f,target=/b echo x > /t/x && cp /t/x /c/x && cat /b /c/x > /r\nCMD [\"sh\",\"-c\",\"cat /r; ls -d /t /c 2>/dev/null || true\"]\n", "context\nx\n"},
		{"cache mount stays", "", from + "RUN --mount=type=cache,target=/c cat /c/x > /kept\nCMD [\"cat\",\"/kept\"]\n", "x\n"},
		{"link, exclude, parents", "", from + "COPY --link f /l/f\nCOPY --parents --exclude=**/*.no d /p/\nCMD [\"sh\",\"-c\",\"cat /l/f; cd /p; find . -type f\"]\n", "context\n./d/yes\n"},
		{"no network", "", from + "RUN --network=none ls /sys/class/net > /n\nCMD [\"cat\",\"/n\"]\n", "lo\n"},
		{"its network", "", from + "RUN ls /sys/class/net > /n\nCMD [\"cat\",\"/n\"]\n", "eth0\nlo\n"},
		{"syntax that cannot be had", "", "# syntax=127.0.0.1:1/none/dockerfile:9\n" + from + "CMD [\"echo\",\"built in\"]\n", "built in\n"},
		{"memory", "memory=33554432&memswap=33554432", from + "RUN cat /proc/self/cgroup > /c; (cat /sys/fs/cgroup/memory.max || cat /sys/fs/cgroup/memory/memory.limit_in_bytes || cat /sys/fs/cgroup/memory$(grep :memory: /proc/self/cgroup | cut -d: -f3)/memory.limit_in_bytes) 2>/dev/null > /m; test -s /m\nCMD [\"cat\",\"/m\"]\n", "33554432\n"},
		{"ulimit and host", "ulimits=%5B%7B%22Name%22%3A%22nofile%22%2C%22Soft%22%3A77%2C%22Hard%22%3A77%7D%5D&extrahosts=far%3A1.2.3.4", from + "RUN ulimit -n > /u; grep far /etc/hosts >> /u\nCMD [\"cat\",\"/u\"]\n", "77\n1.2.3.4\tfar\n"},
	} {
		tag := "built-" + strings.ReplaceAll(strings.ReplaceAll(c.name, " ", "-"), ",", "")
		files := map[string]string{"Dockerfile": c.dockerfile, "f": "context\n", "d/yes": "y", "d/x.no": "n"}
		b := build(ctx, t, e, "t="+tag+"&"+c.query, files, nil)
		if b.fault != "" || !strings.HasSuffix(b.text, "Successfully tagged "+tag+":latest\n") {
			t.Errorf("%s: %q\n%s", c.name, b.fault, b.text)
			continue
		}
		if got := runImage(ctx, t, api, tag); got != c.want {
			t.Errorf("%s: the image says %q, want %q", c.name, got, c.want)
		}
	}
	checkCache(ctx, t, e, api)
	clean(t, e)
	noLeaks(t, e)
}

// checkCache: what was built is taken from the cache, until it is pruned; images
// stay whole.
func checkCache(ctx context.Context, t *testing.T, e *harness.Engine, api *harness.API) {
	t.Helper()
	files := map[string]string{"Dockerfile": from + "RUN echo one > /1\nCOPY f /f\nRUN echo two > /2\nCMD [\"cat\",\"/1\",\"/f\",\"/2\"]\n", "f": "f\n"}
	first := build(ctx, t, e, "t=cached", files, nil)
	again := build(ctx, t, e, "t=cached", files, nil)
	if n := strings.Count(again.text, " ---> Using cache\n"); n != 3 || first.id == "" || again.id != first.id {
		t.Errorf("built again: %d steps from the cache, image %s, first %s\n%s", n, again.id, first.id, again.text)
	}
	files["f"] = "changed\n"
	if b := build(ctx, t, e, "t=changed", files, nil); strings.Count(b.text, " ---> Using cache\n") != 1 {
		t.Errorf("built with a change:\n%s", b.text)
	}
	// An image that was built is a base by its id and its digest, too.
	var img struct{ RepoDigests []string }
	if err := api.Do(ctx, "GET", "/images/cached/json", nil, &img); err != nil {
		t.Fatal(err)
	}
	if b := build(ctx, t, e, "t=on", map[string]string{"Dockerfile": "FROM " + strings.TrimPrefix(first.id, "sha256:")[:12] + "\nRUN echo on > /on\n"}, nil); b.fault != "" {
		t.Errorf("FROM an id: %s", b.fault)
	}
	var pruned struct {
		CachesDeleted  []string
		SpaceReclaimed int64
	}
	if err := api.Do(ctx, "POST", "/build/prune?all=1", nil, &pruned); err != nil || len(pruned.CachesDeleted) == 0 {
		t.Errorf("prune: %v, %+v", err, pruned)
	}
	var usage struct{ BuildCache []struct{ InUse bool } }
	if err := api.Do(ctx, "GET", "/v1.50/system/df?type=build-cache", nil, &usage); err != nil || len(usage.BuildCache) != 0 {
		t.Errorf("after a prune of all: %v, %+v", err, usage)
	}
	for name, want := range map[string]string{"cached": "one\nf\ntwo\n", "changed": "one\nchanged\ntwo\n"} {
		if got := runImage(ctx, t, api, name); got != want {
			t.Errorf("after the prune %s says %q, want %q", name, got, want)
		}
	}
	if b := build(ctx, t, e, "t=cached", files, nil); b.fault != "" || strings.Contains(b.text, "Using cache") {
		t.Errorf("after the prune: %s\n%s", b.fault, b.text)
	}
}

// TestBuildFails: what goes wrong is told with its code, and leaves nothing.
func TestBuildFails(t *testing.T) {
	e := startBuilder(t)
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(time.Minute))
	defer cancel()
	for _, c := range []struct {
		name, query, dockerfile, want string
		code                          int
	}{
		{"a step", "", from + "RUN echo said; exit 7\n", "The command '/bin/sh -c echo said; exit 7' returned a non-zero code: 7", 7},
		{"a step of two lines", "", from + "RUN echo said; \\\n  exit 7\n", "returned a non-zero code: 7", 7},
		{"no such command", "", from + "RUN [\"/nowhere\"]\n", "The command '/nowhere' returned a non-zero code: 127", 127},
		{"syntax", "", from + "RUNN x\n", "unknown instruction: RUNN", 0},
		{"no Dockerfile", "dockerfile=other", from, "other: no such file", 0},
		{"a file that is not there", "", from + "COPY missing /x\n", `"/missing": not found`, 0},
		{"a base that is not there", "", "FROM 127.0.0.1:1/nothing\n", "127.0.0.1:1/nothing", 0},
		{"security", "", from + "RUN --security=insecure true\n", "security.insecure is not allowed", 0},
		{"name", "t=Bad", from, "invalid reference format", 0},
		{"target", "target=none", from, `target stage "none" could not be found`, 0},
		{"host mapping", "extrahosts=x", from, "invalid host mapping: x", 0},
	} {
		b := build(ctx, t, e, c.query, map[string]string{"Dockerfile": c.dockerfile}, nil)
		if !strings.Contains(b.fault, c.want) || b.code != c.code || b.id != "" {
			t.Errorf("%s: %q, code %d, want %q, %d", c.name, b.fault, b.code, c.want, c.code)
		}
		for name, want := range map[string]string{
			"a step":              "Step 2/2 : RUN echo said; exit 7\nsaid\nDockerfile:2\n--------------------\n   1 |     FROM " + image + "\n   2 | >>> RUN echo said; exit 7\n",
			"a step of two lines": "   2 | >>> RUN echo said; \\\n   3 | >>>   exit 7\n",
			"syntax":              "   2 | >>> RUNN x\n",
		} {
			if c.name == name && !strings.Contains(b.text, want) {
				t.Errorf("%s: %q is missing in\n%s", name, want, b.text)
			}
		}
	}
	clean(t, e)
	noLeaks(t, e)
}

const sleeping = from + "RUN echo begun; touch /half; sleep 1000\n"

// TestBuildCanceled: a client that leaves, or cancels, ends the step that runs.
func TestBuildCanceled(t *testing.T) {
	e := startBuilder(t)
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(time.Minute))
	defer cancel()
	leaving, leave := context.WithCancel(ctx)
	defer leave()
	build(leaving, t, e, "", map[string]string{"Dockerfile": sleeping}, func(line string) {
		if strings.Contains(line, "begun") {
			leave()
		}
	})
	clean(t, e)
	noLeaks(t, e)
	api := e.API()
	defer api.Close()
	b := build(ctx, t, e, "buildid=mine", map[string]string{"Dockerfile": sleeping}, func(line string) {
		if strings.Contains(line, "begun") {
			if err := api.Do(ctx, "POST", "/build/cancel?id=mine", nil, nil); err != nil {
				t.Error(err)
			}
		}
	})
	if !strings.Contains(b.fault, "build canceled") {
		t.Errorf("canceled: %+v", b)
	}
	clean(t, e)
	noLeaks(t, e)
}

// TestBuildKilled: of a step under way when the engine is killed nothing is left
// in the kernel or on the disk once the next engine is up.
func TestBuildKilled(t *testing.T) {
	e := startBuilder(t)
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(2*time.Minute))
	defer cancel()
	ok := map[string]string{"Dockerfile": from + "RUN echo whole > /w\nCMD [\"cat\",\"/w\"]\n"}
	if b := build(ctx, t, e, "t=whole", ok, nil); b.fault != "" {
		t.Fatal(b.fault)
	}
	for range 3 {
		build(ctx, t, e, "", map[string]string{"Dockerfile": sleeping}, func(line string) {
			if strings.Contains(line, "begun") {
				if err := e.Kill(); err != nil {
					t.Error(err)
				}
			}
		})
		if err := e.Start(ctx); err != nil {
			t.Fatal(err)
		}
		half := true
		for end := time.Now().Add(harness.Patience(20 * time.Second)); half && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			half = halfMade(t, e)
		}
		if half {
			t.Error("what the step that was cut off had written is still there")
		}
		b := build(ctx, t, e, "t=whole", ok, nil)
		if b.fault != "" || !strings.Contains(b.text, "Using cache") {
			t.Errorf("after the kill: %s\n%s", b.fault, b.text)
		}
	}
	api := e.API()
	defer api.Close()
	if got := runImage(ctx, t, api, "whole"); got != "whole\n" {
		t.Errorf("the image says %q", got)
	}
	clean(t, e)
	noLeaks(t, e)
}

// halfMade looks for the file that the sleeping step leaves.
func halfMade(t *testing.T, e *harness.Engine) bool {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(e.DataRoot, "snapshots", "snapshots", "*", "fs", "half"))
	if err != nil {
		t.Fatal(err)
	}
	return len(list) > 0
}

// TestBuildIdle: an engine that has built nothing does not start BuildKit to
// tell so.
// TestBuildUnpacksOnce: a base that is here is not unpacked for the builder once
// more, and what was built is an image with no copy.
func TestBuildUnpacksOnce(t *testing.T) {
	e := startBuilder(t)
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(time.Minute))
	defer cancel()
	for i, dockerfile := range []string{from + "RUN echo 1 > /1\n", "FROM on-0\nRUN echo 2 > /2\nLABEL a=b\n", "FROM on-1\nCOPY f /f\n"} {
		b := build(ctx, t, e, fmt.Sprintf("t=on-%d", i), map[string]string{"Dockerfile": dockerfile, "f": "f"}, nil)
		if b.fault != "" {
			t.Fatal(b.fault)
		}
	}
	for _, file := range []string{"bin/busybox", "1", "2"} {
		if found, _ := filepath.Glob(filepath.Join(e.DataRoot, "snapshots", "snapshots", "*", "fs", file)); len(found) != 1 {
			t.Errorf("%s lies in %d snapshots: %q", file, len(found), found)
		}
	}
	api := e.API()
	defer api.Close()
	if got := runImage(ctx, t, api, "on-2", "cat", "/1", "/2", "/f"); got != "1\n2\nf" {
		t.Errorf("the image says %q", got)
	}
	clean(t, e)
	noLeaks(t, e)
}

func TestBuildIdle(t *testing.T) {
	e := start(t, harness.Options{})
	api := e.API()
	defer api.Close()
	ctx := context.Background()
	for _, path := range []string{"/system/df"} {
		if err := api.Do(ctx, "GET", path, nil, nil); err != nil {
			t.Error(err)
		}
	}
	if err := api.Do(ctx, "POST", "/build/prune?all=1", nil, nil); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(e.DataRoot, "builder")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the builder's folder is there: %v", err)
	}
}

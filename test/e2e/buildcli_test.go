package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"escale.dev/escale/test/internal/harness"
)

// TestBuildContexts: what is built comes from a directory, standard input or a
// URL, and what is ignored does not come.
func TestBuildContexts(t *testing.T) {
	eachBuilder(t, harness.Options{}, func(ctx context.Context, t *testing.T, e *harness.Engine, b *building) {
		prepareContext(t, b.dir)
		web := httptest.NewServer(http.FileServer(http.Dir(b.dir)))
		defer web.Close()
		api := e.API()
		defer api.Close()
		shows := from + "COPY . /c/\nCMD [\"sh\",\"-c\",\"cd /c; cat $(find . -type f ! -name Dockerfile | sort)\"]\n"
		packed := contextOf(t, map[string]string{"Dockerfile": shows, "sub/other": shows, "a": "in a\n"})
		for name, data := range map[string][]byte{
			"Dockerfile": []byte(shows), "sub/Dockerfile": []byte(shows), "fetched": []byte(from + "COPY a /\nCMD [\"cat\",\"/a\"]\n"), "sub/a": []byte("a\n"), "sub/b": []byte("b\n"), "sub/.dockerignore": []byte("b\n"),
			"sub/own": []byte(shows), "sub/own.dockerignore": []byte("a\nown*\n.dockerignore\n"), "packed.tar": packed,
		} {
			path := filepath.Join(b.dir, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		for _, c := range []struct {
			name, want string
			in         []byte
			args       []string
		}{
			{"Dockerfile on stdin", "hi\n", []byte(from + "CMD [\"echo\",\"hi\"]\n"), []string{"-"}},
			{"Dockerfile on stdin beside a directory", "a\n", []byte(from + "COPY a /\nCMD [\"cat\",\"/a\"]\n"), []string{"-f", "-", "sub"}},
			{"archive on stdin", "in a\n" + shows, packed, []string{"-"}},
			{"another file of an archive", "in a\n" + shows, packed, []string{"-f", "sub/other", "-"}},
			{"URL of an archive", "in a\n" + shows, nil, []string{web.URL + "/packed.tar"}},
			{"URL of git", "in git\n", []byte(from + "COPY tracked /t\nCMD [\"cat\",\"/t\"]\n"), []string{"-f", "-", web.URL + "/repo.git#main"}},
			{"Dockerfile of a URL", "a\n", nil, []string{"-f", web.URL + "/fetched", "sub"}},
			{"Dockerfile of a URL for an archive", "in a\n" + shows, packed, []string{"-f", web.URL + "/Dockerfile", "-"}},
			{"ignored", "b\na\n" + shows + "a\nown*\n.dockerignore\n", nil, []string{"sub"}},
			{"ignored for one file", "b\n", nil, []string{"-f", "sub/own", "sub"}},
		} {
			tag := "ctx-" + strings.ReplaceAll(strings.ToLower(c.name), " ", "-")
			cmd := b.cmd(append([]string{"build", "-t", tag}, c.args...)...)
			cmd.Stdin = bytes.NewReader(c.in)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s", c.name, err, out)
				continue
			}
			if got := runImage(ctx, t, api, tag); got != c.want {
				t.Errorf("%s: the image says\n%s\nwant\n%s", c.name, got, c.want)
			}
		}
		for _, c := range []struct {
			want string
			args []string
		}{
			{`path "nowhere" not found`, []string{"nowhere"}},
			{"failed to read dockerfile: open none: no such file or directory", []string{"-f", "none", "."}},
			{"404 Not Found|invalid response status 404", []string{"-f", web.URL + "/nosuch", "."}},
			{"invalid", []string{"-t", "Bad", "."}},
			{"invalid host", []string{"--add-host", "x", "."}},
			{"requires 1 argument", nil},
			{"type is required for output", []string{"--output", "dest=x,tar=false", "."}},
			{"security.insecure is not allowed|granting entitlement security.insecure", []string{"--allow", "security.insecure", "--no-cache", "."}},
		} {
			out, err := b.run(c.args...)
			if err == nil || !regexp.MustCompile(c.want).MatchString(out) {
				t.Errorf("%v: %v, want %q in\n%s", c.args, err, c.want, out)
			}
		}
	})
}

// TestBuildCommand: what the command line prints and writes, beside the image.
func TestBuildCommand(t *testing.T) {
	eachBuilder(t, harness.Options{}, func(ctx context.Context, t *testing.T, e *harness.Engine, b *building) {
		api := e.API()
		defer api.Close()
		b.env = append(b.env, "FROMENV=env")
		b.write(t, from+"ARG A\nARG FROMENV\nRUN echo $A $FROMENV > /a; ulimit -n >> /a; grep far /etc/hosts >> /a; df -k /dev/shm | tail -1 | awk '{print $2}' >> /a\nLABEL l=m\nCMD [\"cat\",\"/a\"]\n")
		out, err := b.cmd("build", "-q", "-t", "one", "-t", "two:3", "--build-arg", "A=b", "--build-arg", "FROMENV", "--label", "x=y", "--ulimit", "nofile=77:77",
			"--add-host", "far:1.2.3.4", "--shm-size", "32m", "--iidfile", "id", "--metadata-file", "about.json", ".").Output()
		if err != nil || !regexp.MustCompile(`^sha256:[0-9a-f]{64}\n$`).Match(out) {
			t.Fatalf("build -q: %v %q", err, out)
		}
		id, err := os.ReadFile(filepath.Join(b.dir, "id"))
		if err != nil || string(id) != strings.TrimSpace(string(out)) {
			t.Errorf("--iidfile: %v %q, printed %q", err, id, out)
		}
		about, err := os.ReadFile(filepath.Join(b.dir, "about.json"))
		var known map[string]any
		if err != nil || json.Unmarshal(about, &known) != nil || known["containerimage.digest"] == nil || b.name == "escale" && known["image.name"] != "docker.io/library/one:latest,docker.io/library/two:3" {
			t.Errorf("--metadata-file: %v %s", err, about)
		}
		for _, name := range []string{"one", "two:3", string(id)} {
			if got := runImage(ctx, t, api, name); got != "b env\n77\n1.2.3.4\tfar\n32768\n" {
				t.Errorf("%s says %q", name, got)
			}
		}
		var img struct {
			Config struct{ Labels map[string]string }
		}
		if err := api.Do(ctx, "GET", "/images/one/json", nil, &img); err != nil || img.Config.Labels["x"] != "y" || img.Config.Labels["l"] != "m" {
			t.Errorf("labels: %v %v", err, img.Config.Labels)
		}
		if out, err := b.run("--target", "none", "."); err == nil || !strings.Contains(out, `target stage "none" could not be found`) {
			t.Errorf("--target: %v\n%s", err, out)
		}
		b.write(t, from+"AS first\n")
		if out, err := b.run("--call", "targets", "."); err == nil || !strings.Contains(out, "unknown instruction: AS") {
			t.Errorf("--call of what cannot be read: %v\n%s", err, out)
		}
		b.write(t, "# what it is\nFROM "+image+" AS first\nARG V=1\nFROM first\nRUN date +%N > /n\n")
		if out, err := b.run("--call", "targets", "."); err != nil || !regexp.MustCompile(`(?m)^first\s`).MatchString(out) {
			t.Errorf("--call targets: %v\n%s", err, out)
		}
		cached := regexp.MustCompile(`RUN date[^\n]*\n#\d+ CACHED`).MatchString
		if out, err := b.run("."); err != nil || cached(out) {
			t.Errorf("first: %v\n%s", err, out)
		}
		if out, err := b.run("."); err != nil || !cached(out) {
			t.Errorf("again: %v\n%s", err, out)
		}
		if out, err := b.run("--no-cache", "."); err != nil || cached(out) {
			t.Errorf("--no-cache: %v\n%s", err, out)
		}
		raw, err := b.cmd("build", "--progress", "rawjson", ".").CombinedOutput()
		for line := range strings.Lines(string(raw)) {
			if !json.Valid([]byte(line)) {
				t.Errorf("--progress rawjson: %q is no JSON", line)
			}
		}
		if err != nil {
			t.Errorf("--progress rawjson: %v", err)
		}
		if b.name == "escale" {
			commandWords(t, b)
		}
	})
}

// commandWords checks what escale says by itself.
func commandWords(t *testing.T, b *building) {
	t.Helper()
	for _, c := range []struct {
		want string
		args []string
	}{
		{`^Deleted build cache objects:\n(?:[a-z0-9]+\n)+\nTotal reclaimed space: `, []string{"builder", "prune", "-f", "--filter", "until=0s"}},
		{`^WARNING! This will remove all build cache.\nAre you sure you want to continue\? \[y/N\] $`, []string{"builder", "prune", "-a"}},
		{`writing image sha256:`, []string{"builder", "build", "--progress", "plain", "."}},
		{`writing image sha256:`, []string{"image", "build", "--progress", "plain", "."}},
		{`writing image sha256:`, []string{"buildx", "build", "--progress", "plain", "--load", "."}},
		{`^Total reclaimed space: 0B\n$`, []string{"builder", "prune", "-f", "--filter", "id=nothing"}},
	} {
		out, err := b.cmd(c.args...).CombinedOutput()
		if err != nil || !regexp.MustCompile(c.want).Match(out) {
			t.Errorf("%v: %v, want %q in\n%s", c.args, err, c.want, out)
		}
	}
	for _, c := range []struct {
		want string
		args []string
	}{
		{`invalid progress mode x`, []string{"--progress", "x", "."}},
		{`invalid argument "many" for --shm-size flag`, []string{"--shm-size", "many", "."}},
		{`invalid argument "n" for --ulimit flag`, []string{"--ulimit", "n", "."}},
		{`--rm=false is not supported`, []string{"--rm=false", "."}},
		{`output type "bad" is not known`, []string{"-o", "type=bad", "."}},
		{`cache type "gha" is not known`, []string{"--cache-to", "type=gha", "."}},
		{`unsupported secret type "x"`, []string{"--secret", "id=a,type=x", "."}},
		{`failed to stat none`, []string{"--secret", "id=a,src=none", "."}},
		{`call "x" is not known`, []string{"--call", "x", "."}},
		{`invalid context value: x`, []string{"--build-context", "x", "."}},
		{`can't use stdin for both build context and dockerfile`, []string{"-f", "-", "-"}},
		{`tag is needed when pushing to registry`, []string{"--push", "."}},
		{`unknown flag: --nosuch`, []string{"--nosuch", "."}},
	} {
		out, err := b.cmd(append([]string{"build"}, c.args...)...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), c.want) {
			t.Errorf("%v: %v, want %q in\n%s", c.args, err, c.want, out)
		}
	}
	cmd := b.cmd("-H", "unix:///nowhere.sock", "build", ".")
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "Cannot connect to the Docker daemon at unix:///nowhere.sock") {
		t.Errorf("no engine: %v\n%s", err, out)
	}
}

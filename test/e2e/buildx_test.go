package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
)

// buildxVersion is the buildx that the test builds from its Go module.
const buildxVersion = "v0.36.0"

// buildx finds docker's plugin, or builds it once into the user's cache.
func buildx(t *testing.T) string {
	t.Helper()
	dir, err := os.UserCacheDir()
	if err != nil {
		t.Skip("needs a cache directory: ", err)
	}
	dir = filepath.Join(dir, "escale-test", "buildx-"+buildxVersion)
	bin := filepath.Join(dir, "buildx")
	if _, err := os.Stat(bin); err == nil {
		return bin
	}
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "install", "-trimpath", "github.com/docker/buildx/cmd/buildx@"+buildxVersion)
	cmd.Env = append(os.Environ(), "GOBIN="+dir, "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("needs buildx %s, which cannot be built here: %v\n%s", buildxVersion, err, out[max(0, len(out)-500):])
	}
	return bin
}

// building is a client at work in a directory, and what it prints.
type building struct {
	name, dir string
	env       []string
	cmd       func(args ...string) *exec.Cmd
}

// run builds with plain progress and gives all that was printed.
func (b *building) run(args ...string) (string, error) {
	out, err := b.cmd(append([]string{"build", "--progress", "plain"}, args...)...).CombinedOutput()
	return string(out), err
}

// write writes the directory's Dockerfile.
func (b *building) write(t *testing.T, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(b.dir, "Dockerfile"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// eachBuilder runs a test with each client that speaks BuildKit to one engine:
// docker with its plugin, and escale. What a test builds is removed behind it,
// and nothing may be left.
func eachBuilder(t *testing.T, o harness.Options, test func(ctx context.Context, t *testing.T, e *harness.Engine, b *building)) {
	needs(t)
	e := startBuilder(t, o)
	for _, name := range []string{"docker", "escale"} {
		t.Run(name, func(t *testing.T) {
			path, config := clients()[name], t.TempDir()
			if path == "" {
				t.Skip("needs docker's client")
			}
			if name == "docker" {
				if err := os.MkdirAll(filepath.Join(config, "cli-plugins"), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink(buildx(t), filepath.Join(config, "cli-plugins", "docker-buildx")); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(3*time.Minute))
			defer cancel()
			b := &building{name: name, dir: t.TempDir(), env: []string{"DOCKER_HOST=" + e.Host(), "DOCKER_CONFIG=" + config, "DOCKER_BUILDKIT=1", "DOCKER_CONTEXT=", "SECRET=hidden"}}
			b.cmd = func(args ...string) *exec.Cmd {
				cmd := exec.CommandContext(ctx, path, args...)
				cmd.Dir, cmd.Env = b.dir, append(os.Environ(), b.env...)
				cmd.WaitDelay = 5 * time.Second
				return cmd
			}
			test(ctx, t, e, b)
			clean(t, e)
			if name == "escale" { // of the plugin's builds a history is kept
				noLeaks(t, e)
			} else if err := e.Mark(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestBuildx drives the engine with clients that speak BuildKit: sessions,
// secrets, contexts of other kinds, outputs.
func TestBuildx(t *testing.T) {
	eachBuilder(t, harness.Options{}, buildxCases)
}

func buildxCases(ctx context.Context, t *testing.T, e *harness.Engine, b *building) {
	dir, run := b.dir, b.run
	web := httptest.NewServer(http.FileServer(http.Dir(dir)))
	defer web.Close()
	prepareContext(t, dir)
	api := e.API()
	defer api.Close()
	for _, c := range []struct {
		name, dockerfile, want string
		args                   []string
	}{
		{"secret", from + "RUN --mount=type=secret,id=s cat /run/secrets/s > /s\nCMD [\"cat\",\"/s\"]\n", "hidden", []string{"--secret", "id=s,env=SECRET"}},
		{"url", from + "ADD " + web.URL + "/f /u\nCMD [\"cat\",\"/u\"]\n", "context\n", nil},
		{"tar", from + "ADD t.tar /t/\nCMD [\"cat\",\"/t/in\"]\n", "in a tar\n", nil},
		{"git", from + "ADD " + web.URL + "/repo.git#main /g\nCMD [\"cat\",\"/g/tracked\"]\n", "in git\n", nil},
		{"named context", from + "COPY --from=other f /o\nCMD [\"cat\",\"/o\"]\n", "context\n", []string{"--build-context", "other=."}},
	} {
		b.write(t, c.dockerfile)
		tag := "x-" + strings.ReplaceAll(c.name, " ", "-")
		if out, err := run(append(c.args, "-t", tag, ".")...); err != nil {
			t.Errorf("%s: %v\n%s", c.name, err, out)
			continue
		}
		if got := runImage(ctx, t, api, tag); got != c.want {
			t.Errorf("%s: the image says %q, want %q", c.name, got, c.want)
		}
	}
	outputs(t, b)
}

// outputs checks results that are no images, and errors.
func outputs(t *testing.T, b *building) {
	t.Helper()
	dir, run := b.dir, b.run
	b.write(t, "FROM scratch\nCOPY f /f\n")
	for _, c := range []struct{ output, file, has string }{
		{"out", "out/f", "context\n"},
		{"type=tar,dest=o.tar", "o.tar", "context\n"},
		{"type=oci,dest=oci.tar", "oci.tar", "oci-layout"},
		{"type=docker,dest=d.tar", "d.tar", "manifest.json"},
	} {
		out, err := run("--output", c.output, ".")
		if err != nil {
			t.Errorf("--output %s: %v\n%s", c.output, err, out)
			continue
		}
		if b, err := os.ReadFile(filepath.Join(dir, c.file)); err != nil || !bytes.Contains(b, []byte(c.has)) {
			t.Errorf("--output %s: %v, %d bytes without %q", c.output, err, len(b), c.has)
		}
	}
	if out, err := run("--cache-to", "type=local,dest=cache", "."); err != nil {
		t.Errorf("--cache-to: %v\n%s", err, out)
	} else if _, err := os.Stat(filepath.Join(dir, "cache", "index.json")); err != nil {
		t.Errorf("--cache-to: %v", err)
	}
	b.write(t, from+"RUN echo said; exit 7\n")
	out, err := run(".")
	for _, want := range []string{"exit code: 7", " said\n", "Dockerfile:2\n", "   2 | >>> RUN echo said; exit 7\n"} {
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("a step that fails: %v, no %q in\n%s", err, want, out)
		}
	}
	if out, err := run("--check", "."); err != nil || !strings.Contains(out, "Check complete, no warnings found.") {
		t.Errorf("--check: %v\n%s", err, out)
	}
	b.write(t, from+"RUNN x\n")
	out, err = run(".")
	for _, want := range []string{"dockerfile parse error on line 2: unknown instruction: RUNN", "   2 | >>> RUNN x\n"} {
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("a line that cannot be read: %v, no %q in\n%s", err, want, out)
		}
	}
	b.write(t, from+"MAINTAINER x\n")
	if out, err := run("--check", "."); err == nil || !strings.Contains(out, "MaintainerDeprecated") {
		t.Errorf("--check of a line that is out of date: %v\n%s", err, out)
	}
}

// prepareContext puts a file, an archive and a repository into dir.
func prepareContext(t *testing.T, dir string) {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	text := "in a tar\n"
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "in", Mode: 0o644, Size: int64(len(text))}); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprint(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"f": []byte("context\n"), "t.tar": b.Bytes(), ".dockerignore": []byte("repo*\n")} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	script := `set -e; mkdir repo; cd repo; git init -q -b main; echo in git > tracked; git add tracked
git -c user.name=t -c user.email=t@example.com commit -qm one; cd ..; git clone -q --bare repo repo.git; cd repo.git; git update-server-info`
	cmd := exec.Command("sh", "-c", script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("git: %v\n%s", err, out)
	}
}

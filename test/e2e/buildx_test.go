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

// TestBuildx drives the engine with the stock client's BuildKit mode: sessions,
// secrets, contexts of other kinds, outputs.
func TestBuildx(t *testing.T) {
	docker, err := exec.LookPath("docker")
	if err != nil {
		t.Skip("needs docker's client: ", err)
	}
	needs(t)
	plugin := buildx(t)
	e := startBuilder(t)
	config := t.TempDir()
	if err := os.MkdirAll(filepath.Join(config, "cli-plugins"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(plugin, filepath.Join(config, "cli-plugins", "docker-buildx")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(3*time.Minute))
	defer cancel()
	dir := t.TempDir()
	run := func(args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, docker, append([]string{"build", "--progress", "plain"}, args...)...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "DOCKER_HOST="+e.Host(), "DOCKER_CONFIG="+config, "DOCKER_BUILDKIT=1", "DOCKER_CONTEXT=", "SECRET=hidden")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
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
		if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(c.dockerfile), 0o644); err != nil {
			t.Fatal(err)
		}
		tag := "x-" + strings.ReplaceAll(c.name, " ", "-")
		if out, err := run(append(c.args, "-t", tag, ".")...); err != nil {
			t.Errorf("%s: %v\n%s", c.name, err, out)
			continue
		}
		if got := runImage(ctx, t, api, tag); got != c.want {
			t.Errorf("%s: the image says %q, want %q", c.name, got, c.want)
		}
	}
	outputs(t, dir, run)
	clean(t, e)
}

// outputs checks results that are no images, and errors.
func outputs(t *testing.T, dir string, run func(args ...string) (string, error)) {
	t.Helper()
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("FROM scratch\nCOPY f /f\n")
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
	write(from + "RUN exit 7\n")
	if out, err := run("."); err == nil || !strings.Contains(out, "exit code: 7") {
		t.Errorf("a step that fails: %v\n%s", err, out)
	}
	if out, _ := run("--check", "."); !strings.Contains(out, "Check complete") && !strings.Contains(out, "warning") {
		t.Errorf("--check:\n%s", out)
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

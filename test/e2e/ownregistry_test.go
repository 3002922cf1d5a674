package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
)

// freePort is an address of loopback that nobody listens on.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// escale runs the command line, with what it shall read.
func escaleRun(t *testing.T, stdin string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(harness.BinDir(), "escale"), args...)
	cmd.Env = append(os.Environ(), "DOCKER_CONFIG="+t.TempDir())
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func mustEscale(t *testing.T, args ...string) string {
	t.Helper()
	out, err := escaleRun(t, "", args...)
	if err != nil {
		t.Fatalf("escale %v: %v\n%s", args, err, out)
	}
	return out
}

func fetch(t *testing.T, url string) (int, http.Header, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.v2+json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, b
}

// The engine's own registry: its images are pulled from it without a push, and
// what is pushed is looked after by `escale registry`.
func TestEngineRegistry(t *testing.T) {
	addr := freePort(t)
	e := start(t, harness.Options{Args: []string{"--registry", addr, "--registry-content"}})
	if _, err := os.Stat(filepath.Join(e.DataRoot, "registry")); !os.IsNotExist(err) {
		t.Errorf("the registry's directory is there before anybody asked: %v", err)
	}
	repo, tag, _ := strings.Cut(image, ":")
	status, _, body := fetch(t, "http://"+addr+"/v2/"+repo+"/manifests/"+tag)
	var m struct {
		Config struct{ Digest string }
		Layers []struct {
			Digest string
			Size   int
		}
	}
	if status != 200 || json.Unmarshal(body, &m) != nil || len(m.Layers) == 0 {
		t.Fatalf("the engine's image: %d %s", status, body)
	}
	for _, l := range m.Layers {
		if status, _, b := fetch(t, "http://"+addr+"/v2/"+repo+"/blobs/"+l.Digest); status != 200 || len(b) != l.Size {
			t.Errorf("layer %s: %d, %d bytes of %d", l.Digest, status, len(b), l.Size)
		}
	}
	if status, _, _ := fetch(t, "http://"+addr+"/v2/other/blobs/"+m.Config.Digest); status != 404 {
		t.Errorf("a blob under a name that is not its image's: %d", status)
	}
	if got := mustEscale(t, "registry", "tags", "-r", addr, repo); got != tag+"\n" {
		t.Errorf("tags %q", got)
	}
	skopeo, err := exec.LookPath("skopeo")
	if err != nil {
		t.Skip("the rest needs skopeo (apt-get install skopeo)")
	}
	copyTo := func(to string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), skopeo, "copy", "--insecure-policy", "--src-tls-verify=false", "--dest-tls-verify=false", "docker://"+addr+"/"+image, "docker://"+addr+"/"+to)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("skopeo: %v\n%s", err, out)
		}
	}
	copyTo("lab/x:v1")
	copyTo("lab/x:v2")
	if got := mustEscale(t, "registry", "ls", "-r", addr); got != "lab/x\n" {
		t.Errorf("repositories %q", got)
	}
	if got := mustEscale(t, "registry", "tags", "-r", addr, "lab/x"); got != "v1\nv2\n" {
		t.Errorf("tags %q", got)
	}
	if got := mustEscale(t, "registry", "rm", "-r", addr, "lab/x:v2"); got != "lab/x:v2\n" {
		t.Errorf("rm said %q", got)
	}
	if out, err := escaleRun(t, "", "registry", "rm", "-r", addr, "lab/x:v2"); err == nil || !strings.Contains(out, "manifest unknown") {
		t.Errorf("rm of what is gone: %v %s", err, out)
	}
	gc := []string{"registry", "gc", "-r", addr, "--retain", "lab/*:v* last=0", "--untagged", "--grace", "0s"}
	if got := mustEscale(t, append(gc, "--dry-run")...); !strings.Contains(got, "tag lab/x:v1\n") || !strings.Contains(got, "Would reclaim space: ") {
		t.Errorf("dry run: %s", got)
	}
	if got := mustEscale(t, gc...); !strings.Contains(got, "Total reclaimed space: ") || !strings.Contains(got, "(0 blobs stay)") {
		t.Errorf("gc: %s", got)
	}
	if out, err := escaleRun(t, "", "registry", "gc", "-r", addr, "--retain", "x"); err == nil || !strings.Contains(out, "retention rule") {
		t.Errorf("a bad rule: %v %s", err, out)
	}
}

// Both clients push to the engine's own registry and pull back; another engine
// pulls what was pushed, and what never was. Also when the registry has not the
// layers yet that the engine has.
func TestPushToOwnRegistry(t *testing.T) {
	addr := freePort(t)
	e := start(t, harness.Options{Args: []string{"--registry", addr, "--registry-content"}})
	second := startSecond(t)
	for client, path := range clients() {
		t.Run(client, func(t *testing.T) {
			run, other := cli(t, path, e.Host(), t.TempDir()), cli(t, path, second.Host(), t.TempDir())
			app := addr + "/lab/" + client
			for _, step := range []struct {
				run  func(...string) (string, error)
				args []string
				want string
			}{
				{run, []string{"tag", image, app + ":1"}, ""},
				{other, []string{"pull", "-q", app + ":1"}, app + ":1"}, // not pushed
				{other, []string{"run", "--rm", "--network", "none", app + ":1", "echo", "pulled without a push"}, "pulled without a push"},
				{other, []string{"rmi", app + ":1"}, "Untagged"},
				{run, []string{"push", app + ":1"}, "digest: "},
				{run, []string{"rmi", app + ":1"}, "Untagged"},
				{run, []string{"pull", app + ":1"}, "Status: Downloaded newer image"},
				{other, []string{"pull", app + ":1"}, "Status: Downloaded newer image"},
				{other, []string{"run", "--rm", "--network", "none", app + ":1", "echo", "pulled after a push"}, "pulled after a push"},
				{other, []string{"rmi", app + ":1"}, "Untagged"},
			} {
				if out, err := step.run(step.args...); err != nil || !strings.Contains(out, step.want) {
					t.Fatalf("%v: %v, want %q\n%s", step.args, err, step.want, out)
				}
			}
			if out, err := run("pull", app+":nosuch"); err == nil || !strings.Contains(out, "not found") {
				t.Errorf("an unknown tag: %v %s", err, out)
			}
			mustEscale(t, "registry", "rm", "-r", addr, "lab/"+client+":1")
		})
	}
	if got := mustEscale(t, "registry", "gc", "-r", addr, "--untagged", "--grace", "0s"); !strings.Contains(got, "(0 blobs stay)") {
		t.Errorf("gc: %s", got)
	}
}

// `escale registry serve` with users, without an engine and without root's engine.
func TestRegistryServe(t *testing.T) {
	needs(t)
	addr, dir := freePort(t), t.TempDir()
	file := filepath.Join(dir, "htpasswd")
	for _, password := range []string{"old\n", "secret\n"} {
		if out, err := escaleRun(t, password, "registry", "passwd", file, "ann"); err != nil {
			t.Fatalf("passwd: %v %s", err, out)
		}
	}
	if out, err := escaleRun(t, "", "registry", "passwd", file, "ann"); err == nil {
		t.Errorf("an empty password: %s", out)
	}
	if out, err := escaleRun(t, "", "registry", "serve", "--addr", "0.0.0.0:0", "--root", dir); err == nil || !strings.Contains(out, "without TLS only loopback") {
		t.Errorf("plain HTTP for everybody: %v %s", err, out)
	}
	var said bytes.Buffer
	cmd := exec.Command(filepath.Join(harness.BinDir(), "escale"), "registry", "serve", "--addr", addr, "--root", filepath.Join(dir, "root"), "--htpasswd", file)
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		if err := cmd.Wait(); err != nil {
			t.Errorf("serve ended: %v\n%s", err, said.String())
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience(10*time.Second))
	defer cancel()
	for {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		if err == nil {
			c.Close()
			break
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if status, _, _ := fetch(t, fmt.Sprintf("http://ann:secret@%s/v2/", addr)); status != 200 {
		t.Errorf("with the password: %d", status)
	}
	if status, _, _ := fetch(t, fmt.Sprintf("http://ann:old@%s/v2/", addr)); status != 401 {
		t.Errorf("with the old password: %d", status)
	}
	if status, _, b := fetch(t, "http://"+addr+"/healthz"); status != 200 || !strings.Contains(string(b), "up") {
		t.Errorf("health: %d %s", status, b)
	}
	if out, err := escaleRun(t, "", "registry", "ls", "-r", addr); err == nil || !strings.Contains(out, "escale login") {
		t.Errorf("ls without a login: %v %s", err, out)
	}
}

package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
	"escale.dev/escale/test/testregistry"
)

// cli runs a command line with a configuration of its own.
func cli(t *testing.T, path, host, dir string) func(args ...string) (string, error) {
	t.Helper()
	return func(args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(time.Minute))
		defer cancel()
		cmd := exec.CommandContext(ctx, path, args...)
		cmd.Env = append(os.Environ(), "DOCKER_HOST="+host, "DOCKER_CONFIG="+dir, "HOME="+dir, "DOCKER_CLI_HINTS=false")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
}

// An image goes to a registry and comes back, by each client; what goes wrong is
// said as Docker says it.
func TestPullAndPush(t *testing.T) {
	e := start(t, harness.Options{})
	for name, path := range clients() {
		t.Run(name, func(t *testing.T) {
			reg := testregistry.New(t)
			run := cli(t, path, e.Host(), t.TempDir())
			ok := func(want string, args ...string) string {
				t.Helper()
				out, err := run(args...)
				if err != nil || !regexp.MustCompile(want).MatchString(out) {
					t.Fatalf("%s: %v\n%s\nwant %s", strings.Join(args, " "), err, out, want)
				}
				return out
			}
			refused := func(want string, args ...string) {
				t.Helper()
				out, err := run(args...)
				if err == nil || !strings.Contains(out, want) {
					t.Errorf("%s: %v\n%s\nwant %s", strings.Join(args, " "), err, out, want)
				}
			}
			app := reg.Host() + "/team/app"
			refused("An image does not exist locally with the tag: "+app, "push", app+":1")
			ok("", "tag", image, app+":1")
			refused("tag does not exist: "+app+":2", "push", app+":2")
			out := ok(`The push refers to repository \[`+app+`\]`, "push", app+":1")
			digest := regexp.MustCompile(`1: digest: (sha256:[0-9a-f]{64}) size: \d+`).FindStringSubmatch(out)
			if digest == nil || !strings.Contains(out, ": Pushed") {
				t.Fatalf("push said\n%s", out)
			}
			if out := ok("Layer already exists", "push", app+":1"); !strings.Contains(out, digest[1]) {
				t.Errorf("pushed again it is another image:\n%s", out)
			}
			ok("", "tag", image, reg.Host()+"/team/other:1")
			ok("Mounted from team/app", "push", reg.Host()+"/team/other:1")
			id := ok("sha256", "inspect", "-f", "{{.Id}}", app+":1")
			ok(app+"@"+digest[1], "inspect", "-f", "{{.RepoDigests}}", app+":1")
			ok("", "rmi", app+":1", reg.Host()+"/team/other:1")

			// It is another image for the engine when nothing of it is there any more.
			pristine := startSecond(t)
			run = cli(t, path, pristine.Host(), t.TempDir())
			out = ok(`Status: Downloaded newer image for `+app+`:1`, "pull", app+":1")
			for _, line := range []string{"1: Pulling from team/app", ": Pulling fs layer", ": Download complete", ": Pull complete", "Digest: " + digest[1], app + ":1\n"} {
				if !strings.Contains(out, line) {
					t.Errorf("pull does not say %q:\n%s", line, out)
				}
			}
			if got := ok("sha256", "inspect", "-f", "{{.Id}}", app+":1"); got != id {
				t.Errorf("pulled %s, pushed %s", got, id)
			}
			ok(`^hello\s*$`, "run", "--rm", app+":1", "echo", "hello")
			blobs := reg.Count("GET blobs")
			ok(`Status: Image is up to date for `+app+`:1`, "pull", app+":1")
			if got := ok(`^\S+\s*$`, "pull", "-q", app+"@"+digest[1]); got != app+"@"+digest[1]+"\n" {
				t.Errorf("pull -q by digest: %q", got)
			}
			if n := reg.Count("GET blobs"); n != blobs {
				t.Errorf("pulled again: %d blobs fetched", n-blobs)
			}
			ok(`<none>|1 `, "images", "--digests", app)
			ok("", "rmi", "-f", app+":1")
			ok(`(?s)Unable to find image '`+app+`:1' locally.*Downloaded newer image.*\nhi`, "run", "--rm", app+":1", "echo", "hi")
			ok(`(?s)Pulling from team/app.*\nhi`, "run", "--rm", "--pull", "always", app+":1", "echo", "hi")
			refused("No such image: "+app+":9", "run", "--rm", "--pull", "never", app+":9")

			refused("manifest for "+app+":nosuch not found: manifest unknown: manifest unknown", "pull", app+":nosuch")
			refused("connect: connection refused", "pull", "127.0.0.1:1/x")
			refused("tag can't be used with --all-tags/-a", "pull", "-a", app+":1")
			refused("does not match the specified platform: wanted linux/s390x", "pull", "--platform", "linux/s390x", app+":1")
			for _, tag := range []string{"2", "3", "4"} {
				reg.PutManifest("team/app", tag, "application/vnd.oci.image.manifest.v1+json", reg.Manifest("team/app", "1"))
			}
			ok("Downloaded newer image for "+app, "pull", "-a", app)
			ok("(?s)"+app+":4", "images", "--format", "{{.Repository}}:{{.Tag}}")
			ok("(?s)1: digest: .*4: digest: ", "push", "-a", app)
		})
	}
}

// startSecond is another engine, without images.
func startSecond(t *testing.T) *harness.Engine {
	t.Helper()
	e, err := harness.New(harness.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Errorf("clean-up: %v", err)
		}
	})
	if err := e.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return e
}

// A registry that asks who one is gets that from config.json; without it is
// refused as with Docker.
func TestPullWithLogin(t *testing.T) {
	e := start(t, harness.Options{})
	for name, path := range clients() {
		for _, tokens := range []bool{false, true} {
			reg := testregistry.New(t)
			reg.Protect("ann", "secret", tokens)
			dir := t.TempDir()
			run := cli(t, path, e.Host(), dir)
			app := reg.Host() + "/private/app:1"
			if out, err := run("tag", image, app); err != nil {
				t.Fatal(out)
			}
			want := "no basic auth credentials"
			if tokens {
				want = "unauthorized: "
			}
			for _, verb := range []string{"pull", "push"} {
				if out, err := run(verb, app); err == nil || !strings.Contains(out, want) || strings.Contains(out, "interactive") {
					t.Errorf("%s tokens=%v %s without a login: %v %s", name, tokens, verb, err, out)
				}
			}
			cmd := exec.Command(path, "login", "-u", "ann", "--password-stdin", reg.Host())
			cmd.Env, cmd.Stdin = append(os.Environ(), "DOCKER_HOST="+e.Host(), "DOCKER_CONFIG="+dir), strings.NewReader("secret")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("login: %s", out)
			}
			for _, verb := range []string{"push", "pull"} {
				if out, err := run(verb, app); err != nil {
					t.Errorf("%s tokens=%v %s: %s", name, tokens, verb, out)
				}
			}
			if out, err := run("rmi", app); err != nil {
				t.Error(out)
			}
		}
	}
}

// The engine tells what a registry has, and what it did with it.
func TestDistributionAndSearch(t *testing.T) {
	e := start(t, harness.Options{})
	reg := testregistry.New(t)
	run := cli(t, filepath.Join(harness.BinDir(), "escale"), e.Host(), t.TempDir())
	app := reg.Host() + "/d/app:1"
	for _, args := range [][]string{{"tag", image, app}, {"push", app}} {
		if out, err := run(args...); err != nil {
			t.Fatal(out)
		}
	}
	api := e.API()
	defer api.Close()
	var found struct {
		Descriptor struct{ MediaType, Digest string }
		Platforms  []struct{ OS, Architecture string }
	}
	if err := api.Do(t.Context(), "GET", "/distribution/"+app+"/json", nil, &found); err != nil {
		t.Fatal(err)
	}
	if len(found.Platforms) != 1 || found.Platforms[0].OS != "linux" || !strings.HasPrefix(found.Descriptor.Digest, "sha256:") {
		t.Errorf("distribution: %+v", found)
	}
	if err := api.Do(t.Context(), "GET", "/distribution/"+reg.Host()+"/d/app:2/json", nil, nil); harness.Status(err) != 404 {
		t.Errorf("what is not there: %v", err)
	}
	want := app + " " + reg.Host() + "/d/app\n"
	for end := time.Now().Add(harness.Patience(5 * time.Second)); ; time.Sleep(100 * time.Millisecond) {
		out, err := run("events", "--since", "60s", "--until", "0s", "--filter", "event=push", "--format", "{{.Actor.ID}} {{.Actor.Attributes.name}}")
		if err == nil && out == want {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("event: %v %q, want %q", err, out, want)
		}
	}
	searchIn(t, reg, run)
	if out, err := run("search", "127.0.0.1:1/x"); err == nil || !strings.Contains(out, "connection refused") {
		t.Errorf("search where nobody is: %v %s", err, out)
	}
}

// searchIn searches in a registry that can be searched.
func searchIn(t *testing.T, reg *testregistry.Registry, run func(...string) (string, error)) {
	t.Helper()
	reg.Found = []map[string]any{
		{"name": "team/one", "description": "the first", "star_count": 7, "is_official": true},
		{"name": "team/two", "description": "the second", "star_count": 1},
	}
	out, err := run("search", reg.Host()+"/team")
	if err != nil || !regexp.MustCompile(`(?s)NAME +DESCRIPTION +STARS +OFFICIAL\nteam/one +the first +7 +\[OK\]\nteam/two +the second +1`).MatchString(out) {
		t.Errorf("search: %v\n%s", err, out)
	}
	if out, err := run("search", "--filter", "stars=3", "--format", "{{.Name}}", reg.Host()+"/team"); err != nil || out != "team/one\n" {
		t.Errorf("search with stars: %v\n%s", err, out)
	}
	if out, err := run("search", "--limit", "101", reg.Host()+"/x"); err == nil || !strings.Contains(out, "outside the range of [1, 100]") {
		t.Errorf("limit: %v %s", err, out)
	}
}

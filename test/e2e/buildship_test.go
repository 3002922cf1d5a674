package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
	"escale.dev/escale/test/testregistry"
)

// TestBuildShip: results and caches go to a registry and come from there, with
// a login, and by the engine's mirrors.
func TestBuildShip(t *testing.T) {
	mirror := testregistry.New(t)
	eachBuilder(t, harness.Options{Args: []string{"--registry-mirror", mirror.URL}}, func(ctx context.Context, t *testing.T, e *harness.Engine, b *building) {
		api := e.API()
		defer api.Close()
		reg := testregistry.New(t)
		reg.Protect("me", "secret", false)
		ok := func(args ...string) string {
			t.Helper()
			out, err := b.run(args...)
			if err != nil {
				t.Fatalf("build %v: %v\n%s", args, err, out)
			}
			return out
		}
		// The layer of the image that stays is kept packed with it, once it was pushed.
		b.write(t, from+"RUN true\n")
		ok("-t", mirror.Host()+"/warm/"+b.name+":1", "--push", ".")
		clean(t, e)
		if err := e.Mark(); err != nil {
			t.Fatal(err)
		}
		base := reg.Host() + "/team/base:1"
		b.write(t, from+"RUN echo base > /base\n")
		if out, err := b.run("-t", base, "--push", "."); err == nil || !strings.Contains(out, "401") && !strings.Contains(strings.ToLower(out), "auth") {
			t.Errorf("pushed without a login: %v\n%s", err, out)
		}
		login := b.cmd("login", "-u", "me", "--password-stdin", reg.Host())
		login.Stdin = strings.NewReader("secret")
		if out, err := login.CombinedOutput(); err != nil {
			t.Fatalf("login: %v\n%s", err, out)
		}
		ok("-t", base, "--push", ".")
		if reg.Manifest("team/base", "1") == nil {
			t.Fatal("--push: the registry has no such image")
		}
		// The cache goes there by itself and in an image, and comes from there.
		cache := reg.Host() + "/team/cache:1"
		b.write(t, "FROM "+base+"\nRUN date +%N > /n\nCMD [\"cat\",\"/base\",\"/n\"]\n")
		ok("-t", "here", "--cache-to", "type=registry,mode=max,ref="+cache, ".")
		want := runImage(ctx, t, api, "here")
		ok("-t", reg.Host()+"/team/inline:1", "--output", "type=image,push=true", "--cache-to", "type=inline", ".")
		for _, from := range []string{"type=registry,ref=" + cache, reg.Host() + "/team/inline:1"} {
			clean(t, e)
			out := ok("-t", "again", "--cache-from", from, ".")
			if got := runImage(ctx, t, api, "again"); got != want || !strings.HasPrefix(got, "base\n") {
				t.Errorf("--cache-from %s: the image says %q, the first one said %q; what was said:\n%s", from, got, want, out)
			}
		}
		platforms(t, reg, b)
		// A name of Docker Hub comes from the mirror.
		name := "team-" + b.name + "/mirrored"
		b.write(t, "FROM "+base+"\nCMD [\"cat\",\"/base\"]\n")
		ok("-t", mirror.Host()+"/"+name+":1", "--push", ".")
		clean(t, e)
		mirror.Reset()
		b.write(t, "FROM "+name+":1\n")
		ok("-t", "frommirror", ".")
		if got := runImage(ctx, t, api, "frommirror"); got != "base\n" || mirror.Count("GET blobs") == 0 {
			t.Errorf("the image of the mirror says %q, after %d requests for blobs", got, mirror.Count("GET blobs"))
		}
	})
}

// TestBuildTokens: a registry whose tokens run out sooner than it says, and that
// does not say so when one has, is asked for another.
func TestBuildTokens(t *testing.T) {
	eachBuilder(t, harness.Options{}, func(ctx context.Context, t *testing.T, e *harness.Engine, b *building) {
		reg := testregistry.New(t)
		reg.Protect("me", "secret", true)
		login := b.cmd("login", "-u", "me", "--password-stdin", reg.Host())
		login.Stdin = strings.NewReader("secret")
		if out, err := login.CombinedOutput(); err != nil {
			t.Fatalf("login: %v\n%s", err, out)
		}
		base := reg.Host() + "/team/base:1"
		b.write(t, from+"RUN echo base > /base\n")
		if out, err := b.run("-t", base, "--push", "."); err != nil {
			t.Fatalf("push: %v\n%s", err, out)
		}
		b.write(t, "FROM "+base+"\nCMD [\"cat\",\"/base\"]\n")
		for range 3 {
			clean(t, e)
			reg.Expire()
			if out, err := b.run("-t", "mine", "."); err != nil {
				t.Fatalf("with a token that has run out: %v\n%s", err, out)
			}
		}
		reg.Expire()
		if out, err := b.run("-t", reg.Host()+"/team/mine:1", "--push", "."); err != nil || reg.Manifest("team/mine", "1") == nil {
			t.Errorf("push with a token that has run out: %v\n%s", err, out)
		}
	})
}

// platforms checks an index of several platforms, in a file.
func platforms(t *testing.T, reg *testregistry.Registry, b *building) {
	t.Helper()
	b.write(t, "FROM scratch\nARG TARGETARCH\nCOPY f-$TARGETARCH /f\n")
	for _, arch := range []string{"amd64", "arm64"} {
		if err := os.WriteFile(filepath.Join(b.dir, "f-"+arch), []byte(arch), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out, err := b.run("--platform", "linux/amd64,linux/arm64", "--output", "type=oci,dest=many.tar", ".")
	if err != nil {
		t.Fatalf("--platform of two: %v\n%s", err, out)
	}
	data, err := os.ReadFile(filepath.Join(b.dir, "many.tar"))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if err != nil {
			break
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
	var index struct {
		Manifests []struct {
			Digest   string
			Platform struct{ OS, Architecture string }
		}
	}
	if err := json.Unmarshal(files["index.json"], &index); err != nil || len(index.Manifests) != 1 {
		t.Fatalf("index.json: %v %s", err, files["index.json"])
	}
	inner := files["blobs/sha256/"+strings.TrimPrefix(index.Manifests[0].Digest, "sha256:")]
	if err := json.Unmarshal(inner, &index); err != nil || len(index.Manifests) < 2 || index.Manifests[0].Platform.Architecture != "amd64" || index.Manifests[1].Platform.Architecture != "arm64" {
		t.Errorf("the index of two platforms: %v %s", err, inner)
	}
}

// agentKeys prints how many keys the agent has that a step was given.
const agentKeys = `package main
import ("fmt"; "io"; "net"; "os")
func main() {
	c, err := net.Dial("unix", os.Getenv("SSH_AUTH_SOCK"))
	if err != nil { fmt.Println(err); os.Exit(1) }
	c.Write([]byte{0, 0, 0, 1, 11})
	var b [9]byte
	if _, err := io.ReadFull(c, b[:]); err != nil { fmt.Println(err); os.Exit(1) }
	fmt.Println(b[4], b[8])
}
`

// TestBuildSSH: a step reaches the client's agent, and keys from files.
func TestBuildSSH(t *testing.T) {
	for _, p := range []string{"ssh-agent", "ssh-add", "ssh-keygen", "go"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skip("needs OpenSSH's agent and go: ", err)
		}
	}
	eachBuilder(t, harness.Options{}, func(ctx context.Context, t *testing.T, e *harness.Engine, b *building) {
		api := e.API()
		defer api.Close()
		if err := os.WriteFile(filepath.Join(b.dir, "main.go"), []byte(agentKeys), 0o644); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"go", "build", "-o", "keys", "main.go"}, {"ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "k"}} {
			cmd := exec.CommandContext(ctx, args[0], args[1:]...)
			cmd.Dir, cmd.Env = b.dir, append(os.Environ(), "CGO_ENABLED=0", "GO111MODULE=off")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %v\n%s", args, err, out)
			}
		}
		sock := filepath.Join(b.dir, "agent")
		agent := exec.CommandContext(ctx, "ssh-agent", "-D", "-a", sock)
		if err := agent.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			_ = agent.Process.Kill()
			_ = agent.Wait()
		}()
		for end := time.Now().Add(harness.Patience(10 * time.Second)); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if _, err := os.Stat(sock); err == nil {
				break
			}
		}
		add := exec.CommandContext(ctx, "ssh-add", filepath.Join(b.dir, "k"))
		add.Env = append(os.Environ(), "SSH_AUTH_SOCK="+sock)
		if out, err := add.CombinedOutput(); err != nil {
			t.Fatalf("ssh-add: %v\n%s", err, out)
		}
		b.env = append(b.env, "SSH_AUTH_SOCK="+sock)
		if err := os.WriteFile(filepath.Join(b.dir, ".dockerignore"), []byte("*\n!keys\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct{ name, mount, option string }{
			{"agent", "type=ssh", "default"}, {"file", "type=ssh,id=mine", "mine=k"},
		} {
			b.write(t, from+"COPY keys /\nRUN --mount="+c.mount+" /keys > /n\nRUN --mount=type=ssh,id=none true; ls -d /run/buildkit >> /n 2>&1 || true\nCMD [\"head\",\"-n1\",\"/n\"]\n")
			tag := "ssh-" + c.name
			if out, err := b.run("-t", tag, "--ssh", c.option, "."); err != nil {
				t.Errorf("--ssh %s: %v\n%s", c.option, err, out)
			} else if got := runImage(ctx, t, api, tag); got != "12 1\n" { // the answer to "which keys", and one
				t.Errorf("--ssh %s: the agent's answer is %q", c.option, got)
			}
		}
		b.write(t, from+"COPY keys /\nRUN --mount=type=ssh,required=true /keys\n")
		if out, err := b.run("."); err == nil || !strings.Contains(out, "ssh") {
			t.Errorf("without --ssh: %v\n%s", err, out)
		}
	})
}

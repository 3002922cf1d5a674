package e2e

import (
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"escale.dev/escale/test/internal/harness"
	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
)

// TestRegistryInBucket: the engine's own registry keeps its content in a bucket;
// what is wrong about it is said at start.
func TestRegistryInBucket(t *testing.T) {
	backend := s3mem.New()
	if err := backend.CreateBucket("images"); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(gofakes3.New(backend).Server())
	defer srv.Close()
	creds := filepath.Join(t.TempDir(), "credentials")
	if err := os.WriteFile(creds, []byte("[default]\naws_access_key_id = a\naws_secret_access_key = b\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	addr := freePort(t)
	s3 := []string{"--registry-s3", srv.URL + "/images/lab", "--registry-s3-credentials", creds}
	e := start(t, harness.Options{Args: append([]string{"--registry", addr}, s3...)})
	for client, path := range clients() {
		run, name := cli(t, path, e.Host(), t.TempDir()), addr+"/lab/"+client+":1"
		for _, args := range [][]string{{"tag", image, name}, {"push", name}, {"rmi", name}, {"pull", name}, {"run", "--rm", "--network", "none", name, "true"}, {"rmi", name}} {
			if out, err := run(args...); err != nil {
				t.Fatalf("%s %v: %v\n%s", client, args, err, out)
			}
		}
		mustEscale(t, "registry", "rm", "-r", addr, "lab/"+client+":1")
	}
	if got := mustEscale(t, "registry", "gc", "-r", addr, "--untagged", "--grace", "0s"); !strings.Contains(got, "(0 blobs stay)") {
		t.Errorf("gc: %s", got)
	}
	for want, args := range map[string][]string{
		"want http(s)://ENDPOINT/BUCKET": {"--s3", "s3://images"}, "no bucket is named": {"--s3-region", "here"}, "credentials": {"--s3", "https://h/b", "--s3-credentials", "/nowhere"},
		"without TLS only loopback": {"--s3", "http://192.0.2.1/b"},
	} {
		cmd := exec.CommandContext(t.Context(), filepath.Join(harness.BinDir(), "escale"), append([]string{"registry", "serve", "--addr", "127.0.0.1:0", "--root", t.TempDir()}, args...)...)
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), want) {
			t.Errorf("%v: %v, want %q in %s", args, err, want, out)
		}
	}
}

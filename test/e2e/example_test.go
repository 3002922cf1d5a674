package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
)

// TestCounter does the exercise of examples/moby-counter: a page and its store, which
// find each other by name; the store is made anew, taken off the network and put back.
func TestCounter(t *testing.T) {
	for _, client := range []string{"escale", "docker"} {
		t.Run(client, func(t *testing.T) {
			e := start(t, harness.Options{})
			t.Setenv("PATH", harness.BinDir()+":"+os.Getenv("PATH"))
			_, port, _ := strings.Cut(freePort(t), ":")
			ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(3*time.Minute))
			defer cancel()
			run := func(name string, args ...string) string {
				t.Helper()
				cmd := exec.CommandContext(ctx, name, args...)
				cmd.Dir = "../.."
				cmd.Env = append(os.Environ(), "PORT="+port, "DOCKER_HOST="+e.Host(), "ESCALE_HOST="+e.Host())
				out, err := cmd.CombinedOutput()
				if err != nil {
					t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
				}
				return string(out)
			}
			page := func(method, path, body string) (int, string) {
				req, err := http.NewRequestWithContext(ctx, method, "http://127.0.0.1:"+port+path, strings.NewReader(body))
				if err != nil {
					t.Fatal(err)
				}
				res, err := http.DefaultClient.Do(req)
				if err != nil {
					return 0, err.Error()
				}
				defer res.Body.Close()
				b, err := io.ReadAll(res.Body)
				if err != nil {
					return 0, err.Error()
				}
				return res.StatusCode, string(b)
			}
			shows := func(after string, code int, want string) {
				t.Helper()
				var got string
				for end := time.Now().Add(harness.Patience(20 * time.Second)); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
					var is int
					if is, got = page("GET", "/clicks", ""); is == code && strings.Contains(got, want) {
						return
					}
				}
				t.Fatalf("after %s the clicks are %q, want %d %q", after, got, code, want)
			}
			run("examples/moby-counter/run.sh", client)
			shows("the start", 200, "[]")
			for i := range 3 {
				if code, text := page("POST", "/clicks", fmt.Sprintf(`{"x":%d,"y":7}`, i)); code != 200 {
					t.Fatalf("click: %d %s", code, text)
				}
			}
			shows("three clicks", 200, `{"x":2,"y":7}]`)
			run(client, "rm", "-f", "redis")
			shows("the store went", 502, "store")
			run(client, "run", "-d", "--name", "redis", "--network", "moby-counter", "-v", "redis_data:/data", "moby-counter-store")
			shows("a new store", 200, `{"x":2,"y":7}]`)
			run(client, "network", "disconnect", "moby-counter", "redis")
			shows("the store was taken off", 502, "store")
			run(client, "network", "connect", "moby-counter", "redis")
			shows("it was put back", 200, `{"x":2,"y":7}]`)
			run("examples/moby-counter/run.sh", "down", client)
			if left := run(client, "network", "ls", "-q", "--filter", "type=custom") + run(client, "ps", "-aq") + run(client, "volume", "ls", "-q"); left != "" {
				t.Errorf("left: %s", left)
			}
		})
	}
}

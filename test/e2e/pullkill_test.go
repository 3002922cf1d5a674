package e2e

import (
	"bytes"
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
	"escale.dev/escale/test/testregistry"
)

// An engine that is killed amid a pull has nothing of it when it is there again,
// and pulls.
func TestPullEngineKilled(t *testing.T) {
	e := start(t, harness.Options{})
	reg := testregistry.New(t)
	run := cli(t, filepath.Join(harness.BinDir(), "escale"), e.Host(), t.TempDir())
	must := func(args ...string) string {
		t.Helper()
		out, err := run(args...)
		if err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return out
	}
	app := reg.Host() + "/k/app:1"
	must("tag", image, app)
	must("push", app)
	must("rmi", "-f", app, image)
	collected(t, e)
	if err := e.Mark(); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		amid := make(chan struct{})
		var once sync.Once
		reg.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") || !large(reg, r) {
				return false
			}
			data := reg.Blob("k/app", r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:])
			_, _ = bytes.NewReader(data[:len(data)/2]).WriteTo(w)
			w.(http.Flusher).Flush()
			once.Do(func() { close(amid) })
			<-r.Context().Done()
			return true
		})
		ended := make(chan error, 1)
		go func() { _, err := run("pull", app); ended <- err }()
		select {
		case <-amid:
		case <-time.After(harness.Patience(20 * time.Second)):
			t.Fatal("no layer was asked for")
		}
		time.Sleep(20 * time.Millisecond)
		if err := e.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err == nil {
			t.Error("the pull went well without an engine")
		}
		ctx, cancel := context.WithTimeout(t.Context(), harness.Patience(30*time.Second))
		if err := e.Start(ctx); err != nil {
			t.Fatal(err)
		}
		cancel()
		if out := must("images", "-aq"); out != "" {
			t.Errorf("images after the kill: %s", out)
		}
	}
	reg.SetFault(nil)
	must("pull", app)
	if out := must("run", "--rm", app, "echo", "well"); out != "well\n" {
		t.Errorf("it runs as %q", out)
	}
	must("rmi", app)
	noLeaks(t, e)
}

// collected waits until an engine without images has no blobs.
func collected(t *testing.T, e *harness.Engine) {
	t.Helper()
	for end := time.Now().Add(harness.Patience(20 * time.Second)); ; time.Sleep(50 * time.Millisecond) {
		list, err := os.ReadDir(filepath.Join(e.DataRoot, "content", "blobs", "sha256"))
		if err == nil && len(list) == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d blobs are not collected, %v", len(list), err)
		}
	}
}

// large tells the layer from the config.
func large(reg *testregistry.Registry, r *http.Request) bool {
	return len(reg.Blob("k/app", r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:])) > 10_000
}

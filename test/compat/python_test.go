// Package compat drives an engine with clients that others wrote and
// distributions ship: what they expect of Docker, they must find.
package compat

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
)

// image is what the clients make containers of.
const image = "compat:base"

// start starts an engine that has image and goes away with t.
func start(t *testing.T) *harness.Engine {
	t.Helper()
	if why := harness.Needs(); why != "" {
		t.Skip(why)
	}
	if err := harness.Sweep(); err != nil {
		t.Logf("left by an earlier run: %v", err)
	}
	e, err := harness.New(harness.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Errorf("clean-up: %v", err)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := e.Start(ctx); err != nil {
		t.Fatal(err)
	}
	tar, err := harness.BusyboxTar()
	if err != nil {
		t.Fatal(err)
	}
	api := e.API()
	defer api.Close()
	if err := api.Import(ctx, "compat", "base", bytes.NewReader(tar)); err != nil {
		t.Fatal(err)
	}
	return e
}

// noLeaks compares with the baseline taken before the client worked.
func noLeaks(t *testing.T, e *harness.Engine) {
	t.Helper()
	left, err := e.Leaks(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if !left.Empty() {
		t.Errorf("left behind:\n%s", left)
	}
}

// result is a line in which unittest tells how a test went.
var result = regexp.MustCompile(`(?m)^(test_\w+) \(([\w.]+)\) \.\.\. (?s:.*?)(ok|FAIL|ERROR|skipped .*)$`)

// TestDebianPython runs testdata/docker_py.py with Debian's python3-docker.
func TestDebianPython(t *testing.T) {
	const python = "/usr/bin/python3" // Debian's own, whatever else is on the PATH
	if out, err := exec.Command(python, "-c", "import docker").CombinedOutput(); err != nil {
		t.Skipf("needs Debian's python3-docker: %v: %s", err, bytes.TrimSpace(out))
	}
	e := start(t)
	builtOnce(t, e)
	if err := e.Mark(); err != nil {
		t.Fatal(err)
	}
	scratch := t.TempDir()
	if err := errors.Join(os.Chmod(scratch, 0o777), os.WriteFile(filepath.Join(scratch, "f"), []byte("from the host\n"), fs.ModePerm),
		os.Chmod(filepath.Join(scratch, "f"), fs.ModePerm)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, python, "testdata/docker_py.py", "-v")
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+e.Host(), "IMAGE="+image, "SCRATCH="+scratch, "PYTHONDONTWRITEBYTECODE=1", "PYTHONWARNINGS=ignore")
	out, err := cmd.CombinedOutput()
	tests := result.FindAllSubmatch(out, -1)
	if len(tests) == 0 {
		t.Fatalf("no test ran: %v\n%s", err, out)
	}
	for _, m := range tests {
		t.Run(string(m[1]), func(t *testing.T) {
			if s := string(m[3]); s == "FAIL" || s == "ERROR" {
				t.Errorf("%s: %s, see below", m[2], s)
			}
		})
	}
	if err != nil {
		t.Errorf("%v\n%s\nthe engine said last:\n%s", err, out, e.Tail(3000))
	}
	emptyCache(t, e)
	noLeaks(t, e)
}

// builtOnce lets the engine build, so that what a builder has is no leak.
func builtOnce(t *testing.T, e *harness.Engine) {
	t.Helper()
	api := e.API()
	defer api.Close()
	st, b, err := api.Raw(t.Context(), "POST", "/build?t=first", strings.NewReader("FROM "+image+"\nRUN true\n"))
	if err != nil || st != 200 || bytes.Contains(b, []byte("errorDetail")) {
		t.Fatalf("build: %d %s %v", st, b, err)
	}
	if err := api.Do(t.Context(), "DELETE", "/images/first?force=1", nil, nil); err != nil {
		t.Fatal(err)
	}
	emptyCache(t, e)
}

// emptyCache prunes the build cache; what a build that ended just now has used is
// let go of a moment later.
func emptyCache(t *testing.T, e *harness.Engine) {
	t.Helper()
	api := e.API()
	defer api.Close()
	for end := time.Now().Add(harness.Patience(10 * time.Second)); ; time.Sleep(50 * time.Millisecond) {
		var usage struct{ BuildCache []any }
		if err := errors.Join(api.Do(t.Context(), "POST", "/build/prune?all=1", nil, nil),
			api.Do(t.Context(), "GET", "/v1.50/system/df?type=build-cache", nil, &usage)); err != nil {
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

package compat

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// composeFile has what needs no network of its own.
const composeFile = `version: "2.4"
services:
  web:
    image: ` + image + `
    network_mode: bridge
    command: sh -c "echo up $$WORD; trap 'exit 0' TERM; while :; do sleep 0.1; done"
    environment: {WORD: hello}
    volumes: ["./shared:/shared"]
  job:
    image: ` + image + `
    network_mode: none
    depends_on: [web]
    command: sh -c "echo job; cat /shared/f; exit 3"
    volumes_from: [web]
`

// TestDebianCompose drives Debian's docker-compose 1.29, which is built on
// docker-py, through the life of a project.
func TestDebianCompose(t *testing.T) {
	const compose = "/usr/bin/docker-compose"
	if out, err := exec.Command(compose, "version", "--short").CombinedOutput(); err != nil || !bytes.HasPrefix(out, []byte("1.")) {
		t.Skipf("needs Debian's docker-compose 1.29: %v: %s", err, bytes.TrimSpace(out))
	}
	e := start(t)
	if err := e.Mark(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "docker-compose.yml"), []byte(composeFile), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "shared"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "shared", "f"), []byte("shared\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	run := func(want string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(ctx, compose, append([]string{"-p", "proj", "--ansi", "never"}, args...)...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "DOCKER_HOST="+e.Host(), "PYTHONWARNINGS=ignore")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) {
			t.Fatalf("docker-compose %s: %v, want %q in\n%s", strings.Join(args, " "), err, want, out)
		}
		return string(out)
	}
	run("Creating proj_web_1", "up", "-d")
	for end := time.Now().Add(20 * time.Second); !strings.Contains(run("proj_web_1", "ps"), "Exit 3"); {
		if time.Now().After(end) {
			t.Fatalf("job did not end with 3:\n%s", run("", "ps", "-a"))
		}
	}
	if out := run("job_1  | shared", "logs", "--no-color"); !strings.Contains(out, "web_1  | up hello") {
		t.Errorf("logs: %s", out)
	}
	run("proj_web_1 is up-to-date", "up", "-d", "web")
	run("inside", "exec", "-T", "web", "echo", "inside")
	run("sleep", "top", "web")
	run("", "restart", "-t", "1", "web")
	run("Up", "ps", "web")
	run("", "stop", "-t", "5", "web")
	run("Exit 0", "ps", "web")
	run("once", "run", "--rm", "--no-deps", "web", "echo", "once")
	run("Removing proj_web_1", "down", "-t", "1", "-v")
	if out := run("", "ps", "-q"); strings.TrimSpace(out) != "" {
		t.Errorf("after down: %s", out)
	}
	noLeaks(t, e)
}

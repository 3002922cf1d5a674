package cluster

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
	"github.com/moby/moby/api/types/swarm"
)

// command runs a command line of escale at a node, and gives what it printed.
func (s *site) command(n string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(s.Context(), harness.Patience(time.Minute))
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(harness.BinDir(), "escale"), append([]string{"-H", s.nodes[n].Socket}, args...)...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=", "ESCALE_HOST=")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	return strings.TrimSpace(out.String()), nil
}

// TestBackup: all managers lose what they know; one becomes the cluster again, from a backup. The
// worker comes to it by itself, and its container has run all the time; services have their
// tasks, and their secret.
func TestBackup(t *testing.T) {
	s := newSite(t, 3, 2)
	const secret = "a secret of the cluster"
	var made struct{ ID string }
	s.must("n1", http.MethodPost, "/secrets/create", swarm.SecretSpec{Annotations: swarm.Annotations{Name: "key"}, Data: []byte(secret)}, &made)
	spec := service("web", "sleep 100000 & trap exit TERM; wait", swarm.ServiceMode{Global: &swarm.GlobalService{}})
	spec.TaskTemplate.ContainerSpec.Secrets = []*swarm.SecretReference{{SecretID: made.ID, SecretName: "key", File: &swarm.SecretReferenceFileTarget{Name: "key", UID: "0", GID: "0", Mode: 0o400}}}
	s.create("n1", spec)
	s.running("n1", "web", 3)
	runs := func() string {
		out, err := s.command("n3", "ps", "-q", "--no-trunc")
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	worker := runs()
	list, err := s.members("n1")
	if err != nil {
		t.Fatal(err)
	}
	third := list["n3"].ID

	dir := t.TempDir()
	phrase, file := filepath.Join(dir, "phrase"), filepath.Join(dir, "backup")
	if err := os.WriteFile(phrase, []byte("correct horse\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.command("n2", "cluster", "backup", "--passphrase-file", phrase, file); err != nil { // who leads is n1
		t.Fatal(err)
	}
	if raw, err := os.ReadFile(file); err != nil || bytes.Contains(raw, []byte(secret)) {
		t.Fatalf("the backup: %d bytes, %v", len(raw), err)
	}
	token, err := s.command("n1", "swarm", "join-token", "-q", "worker")
	if err != nil {
		t.Fatal(err)
	}
	s.must("n1", http.MethodPost, "/configs/create", swarm.ConfigSpec{Annotations: swarm.Annotations{Name: "later"}, Data: []byte("x")}, nil)

	s.dev("kill", "n1", "n2")
	for _, n := range []string{"n1", "n2"} {
		if err := os.RemoveAll(filepath.Join("/var/lib/escale-dev", s.name, n, "data", "cluster")); err != nil {
			t.Fatal(err)
		}
	}
	s.dev("start", "n1")
	if out, err := s.command("n1", "info", "-f", "{{.Swarm.LocalNodeState}}"); out != "inactive" {
		t.Fatalf("n1 is in a cluster: %s %v", out, err)
	}
	at := []string{"--listen-addr", s.nodes["n1"].Address, "--advertise-addr", s.nodes["n1"].Address}
	restore := func(file string) (string, error) {
		return s.command("n1", append(append([]string{"cluster", "restore", "--passphrase-file", phrase}, at...), file)...)
	}
	if _, err := restore(phrase); err == nil || !strings.Contains(err.Error(), "no backup of a cluster") {
		t.Errorf("what is no backup: %v", err)
	}
	begin := time.Now()
	first, err := restore(file)
	if err != nil {
		t.Fatal(err)
	}
	restored := time.Since(begin)
	back := s.till("its tasks run", func() error { return s.reads(secret, first, third) })
	t.Logf("restored in %v, its tasks run %v later", restored.Round(time.Millisecond), back.Round(time.Millisecond))
	if is := runs(); is != worker {
		t.Errorf("the worker ran %q, and runs %q", worker, is)
	}
	if is, err := s.command("n1", "swarm", "join-token", "-q", "worker"); err != nil || is != token {
		t.Errorf("the token: %v", err)
	}
	if out, err := s.command("n1", "config", "ls", "-q"); err != nil || out != "" {
		t.Errorf("what came after the backup is there: %q, %v", out, err)
	}
}

// reads tells whether the service has a task on each of some nodes, in which its secret is.
func (s *site) reads(secret string, nodes ...string) error {
	tasks, err := s.tasks("n1", "web")
	if err != nil {
		return err
	}
	for _, id := range nodes {
		i := slices.IndexFunc(tasks, func(t swarm.Task) bool {
			return t.NodeID == id && t.DesiredState == swarm.TaskStateRunning && t.Status.State == swarm.TaskStateRunning
		})
		if i < 0 {
			return fmt.Errorf("no task runs on %s", id)
		}
		if out, err := s.command("n1", "exec", tasks[i].Status.ContainerStatus.ContainerID, "cat", "/run/secrets/key"); err != nil || out != secret {
			return fmt.Errorf("the secret is %q on %s: %w", out, id, err)
		}
	}
	return nil
}

package daemon

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/apps"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
)

// An engine whose store is damaged comes up and keeps no apps, says so to who asks for
// one, and leaves the file as it is; a good one is opened.
func TestDamagedStore(t *testing.T) {
	spec := cluster.AppSpec{Services: map[string]cluster.ServiceSpec{"web": {
		Mode: cluster.Mode{Replicated: &cluster.Replicated{Replicas: 1}},
		Task: cluster.TaskSpec{Container: &container.Config{Image: "a"}, Host: &container.HostConfig{}},
	}}}
	open := func(t *testing.T, dir string) *Daemon {
		t.Helper()
		d := &Daemon{cfg: &Config{DataRoot: dir}, log: slog.New(slog.DiscardHandler)}
		if err := d.openStore(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = d.Close() })
		return d
	}
	dir := t.TempDir()
	d := open(t, dir)
	if _, err := d.orchestrator.apps.Put(t.Context(), "shop", spec, apps.Put{}); err != nil || d.orchestrator.lost != nil {
		t.Fatalf("a new store: %v, %v", err, d.orchestrator.lost)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(filepath.Join(dir, "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"not a store": []byte(strings.Repeat("garbage ", 4096)),
		"no pages":    make([]byte, 32<<10),
		"heads gone":  append(make([]byte, 8<<10), good[8<<10:]...),
		"cut off":     good[:100],
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "state.db")
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			d := open(t, dir)
			if _, err := d.orchestrator.apps.Put(t.Context(), "shop", spec, apps.Put{}); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "apps are not kept") {
				t.Errorf("put: %v", err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			d.orchestrator.run(ctx)
			if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, data) {
				t.Errorf("the file was changed: %v", err)
			}
		})
	}
}

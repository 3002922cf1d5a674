package e2e

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
)

// TestDamagedState kills an engine, damages every little file it keeps at once, and starts it:
// it comes up, tells which container it left alone, and what runs, volumes' data, logs and images are
// what they were. Mended, the container is there again, and runs.
func TestDamagedState(t *testing.T) {
	e := start(t, harness.Options{})
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(2*time.Minute))
	defer cancel()
	api := e.API()
	defer api.Close()
	server := &syslogServer{}
	server.start(t)
	defer server.stop()
	running := create(t, ctx, api, "running", map[string]any{
		"Image": image, "Cmd": []string{"sh", "-c", "echo up; sleep 1000"},
		"HostConfig": map[string]any{"LogConfig": map[string]any{"Type": "syslog", "Config": map[string]string{"syslog-address": "tcp://" + server.address}}},
	})
	dark := create(t, ctx, api, "dark", map[string]any{
		"Image": image, "Cmd": []string{"sh", "-c", "echo up; sleep 1000"},
		"HostConfig": map[string]any{"Binds": []string{"kept:/kept"}},
	})
	ended := create(t, ctx, api, "ended", map[string]any{"Image": image, "Cmd": []string{"sh", "-c", "echo kept; exit 3"}})
	for _, id := range []string{running, dark, ended} {
		do(t, ctx, api, "POST", "/containers/"+id+"/start", nil, nil)
	}
	do(t, ctx, api, "POST", "/containers/"+ended+"/wait", nil, nil)
	// The address of the container whose record goes, to be reached later.
	inside, err := api.Inspect(ctx, dark)
	if err != nil {
		t.Fatal(err)
	}
	record := filepath.Join(e.DataRoot, "containers", dark, "container.json")
	files := []string{
		filepath.Join(e.DataRoot, "crashes.json"), filepath.Join(e.DataRoot, "engine-id"), filepath.Join(e.DataRoot, "events.jsonl"),
		filepath.Join(e.DataRoot, "volumes", "kept", "volume.json"), filepath.Join(e.DataRoot, "containers", running, "log-position"),
		filepath.Join(e.DataRoot, "containers", ended, "exit-1"), filepath.Join(e.ExecRoot, "containers", running, "1", "network.json"),
		filepath.Join(e.ExecRoot, "containers", running, "1", "paused-for-commit"), record,
	}
	for name, damage := range map[string]func([]byte) []byte{
		"empty":   func([]byte) []byte { return nil },
		"half":    func(b []byte) []byte { return b[:len(b)/2] },
		"zeros":   func(b []byte) []byte { return make([]byte, len(b)) },
		"garbage": func(b []byte) []byte { return bytes.Repeat([]byte{'{', '"', 0xff, '\n'}, len(b)/4+1) },
	} {
		api.Close()
		if err := e.Kill(); err != nil {
			t.Fatal(err)
		}
		whole, err := os.ReadFile(record)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range files {
			b, err := os.ReadFile(path)
			if err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, damage(b), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := e.Start(ctx); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, e.Tail(2000))
		}
		if said := e.Tail(5000); !strings.Contains(said, dark[:12]) || !strings.Contains(said, "volume=kept") {
			t.Errorf("%s: it said\n%s", name, said)
		}
		if c, err := api.Inspect(ctx, running); err != nil || !c.State.Running {
			t.Errorf("%s: what ran: %v, %+v", name, err, c.State)
		}
		if c, err := api.Inspect(ctx, ended); err != nil || c.State.ExitCode != 3 {
			t.Errorf("%s: what had ended: %v, %+v", name, err, c.State)
		}
		if stdout, _, err := api.Logs(ctx, ended); err != nil || string(stdout) != "kept\n" {
			t.Errorf("%s: its log: %q, %v", name, stdout, err)
		}
		if code, err := runTo(ctx, api, map[string]any{"Image": image, "Cmd": []string{"sh", "-c", "touch /kept/x; ping -c1 -W2 " + inside.NetworkSettings.Networks["bridge"].IPAddress},
			"HostConfig": map[string]any{"Binds": []string{"kept:/kept"}}}); err != nil || code != 0 {
			t.Errorf("%s: a new one that looks for the one in the dark: %d, %v", name, code, err)
		}
		api.Close()
		if err := e.Stop(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(record, whole, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := e.Start(ctx); err != nil {
			t.Fatal(err)
		}
		if c, err := api.Inspect(ctx, dark); err != nil || !c.State.Running {
			t.Errorf("%s: mended: %v, %+v", name, err, c.State)
		}
	}
	for _, id := range []string{running, dark, ended} {
		do(t, ctx, api, "DELETE", "/containers/"+id+"?force=1", nil, nil)
	}
	do(t, ctx, api, "DELETE", "/volumes/kept", nil, nil)
	api.Close()
	noLeaks(t, e)
}

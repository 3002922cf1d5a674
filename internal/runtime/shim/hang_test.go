package shim

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/runtime"
)

// An OCI runtime that hangs, in sessions of its own and after losing parents, is
// ended with all that it has started, and so is one that hangs in delete.
func TestRuntimeThatHangs(t *testing.T) {
	dir := t.TempDir()
	pids := filepath.Join(dir, "pids")
	script := filepath.Join(dir, "hang")
	text := `#!/bin/sh
case "$*" in *delete*) exit 0;; esac
setsid sh -c 'echo $$ >>` + pids + `; (setsid sh -c "echo \$\$ >>` + pids + `; exec sleep 3001") & sleep 3002' &
(sh -c 'echo $$ >>` + pids + `; exec sleep 3003' &)
echo $$ >>` + pids + `
wait
sleep 3004
`
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	b := newBox(t, "true", func(b *box) { b.launch.Runtime = runtime.Binary{Path: script} })
	task := b.launchIt()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	started := make(chan error, 1)
	go func() { _, err := task.Start(ctx); started <- err }()
	var list []string
	for end := time.Now().Add(10 * time.Second); len(list) < 4 && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		text, _ := os.ReadFile(pids)
		list = strings.Fields(string(text))
	}
	if len(list) < 4 {
		t.Fatalf("of the runtime's processes only %v are there", list)
	}
	cancel()
	if err := <-started; !errors.Is(err, context.Canceled) {
		t.Errorf("start: %v", err)
	}
	_ = task.Close()
	if err := b.r.Cleanup(ctxFor(t), b.cleanupArgs()); err != nil {
		t.Error(err)
	}
	for _, s := range list {
		pid, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		gone(t, pid)
	}
	b.checkNothingLeft()
}

// One that hangs in update or delete is ended, with its children, also those in
// sessions of their own, and the caller is told.
func TestCallThatHangs(t *testing.T) {
	dir := t.TempDir()
	pids, script := filepath.Join(dir, "pids"), filepath.Join(dir, "hang")
	text := "#!/bin/sh\nsetsid sh -c 'echo $$ >>" + pids + "; exec sleep 3005' &\nwhile [ ! -s " + pids + " ]; do :; done\necho $$ >>" + pids + "\nsleep 3006\n"
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	r := New(Config{})
	r.patience = time.Second
	if os.Getenv("ESCALE_TEST_SLOW") != "" {
		r.patience = 6 * time.Second // for the script to have written both
	}
	hung := runtime.Binary{Path: script}
	for name, call := range map[string]func() error{
		"update": func() error {
			return r.Update(ctxFor(t), runtime.Update{ID: "c1", RunDir: dir, Runtime: hung, Resources: []byte("{}")})
		},
		"delete": func() error {
			return r.deleteByRuntime(ctxFor(t), runtime.Cleanup{ID: "c1", RunDir: dir, Runtime: hung}, dir)
		},
	} {
		begun := time.Now()
		if err := call(); !errors.Is(err, errHung) {
			t.Errorf("%s: %v", name, err)
		}
		if took := time.Since(begun); took > r.patience+7*time.Second {
			t.Errorf("%s took %s", name, took)
		}
		list, _ := os.ReadFile(pids)
		if len(strings.Fields(string(list))) != 2 {
			t.Errorf("%s: of the runtime's processes there were %q", name, list)
		}
		for _, s := range strings.Fields(string(list)) {
			pid, err := strconv.Atoi(s)
			if err != nil {
				t.Fatal(err)
			}
			gone(t, pid)
		}
		if err := os.Remove(pids); err != nil {
			t.Fatal(err)
		}
	}
}

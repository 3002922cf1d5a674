package daemon

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"escale.dev/escale/internal/cluster/executor"
	"escale.dev/escale/internal/container"
)

// A container that is let go keeps its files: they are looked for where they are put.
func TestTaskFilesAreFound(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: a tmpfs")
	}
	d := &Daemon{cfg: &Config{ExecRoot: t.TempDir()}, log: slog.New(slog.DiscardHandler)}
	t.Cleanup(func() { _ = syscall.Unmount(d.taskFiles().dir, syscall.MNT_DETACH) })
	paths, err := newTaskSupplies(d).Files(t.Context(), "t1", []executor.File{{Data: []byte("hush")}})
	if err != nil {
		t.Fatal(err)
	}
	if dir := newTaskContainers(d).(taskContainers).files.of("t1"); dir != filepath.Dir(paths[0]) {
		t.Errorf("%s is not in %s", paths[0], dir)
	}
	if _, err := newTaskSupplies(d).Files(t.Context(), "t1", nil); err != nil {
		t.Fatal(err)
	}
}

// An engine that ends does not wait for a container's.
func TestTaskStopIsLeft(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	deaf := make(chan error)
	defer close(deaf)
	cancel()
	if err := whileWanted(ctx, func() error { return <-deaf }); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := whileWanted(t.Context(), func() error { return container.ErrNotModified }); err != nil {
		t.Error(err)
	}
}

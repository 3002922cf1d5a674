package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
	"golang.org/x/sys/unix"
)

// TestFullDisk gives an engine a small disk, fills it from a container, and
// checks that what cannot be done is refused in clear words, that the engine
// lives, is killed, starts, and that removal gives everything back.
func TestFullDisk(t *testing.T) {
	e, disk := startOn(t, 48)
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(time.Minute))
	defer cancel()
	api := e.API()
	defer api.Close()
	big, err := smallTar(60 << 20)
	if err != nil {
		t.Fatal(err)
	}
	if err := api.Import(ctx, "big", "1", bytes.NewReader(big)); err == nil || !strings.Contains(err.Error(), "no space left on device") {
		t.Errorf("import of more than there is: %v, want no space left on device", err)
	}
	noLeaks(t, e)
	id := create(t, ctx, api, "filler", map[string]any{"Image": image, "Cmd": []string{"sh", "-c", "dd if=/dev/zero of=/fill bs=64k; seq 100000; sleep 300"}})
	do(t, ctx, api, "POST", "/containers/"+id+"/start", nil, nil)
	for i := 0; free(t, disk) > 0 && i < 100; i++ {
		time.Sleep(100 * time.Millisecond)
	}
	time.Sleep(300 * time.Millisecond)
	err = api.Do(ctx, "POST", "/containers/create", map[string]any{"Image": image, "Cmd": []string{"true"}}, nil)
	if err == nil || harness.Status(err) != 500 || !strings.Contains(err.Error(), "no space left on device") {
		t.Errorf("create on a full disk: %v, want 500 no space left on device", err)
	}
	if err := api.Import(ctx, "small", "1", bytes.NewReader(big[:1<<20])); err == nil {
		t.Error("import on a full disk succeeded")
	}
	if c, err := api.Inspect(ctx, id); err != nil || !c.State.Running {
		t.Errorf("the container on the full disk: %v, %+v", err, c.State)
	}
	if err := e.Kill(); err != nil {
		t.Fatal(err)
	}
	api.Close()
	if err := e.Start(ctx); err != nil {
		t.Fatalf("start on a full disk: %v", err)
	}
	if c, err := api.Inspect(ctx, id); err != nil || !c.State.Running {
		t.Errorf("the container after a restart on the full disk: %v, %+v", err, c.State)
	}
	do(t, ctx, api, "DELETE", "/containers/"+id+"?force=1", nil, nil)
	if code, err := runTo(ctx, api, map[string]any{"Image": image, "Cmd": []string{"sh", "-c", "exit 3"}}); err != nil || code != 3 {
		t.Errorf("with room again: exit code %d, %v; want 3", code, err)
	}
	api.Close()
	noLeaks(t, e)
}

// TestReadOnlyDisk starts an engine on a disk that cannot be written: it says so
// and ends, changes nothing, and starts again once it can be. (Under a running
// engine the kernel refuses: its databases are open.)
func TestReadOnlyDisk(t *testing.T) {
	e, disk := startOn(t, 64)
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(time.Minute))
	defer cancel()
	api := e.API()
	defer api.Close()
	id := create(t, ctx, api, "kept", map[string]any{"Image": image, "Cmd": []string{"sh", "-c", "exit 3"}})
	api.Close()
	if err := e.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", disk, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if err := e.Launch(); err != nil {
		t.Fatal(err)
	}
	if err := e.Ended(10 * time.Second); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("engine on a read-only disk: %v, want an error", err)
	}
	if said := e.Tail(2000); !strings.Contains(said, "read-only file system") {
		t.Errorf("it said %q", said)
	}
	if err := unix.Mount("", disk, "", unix.MS_REMOUNT|unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := e.Start(ctx); err != nil {
		t.Fatal(err)
	}
	do(t, ctx, api, "POST", "/containers/"+id+"/start", nil, nil)
	var code struct{ StatusCode int }
	do(t, ctx, api, "POST", "/containers/"+id+"/wait", nil, &code)
	if code.StatusCode != 3 {
		t.Errorf("exit code %d, want 3", code.StatusCode)
	}
	do(t, ctx, api, "DELETE", "/containers/"+id, nil, nil)
	api.Close()
	noLeaks(t, e)
}

// startOn starts an engine on a file system of its own of some megabytes.
func startOn(t *testing.T, megabytes int) (e *harness.Engine, disk string) {
	t.Helper()
	needs(t)
	disk = t.TempDir()
	if err := unix.Mount("none", disk, "tmpfs", 0, fmt.Sprintf("size=%dm", megabytes)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return start(t, harness.Options{DataRoot: disk}), disk
}

func free(t *testing.T, dir string) uint64 {
	t.Helper()
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		t.Fatal(err)
	}
	return s.Bavail * uint64(s.Bsize) >> 16
}

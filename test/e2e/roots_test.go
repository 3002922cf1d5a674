package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
)

// TestRootsOutOfSight: the host's mount table does not grow with the containers
// that run, what needs their roots has them all the same, also from an engine that
// came later, and at the end nothing is left.
func TestRootsOutOfSight(t *testing.T) {
	e := start(t, harness.Options{})
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	api := e.API()
	defer api.Close()
	var made struct{ ID string }
	spec := map[string]any{"Image": image, "Cmd": []string{"sh", "-c", "echo kept > /srv/f; echo over > /tmp/g; exec sleep 300"},
		"HostConfig": map[string]any{"NetworkMode": "none", "Tmpfs": map[string]string{"/tmp": ""}}}
	if err := api.Do(ctx, "POST", "/containers/create", spec, &made); err != nil {
		t.Fatal(err)
	}
	if err := api.Do(ctx, "POST", "/containers/"+made.ID+"/start", nil, nil); err != nil {
		t.Fatal(err)
	}
	inSight := func() bool {
		b, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(b), e.Root) && strings.Contains(string(b), made.ID+"/1/rootfs")
	}
	for end := time.Now().Add(10 * time.Second); inSight(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the root of a running container stays in the mount table")
		}
	}
	has := func(when string) {
		t.Helper()
		var err error
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			if err = exported(ctx, api, made.ID); err == nil {
				return
			}
		}
		t.Errorf("%s: %v", when, err)
	}
	has("running")
	if err := errors.Join(e.Kill(), e.Start(ctx)); err != nil {
		t.Fatal(err)
	}
	has("after the engine was killed")
	if inSight() {
		t.Error("an engine that came later put the root back into sight")
	}
	if err := api.Do(ctx, "POST", "/containers/"+made.ID+"/kill", nil, nil); err != nil {
		t.Fatal(err)
	}
	has("ended")
	if err := api.Do(ctx, "DELETE", "/containers/"+made.ID+"?force=1", nil, nil); err != nil {
		t.Fatal(err)
	}
	noLeaks(t, e)
}

// exported looks into the container's export: its own file is there, and nothing
// of the tmpfs that lies over /tmp.
func exported(ctx context.Context, api *harness.API, id string) error {
	status, body, err := api.Raw(ctx, "GET", "/containers/"+id+"/export", nil)
	if err != nil || status != 200 {
		return fmt.Errorf("export: %d %w", status, err)
	}
	kept := false
	for r := tar.NewReader(bytes.NewReader(body)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		switch h.Name {
		case "srv/f":
			kept = true
		case "tmp/g":
			return errors.New("export has what lies in a tmpfs")
		}
	}
	if !kept {
		return errors.New("export lacks srv/f")
	}
	return nil
}

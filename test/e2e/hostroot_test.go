package e2e

import (
	"errors"
	"testing"

	"golang.org/x/sync/errgroup"
)

// TestHostRootBeside runs containers that have the host's whole tree while others,
// and steps of builds, come and go: the tree holds nothing of theirs, and nothing
// of them is left.
func TestHostRootBeside(t *testing.T) {
	e := startBuilder(t)
	api := e.API()
	defer api.Close()
	const rounds = 25
	var g errgroup.Group
	for _, spec := range []map[string]any{
		{"Image": image, "Cmd": []string{"true"}, "HostConfig": map[string]any{"Binds": []string{"/:/host:ro"}}},
		{"Image": image, "Cmd": []string{"sh", "-c", "exit 7"}, "HostConfig": map[string]any{"IpcMode": "shareable"}},
		{"Image": image, "Cmd": []string{"sh", "-c", "exit 7"}, "HostConfig": map[string]any{"NetworkMode": "none"}},
	} {
		g.Go(func() error {
			for range rounds {
				if _, err := runTo(t.Context(), api, spec); err != nil {
					return err
				}
			}
			return nil
		})
	}
	g.Go(func() error {
		for range rounds / 3 {
			steps := map[string]string{"Dockerfile": from + "RUN --mount=type=cache,target=/c true\nRUN --mount=target=/d ls /d\n"}
			if b := build(t.Context(), t, e, "nocache=1", steps, nil); b.fault != "" {
				return errors.New(b.fault)
			}
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	clean(t, e)
	noLeaks(t, e)
}

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
)

// TestChurn has containers come and go while images do: the collector of what
// no image needs must neither take what a new container stands on nor stand
// in anybody's way.
func TestChurn(t *testing.T) {
	e := start(t, harness.Options{})
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(100*time.Second))
	defer cancel()
	api := e.API()
	defer api.Close()
	over := make(chan struct{})
	var runs, imports sync.WaitGroup
	for range 4 {
		runs.Go(func() {
			for range 25 {
				spec := map[string]any{"Image": image, "Cmd": []string{"sh", "-c", "exit 3"}, "HostConfig": map[string]string{"NetworkMode": "none"}}
				if code, err := runTo(ctx, api, spec); err != nil || code != 3 {
					t.Errorf("container: exit code %d, %v; want 3", code, err)
				}
			}
		})
	}
	for i := range 2 {
		imports.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-over:
					return
				case <-ctx.Done():
					return
				default:
				}
				tar, err := smallTar(3000 + n*8)
				if err != nil {
					t.Error(err)
					return
				}
				repo := fmt.Sprintf("churn%d", i)
				if err := api.Import(ctx, repo, "1", bytes.NewReader(tar)); err != nil {
					t.Errorf("import: %v", err)
					return
				}
				if err := api.Do(ctx, "DELETE", "/images/"+repo+":1", nil, nil); err != nil {
					t.Errorf("rmi: %v", err)
					return
				}
			}
		})
	}
	runs.Wait()
	close(over)
	imports.Wait()
	api.Close()
	noLeaks(t, e)
}

// TestRemoveRaces removes busy containers at once, from several sides.
func TestRemoveRaces(t *testing.T) {
	e := start(t, harness.Options{})
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(time.Minute))
	defer cancel()
	api := e.API()
	defer api.Close()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 12 {
				var made struct{ ID string }
				spec := map[string]any{"Image": image, "Cmd": []string{"sh", "-c", "while :; do :; done"}}
				if err := api.Do(ctx, "POST", "/containers/create", spec, &made); err != nil {
					t.Error(err)
					return
				}
				if err := api.Do(ctx, "POST", "/containers/"+made.ID+"/start", nil, nil); err != nil {
					t.Error(err)
				}
				var both sync.WaitGroup
				for range 2 {
					both.Go(func() {
						err := api.Do(ctx, "DELETE", "/containers/"+made.ID+"?force=1", nil, nil)
						if s := harness.Status(err); err != nil && s != 404 && s != 409 {
							t.Errorf("rm -f: %v", err)
						}
					})
				}
				both.Wait()
			}
		})
	}
	wg.Wait()
	api.Close()
	noLeaks(t, e)
}

package e2e

import (
	"context"
	"fmt"
	"io"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
)

// withBytes makes a container that has written mib MiB of noise, and runs unless stopped.
func withBytes(t *testing.T, ctx context.Context, api *harness.API, mib int, stopped bool) string {
	t.Helper()
	then := "touch /written; while :; do sleep 1; done"
	if stopped {
		then = "true"
	}
	id := create(t, ctx, api, "", map[string]any{"Image": image, "StopTimeout": 0, "Cmd": []string{
		"sh", "-c", fmt.Sprintf("[ -e /noise ] || dd if=/dev/urandom of=/noise bs=1M count=%d 2>/dev/null; %s", mib, then)}})
	if err := api.Do(ctx, "POST", "/containers/"+id+"/start", nil, nil); err != nil {
		t.Fatal(err)
	}
	if stopped {
		if err := api.Do(ctx, "POST", "/containers/"+id+"/wait", nil, nil); err != nil {
			t.Fatal(err)
		}
		return id
	}
	for ctx.Err() == nil {
		if st, _, err := api.Raw(ctx, "HEAD", "/containers/"+id+"/archive?path=/written", nil); err == nil && st == 200 {
			return id
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("the container has not written its file")
	return ""
}

// TestStalledTransfer: who copies from or to a stopped container and stands still
// holds up nobody for long, and one that is removed by force at all.
func TestStalledTransfer(t *testing.T) {
	e := start(t, harness.Options{})
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(2*time.Minute))
	defer cancel()
	api := e.API()
	defer api.Close()
	stopped := withBytes(t, ctx, api, 32, true)
	for _, c := range []struct {
		name, method, path, op string
		want                   int
		within                 time.Duration
	}{
		{"start while cp stalls", "GET", "/archive?path=/noise", "POST /start", 204, 20 * time.Second},
		{"start while export stalls", "GET", "/export", "POST /start", 204, 20 * time.Second},
		{"start while cp into it stalls", "PUT", "/archive?path=/", "POST /start", 204, 20 * time.Second},
		{"rm -f while cp stalls", "GET", "/archive?path=/noise", "DELETE ?force=1", 204, 5 * time.Second},
	} {
		stall, unstall := io.Pipe()
		var body any
		if c.method == "PUT" {
			body = stall
		}
		stalled, err := openStalled(ctx, api, c.method, "/containers/"+stopped+c.path, body)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		var method, path string
		fmt.Sscan(c.op, &method, &path)
		begun := time.Now()
		st, words, err := api.Raw(ctx, method, "/containers/"+stopped+path, nil)
		if took := time.Since(begun); err != nil || st != c.want || took > harness.Patience(c.within) {
			t.Errorf("%s: %d %s, %v, after %s", c.name, st, words, err, took)
		} else {
			t.Logf("%s: %s", c.name, took)
		}
		unstall.Close()
		if whole := stalled(); whole {
			t.Errorf("%s: who was given up had a whole answer", c.name)
		}
		if path == "/start" {
			if err := api.Do(ctx, "POST", "/containers/"+stopped+"/stop?t=0", nil, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	noLeaks(t, e)
}

// openStalled sends a request whose client then stands still. What it gives goes
// on and tells whether the answer was whole and a success.
func openStalled(ctx context.Context, api *harness.API, method, path string, body any) (func() bool, error) {
	if method == "PUT" {
		done := make(chan bool, 1)
		go func() {
			st, _, err := api.Raw(ctx, method, path, body)
			done <- err == nil && st < 300
		}()
		time.Sleep(harness.Patience(500 * time.Millisecond)) // it holds the container by now
		return func() bool { return <-done }, nil
	}
	resp, err := api.Open(ctx, method, path, body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != 200 {
		return nil, fmt.Errorf("status %d", resp.StatusCode)
	}
	return func() bool {
		defer resp.Body.Close()
		_, err := io.Copy(io.Discard, resp.Body)
		return err == nil
	}, nil
}

// TestCommitHoldsUpNobody: while an image is made of much, the container can be
// stopped, killed and removed; a removal ends it, and nothing else does.
func TestCommitHoldsUpNobody(t *testing.T) {
	e := start(t, harness.Options{})
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(3*time.Minute))
	defer cancel()
	api := e.API()
	defer api.Close()
	for _, c := range []struct {
		name, op string
		want     int
		made     bool
	}{
		{"pause", "POST /pause", 409, true},
		{"kill", "POST /kill", 204, true},
		{"stop", "POST /stop", 204, true},
		{"removal by force", "DELETE ?force=1", 204, false},
	} {
		id := withBytes(t, ctx, api, 256, false)
		type answer struct {
			image string
			err   error
			at    time.Time
		}
		committed := make(chan answer, 1)
		go func() {
			var made struct{ ID string }
			err := api.Do(ctx, "POST", "/commit?container="+id, nil, &made)
			committed <- answer{made.ID, err, time.Now()}
		}()
		for state := ""; state != "paused" && ctx.Err() == nil; time.Sleep(5 * time.Millisecond) {
			var v struct{ State struct{ Status string } }
			if err := api.Do(ctx, "GET", "/containers/"+id+"/json", nil, &v); err != nil {
				t.Fatal(err)
			}
			state = v.State.Status
		}
		var method, path string
		fmt.Sscan(c.op, &method, &path)
		begun := time.Now()
		st, words, err := api.Raw(ctx, method, "/containers/"+id+path, nil)
		ended := time.Now()
		got := <-committed
		t.Logf("%s took %s, the commit %s more", c.name, ended.Sub(begun), got.at.Sub(ended))
		if err != nil || st != c.want {
			t.Errorf("%s: %d %s, %v", c.name, st, words, err)
		}
		if c.made && got.at.Before(ended) {
			t.Errorf("%s was answered after the commit", c.name)
		}
		if c.made != (got.err == nil) || !c.made && harness.Status(got.err) != 409 {
			t.Errorf("commit amid %s: %v", c.name, got.err)
		}
		if got.image != "" {
			if err := api.Do(ctx, "DELETE", "/images/"+got.image, nil, nil); err != nil {
				t.Error(err)
			}
		}
		if c.made {
			if err := api.Do(ctx, "DELETE", "/containers/"+id+"?force=1", nil, nil); err != nil {
				t.Error(err)
			}
		}
	}
	noLeaks(t, e)
}

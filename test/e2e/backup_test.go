package e2e

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
)

// TestBackupKilled kills the engine while a container stands still for a backup, and while
// an archive comes in: the container goes on, the volume is as it was, nothing is left.
func TestBackupKilled(t *testing.T) {
	e := start(t, harness.Options{})
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(2*time.Minute))
	defer cancel()
	api := e.API()
	defer func() { api.Close() }()
	id := create(t, ctx, api, "live", map[string]any{
		"Image": image, "Cmd": []string{"sh", "-c", "head -c 50000000 /dev/urandom >/v/big; echo mine >/v/f; while :; do date +%s%N >/v/clock; sleep 0.05; done"},
		"HostConfig": map[string]any{"Binds": []string{"vol:/v"}},
	})
	do(t, ctx, api, "POST", "/containers/"+id+"/start", nil, nil)
	data := e.DataRoot + "/volumes/vol/_data"
	await := func(what string, ok func() bool) {
		t.Helper()
		for until := time.Now().Add(harness.Patience(20 * time.Second)); !ok(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(until) {
				t.Fatal(what)
			}
		}
	}
	ticks := func() bool {
		before, _ := os.ReadFile(data + "/clock")
		time.Sleep(300 * time.Millisecond)
		after, _ := os.ReadFile(data + "/clock")
		return len(after) > 0 && !bytes.Equal(before, after)
	}
	await("the container does not begin", ticks)
	status := func() string {
		var c struct{ State struct{ Status string } }
		do(t, ctx, api, "GET", "/containers/"+id+"/json", nil, &c)
		return c.State.Status
	}
	kill := func() {
		t.Helper()
		if err := e.Kill(); err != nil {
			t.Fatal(err)
		}
		api.Close()
		if err := e.Start(ctx); err != nil {
			t.Fatal(err)
		}
		api = e.API()
	}

	// A backup whose reader does not read: the container stands still, and goes on after the kill.
	res, err := api.Open(ctx, "GET", "/escale/volumes/vol/archive", nil)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("backup: %v, %+v", err, res)
	}
	await("it is not paused", func() bool { return status() == "paused" })
	if ticks() { // nothing is written: what is read is the same
		t.Error("paused, and writes")
	}
	kill()
	if _, err := io.Copy(io.Discard, res.Body); err == nil {
		t.Error("half a backup looks whole")
	}
	res.Body.Close()
	await("it does not go on", func() bool { return status() == "running" && ticks() })

	// A client that goes away lets it go on at once.
	gone, leave := context.WithCancel(ctx)
	if res, err = api.Open(gone, "GET", "/escale/volumes/vol/archive", nil); err != nil {
		t.Fatal(err)
	}
	await("it is not paused", func() bool { return status() == "paused" })
	leave()
	res.Body.Close()
	await("it does not go on without the client", func() bool { return status() == "running" && ticks() })

	// An archive that is half in.
	whole := new(bytes.Buffer)
	if res, err = api.Open(ctx, "GET", "/escale/volumes/vol/archive", nil); err == nil {
		_, err = io.Copy(whole, res.Body)
		res.Body.Close()
	}
	if err != nil || whole.Len() < 50e6 {
		t.Fatalf("backup: %v, %d bytes", err, whole.Len())
	}
	for _, end := range []string{"kill", "leave"} {
		r, w := io.Pipe()
		answered := make(chan error, 1)
		go func() {
			res, err := api.Open(ctx, "PUT", "/escale/volumes/vol/archive?force=true", r)
			if err == nil {
				if res.Body.Close(); res.StatusCode >= 400 {
					err = io.ErrUnexpectedEOF
				}
			}
			answered <- err
		}()
		if _, err := w.Write(whole.Bytes()[:30e6]); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(data + "/.escale-restore/new/big"); err != nil {
			t.Errorf("what has come is not aside: %v", err)
		}
		if end == "kill" {
			kill()
		}
		w.CloseWithError(io.ErrClosedPipe)
		if err := <-answered; err == nil {
			t.Errorf("%s: half an archive is taken", end)
		}
		await(end+": it is left half", func() bool {
			list, err := os.ReadDir(data)
			return err == nil && len(list) == 3
		})
		if b, err := os.ReadFile(data + "/f"); err != nil || string(b) != "mine\n" {
			t.Errorf("%s: %q, %v", end, b, err)
		}
		await(end+": the container stands still", ticks)
	}

	// And a whole one.
	if res, err = api.Open(ctx, "PUT", "/escale/volumes/vol/archive?force=true", whole); err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusNoContent {
		t.Errorf("restored: %d", res.StatusCode)
	}
	await("restored, the container stands still", ticks)
	if list, err := os.ReadDir(e.DataRoot + "/restores"); err != nil || len(list) != 0 {
		t.Errorf("notes left: %v, %v", list, err)
	}
	do(t, ctx, api, "DELETE", "/containers/"+id+"?force=1", nil, nil)
	do(t, ctx, api, "DELETE", "/volumes/vol", nil, nil)
	if strings.Contains(e.Tail(100000), "level=ERROR") {
		t.Logf("it complained:\n%s", complaints(e))
	}
	api.Close()
	noLeaks(t, e)
}

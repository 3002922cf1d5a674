package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
)

// loopDevice gives a block device with an ext4 file system of some MB.
func loopDevice(t *testing.T, dir string) string {
	t.Helper()
	out, err := exec.Command("sh", "-c", "cd "+dir+" && truncate -s 8m disk && mkfs.ext4 -q disk && losetup -f --show disk").CombinedOutput()
	device := strings.TrimSpace(string(out))
	if err != nil || !strings.HasPrefix(device, "/dev/loop") {
		t.Skipf("no loop device with ext4 here: %s, %v", out, err)
	}
	t.Cleanup(func() { exec.Command("losetup", "-d", device).Run() })
	return device
}

// TestVolumesAcrossKills: what a volume's options name stays mounted for what runs while
// engines are killed, goes when it ends, whoever was engine then, and a volume in use is
// not removed by any of them.
func TestVolumesAcrossKills(t *testing.T) {
	e := start(t, harness.Options{})
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(3*time.Minute))
	defer cancel()
	api := e.API()
	defer func() { api.Close() }()
	device := loopDevice(t, t.TempDir())
	do(t, ctx, api, "POST", "/volumes/create", map[string]any{"Name": "dev", "DriverOpts": map[string]string{"type": "ext4", "device": device, "o": "noatime"}}, nil)
	do(t, ctx, api, "POST", "/volumes/create", map[string]any{"Name": "own"}, nil)
	spec := func(command string) map[string]any {
		return map[string]any{"Image": image, "Cmd": []string{"sh", "-c", command}, "HostConfig": map[string]any{"Binds": []string{"dev:/dev-vol", "own:/own"}}}
	}
	mounted := func() int {
		b, err := os.ReadFile("/proc/self/mounts")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(b), e.DataRoot+"/volumes/dev/_data ")
	}
	await := func(n int) {
		t.Helper()
		for until := time.Now().Add(harness.Patience(20 * time.Second)); mounted() != n; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(until) {
				t.Fatalf("mounted %d times, want %d", mounted(), n)
			}
		}
	}
	kill := func() {
		t.Helper()
		api.Close()
		if err := e.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	again := func() {
		t.Helper()
		if err := e.Start(ctx); err != nil {
			t.Fatal(err)
		}
		api = e.API()
		for _, name := range []string{"dev", "own"} {
			if err := api.Do(ctx, "DELETE", "/volumes/"+name+"?force=1", nil, nil); harness.Status(err) != 409 {
				t.Errorf("%s is removed in use: %v", name, err)
			}
			var usage struct {
				Volumes []struct {
					Name      string
					UsageData struct{ RefCount int }
				}
			}
			do(t, ctx, api, "GET", "/v1.50/system/df?type=volume", nil, &usage)
			if len(usage.Volumes) != 1 || usage.Volumes[0].UsageData.RefCount == 0 {
				t.Errorf("used: %+v", usage)
			}
		}
	}
	live := create(t, ctx, api, "live", spec("echo kept >/dev-vol/f; sleep 1000"))
	short := create(t, ctx, api, "short", spec("while ! test -e /own/end; do sleep 0.05; done"))
	for _, id := range []string{live, short} {
		do(t, ctx, api, "POST", "/containers/"+id+"/start", nil, nil)
	}
	await(1)
	kill()
	again()
	if n := mounted(); n != 1 {
		t.Errorf("mounted %d times under a second engine", n)
	}
	kill()
	if err := os.WriteFile(e.DataRoot+"/volumes/own/_data/end", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	awaitEnd(t, e, short)
	again()
	if n := mounted(); n != 1 {
		t.Errorf("mounted %d times while one container runs", n)
	}
	do(t, ctx, api, "DELETE", "/containers/"+live+"?force=1", nil, nil)
	await(0)
	do(t, ctx, api, "POST", "/containers/"+short+"/start", nil, nil)
	do(t, ctx, api, "POST", "/containers/"+short+"/wait", nil, nil)
	await(0)
	do(t, ctx, api, "DELETE", "/containers/"+short, nil, nil)
	if code, err := runTo(ctx, api, spec("grep -q kept /dev-vol/f && grep -q noatime /proc/mounts")); code != 0 || err != nil {
		t.Errorf("its content: %d, %v", code, err)
	}
	await(0)
	do(t, ctx, api, "DELETE", "/volumes/dev", nil, nil)
	do(t, ctx, api, "DELETE", "/volumes/own", nil, nil)
	api.Close()
	noLeaks(t, e)
}

// TestSubpathSwap: a container that swaps a directory of a volume for a link to the
// host's files gives nobody a mount of those, whenever it does.
func TestSubpathSwap(t *testing.T) {
	e := start(t, harness.Options{})
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(2*time.Minute))
	defer cancel()
	api := e.API()
	defer api.Close()
	secret := t.TempDir()
	if err := os.WriteFile(secret+"/secret", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	swap := fmt.Sprintf(`mkdir /v/sub /v/other; touch /v/sub/mine /v/other/mine; ln -s %s /v/link; echo ready
while :; do mv /v/sub /v/dir; mv /v/link /v/sub; mv /v/sub /v/link; mv /v/dir /v/sub; done`, secret)
	id := create(t, ctx, api, "swap", map[string]any{"Image": image, "Cmd": []string{"sh", "-c", swap}, "HostConfig": map[string]any{"Binds": []string{"vol:/v"}}})
	do(t, ctx, api, "POST", "/containers/"+id+"/start", nil, nil)
	var mu sync.Mutex
	results := map[string]int{}
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for range 25 {
				code, err := runTo(ctx, api, map[string]any{
					"Image": image, "Cmd": []string{"sh", "-c", "test -e /d/secret && exit 9; test -e /d/mine"},
					"HostConfig": map[string]any{"Mounts": []any{map[string]any{"Type": "volume", "Source": "vol", "Target": "/d", "VolumeOptions": map[string]any{"Subpath": "sub"}}}},
				})
				what := fmt.Sprint("code ", code)
				if err != nil {
					what = "refused"
					if !strings.Contains(err.Error(), "cannot access path") {
						t.Errorf("refused: %v", err)
					}
				}
				mu.Lock()
				results[what]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	t.Logf("%v", results)
	if results["code 0"] == 0 || results["code 0"]+results["refused"] != 50 {
		t.Errorf("mounted: %v", results)
	}
	do(t, ctx, api, "DELETE", "/containers/"+id+"?force=1", nil, nil)
	do(t, ctx, api, "DELETE", "/volumes/vol", nil, nil)
	noLeaks(t, e)
}

// TestVolumeRaces: making, using and removing volumes of one name at the same time ends
// with each request done or refused in clear words, and with nothing left.
func TestVolumeRaces(t *testing.T) {
	e := start(t, harness.Options{})
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(2*time.Minute))
	defer cancel()
	api := e.API()
	defer api.Close()
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for range 15 {
				code, err := runTo(ctx, api, map[string]any{"Image": image, "Cmd": []string{"sh", "-c", "touch /d/f && test -e /d/f"}, "HostConfig": map[string]any{"Binds": []string{"one:/d"}}})
				if code != 0 || err != nil {
					t.Errorf("run: %d, %v", code, err)
				}
			}
		})
		wg.Go(func() {
			for range 60 {
				if err := api.Do(ctx, "POST", "/volumes/create", map[string]any{"Name": "one"}, nil); err != nil {
					t.Errorf("create: %v", err)
				}
				if err := api.Do(ctx, "DELETE", "/volumes/one", nil, nil); err != nil && harness.Status(err) != 409 && harness.Status(err) != 404 {
					t.Errorf("remove: %v", err)
				}
				if status, b, err := api.Raw(ctx, "POST", "/volumes/prune?filters="+`{"all":["true"]}`, nil); err != nil || status != 200 && status != 409 || !json.Valid(b) {
					t.Errorf("prune: %d %s, %v", status, b, err)
				}
			}
		})
	}
	wg.Wait()
	do(t, ctx, api, "DELETE", "/volumes/one?force=1", nil, nil)
	noLeaks(t, e)
}

package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
)

// TestHostileContainers: what a container does to be in the way costs it alone. Each is removed
// within seconds, the engine goes on, keeps its memory, and nothing is left.
func TestHostileContainers(t *testing.T) {
	e := start(t, harness.Options{})
	for _, c := range []struct {
		name, script string
		host         map[string]any
		shows        string // that it came so far
		look         func(t *testing.T, ctx context.Context, api *harness.API, id string)
	}{
		{"deaf to signals", "trap '' $(seq 1 31 | grep -v -e '^9$' -e '^19$'); while :; do sleep 1; done", nil, "begun", nil},
		{"fork bomb", "exec awk 'BEGIN { while (1) system(\"sleep 1000 & sleep 1000 &\") }' 2>/dev/null", map[string]any{"PidsLimit": 64}, "begun", processes(20, 64)},
		{"fills /dev/shm", "dd if=/dev/zero of=/dev/shm/x bs=64k; sleep 1000", map[string]any{"ShmSize": 8 << 20}, "No space left", nil},
		{"zombies", "i=0; while [ $i -lt 2000 ]; do sleep 3 & i=$((i+1)); done; exec sleep 1000", map[string]any{"PidsLimit": 4000}, "begun", func(t *testing.T, ctx context.Context, api *harness.API, id string) {
			processes(1000, 2001)(t, ctx, api, id)
			time.Sleep(3 * time.Second) // they end, and nobody reaps them
		}},
		{"orphans under init", "i=0; while [ $i -lt 1000 ]; do (sleep 0 &); i=$((i+1)); done; exec sleep 1000", map[string]any{"Init": true}, "begun", nil},
		{"stopped processes", "sleep 1000 & kill -STOP $!; kill -STOP $$; sleep 1000", nil, "begun", nil},
		{"over /proc", "unshare -Urmpf sh -c 'mount -t tmpfs t /proc; mount -t tmpfs t /dev; echo over; sleep 1000'; sleep 1000", map[string]any{"SecurityOpt": []string{"seccomp=unconfined"}}, "over", nil},
		{"over / as root", "mount -t tmpfs t /proc; mount -t tmpfs t /sys; mount -t tmpfs t /etc; mkdir -p /mnt; mount --bind / /mnt && echo over; sleep 1000", map[string]any{"CapAdd": []string{"SYS_ADMIN"}}, "over", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(time.Minute))
			defer cancel()
			api := e.API()
			defer api.Close()
			before := e.RSS()
			id := create(t, ctx, api, "", map[string]any{"Image": image, "Cmd": []string{"sh", "-c", "echo begun; " + c.script}, "HostConfig": c.host})
			defer func() { _ = api.Do(ctx, "DELETE", "/containers/"+id+"?force=1", nil, nil) }() // of a test that failed
			do(t, ctx, api, "POST", "/containers/"+id+"/start", nil, nil)
			for {
				out, said, err := api.Logs(ctx, id)
				if err == nil && strings.Contains(string(out)+string(said), c.shows) {
					break
				} else if ctx.Err() != nil {
					t.Fatalf("it did not come so far: %s%s, %v", out, said, err)
				}
				time.Sleep(20 * time.Millisecond)
			}
			time.Sleep(500 * time.Millisecond) // it does its worst
			if c.look != nil {
				c.look(t, ctx, api, id)
			}
			// What the engine does to containers goes on beside it.
			if v, err := api.Inspect(ctx, id); err != nil || !v.State.Running {
				t.Errorf("%v, %+v", err, v.State)
			}
			for _, path := range []string{"/stats?stream=0&one-shot=1", "/top", "/changes"} {
				if st, body, err := api.Raw(ctx, "GET", "/containers/"+id+path, nil); err != nil || st != 200 {
					t.Errorf("%s: %d %.200s %v", path, st, body, err)
				}
			}
			begin := time.Now()
			do(t, ctx, api, "DELETE", "/containers/"+id+"?force=1", nil, nil)
			if took := time.Since(begin); took > harness.Patience(10*time.Second) {
				t.Errorf("removing it took %v", took)
			}
			if now := e.RSS(); now > before+growth {
				t.Errorf("memory went from %d to %d MB", before>>20, now>>20)
			}
			if code, err := runTo(ctx, api, map[string]any{"Image": image, "Cmd": []string{"sh", "-c", "exit 6"}}); err != nil || code != 6 {
				t.Errorf("afterwards a container ends with %d, %v; want 6", code, err)
			}
			api.Close()
			noLeaks(t, e)
		})
	}
}

// processes waits until top shows so many.
func processes(least, most int) func(t *testing.T, ctx context.Context, api *harness.API, id string) {
	return func(t *testing.T, ctx context.Context, api *harness.API, id string) {
		t.Helper()
		for {
			var top struct{ Processes [][]string }
			do(t, ctx, api, "GET", "/containers/"+id+"/top", nil, &top)
			n := len(top.Processes)
			if n > most {
				t.Errorf("%d processes, want at most %d", n, most)
			}
			if n >= least || t.Failed() {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// TestFloodedLog follows the log of a container that writes as fast as it can, while its
// files go round, by a client that reads and one that does not; then the container is removed. Both
// ends come at once, and the disk has never had more than the bound.
func TestFloodedLog(t *testing.T) {
	e := start(t, harness.Options{})
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(time.Minute))
	defer cancel()
	api := e.API()
	defer api.Close()
	id := flood(t, ctx, api)
	do(t, ctx, api, "POST", "/containers/"+id+"/start", nil, nil)
	follow := func() *http.Response {
		res, err := api.Open(ctx, "GET", "/containers/"+id+"/logs?follow=1&stdout=1&stderr=1", nil)
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	reading, sleeping := follow(), follow()
	defer reading.Body.Close()
	defer sleeping.Body.Close()
	type end struct {
		n   int64
		err error
		at  time.Time
	}
	ended := make(chan end, 1)
	go func() {
		n, err := io.Copy(io.Discard, reading.Body)
		ended <- end{n, err, time.Now()}
	}()
	dir := e.DataRoot + "/containers/" + id
	for range 40 {
		time.Sleep(50 * time.Millisecond)
		if n := bytesIn(t, dir); n > 8<<20 {
			t.Fatalf("the log takes %d MB, its bound is 2", n>>20)
		}
	}
	do(t, ctx, api, "DELETE", "/containers/"+id+"?force=1", nil, nil)
	removed := time.Now()
	select {
	case got := <-ended:
		if got.err != nil || got.n == 0 || got.at.Sub(removed) > harness.Patience(5*time.Second) {
			t.Errorf("the follower got %d bytes and ended %v after the removal: %v", got.n, got.at.Sub(removed), got.err)
		}
	case <-ctx.Done():
		t.Error("the follower of what was removed does not end")
	}
	// The one that slept reads to the end now.
	if n, err := io.Copy(io.Discard, sleeping.Body); err != nil || n == 0 {
		t.Errorf("the slow one: %d bytes, %v", n, err)
	}
	api.Close()
	noLeaks(t, e)
}

// bytesIn is the size of the files of a directory that may vanish.
func bytesIn(t *testing.T, dir string) (n int64) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, f := range list {
		if info, err := f.Info(); err == nil {
			n += info.Size()
		}
	}
	return n
}

// oddities are made in a container: files that a copy must get right, or refuse.
const oddities = `
mkdir -p /odd/dir /mnt; cd /odd
echo one > a; ln a b; ln -s /etc/shadow link; mkfifo pipe; mknod null c 1 3
printf x > "$(printf 'new\nline')"; printf x > "$(printf 'tab\there \\ \377')"; printf x > '-rf'
dd if=/dev/zero of=sparse bs=1 count=1 seek=1099511627775 2>/dev/null
chmod 4755 a; chmod 1777 dir
`

// TestOddFiles copies what is odd out of a container and back: links stay links, holes holes,
// names and bits what they were; a terabyte that is a hole costs neither time nor disk. Of /proc
// and /sys only what can be had is, and nothing hangs.
func TestOddFiles(t *testing.T) {
	e := start(t, harness.Options{})
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(2*time.Minute))
	defer cancel()
	api := e.API()
	defer api.Close()
	id := create(t, ctx, api, "", map[string]any{"Image": image, "Cmd": []string{"sh", "-c", oddities + "echo made; sleep 1000"}})
	do(t, ctx, api, "POST", "/containers/"+id+"/start", nil, nil)
	for {
		if out, _, err := api.Logs(ctx, id); err == nil && strings.Contains(string(out), "made") {
			break
		} else if ctx.Err() != nil {
			t.Fatal("it did not begin: ", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	// Without the hole all of it.
	if code := execIn(t, ctx, api, id, "mv /odd/sparse /sparse"); code != 0 {
		t.Fatal("mv: ", code)
	}
	res, err := api.Open(ctx, "GET", "/containers/"+id+"/archive?path=/odd", nil)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := io.ReadAll(res.Body)
	res.Body.Close()
	if err != nil || res.StatusCode != 200 {
		t.Fatal(res.Status, err)
	}
	kinds := map[string]*tar.Header{}
	for r := tar.NewReader(bytes.NewReader(whole)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		kinds[h.Name] = h
	}
	for name, kind := range map[string]byte{
		"odd/dir/": tar.TypeDir, "odd/link": tar.TypeSymlink, "odd/pipe": tar.TypeFifo, "odd/null": tar.TypeChar, "odd/new\nline": tar.TypeReg, "odd/tab\there \\ \xff": tar.TypeReg, "odd/-rf": tar.TypeReg,
	} {
		if h := kinds[name]; h == nil || h.Typeflag != kind {
			t.Errorf("%q: %+v, want kind %c", name, h, kind)
		}
	}
	if a, b := kinds["odd/a"], kinds["odd/b"]; a == nil || b == nil || (a.Typeflag == tar.TypeLink) == (b.Typeflag == tar.TypeLink) || a.Mode&0o4000 == 0 {
		t.Errorf("a hard link: %+v, %+v", a, b)
	}
	marked := markedFile(t)
	do(t, ctx, api, "PUT", "/containers/"+id+"/archive?path=/odd", bytes.NewReader(marked), nil)
	st, again, err := api.Raw(ctx, "GET", "/containers/"+id+"/archive?path=/odd/marked", nil)
	if err != nil || st != 200 {
		t.Fatal(st, err)
	}
	if h, err := tar.NewReader(bytes.NewReader(again)).Next(); err != nil || h.PAXRecords["SCHILY.xattr.security.capability"] != capability {
		t.Errorf("capabilities of a file: %q, %v", h.PAXRecords, err)
	}
	// And back, beside.
	do(t, ctx, api, "PUT", "/containers/"+id+"/archive?path=/mnt", bytes.NewReader(whole), nil)
	check := `cd /mnt/odd && [ "$(stat -c %h a)" = 2 ] && [ "$(stat -c %a a)" = 4755 ] && [ "$(readlink link)" = /etc/shadow ] && [ -p pipe ] && [ -c null ] && [ -f "$(printf 'new\nline')" ] && [ -f ./-rf ] && [ "$(stat -c %a dir)" = 1777 ]`
	if code := execIn(t, ctx, api, id, check); code != 0 {
		t.Errorf("copied back, it is not what it was: %d", code)
	}
	// The hole: the header comes at once; who has had enough leaves, and the engine with him.
	brief, enough := context.WithTimeout(ctx, harness.Patience(10*time.Second))
	defer enough()
	res, err = api.Open(brief, "GET", "/containers/"+id+"/archive?path=/sparse", nil)
	if err != nil {
		t.Fatal("a terabyte of nothing: ", err)
	}
	if h, err := tar.NewReader(res.Body).Next(); err != nil || h.Size != 1<<40 {
		t.Errorf("a terabyte of nothing: %+v, %v", h, err)
	}
	res.Body.Close()
	for _, path := range []string{"/proc", "/sys", "/proc/kmsg", "/proc/self/mem", "/proc/1/environ", "/sys/kernel", "/dev/zero", "/dev/null", "/dev", "/dev/pts/ptmx"} {
		one, done := context.WithTimeout(ctx, harness.Patience(10*time.Second))
		res, err := api.Open(one, "GET", "/containers/"+id+"/archive?path="+path, nil)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			done()
			continue
		}
		n, err := io.Copy(io.Discard, res.Body)
		if err != nil || n > 16<<20 {
			t.Errorf("%s: %d bytes, %v", path, n, err)
		}
		res.Body.Close()
		st, body, err := api.Raw(one, "PUT", "/containers/"+id+"/archive?path="+path, bytes.NewReader(oneFile(t)))
		if err != nil || st >= 500 && !strings.Contains(string(body), "permission") && !strings.Contains(string(body), "not permitted") && !strings.Contains(string(body), "read-only") {
			t.Logf("into %s: %d %.200s %v", path, st, body, err)
		}
		done()
	}
	if execIn(t, ctx, api, id, "true") != 0 {
		t.Error("it does not run any more")
	}
	do(t, ctx, api, "DELETE", "/containers/"+id+"?force=1", nil, nil)
	api.Close()
	noLeaks(t, e)
}

// capability is cap_net_raw, effective and permitted, as the kernel keeps it (version 2).
const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// markedFile is an archive of a file with capabilities.
func markedFile(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	h := &tar.Header{Typeflag: tar.TypeReg, Name: "marked", Mode: 0o755, Format: tar.FormatPAX, PAXRecords: map[string]string{"SCHILY.xattr.security.capability": capability}}
	if err := errors.Join(w.WriteHeader(h), w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func oneFile(t *testing.T) []byte {
	t.Helper()
	b, err := smallTar(10)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// execIn runs a script in a container and gives its exit code.
func execIn(t *testing.T, ctx context.Context, api *harness.API, id, script string) int {
	t.Helper()
	var made struct{ ID string }
	do(t, ctx, api, "POST", "/containers/"+id+"/exec", map[string]any{"Cmd": []string{"sh", "-c", script}}, &made)
	do(t, ctx, api, "POST", "/exec/"+made.ID+"/start", map[string]any{"Detach": true}, nil)
	for {
		var now struct {
			Running  bool
			ExitCode *int
		}
		do(t, ctx, api, "GET", "/exec/"+made.ID+"/json", nil, &now)
		if !now.Running && now.ExitCode != nil {
			return *now.ExitCode
		}
		time.Sleep(10 * time.Millisecond)
	}
}

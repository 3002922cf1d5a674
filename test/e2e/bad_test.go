package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
)

// growth is how much memory bad input may cost the engine, in bytes.
const growth = 80 << 20

// TestBadInput sends one engine what no client would, and checks each time
// that it answers in Docker's words, goes on, keeps its memory and holds nothing.
func TestBadInput(t *testing.T) {
	e := start(t, harness.Options{})
	for _, c := range []struct {
		name string
		do   func(t *testing.T, ctx context.Context, e *harness.Engine)
	}{
		{"garbage", garbage}, {"huge JSON", hugeJSON}, {"endless header", endlessHeader}, {"idle connections", idleConnections},
		{"truncated import", truncatedImport}, {"truncated load", truncatedLoad}, {"hostile tar", hostileTar},
		{"hang up amid import", hangUpImport}, {"hang up amid save", hangUpSave},
		{"logs never read", logsNeverRead}, {"attach never read", attachNeverRead}, {"events never read", eventsNeverRead},
		{"stdin never read", stdinNeverRead}, {"one name many times", oneName}, {"all at once", allAtOnce},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(time.Minute))
			defer cancel()
			before := e.RSS()
			c.do(t, ctx, e)
			if now := e.RSS(); now > before+growth {
				t.Errorf("memory went from %d to %d MB", before>>20, now>>20)
			}
			api := e.API()
			defer api.Close()
			if code, err := runTo(ctx, api, map[string]any{"Image": image, "Cmd": []string{"sh", "-c", "exit 6"}}); err != nil || code != 6 {
				t.Fatalf("afterwards a container ends with %d, %v; want 6", code, err)
			}
			api.Close()
			noLeaks(t, e)
		})
	}
}

func garbage(t *testing.T, ctx context.Context, e *harness.Engine) {
	api := e.API()
	noise := make([]byte, 10<<20)
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(noise)
	for _, head := range []string{"", "GET ", "POST /containers/create HTTP/1.1\r\nHost: d\r\n", "POST /images/load HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n"} {
		c, err := api.Dial(ctx)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		_, _ = io.WriteString(c, head)
		_, _ = c.Write(noise) // the engine may hang up before all of it went
		_ = c.(*net.UnixConn).CloseWrite()
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%q and garbage: the engine keeps the connection", head)
		}
		c.Close()
	}
}

func hugeJSON(t *testing.T, ctx context.Context, e *harness.Engine) {
	api := e.API()
	defer api.Close()
	err := api.Do(ctx, "POST", "/containers/create", map[string]any{"Image": strings.Repeat("a", 10<<20)}, nil)
	if s := harness.Status(err); s < 400 || s >= 500 {
		t.Errorf("an image name of 10 MB: %.200v, want a status of 4xx", err)
	}
	deep := strings.NewReader(`{"Image":"x","Labels":` + strings.Repeat(`{"a":`, 1<<20))
	res, err := api.Open(ctx, "POST", "/containers/create", deep)
	if err == nil {
		res.Body.Close()
		if res.StatusCode < 400 || res.StatusCode >= 500 {
			t.Errorf("JSON a million levels deep: status %d, want 4xx", res.StatusCode)
		}
	}
	err = api.Do(ctx, "POST", "/containers/create", map[string]any{"Image": image, "Cmd": []string{"true"}, "Env": []string{strings.Repeat("E", 1<<20)}}, nil)
	if s := harness.Status(err); err == nil || s >= 500 {
		// Too long for execve is found at the start at the latest; the record is allowed.
		var list []struct{ ID string }
		do(t, ctx, api, "GET", "/containers/json?all=1", nil, &list)
		for _, c := range list {
			do(t, ctx, api, "DELETE", "/containers/"+c.ID+"?force=1", nil, nil)
		}
	}
}

func endlessHeader(t *testing.T, ctx context.Context, e *harness.Engine) {
	c, err := e.API().Dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	_, _ = io.WriteString(c, "GET /_ping HTTP/1.1\r\nHost: d\r\n")
	line := "X-A: " + strings.Repeat("b", 1<<16) + "\r\n"
	for range 1000 {
		if _, err := io.WriteString(c, line); err != nil {
			return // refused, as it should be
		}
	}
	t.Error("64 MB of headers were taken")
}

func idleConnections(t *testing.T, ctx context.Context, e *harness.Engine) {
	api := e.API()
	defer api.Close()
	for i := range 300 {
		c, err := api.Dial(ctx)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		defer c.Close()
		if i%2 == 0 {
			_, _ = io.WriteString(c, "GET /_ping HT")
		}
	}
	if st, _, err := api.Raw(ctx, "GET", "/_ping", nil); err != nil || st != 200 {
		t.Errorf("beside 300 idle connections: status %d, %v", st, err)
	}
}

func truncatedImport(t *testing.T, ctx context.Context, e *harness.Engine) {
	api := e.API()
	defer api.Close()
	whole, err := harness.BusyboxTar()
	if err != nil {
		t.Fatal(err)
	}
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, _ = z.Write(whole)
	_ = z.Close()
	for name, b := range map[string][]byte{
		"amid a header": whole[:512*4+100], "amid a file": whole[:len(whole)/2], "gzip": zipped.Bytes()[:zipped.Len()/2],
		"no tar at all": bytes.Repeat([]byte("no tar "), 1000), "gzip of nothing": {0x1f, 0x8b, 8},
	} {
		if err := api.Import(ctx, "cut", "1", bytes.NewReader(b)); err == nil {
			t.Errorf("%s: imported", name)
		}
		if err := api.Do(ctx, "GET", "/images/cut:1/json", nil, nil); harness.Status(err) != 404 {
			t.Errorf("%s: the image is there: %v", name, err)
		}
	}
}

// load sends an archive and returns the error in its stream of messages.
func load(ctx context.Context, api *harness.API, b []byte) error {
	st, body, err := api.Raw(ctx, "POST", "/images/load?quiet=1", bytes.NewReader(b))
	if err != nil {
		return err
	}
	if st != 200 {
		return &harness.StatusError{Status: st, Message: string(body)}
	}
	if bytes.Contains(body, []byte(`"errorDetail"`)) {
		return errors.New(string(body))
	}
	return nil
}

func truncatedLoad(t *testing.T, ctx context.Context, e *harness.Engine) {
	api := e.API()
	defer api.Close()
	small, err := smallTar(64 << 10)
	if err != nil {
		t.Fatal(err)
	}
	if err := api.Import(ctx, "cut", "2", bytes.NewReader(small)); err != nil {
		t.Fatal(err)
	}
	_, whole, err := api.Raw(ctx, "GET", "/images/cut:2/get", nil)
	if err != nil {
		t.Fatal(err)
	}
	do(t, ctx, api, "DELETE", "/images/cut:2", nil, nil)
	for i := 1; i < 8; i++ {
		if err := load(ctx, api, whole[:len(whole)*i/10]); err == nil {
			t.Errorf("%d tenths of an archive were loaded", i)
		}
	}
	if err := load(ctx, api, []byte("nonsense")); err == nil {
		t.Error("nonsense was loaded")
	}
	flipped := bytes.Clone(whole)
	if i := bytes.Index(flipped, []byte("payload payload")); i > 0 {
		flipped[i] ^= 1
		if err := load(ctx, api, flipped); err == nil {
			t.Error("a layer that does not have its digest was loaded")
			_ = api.Do(ctx, "DELETE", "/images/cut:2", nil, nil)
		}
	} else {
		t.Log("layers are compressed: no byte of them was changed")
	}
	if err := load(ctx, api, whole); err != nil {
		t.Errorf("the whole archive: %v", err)
	}
	do(t, ctx, api, "DELETE", "/images/cut:2", nil, nil)
}

// smallTar is a root filesystem of one file of n bytes.
func smallTar(n int) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "f", Mode: 0o644, Size: int64(n)}); err != nil {
		return nil, err
	}
	if _, err := w.Write(bytes.Repeat([]byte("payload "), n/8+1)[:n]); err != nil {
		return nil, err
	}
	return b.Bytes(), w.Close()
}

// hostileTar imports trees that point out of themselves; nothing outside may change.
func hostileTar(t *testing.T, ctx context.Context, e *harness.Engine) {
	api := e.API()
	defer api.Close()
	outside := t.TempDir()
	canary := filepath.Join(outside, "canary")
	if err := os.WriteFile(canary, []byte("alive"), 0o600); err != nil {
		t.Fatal(err)
	}
	up := strings.Repeat("../", 20)
	for name, hs := range map[string][]*tar.Header{
		"up":           {{Typeflag: tar.TypeReg, Name: up + canary[1:], Size: 4}},
		"absolute":     {{Typeflag: tar.TypeReg, Name: canary, Size: 4}},
		"by a link":    {{Typeflag: tar.TypeSymlink, Name: "l", Linkname: outside}, {Typeflag: tar.TypeReg, Name: "l/canary", Size: 4}},
		"by hard link": {{Typeflag: tar.TypeLink, Name: "h", Linkname: canary}, {Typeflag: tar.TypeReg, Name: "h", Size: 4}},
		"by up link":   {{Typeflag: tar.TypeSymlink, Name: "d", Linkname: up + outside[1:]}, {Typeflag: tar.TypeLink, Name: "d/new", Linkname: "d/canary"}},
	} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range hs {
			h.Mode = 0o644
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
			if h.Size > 0 {
				_, _ = w.Write([]byte("evil"))
			}
		}
		_ = w.Close()
		_ = api.Import(ctx, "evil", "1", &b) // refused or made harmless: both are right
		_ = api.Do(ctx, "DELETE", "/images/evil:1?force=1", nil, nil)
		if got, err := os.ReadFile(canary); err != nil || string(got) != "alive" {
			t.Errorf("%s: a file outside holds %q, %v", name, got, err)
		}
		if _, err := os.Lstat(filepath.Join(outside, "new")); err == nil {
			t.Errorf("%s: a file was made outside", name)
		}
	}
}

func hangUpImport(t *testing.T, ctx context.Context, e *harness.Engine) {
	for _, part := range []int{0, 700, 100000} {
		c, err := e.API().Dial(ctx)
		if err != nil {
			t.Fatal(err)
		}
		whole, err := harness.BusyboxTar()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "POST /images/create?fromSrc=-&repo=half&tag=1 HTTP/1.1\r\nHost: d\r\nContent-Length: %d\r\n\r\n", len(whole))
		_, _ = c.Write(whole[:part])
		time.Sleep(100 * time.Millisecond)
		c.Close()
	}
	time.Sleep(200 * time.Millisecond)
	api := e.API()
	defer api.Close()
	if err := api.Do(ctx, "GET", "/images/half:1/json", nil, nil); harness.Status(err) != 404 {
		t.Errorf("half an image is there: %v", err)
	}
}

func hangUpSave(t *testing.T, ctx context.Context, e *harness.Engine) {
	for range 5 {
		c, err := e.API().Dial(ctx)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "GET /images/%s/get HTTP/1.1\r\nHost: d\r\n\r\n", image)
		_, _ = io.ReadFull(c, make([]byte, 1024))
		c.Close()
	}
}

// flood is a container that writes as fast as it can.
func flood(t *testing.T, ctx context.Context, api *harness.API) string {
	t.Helper()
	id := create(t, ctx, api, "", map[string]any{
		"Image": image, "Cmd": []string{"yes", strings.Repeat("0123456789", 20)}, "AttachStdout": true, "OpenStdin": true,
		"HostConfig": map[string]any{"LogConfig": map[string]any{"Type": "json-file", "Config": map[string]string{"max-size": "1m", "max-file": "2"}}},
	})
	return id
}

func logsNeverRead(t *testing.T, ctx context.Context, e *harness.Engine) {
	api := e.API()
	defer api.Close()
	id := flood(t, ctx, api)
	do(t, ctx, api, "POST", "/containers/"+id+"/start", nil, nil)
	for range 10 {
		c, err := api.Dial(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "GET /containers/%s/logs?stdout=1&follow=1&tail=all HTTP/1.1\r\nHost: d\r\n\r\n", id)
	}
	time.Sleep(2 * time.Second)
	if now := e.RSS(); now > growth*2 {
		t.Errorf("%d MB with ten clients that never read", now>>20)
	}
	do(t, ctx, api, "DELETE", "/containers/"+id+"?force=1", nil, nil)
}

func attachNeverRead(t *testing.T, ctx context.Context, e *harness.Engine) {
	api := e.API()
	defer api.Close()
	id := flood(t, ctx, api)
	s, err := api.Hijack(ctx, "/containers/"+id+"/attach?stream=1&stdout=1&stderr=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	do(t, ctx, api, "POST", "/containers/"+id+"/start", nil, nil)
	time.Sleep(2 * time.Second)
	begin := time.Now()
	do(t, ctx, api, "DELETE", "/containers/"+id+"?force=1", nil, nil)
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("removal took %v beside a client that never reads", d)
	}
}

func eventsNeverRead(t *testing.T, ctx context.Context, e *harness.Engine) {
	api := e.API()
	defer api.Close()
	c, err := api.Dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET /events HTTP/1.1\r\nHost: d\r\n\r\n")
	for i := range 60 {
		id := create(t, ctx, api, "", map[string]any{"Image": image, "Cmd": []string{"true"}, "Labels": map[string]string{"a": strings.Repeat("x", 16<<10)}})
		do(t, ctx, api, "POST", fmt.Sprintf("/containers/%s/rename?name=ev%d", id, i), nil, nil)
		do(t, ctx, api, "DELETE", "/containers/"+id, nil, nil)
	}
}

func stdinNeverRead(t *testing.T, ctx context.Context, e *harness.Engine) {
	api := e.API()
	defer api.Close()
	id := create(t, ctx, api, "", map[string]any{"Image": image, "Cmd": []string{"sleep", "300"}, "OpenStdin": true, "AttachStdin": true})
	do(t, ctx, api, "POST", "/containers/"+id+"/start", nil, nil)
	s, err := api.Hijack(ctx, "/containers/"+id+"/attach?stream=1&stdin=1&stdout=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_ = s.SetWriteDeadline(time.Now().Add(2 * time.Second))
	block := make([]byte, 1<<20)
	var sent int64
	for range 200 {
		n, err := s.Write(block)
		sent += int64(n)
		if err != nil {
			break
		}
	}
	if sent >= 64<<20 {
		t.Errorf("%d MB were taken for a process that does not read", sent>>20)
	}
	do(t, ctx, api, "DELETE", "/containers/"+id+"?force=1", nil, nil)
}

func oneName(t *testing.T, ctx context.Context, e *harness.Engine) {
	api := e.API()
	defer api.Close()
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := 0
	for range 16 {
		wg.Go(func() {
			err := api.Do(ctx, "POST", "/containers/create?name=only", map[string]any{"Image": image, "Cmd": []string{"true"}}, nil)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				won++
			case harness.Status(err) != 409 || !strings.Contains(err.Error(), "already in use"):
				t.Errorf("name in use: %v", err)
			}
		})
	}
	wg.Wait()
	if won != 1 {
		t.Errorf("%d of 16 got the name", won)
	}
	do(t, ctx, api, "DELETE", "/containers/only", nil, nil)
}

// allAtOnce has many clients do contrary things to one container.
func allAtOnce(t *testing.T, ctx context.Context, e *harness.Engine) {
	api := e.API()
	defer api.Close()
	for range 5 {
		id := create(t, ctx, api, "", map[string]any{"Image": image, "Cmd": []string{"sleep", "300"}})
		var wg sync.WaitGroup
		for i, path := range []string{"start", "stop?t=0", "restart?t=0", "kill", "start", "kill", "stop?t=0", "start"} {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * 3 * time.Millisecond)
				err := api.Do(ctx, "POST", "/containers/"+id+"/"+path, nil, nil)
				if s := harness.Status(err); err != nil && s != 409 && s != 404 {
					t.Errorf("%s: %v", path, err)
				}
			})
		}
		wg.Go(func() {
			time.Sleep(40 * time.Millisecond)
			if err := api.Do(ctx, "DELETE", "/containers/"+id+"?force=1", nil, nil); err != nil && harness.Status(err) != 409 {
				t.Errorf("rm -f: %v", err)
			}
		})
		wg.Wait()
		if err := api.Do(ctx, "DELETE", "/containers/"+id+"?force=1", nil, nil); err != nil && harness.Status(err) != 404 {
			t.Errorf("rm -f at last: %v", err)
		}
	}
}

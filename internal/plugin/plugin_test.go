package plugin

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// serve runs a plugin on a socket.
func serve(t *testing.T, socket string, h http.HandlerFunc) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
}

// volumes answers the handshake of a volume driver, and calls with what is given.
func volumes(shaken *atomic.Int32, rest http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/Plugin.Activate" {
			shaken.Add(1)
			io.WriteString(w, `{"Implements":["VolumeDriver"]}`)
			return
		}
		rest(w, r)
	}
}

func registry(t *testing.T, dir string) *Registry {
	t.Helper()
	return NewRegistry(Config{Sockets: []string{dir + "/run"}, Specs: []string{dir + "/etc", dir + "/lib"}, Logger: slog.New(slog.DiscardHandler)})
}

// dir is a short one: a socket's path has but 108 bytes.
func dir(t *testing.T) string {
	t.Helper()
	d, err := os.MkdirTemp("", "plug")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(d) })
	return d
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestFindAndCall(t *testing.T) {
	d := dir(t)
	var shaken atomic.Int32
	echo := func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.Header.Get("Accept") != mediaType {
			t.Errorf("asked by %s, accepting %q", r.Method, r.Header.Get("Accept"))
		}
		b, _ := io.ReadAll(r.Body)
		w.Write([]byte(`{"Said":` + string(b) + `}`))
	}
	serve(t, d+"/run/one.sock", volumes(&shaken, echo))
	serve(t, d+"/run/two/two.sock", volumes(&shaken, echo))
	serve(t, d+"/elsewhere.sock", volumes(&shaken, echo))
	write(t, d+"/etc/three.spec", " unix://"+d+"/elsewhere.sock\n")
	write(t, d+"/lib/four/four.json", `{"Name":"four","Addr":"unix://`+d+`/elsewhere.sock"}`)
	write(t, d+"/etc/bad.spec", "nowhere")
	write(t, d+"/etc/README", "")
	r := registry(t, d)
	if got := strings.Join(r.places.names(), " "); got != "bad four one three two" {
		t.Errorf("there are %q", got)
	}
	for _, name := range []string{"one", "two", "three", "four", "one"} {
		p, err := r.Find(t.Context(), name, VolumeDriver)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var answer struct{ Said struct{ A string } }
		if err := p.Call(t.Context(), "X.Y", map[string]string{"A": "b"}, &answer, How{}); err != nil || answer.Said.A != "b" {
			t.Errorf("%s: %+v, %v", name, answer, err)
		}
	}
	if n := shaken.Load(); n != 4 {
		t.Errorf("%d handshakes, want one each", n)
	}
	if got := strings.Join(r.Known(VolumeDriver), " "); got != "four one three two" {
		t.Errorf("known: %q", got)
	}
	if _, err := r.Find(t.Context(), "one", NetworkDriver); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("of another kind: %v", err)
	}
	for _, name := range []string{"nosuch", "", "../run/one", "..", "README"} {
		if _, err := r.Find(t.Context(), name, VolumeDriver); !errdefs.IsNotFound(err) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := r.Find(t.Context(), "bad", VolumeDriver); err == nil || errdefs.IsNotFound(err) {
		t.Errorf("a bad address: %v", err)
	}
	os.Remove(d + "/run/one.sock")
	if _, err := r.Find(t.Context(), "one", VolumeDriver); !errdefs.IsNotFound(err) {
		t.Errorf("gone: %v", err)
	}
}

func TestAnswers(t *testing.T) {
	d := dir(t)
	for name, c := range map[string]struct {
		status     int
		body, want string
	}{
		"err":    {200, `{"Err":"no space"}`, "no space"},
		"status": {500, `{"Err":"no space"}`, "M: no space"},
		"text":   {404, "not here", "M: not here"},
		"silly":  {200, "<html>", "M: the plugin's answer: invalid character '<'"},
		"type":   {200, `{"A":5}`, "M: the plugin's answer: json: cannot unmarshal"},
		"huge":   {200, strings.Repeat(" ", maxAnswer) + "{}", "M: the plugin's answer is larger than"},
		"good":   {200, `{"A":"x","B":[1]}`, ""},
	} {
		serve(t, d+"/run/"+name+".sock", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(c.status)
			io.WriteString(w, c.body)
		})
		client, err := NewClient("unix://"+d+"/run/"+name+".sock", nil)
		if err != nil {
			t.Fatal(err)
		}
		var ret struct{ A string }
		err = client.Call(t.Context(), "M", nil, &ret, How{})
		if c.want == "" && (err != nil || ret.A != "x") || c.want != "" && (err == nil || !strings.HasPrefix(err.Error(), c.want)) {
			t.Errorf("%s: %q, %v, want %q", name, ret.A, err, c.want)
		}
		if errors.Is(err, ErrUnreachable) {
			t.Errorf("%s: it was reached: %v", name, err)
		}
	}
}

// A plugin that hangs holds up those who ask it for as long as they said, and those
// who ask all plugins once.
func TestHangs(t *testing.T) {
	d := dir(t)
	var shaken atomic.Int32
	stop := make(chan struct{})
	defer close(stop)
	hang := func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-stop:
		case <-r.Context().Done():
		}
	}
	serve(t, d+"/run/slow.sock", volumes(&shaken, hang))
	serve(t, d+"/run/mute.sock", hang)
	serve(t, d+"/run/well.sock", volumes(&shaken, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "{}") }))
	r := registry(t, d)
	p, err := r.Find(t.Context(), "slow", VolumeDriver)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Call(t.Context(), "M", nil, nil, How{Timeout: 50 * time.Millisecond}); !errors.Is(err, ErrUnreachable) {
		t.Errorf("%v", err)
	}
	var asked atomic.Int32
	ask := func() map[string]error {
		return r.Ask(t.Context(), VolumeDriver, func(ctx context.Context, p *Plugin) error {
			asked.Add(1)
			return p.Call(ctx, "M", nil, nil, How{Once: true})
		})
	}
	begin := time.Now()
	for range 5 {
		failed := ask()
		if failed["well"] != nil || !errors.Is(failed["slow"], ErrUnreachable) || !errors.Is(failed["mute"], ErrUnreachable) {
			t.Fatalf("failed: %v", failed)
		}
	}
	if took := time.Since(begin); took > 2*probeTimeout {
		t.Errorf("five times took %s", took)
	}
	if n := asked.Load(); n != 6 { // well each time, slow once
		t.Errorf("asked %d times", n)
	}
	if got := r.Known(VolumeDriver); !slices.Equal(got, []string{"slow", "well"}) {
		t.Errorf("known: %v", got)
	}
}

// A plugin that is just being started gets its call; one that never comes does not
// keep a caller beyond its context.
func TestRetry(t *testing.T) {
	d := dir(t)
	c, err := NewClient("unix://"+d+"/late.sock", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Call(t.Context(), "M", nil, nil, How{Once: true}); !errors.Is(err, ErrUnreachable) {
		t.Errorf("nobody there: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := c.Call(ctx, "M", nil, nil, How{}); !errors.Is(err, ErrUnreachable) {
		t.Errorf("cut off: %v", err)
	}
	go func() {
		time.Sleep(200 * time.Millisecond)
		serve(t, d+"/late.sock", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "{}") })
	}()
	if err := c.Call(t.Context(), "M", nil, nil, How{}); err != nil {
		t.Errorf("late: %v", err)
	}
}

func TestTLS(t *testing.T) {
	d := dir(t)
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, `{"Implements":["VolumeDriver"]}`)
	}))
	defer s.Close()
	write(t, d+"/ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})))
	spec := func(v any) string {
		b, _ := json.Marshal(map[string]any{"Name": "x", "Addr": s.URL, "TLSConfig": v})
		return string(b)
	}
	write(t, d+"/etc/trusted.json", spec(map[string]string{"CAFile": d + "/ca.pem"}))
	write(t, d+"/etc/unasked.json", spec(map[string]string{}))
	write(t, d+"/etc/strange.json", spec(nil))
	write(t, d+"/etc/nofile.json", spec(map[string]string{"CAFile": d + "/nosuch.pem"}))
	write(t, d+"/etc/plain.spec", s.URL)
	r := registry(t, d)
	for name, ok := range map[string]bool{"trusted": true, "unasked": true, "strange": false, "nofile": false, "plain": true} {
		if _, err := r.Find(t.Context(), name, VolumeDriver); (err == nil) != ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzSpec(f *testing.F) {
	f.Add(true, []byte(`{"Name":"x","Addr":"tcp://h:1","TLSConfig":{"CAFile":"/x"}}`))
	f.Add(false, []byte("unix:///run/x.sock\n"))
	f.Add(false, []byte("http://[::1"))
	f.Fuzz(func(t *testing.T, asJSON bool, b []byte) {
		ext := ".spec"
		if asJSON {
			ext = ".json"
		}
		w, err := parseSpec(ext, b)
		if err != nil {
			return
		}
		if c, err := NewClient(w.Addr, nil); err == nil && c.base == "" {
			t.Error("a client of nothing")
		}
	})
}

func FuzzAnswer(f *testing.F) {
	f.Add(200, []byte(`{"Err":"x"}`))
	f.Add(500, []byte(`{"Err":5}`))
	f.Add(200, []byte(`{"Volumes":[{"Name":"a","Status":{"x":[1]}}]}`))
	f.Fuzz(func(t *testing.T, status int, b []byte) {
		var ret struct{ Volumes []struct{ Name string } }
		err := readAnswer("M", status, b, &ret)
		if status != http.StatusOK && err == nil {
			t.Error("taken for a success")
		}
	})
}

package engine

import (
	"bytes"
	"encoding/json"
	"flag"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"testing"
	"time"

	"escale.dev/escale/internal/container"
	apicontainer "github.com/moby/moby/api/types/container"
	apiimage "github.com/moby/moby/api/types/image"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares JSON with testdata/name.json, each field on a line of its own.
func golden(t *testing.T, name, body string) {
	t.Helper()
	var got bytes.Buffer
	if err := json.Indent(&got, []byte(body), "", " "); err != nil {
		t.Fatalf("%s: %v in %q", name, err, body)
	}
	path := filepath.Join("testdata", name+".json")
	if *update {
		if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%s differs (go test -update writes it anew):\n%s", path, diff(want, got.Bytes()))
	}
}

// diff shows the first lines that differ.
func diff(want, got []byte) string {
	w, g := bytes.Split(want, []byte("\n")), bytes.Split(got, []byte("\n"))
	for i := range w {
		if i >= len(g) || !bytes.Equal(w[i], g[i]) {
			end := func(l [][]byte) []byte { return bytes.Join(l[min(i, len(l)):min(i+5, len(l))], []byte("\n")) }
			return "want\n" + string(end(w)) + "\ngot\n" + string(end(g))
		}
	}
	return "more lines than wanted"
}

var upFor = regexp.MustCompile(`(Up|Exited \(3\)) [^"(]*( ago| )`)

func TestGolden(t *testing.T) {
	r := newRig(t)
	for _, version := range []string{"1.24", "1.41", "1.43", "1.52", "1.56"} {
		for _, tt := range []struct{ name, path string }{
			{"list", "/containers/json?all=1&size=1"},
			{"inspect-running", "/containers/web/json?size=1"},
			{"inspect-created", "/containers/fresh/json"},
			{"images", "/images/json"},
			{"image", "/images/debian/json"},
		} {
			status, _, body := r.do("GET", "/v"+version+tt.path, "")
			if status != http.StatusOK {
				t.Errorf("%s %s: %d %s", version, tt.path, status, body)
				continue
			}
			golden(t, tt.name+"-"+version, upFor.ReplaceAllString(body, "$1 …$2"))
		}
	}
}

// The list is written by hand: what it says must be what the types say.
func TestListDecodes(t *testing.T) {
	r := newRig(t)
	_, _, body := r.do("GET", "/containers/json?all=1", "")
	var list []apicontainer.Summary
	dec := json.NewDecoder(bytes.NewReader([]byte(body)))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&list); err != nil {
		t.Fatal(err)
	}
	// Written again by encoding/json it has the same fields and values.
	again, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	var a, b any
	if err := json.Unmarshal([]byte(body), &a); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(again, &b); err != nil {
		t.Fatal(err)
	}
	dropEmptyIP(b)
	if !reflect.DeepEqual(a, b) {
		t.Errorf("%s\nby its type:\n%s", body, again)
	}
}

// dropEmptyIP takes out what encoding/json cannot omit.
func dropEmptyIP(v any) {
	for _, c := range v.([]any) {
		for _, p := range c.(map[string]any)["Ports"].([]any) {
			if m := p.(map[string]any); m["IP"] == "" {
				delete(m, "IP")
			}
		}
	}
}

// The newest answers hold nothing the newest types do not know.
func TestInspectDecodes(t *testing.T) {
	r := newRig(t)
	for path, into := range map[string]any{
		"/containers/web/json": new(apicontainer.InspectResponse),
		"/images/debian/json":  new(apiimage.InspectResponse),
	} {
		_, _, body := r.do("GET", path, "")
		dec := json.NewDecoder(bytes.NewReader([]byte(body)))
		dec.DisallowUnknownFields()
		if err := dec.Decode(into); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestStatusText(t *testing.T) {
	now := at.Add(time.Hour)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	health := func(s string) *container.Health { return &container.Health{Status: s} }
	for _, tt := range []struct {
		st     container.State
		want   string
		status string
	}{
		{container.State{Status: container.Created}, "Created", "created"},
		{container.State{Status: container.Starting}, "Created", "created"},
		{container.State{Status: container.Starting, StartedAt: ago(time.Hour), FinishedAt: ago(time.Minute), ExitCode: 2}, "Exited (2) About a minute ago", "exited"},
		{container.State{Status: container.Running, StartedAt: ago(5 * time.Second)}, "Up 5 seconds", "running"},
		{container.State{Status: container.Running, StartedAt: ago(5 * time.Second), Health: health("healthy")}, "Up 5 seconds (healthy)", "running"},
		{container.State{Status: container.Running, StartedAt: ago(0), Health: health("starting")}, "Up Less than a second (health: starting)", "running"},
		{container.State{Status: container.Running, StartedAt: now.Add(time.Minute)}, "Up Less than a second", "running"},
		{container.State{Status: container.Paused, StartedAt: ago(2 * time.Minute)}, "Up 2 minutes (Paused)", "paused"},
		{container.State{Status: container.Restarting, ExitCode: 1, FinishedAt: ago(5 * time.Second)}, "Restarting (1) 5 seconds ago", "restarting"},
		{container.State{Status: container.Exited, StartedAt: ago(time.Hour), FinishedAt: ago(3 * time.Minute)}, "Exited (0) 3 minutes ago", "exited"},
		{container.State{Status: container.Exited}, "Created", "exited"},
		{container.State{Status: container.Removing}, "Removal In Progress", "removing"},
		{container.State{Status: container.Dead}, "Dead", "dead"},
	} {
		if got := statusText(&tt.st, now); got != tt.want || shownStatus(&tt.st) != tt.status {
			t.Errorf("%+v: %q %s", tt.st, got, shownStatus(&tt.st))
		}
	}
}

// many is a list of n containers such as stand on real hosts.
func many(n int) []container.View {
	base := sampleViews()[0]
	views := make([]container.View, n)
	for i := range views {
		views[i] = base
	}
	return views
}

func BenchmarkList100(b *testing.B) {
	s := New(Config{
		Containers: &fakeContainers{views: many(100)}, Images: &fakeImages{images: sampleImages()}, System: fakeSystem{},
	})
	h := s.Handler()
	req := httptest.NewRequest("GET", "/v1.41/containers/json?all=1", nil)
	b.ReportAllocs()
	for b.Loop() {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		if w.Code != 200 {
			b.Fatal(w.Body.String())
		}
	}
}

// BenchmarkList100Reflect is what the same answer costs through encoding/json,
// once it stands as values.
func BenchmarkList100Reflect(b *testing.B) {
	s := New(Config{
		Containers: &fakeContainers{views: many(100)}, Images: &fakeImages{images: sampleImages()}, System: fakeSystem{},
	})
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/v1.41/containers/json?all=1", nil))
	var list []apicontainer.Summary
	if err := json.Unmarshal(w.Body.Bytes(), &list); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := json.Marshal(list); err != nil {
			b.Fatal(err)
		}
	}
}

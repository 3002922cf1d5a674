package compat

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
)

// peerImage is what the containers of the requests run; the other engine gets it too.
const peerImage = "escale-compat:bb"

// side is one of the two engines.
type side struct {
	api  *harness.API
	vars map[string]string // what earlier answers told
	hide [][2]string       // words of this engine alone, and what stands for them
}

var writeWords = flag.Bool("write-words", false, "TestBesidePeer: write testdata/requests/words anew")

// TestBesidePeer puts the same requests to Escale and to another engine with
// Docker's API, and prints where the answers differ. The requests are in
// testdata/requests/*.txt; the differences that are meant, each with its
// reason, stand beside them in the file accepted; what both say where such a rule
// is about words, a status or a kind of content stands in the file words, so that
// a rule covers what was looked at and nothing else. It needs the address of the other engine
// in $ESCALE_PEER; without that only the tool itself is tested.
func TestBesidePeer(t *testing.T) {
	peer := os.Getenv("ESCALE_PEER")
	if peer == "" {
		t.Skip("needs another engine: ESCALE_PEER=unix:///var/run/docker.sock")
	}
	if why := harness.Needs(); why != "" {
		t.Skip(why)
	}
	ctx := t.Context()
	e, err := harness.New(harness.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error("clean-up:", err)
		}
	})
	if err := e.Start(ctx); err != nil {
		t.Fatal(err)
	}
	ours := &side{api: e.API(), hide: [][2]string{{e.DataRoot, "<root>"}, {e.ExecRoot, "<run>"}, {e.Instance, "<instance>"}}}
	theirs := &side{api: harness.NewAPI(peer), hide: [][2]string{{"/var/lib/docker", "<root>"}}}
	for _, s := range []*side{ours, theirs} {
		s.prepare(t)
	}
	known := &known{rules: readRules(t, "testdata/requests/accepted"), words: readWords(t, wordsFile), seen: map[string]bool{}, write: *writeWords}
	files, err := filepath.Glob("testdata/requests/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no requests in testdata", err)
	}
	asked := 0
	for _, file := range files {
		for _, sec := range readScript(t, file) {
			for _, ver := range sec.versions {
				t.Run(sec.name+"/"+ver, func(t *testing.T) {
					asked += compare(t, sec, ver, ours, theirs, known)
				})
			}
		}
	}
	t.Logf("%d requests put to both engines", asked)
	known.report(t)
}

// prepare gives an engine the image, and takes it away afterwards.
func (s *side) prepare(t *testing.T) {
	t.Helper()
	tar, err := harness.BusyboxTar()
	if err != nil {
		t.Skip(err)
	}
	repo, tag, _ := strings.Cut(peerImage, ":")
	path := "/v1.41/images/create?fromSrc=-&repo=" + repo + "&tag=" + tag + "&changes=" + url.QueryEscape("CMD [\"sh\"]") +
		"&changes=" + url.QueryEscape("LABEL a=b") + "&changes=" + url.QueryEscape("ENV PATH=/bin")
	st, b, err := s.api.Raw(t.Context(), "POST", path, bytes.NewReader(tar))
	if err != nil || st != 200 || bytes.Contains(b, []byte("errorDetail")) {
		t.Fatalf("import: %d %s %v", st, b, err)
	}
	t.Cleanup(func() {
		// detached: the test's context has ended
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 30*time.Second)
		defer cancel()
		s.clear(ctx, t)
		if err := s.api.Do(ctx, "DELETE", "/v1.41/images/"+peerImage+"?force=1", nil, nil); err != nil {
			t.Error("clean-up:", err)
		}
		s.api.Close()
	})
}

// clear removes the containers of the image.
func (s *side) clear(ctx context.Context, t *testing.T) {
	t.Helper()
	var list []struct{ ID, Image string }
	if err := s.api.Do(ctx, "GET", "/v1.41/containers/json?all=1", nil, &list); err != nil {
		t.Error("clean-up:", err)
	}
	for _, c := range list {
		if c.Image != peerImage {
			continue
		}
		if err := s.api.Do(ctx, "DELETE", "/v1.41/containers/"+c.ID+"?force=1&v=1", nil, nil); err != nil && harness.Status(err) != 404 {
			t.Error("clean-up:", err)
		}
	}
}

// compare runs a section against both engines and reports what differs. It
// returns the number of requests.
func compare(t *testing.T, sec *section, ver string, ours, theirs *side, known *known) int {
	t.Helper()
	for _, s := range []*side{ours, theirs} {
		s.vars = map[string]string{"V": "/v" + ver, "IMAGE": peerImage}
	}
	// detached: cleaning up happens after a failure, too
	defer ours.clear(context.WithoutCancel(t.Context()), t)
	defer theirs.clear(context.WithoutCancel(t.Context()), t)
	for _, rq := range sec.requests {
		want, got := theirs.ask(t, rq), ours.ask(t, rq)
		for _, d := range differences(want, got) {
			where := fmt.Sprintf("%s/%s:%d", sec.name, ver, rq.line)
			switch known.judge(sec, ver, rq, d) {
			case meant:
			case otherWords:
				t.Errorf("%s %s\n\t%s differs in another way than testdata/requests/words tells\n\tpeer   %s\n\tescale %s", where, rq.text, d.path, d.want, d.got)
			default:
				t.Errorf("%s %s\n\t%s\n\tpeer   %s\n\tescale %s", where, rq.text, d.path, d.want, d.got)
			}
		}
	}
	return len(sec.requests)
}

// ask puts a request to one engine and flattens the answer.
func (s *side) ask(t *testing.T, rq *request) map[string]string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	a, err := rq.send(ctx, s)
	if err != nil {
		return map[string]string{"no answer": err.Error()}
	}
	for name, path := range rq.save {
		var v any
		if json.Unmarshal(a.body, &v) == nil {
			s.vars[name] = lookUp(v, path)
		}
	}
	return flatten(a, s.hide)
}

package cli_test

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
)

// TestCreateSpellings gives every spelling of testdata/spellings.list to both
// clients: the same request, or the same refusal.
func TestCreateSpellings(t *testing.T) {
	needDocker(t)
	if testing.Short() {
		t.Skip("-short: a thousand programs are not started")
	}
	text, err := os.ReadFile("testdata/spellings.list")
	if err != nil {
		t.Fatal(err)
	}
	type task struct {
		number       int
		line, reason string
	}
	tasks := make(chan task)
	var all sync.WaitGroup
	for range 4 {
		rec, dir := newRecorder(t), bodyDir(t)
		all.Go(func() {
			for x := range tasks {
				found := compareLine(t, rec, dir, x.line+" debian")
				switch {
				case found == "" && x.reason != "":
					t.Errorf("spellings.list:%d: %s: is said to differ, and does not", x.number, x.line)
				case found != "" && x.reason == "":
					t.Errorf("spellings.list:%d: %s: %s", x.number, x.line, found)
				}
			}
		})
	}
	count, reason := 0, ""
	for n, line := range strings.Split(string(text), "\n") {
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "~ "):
			reason = line[2:]
		default:
			tasks <- task{n + 1, line, reason}
			reason = ""
			count++
		}
	}
	close(tasks)
	all.Wait()
	t.Logf("%d command lines compared", count)
}

// compareLine tells what one line differs in, "" for nothing.
func compareLine(t *testing.T, rec *recorder, dir, line string) string {
	want, wantURL, wantCode, wantErr := rec.run(t, dir, "docker", line)
	got, gotURL, gotCode, gotErr := rec.run(t, dir, "escale", line)
	wantErr = strings.ReplaceAll(wantErr, "docker", "escale")
	var found []string
	if wantCode != gotCode || wantURL != gotURL {
		found = append(found, fmt.Sprintf("code %d, url %s; docker %d, %s", gotCode, gotURL, wantCode, wantURL))
	}
	if strings.TrimSpace(wantErr) != strings.TrimSpace(gotErr) {
		found = append(found, fmt.Sprintf("says %q, docker %q", gotErr, wantErr))
	}
	switch {
	case want != nil && got != nil:
		found = append(found, differences("", normal(want), normal(got))...)
	case want != nil || got != nil:
		found = append(found, fmt.Sprintf("sends %s, docker %s", text(got), text(want)))
	}
	return strings.Join(found, "\n\t")
}

package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/logs"
)

// A client that follows a log more slowly than it grows gets all that there was of it when its
// container was removed.
func TestFollowerOfWhatIsRemoved(t *testing.T) {
	f := newFakeEngine()
	m := f.manager(t, t.TempDir())
	defer m.Close()
	id := create(t, m, "web", nil)
	if err := m.Start(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	path := m.logPath(id)
	write := func(n int) {
		line := fmt.Sprintf(`{"log":"%d\n","stream":"stdout","time":"2026-01-01T00:00:0%d.000000001Z"}`+"\n", n, n)
		if err := os.WriteFile(path, []byte(line), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(0)
	r, _, err := m.Logs(t.Context(), "web", logs.ReadOptions{Stdout: true, Stderr: true, Tail: -1, Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for n := range 3 {
		for i := n; i >= 0; i-- {
			from := path
			if i > 0 {
				from = fmt.Sprintf("%s.%d", path, i)
			}
			if err := os.Rename(from, fmt.Sprintf("%s.%d", path, i+1)); err != nil {
				t.Fatal(err)
			}
		}
		write(n + 1)
	}
	if err := m.Remove(t.Context(), "web", Remove{Force: true}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { r.Close() })
	defer stop()
	var got []string
	for {
		l, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		got = append(got, strings.TrimSpace(string(l.Data)))
	}
	if ctx.Err() != nil {
		t.Error("the log did not end")
	}
	if want := "0 1 2 3"; strings.Join(got, " ") != want {
		t.Errorf("read %q, want %q", strings.Join(got, " "), want)
	}
}

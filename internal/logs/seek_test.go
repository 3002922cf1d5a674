package logs

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/logs/format"
)

// Whatever the window: searching gives what reading everything would, also among
// garbage, long lines and many lines of one time.
func TestWindowsBySearching(t *testing.T) {
	type written struct {
		at   time.Time
		text string
	}
	var all []written
	w := newWriter(t, 3)
	rng := rand.New(rand.NewPCG(1, 2))
	at := epoch
	for file := range 3 {
		if file > 0 {
			w.rotate()
		}
		var b strings.Builder
		for range 3000 {
			at = at.Add(time.Duration(rng.IntN(3)) * time.Millisecond)
			text := fmt.Sprintf("line %d", len(all))
			switch rng.IntN(60) {
			case 0:
				b.WriteString("garbage " + strings.Repeat("x", rng.IntN(200_000)) + "\n")
			case 1:
				text += strings.Repeat("y", rng.IntN(16<<10))
			}
			fmt.Fprintf(&b, `{"log":"%s\n","stream":"stdout","time":%q}`+"\n", text, at.Format(time.RFC3339Nano))
			all = append(all, written{at, text})
		}
		w.write(b.String())
	}
	for range 60 {
		since := epoch.Add(time.Duration(rng.Int64N(int64(at.Sub(epoch)) + 10)))
		until := since.Add(time.Duration(rng.Int64N(int64(at.Sub(since)) + 10)))
		since, until = since.Truncate(time.Millisecond), until.Truncate(time.Millisecond)
		tail := -1
		if rng.IntN(2) == 0 {
			tail = rng.IntN(20)
		}
		var want []string
		for _, l := range all {
			if !l.at.Before(since) && !l.at.After(until) {
				want = append(want, l.text)
			}
		}
		if tail >= 0 {
			want = want[max(0, len(want)-tail):]
		}
		o := ReadOptions{Stdout: true, Since: since, Until: until, Tail: tail}
		same(t, fmt.Sprintf("since %v until %v tail %d", since.Sub(epoch), until.Sub(epoch), tail), drain(t, open(t, w.path, 3, o)), want)
	}
}

// FuzzSearch: no content of a file makes searching fail, or pass by a line that is
// whole and in order.
func FuzzSearch(f *testing.F) {
	f.Add([]byte("x"), uint16(3000))
	f.Add([]byte("{\"log\":\"a\",\"stream\":\"stdout\",\"time\":\"9999-01-01T00:00:00Z\"}"), uint16(10))
	f.Fuzz(func(t *testing.T, garbage []byte, pad uint16) {
		garbage = bytes.ReplaceAll(garbage, []byte(`"time"`), []byte(`"emit"`)) // a time of its own is out of order
		path := filepath.Join(t.TempDir(), "log")
		var b bytes.Buffer
		for n := range 40 {
			b.WriteString(line(n))
			b.Write(bytes.Repeat(append(garbage, '\n'), int(pad)/40+1))
		}
		if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		o := all()
		o.Since = epoch.Add(20 * time.Millisecond)
		got := map[string]bool{}
		for _, l := range drain(t, open(t, path, 1, o)) {
			got[l] = true
		}
		for _, l := range numbers(20, 40) {
			if !got[l] {
				t.Fatalf("%s is missing", l)
			}
		}
	})
}

// A follower that is slower than the rotation is told, to the line, what it missed.
func TestSlowFollowerIsTold(t *testing.T) {
	w := newWriter(t, 3)
	written := int64(0)
	mark := func() {
		if err := unix.Fsetxattr(int(w.f.Fd()), format.LinesBefore, []byte(strconv.FormatInt(written, 10)), 0); err != nil {
			t.Skip("this file system keeps no attributes: ", err)
		}
	}
	mark()
	w.lines(0, 10)
	written = 10
	o := all()
	o.Follow, o.Tail = true, 5
	ended := make(chan struct{})
	o.Ended = ended
	r := open(t, w.path, 3, o)
	if _, err := r.Next(); err != nil {
		t.Fatal(err)
	}
	for n := 10; n < 100; n += 10 {
		w.rotate()
		mark()
		w.lines(n, n+10)
		written += 10
	}
	close(ended)
	got := drain(t, r)
	want := append(numbers(6, 10), "escale: 60 log lines were rotated away before they were read")
	same(t, "followed", got, append(want, numbers(70, 100)...))
}

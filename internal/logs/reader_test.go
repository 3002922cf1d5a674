package logs

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// entry is line n of a log; line n was written n milliseconds after epoch.
func entry(n int, text string) string {
	stream := "stdout"
	if n%10 == 9 {
		stream = "stderr"
	}
	return fmt.Sprintf(`{"log":%s,"stream":%q,"time":%q}`+"\n", strconv.Quote(text), stream,
		epoch.Add(time.Duration(n)*time.Millisecond).Format(time.RFC3339Nano))
}

func line(n int) string { return entry(n, fmt.Sprintf("line %d\n", n)) }

// logWriter writes and rotates as a monitor does: the oldest goes, each is renamed to
// the next number, a new file is created.
type logWriter struct {
	t        testing.TB
	path     string
	maxFiles int
	f        *os.File
}

func newWriter(t testing.TB, maxFiles int) *logWriter {
	w := &logWriter{t: t, path: filepath.Join(t.TempDir(), "id-json.log"), maxFiles: maxFiles}
	w.create()
	t.Cleanup(func() { w.f.Close() })
	return w
}

func (w *logWriter) create() {
	f, err := os.OpenFile(w.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		w.t.Fatal(err)
	}
	w.f = f
}

func (w *logWriter) write(s string) {
	if _, err := w.f.WriteString(s); err != nil {
		w.t.Error(err)
	}
}

func (w *logWriter) lines(from, to int) {
	var b strings.Builder
	for n := from; n < to; n++ {
		b.WriteString(line(n))
	}
	w.write(b.String())
}

func (w *logWriter) name(n int) string {
	if n == 0 {
		return w.path
	}
	return w.path + "." + strconv.Itoa(n)
}

func (w *logWriter) rotate() {
	w.f.Close()
	for n := w.maxFiles - 1; n > 0; n-- {
		if err := os.Rename(w.name(n-1), w.name(n)); err != nil && !errors.Is(err, os.ErrNotExist) {
			w.t.Error(err)
		}
	}
	if w.maxFiles == 1 {
		os.Remove(w.path)
	}
	w.create()
}

func (w *logWriter) zip(n int) {
	plain, err := os.ReadFile(w.name(n))
	if err != nil {
		w.t.Fatal(err)
	}
	var b bytes.Buffer
	gz := gzip.NewWriter(&b)
	gz.Write(plain)
	gz.Close()
	if err := os.WriteFile(w.name(n)+".gz", b.Bytes(), 0o640); err != nil {
		w.t.Fatal(err)
	}
	os.Remove(w.name(n))
}

func all() ReadOptions { return ReadOptions{Stdout: true, Stderr: true, Tail: -1} }

func open(t testing.TB, path string, maxFiles int, o ReadOptions) Reader {
	t.Helper()
	r, err := Open(path, maxFiles, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// drain reads to the end and returns the lines' text.
func drain(t testing.TB, r Reader) []string {
	t.Helper()
	var out []string
	for {
		l, err := r.Next()
		if err == io.EOF {
			return out
		} else if err != nil {
			t.Fatal(err)
		}
		out = append(out, strings.TrimSuffix(string(l.Data), "\n"))
	}
}

func numbers(from, to int) (out []string) {
	for n := from; n < to; n++ {
		out = append(out, "line "+strconv.Itoa(n))
	}
	return out
}

func same(t *testing.T, what string, got, want []string) {
	t.Helper()
	if slices.Equal(got, want) {
		return
	}
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			t.Errorf("%s: line %d of %d is %q, want %q (of %d)", what, i, len(got), got[i], want[i], len(want))
			return
		}
	}
	t.Errorf("%s: %d lines, want %d", what, len(got), len(want))
}

// 100 lines over five files, the oldest of them compressed.
func fiveFiles(t testing.TB) *logWriter {
	w := newWriter(t, 5)
	for i := range 5 {
		if i > 0 {
			w.rotate()
		}
		w.lines(i*20, i*20+20)
	}
	w.zip(4)
	return w
}

func TestReadBack(t *testing.T) {
	w := fiveFiles(t)
	at := func(n int) time.Time { return epoch.Add(time.Duration(n) * time.Millisecond) }
	var stdoutOnly []string
	for n := range 100 {
		if n%10 != 9 {
			stdoutOnly = append(stdoutOnly, "line "+strconv.Itoa(n))
		}
	}
	for _, c := range []struct {
		name  string
		files int
		o     ReadOptions
		want  []string
	}{
		{"all", 5, all(), numbers(0, 100)},
		{"two files only", 2, all(), numbers(60, 100)},
		{"tail in the newest", 5, ReadOptions{Stdout: true, Stderr: true, Tail: 3}, numbers(97, 100)},
		{"tail of a whole file", 5, ReadOptions{Stdout: true, Stderr: true, Tail: 20}, numbers(80, 100)},
		{"tail over files", 5, ReadOptions{Stdout: true, Stderr: true, Tail: 50}, numbers(50, 100)},
		{"tail into the compressed", 5, ReadOptions{Stdout: true, Stderr: true, Tail: 85}, numbers(15, 100)},
		{"tail beyond all", 5, ReadOptions{Stdout: true, Stderr: true, Tail: 1000}, numbers(0, 100)},
		{"tail 0", 5, ReadOptions{Stdout: true, Stderr: true}, nil},
		{"stdout", 5, ReadOptions{Stdout: true, Tail: -1}, stdoutOnly},
		{"tail of stderr", 5, ReadOptions{Stderr: true, Tail: 2}, []string{"line 89", "line 99"}},
		{"since", 5, ReadOptions{Stdout: true, Stderr: true, Tail: -1, Since: at(42)}, numbers(42, 100)},
		{"until", 5, ReadOptions{Stdout: true, Stderr: true, Tail: -1, Until: at(42)}, numbers(0, 43)},
		{"since and until", 5, ReadOptions{Stdout: true, Stderr: true, Tail: -1, Since: at(42), Until: at(44)}, numbers(42, 45)},
		{"tail and until", 5, ReadOptions{Stdout: true, Stderr: true, Tail: 2, Until: at(44)}, numbers(43, 45)},
		{"tail and since", 5, ReadOptions{Stdout: true, Stderr: true, Tail: 50, Since: at(97)}, numbers(97, 100)},
	} {
		same(t, c.name, drain(t, open(t, w.path, c.files, c.o)), c.want)
	}
}

func TestRefusalsAndMissing(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(dir+"/x", 1, ReadOptions{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no stream: %v", err)
	}
	if got := drain(t, open(t, dir+"/x", 3, all())); got != nil {
		t.Errorf("missing log: %q", got)
	}
	o := all()
	o.Follow = true
	if _, err := Open(dir+"/gone/x", 1, o); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("follow in a missing directory: %v", err)
	}
	if _, err := Open(dir, 1, all()); err == nil {
		t.Error("a directory was opened as a log")
	}
}

func TestWhatALineHolds(t *testing.T) {
	w := newWriter(t, 1)
	w.write(`{"log":"\u001b[1mé \"q\" \ud83d\ude00 <\\\t\r\n","stream":"stderr","attrs":{"a":"1","b":"}\""},"time":"2026-03-01T12:00:00.5Z"}` + "\n")
	w.write(`{"log":"part","stream":"stdout","time":"2026-03-01T12:00:01Z"}` + "\n")
	w.write(`{ "time":"2026-03-01T13:00:02.000000001+01:00", "stream":"stdout", "log":"other order\n" }` + "\n")
	o := all()
	o.Details = true
	r := open(t, w.path, 1, o)
	for i, want := range []Line{
		{epoch.Add(500 * time.Millisecond), "stderr", []byte("\x1b[1mé \"q\" 😀 <\\\t\r\n"), map[string]string{"a": "1", "b": `}"`}},
		{epoch.Add(time.Second), "stdout", []byte("part"), nil},
		{epoch.Add(2*time.Second + 1), "stdout", []byte("other order\n"), nil},
	} {
		got, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if !got.Time.Equal(want.Time) || got.Stream != want.Stream || !bytes.Equal(got.Data, want.Data) ||
			fmt.Sprint(got.Attrs) != fmt.Sprint(want.Attrs) {
			t.Errorf("line %d: %v %q\nwant %v %q", i, got, got.Data, want, want.Data)
		}
	}
}

// A line written in pieces is one line to Tail.
func TestTailCountsLinesNotPieces(t *testing.T) {
	w := newWriter(t, 1)
	w.lines(0, 3)
	w.write(entry(3, "long ") + entry(4, "longer ") + entry(5, "end\n"))
	for n, want := range []string{"[]", "[long  longer  end]", "[line 2 long  longer  end]"} {
		o := all()
		o.Tail = n
		if got := fmt.Sprint(drain(t, open(t, w.path, 1, o))); got != want {
			t.Errorf("tail %d: %s, want %s", n, got, want)
		}
	}
}

func TestGarbageIsSkipped(t *testing.T) {
	for name, garbage := range map[string]string{
		"half a line, then the next on it":   `{"log":"half of a li`,
		"half a line and a newline":          `{"log":"half","stream":"std` + "\n",
		"zeros after a power cut":            strings.Repeat("\x00", 5000),
		"text":                               "no json\n\n{}\n[]\nnull\n{\"log\":1}\n",
		"a line without end, 9 MB":           strings.Repeat("x", 9<<20) + "\n",
		"no such stream":                     `{"log":"x","stream":"bogus","time":"2026-03-01T12:00:00Z"}` + "\n",
		"no time":                            `{"log":"x","stream":"stdout"}` + "\n",
		"a date that is none":                `{"log":"x","stream":"stdout","time":"2026-13-41T12:00:00Z"}` + "\n",
		"a string with an unlawful sequence": `{"log":"\x","stream":"stdout","time":"2026-03-01T12:00:00Z"}` + "\n",
	} {
		w := newWriter(t, 2)
		w.lines(0, 5)
		w.write(garbage)
		w.lines(5, 10)
		same(t, name, drain(t, open(t, w.path, 2, all())), numbers(0, 10))
		o := all()
		o.Tail = 7
		same(t, name+", tail", drain(t, open(t, w.path, 2, o)), numbers(3, 10))
	}
}

func TestUnfinishedLastLine(t *testing.T) {
	w := newWriter(t, 2)
	w.lines(0, 3)
	w.write(`{"log":"half`)
	same(t, "half", drain(t, open(t, w.path, 2, all())), numbers(0, 3))
	w.rotate()
	w.write(strings.TrimSuffix(line(3), "\n")) // all but the newline
	same(t, "all but the newline", drain(t, open(t, w.path, 2, all())), numbers(0, 4))
}

func TestDamagedGzip(t *testing.T) {
	w := fiveFiles(t)
	if err := os.WriteFile(w.name(4)+".gz", []byte("no gzip"), 0o600); err != nil {
		t.Fatal(err)
	}
	same(t, "no gzip", drain(t, open(t, w.path, 5, all())), numbers(20, 100))
}

// Tail reads the end only, however large the file: this one is a gigabyte, with a hole.
func TestTailOfAGigabyte(t *testing.T) {
	w := newWriter(t, 1)
	if err := os.Truncate(w.path, 1<<30); err != nil {
		t.Fatal(err)
	}
	w.write("\n")
	w.lines(0, 100)
	o := all()
	o.Tail = 10
	start := time.Now()
	got := drain(t, open(t, w.path, 1, o))
	took := time.Since(start)
	same(t, "tail", got, numbers(90, 100))
	if took > time.Second { // it takes some 0.1 ms; reading the hole would take seconds
		t.Errorf("tail 10 of 1 GB took %v", took)
	}
	t.Logf("tail 10 of 1 GB: %v", took)
}

// A writer that rotates as it pleases: a follower loses nothing and doubles nothing.
func TestFollowAcrossRotations(t *testing.T) {
	for round := range 6 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			t.Parallel()
			const total = 20_000
			w := newWriter(t, 200)
			ended := make(chan struct{})
			o := all()
			o.Follow, o.Ended = true, ended
			w.lines(0, 500)
			if round%2 == 1 {
				o.Tail = 100
			}
			r := open(t, w.path, 200, o)
			go func() {
				defer close(ended)
				for n := 500; n < total; {
					to := min(total, n+1+rand.IntN(300))
					text := ""
					for ; n < to; n++ {
						text += line(n)
					}
					cut := rand.IntN(len(text)) // a write may end anywhere
					w.write(text[:cut])
					w.write(text[cut:])
					switch rand.IntN(4) {
					case 0:
						w.rotate()
					case 1:
						time.Sleep(time.Duration(rand.IntN(2)) * time.Millisecond)
					case 2:
						w.rotate()
						w.rotate() // an empty file between
					}
				}
			}()
			first := 0
			if o.Tail > 0 {
				first = 400
			}
			same(t, "followed", drain(t, r), numbers(first, total))
		})
	}
}

// Readers that open while files are renamed under them see every line once.
func TestOpenDuringRotations(t *testing.T) {
	w := newWriter(t, 50)
	w.lines(0, 10)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for n := 10; ; n += 10 {
			select {
			case <-stop:
				return
			default:
				w.rotate()
				w.lines(n, n+10)
			}
		}
	}()
	for range 200 {
		got := drain(t, open(t, w.path, 50, all()))
		for i := 1; i < len(got); i++ {
			a, _ := strconv.Atoi(got[i-1][5:])
			if b, _ := strconv.Atoi(got[i][5:]); b != a+1 {
				t.Fatalf("%s after %s", got[i], got[i-1])
			}
		}
	}
	close(stop)
	<-done
}

func TestFollowEnds(t *testing.T) {
	t.Run("Ended before", func(t *testing.T) {
		w := fiveFiles(t)
		o := all()
		ended := make(chan struct{})
		close(ended)
		o.Follow, o.Ended = true, ended
		same(t, "read", drain(t, open(t, w.path, 5, o)), numbers(0, 100))
	})
	t.Run("Until comes", func(t *testing.T) {
		w := fiveFiles(t)
		o := all()
		o.Follow, o.Until = true, time.Now().Add(30*time.Millisecond)
		same(t, "read", drain(t, open(t, w.path, 5, o)), numbers(0, 100))
	})
	t.Run("Close", func(t *testing.T) {
		w := fiveFiles(t)
		o := all()
		o.Follow = true
		r := open(t, w.path, 5, o)
		time.AfterFunc(20*time.Millisecond, func() { r.Close() })
		same(t, "read", drain(t, r), numbers(0, 100))
		if _, err := r.Next(); err != io.EOF {
			t.Errorf("Next after Close: %v", err)
		}
	})
	t.Run("directory removed", func(t *testing.T) {
		w := fiveFiles(t)
		o := all()
		o.Follow = true
		r := open(t, w.path, 5, o)
		w.f.Close() // the kernel tells it when nobody has a file of it open
		time.AfterFunc(20*time.Millisecond, func() { os.RemoveAll(filepath.Dir(w.path)) })
		same(t, "read", drain(t, r), numbers(0, 100))
	})
	t.Run("log created later", func(t *testing.T) {
		w := newWriter(t, 3)
		os.Remove(w.path)
		o := all()
		ended := make(chan struct{})
		o.Follow, o.Ended = true, ended
		r := open(t, w.path, 3, o)
		time.AfterFunc(20*time.Millisecond, func() {
			w.create()
			w.lines(0, 5)
			close(ended)
		})
		same(t, "read", drain(t, r), numbers(0, 5))
	})
}

// A log of one file begins again where it is full, in either way.
func TestFollowSingleFile(t *testing.T) {
	for _, how := range []string{"replaced", "truncated"} {
		w := newWriter(t, 1)
		ended := make(chan struct{})
		o := all()
		o.Follow, o.Ended = true, ended
		w.lines(0, 50)
		r := open(t, w.path, 1, o)
		for n := range 50 {
			if l, err := r.Next(); err != nil || string(l.Data) != fmt.Sprintf("line %d\n", n) {
				t.Fatal(l, err)
			}
		}
		if how == "replaced" {
			w.rotate()
		} else if err := os.Truncate(w.path, 0); err != nil {
			t.Fatal(err)
		}
		w.lines(50, 60)
		close(ended)
		same(t, how, drain(t, r), numbers(50, 60))
	}
}

// Half a line that the writer takes back, as it does on a full disk, was never there.
func TestFollowHalfLineTakenBack(t *testing.T) {
	w := newWriter(t, 1)
	ended := make(chan struct{})
	o := all()
	o.Follow, o.Ended = true, ended
	w.lines(0, 3)
	st, err := w.f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	w.write(line(9999)[:20])
	r := open(t, w.path, 1, o)
	go func() {
		defer close(ended)
		time.Sleep(20 * time.Millisecond) // the reader has met the half
		if err := os.Truncate(w.path, st.Size()); err != nil {
			t.Error(err)
		}
		time.Sleep(10 * time.Millisecond)
		w.lines(3, 6)
	}()
	same(t, "followed", drain(t, r), numbers(0, 6))
}

func descriptors(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

// 300 followers (more than there may be inotify instances) all see the line; afterwards
// neither descriptors nor goroutines are left.
func TestManyFollowersLeaveNothing(t *testing.T) {
	w := newWriter(t, 2)
	fds, routines := descriptors(t), runtime.NumGoroutine()
	var readers []Reader
	o := all()
	o.Follow = true
	for range 300 {
		r, err := Open(w.path, 2, o)
		if err != nil {
			t.Fatal(err)
		}
		readers = append(readers, r)
	}
	got := make(chan error, len(readers))
	for _, r := range readers {
		go func() {
			_, err := r.Next()
			got <- err
		}()
	}
	w.lines(0, 1)
	for range readers {
		if err := <-got; err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range readers {
		r.Close()
	}
	deadline := time.Now().Add(5 * time.Second)
	for descriptors(t) > fds || runtime.NumGoroutine() > routines {
		if time.Now().After(deadline) {
			t.Fatalf("left: %d descriptors (%d before), %d goroutines (%d before)", descriptors(t), fds, runtime.NumGoroutine(), routines)
		}
		time.Sleep(time.Millisecond)
	}
}

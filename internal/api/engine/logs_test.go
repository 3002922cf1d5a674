package engine

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"escale.dev/escale/internal/logs"
	"github.com/moby/moby/api/pkg/stdcopy"
)

// fakeLog gives lines, then waits for more until it is closed.
type fakeLog struct {
	lines  chan logs.Line
	end    error
	closed chan struct{}
	once   sync.Once
}

func newLog(end error, lines ...logs.Line) *fakeLog {
	f := &fakeLog{lines: make(chan logs.Line, 100), end: end, closed: make(chan struct{})}
	for _, l := range lines {
		f.lines <- l
	}
	if end != nil {
		close(f.lines)
	}
	return f
}

func (f *fakeLog) Hold() error { return nil }

func (f *fakeLog) Next() (logs.Line, error) {
	select {
	case l, ok := <-f.lines:
		if !ok {
			return l, f.end
		}
		return l, nil
	case <-f.closed:
		return logs.Line{}, io.EOF
	}
}

func (f *fakeLog) Close() error {
	f.once.Do(func() { close(f.closed) })
	return nil
}

func line(stream, data string, attrs ...string) logs.Line {
	l := logs.Line{Time: at, Stream: stream, Data: []byte(data)}
	for i := 0; i+1 < len(attrs); i += 2 {
		if l.Attrs == nil {
			l.Attrs = map[string]string{}
		}
		l.Attrs[attrs[i]] = attrs[i+1]
	}
	return l
}

func TestLogs(t *testing.T) {
	some := []logs.Line{line("stdout", "one\n", "b", "2 3", "a", "x=y"), line("stdout", "long"), line("stderr", "err\n"), line("stdout", "er\n")}
	const stamp = "2026-11-21T05:48:02.979531953Z "
	tests := []struct {
		query, call string
		tty         bool
		out, err    string
	}{
		{"stdout=1&stderr=1", "Logs web true true -1 false false - -", false, "one\nlonger\n", "err\n"},
		{"stdout=1&timestamps=1", "Logs web true false -1 false false - -", false, stamp + "one\n" + stamp + "longer\n", stamp + "err\n"},
		{"stderr=1&timestamps=1&details=1", "Logs web false true -1 false true - -", false, stamp + "a=x%3Dy,b=2+3 one\n" + stamp + " longer\n", stamp + " err\n"},
		{"stdout=1&tail=5&since=1.5&until=0", "Logs web true false 5 false false 1970-01-01T00:00:01.5Z -", true, "one\nlongerr\ner\n", ""},
		{"stdout=1&tail=all&until=2026-11-21T05:48:02Z", "Logs web true false -1 false false - 2026-11-21T05:48:02Z", true, "one\nlongerr\ner\n", ""},
		{"stdout=1&tail=-3", "Logs web true false -1 false false - -", true, "one\nlongerr\ner\n", ""},
	}
	for _, tt := range tests {
		r := newRig(t)
		r.con.tty = tt.tty
		r.con.lines = func(logs.ReadOptions) logs.Reader { return newLog(io.EOF, some...) }
		status, h, body := r.do("GET", "/containers/web/logs?"+tt.query, "")
		if got := r.con.last(); got != tt.call {
			t.Errorf("%s: call %q", tt.query, got)
		}
		var out, errs bytes.Buffer
		media := "application/vnd.docker.raw-stream"
		if tt.tty {
			out.WriteString(body)
		} else {
			media = "application/vnd.docker.multiplexed-stream"
			if _, err := stdcopy.StdCopy(&out, &errs, strings.NewReader(body)); err != nil {
				t.Errorf("%s: %v", tt.query, err)
			}
		}
		if status != 200 || h.Get("Content-Type") != media || out.String() != tt.out || errs.String() != tt.err {
			t.Errorf("%s: %d %s %q %q", tt.query, status, h.Get("Content-Type"), out.String(), errs.String())
		}
	}
}

// A log that breaks off says so.
func TestLogsError(t *testing.T) {
	r := newRig(t)
	r.con.lines = func(logs.ReadOptions) logs.Reader { return newLog(errBoom, line("stdout", "one\n")) }
	_, _, body := r.do("GET", "/containers/web/logs?stdout=1", "")
	var out bytes.Buffer
	_, err := stdcopy.StdCopy(&out, &out, strings.NewReader(body))
	if out.String() != "one\n" || err == nil || !strings.Contains(err.Error(), "Error grabbing logs: boom") {
		t.Errorf("%q %v", out.String(), err)
	}
}

// A follower gets the header at once and each line as it comes; when it goes,
// the log is closed.
func TestLogsFollow(t *testing.T) {
	r := newRig(t)
	log := newLog(nil)
	r.con.tty = true
	r.con.lines = func(logs.ReadOptions) logs.Reader { return log }
	c := r.dial()
	fmt.Fprint(c, "GET /containers/web/logs?stdout=1&follow=1 HTTP/1.1\r\nHost: x\r\n\r\n")
	in := bufio.NewReader(c)
	res, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	body := bufio.NewReader(res.Body)
	for i := range 5 {
		want := fmt.Sprintf("line %d\n", i)
		log.lines <- line("stdout", want)
		got, err := body.ReadString('\n')
		if got != want || err != nil {
			t.Fatalf("%q %v", got, err)
		}
	}
	c.Close()
	select {
	case <-log.closed:
	case <-time.After(5 * time.Second):
		t.Error("the log stays open")
	}
}

// endless is a log that never ends and counts what is read of it.
type endless struct {
	read   chan struct{}
	closed chan struct{}
	once   sync.Once
}

func (e *endless) Hold() error { return nil }

func (e *endless) Next() (logs.Line, error) {
	select {
	case <-e.closed:
		return logs.Line{}, io.EOF
	case e.read <- struct{}{}:
	default:
	}
	return line("stdout", strings.Repeat("x", 1000)+"\n"), nil
}

func (e *endless) Close() error {
	e.once.Do(func() { close(e.closed) })
	return nil
}

// A client that never reads keeps the engine from reading on.
func TestLogsSlowClient(t *testing.T) {
	r := newRig(t)
	log := &endless{read: make(chan struct{}, 1<<20), closed: make(chan struct{})}
	r.con.lines = func(logs.ReadOptions) logs.Reader { return log }
	c := r.dial()
	fmt.Fprint(c, "GET /containers/web/logs?stdout=1 HTTP/1.1\r\nHost: x\r\n\r\n")
	time.Sleep(500 * time.Millisecond)
	if n := len(log.read); n > 2000 { // 1 kB each; sockets and buffers hold a few hundred
		t.Errorf("%d lines read for a client that takes none", n)
	}
	c.Close()
	select {
	case <-log.closed:
	case <-time.After(5 * time.Second):
		t.Error("the log stays open")
	}
}

func TestBatchEnds(t *testing.T) {
	w := &response{ResponseWriter: failingWriter{}}
	log := newLog(nil, line("stdout", "x\n"))
	if err := copyLines(w, log, &lineFormat{}); !errors.Is(err, errBoom) {
		t.Error(err)
	}
}

type failingWriter struct{ http.ResponseWriter }

func (failingWriter) Write([]byte) (int, error) { return 0, errBoom }

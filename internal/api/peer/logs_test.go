package peer

import (
	"context"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster/ca"
	"escale.dev/escale/internal/logs"
	"github.com/containerd/errdefs"
)

// scroll is a log that may be followed.
type scroll struct {
	asked  logs.ReadOptions
	id     string
	lines  chan logs.Line
	closed chan struct{}
	fails  error // at its end
}

func (s *scroll) Open(_ context.Context, id string, o logs.ReadOptions) (logs.Reader, error) {
	if id != "c1" {
		return nil, errdefs.ErrNotFound.WithMessage("No such container: " + id)
	}
	s.asked, s.id = o, id
	return s, nil
}

func (s *scroll) Next() (logs.Line, error) {
	select {
	case l, ok := <-s.lines:
		if !ok && s.fails != nil {
			return l, s.fails
		}
		if !ok {
			return l, io.EOF
		}
		return l, nil
	case <-s.closed:
		return logs.Line{}, io.EOF
	}
}
func (s *scroll) Hold() error { return nil }
func (s *scroll) Close() error {
	select {
	case <-s.closed:
	default:
		close(s.closed)
	}
	return nil
}

func newScroll(lines ...logs.Line) *scroll {
	s := &scroll{lines: make(chan logs.Line, len(lines)+10), closed: make(chan struct{})}
	for _, l := range lines {
		s.lines <- l
	}
	return s
}

// A log comes as it is, with what was asked of it, to its end or to what went wrong.
func TestLogs(t *testing.T) {
	at := time.Date(2026, 11, 22, 4, 0, 0, 123456789, time.UTC)
	lines := []logs.Line{
		{Time: at, Stream: "stdout", Data: []byte("\x00\xff\n"), Attrs: map[string]string{"a": "b"}},
		{Time: at.Add(1), Stream: "stderr", Data: []byte(strings.Repeat("long", 100_000))},
		{Time: at.Add(2), Stream: "stderr", Data: []byte{}},
	}
	for _, fails := range []error{nil, errors.New("its file is damaged")} {
		s := newSite(t)
		log := newScroll(lines...)
		log.fails = fails
		close(log.lines)
		s.node("w1", ca.Worker, Config{Logs: log})
		d := s.dialer(s.keeper("m1", "c1", ca.Manager))
		if _, err := d.Logs(t.Context(), "w1", "other", logs.ReadOptions{Stdout: true}); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "No such container: other") {
			t.Error(err)
		}
		o := logs.ReadOptions{Stdout: true, Stderr: true, Details: true, Tail: 7, Since: at.Add(-time.Hour), Until: at.Add(time.Hour)}
		r, err := d.Logs(t.Context(), "w1", "c1", o)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range lines {
			if got, err := r.Next(); err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%.100v, %v; want %.100v", got, err, want)
			}
		}
		if _, err := r.Next(); fails == nil && err != io.EOF || fails != nil && !strings.Contains(err.Error(), fails.Error()) {
			t.Errorf("the end: %v, want %v", err, fails)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if log.asked != o {
			t.Errorf("%+v, want %+v", log.asked, o)
		}
	}
}

// A log that is followed wakes who waits for it; closed it ends on the other node, too, and
// a node that goes away is told of.
func TestLogsFollowed(t *testing.T) {
	s := newSite(t)
	log := newScroll()
	s.node("w1", ca.Worker, Config{Logs: log})
	d := s.dialer(s.keeper("m1", "c1", ca.Manager))
	follow := logs.ReadOptions{Stdout: true, Follow: true, Tail: -1}
	r, err := d.Logs(t.Context(), "w1", "c1", follow)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		log.lines <- logs.Line{Stream: "stdout", Data: []byte("x\n")}
		if l, err := r.Next(); err != nil || string(l.Data) != "x\n" {
			t.Fatal(l, err)
		}
	}
	next := make(chan error, 1)
	go func() {
		_, err := r.Next()
		next <- err
	}()
	r.Close()
	if err := <-next; err != io.EOF {
		t.Errorf("closed: %v", err)
	}
	select {
	case <-log.closed:
	case <-time.After(10 * time.Second):
		t.Fatal("the other node goes on reading")
	}
	w := s.node("w2", ca.Worker, Config{Logs: newScroll()})
	if r, err = d.Logs(t.Context(), "w2", "c1", follow); err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w.stop()
	if _, err := r.Next(); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "node w2 disconnected unexpectedly") {
		t.Errorf("the node has gone: %v", err)
	}
}

func TestOptions(t *testing.T) {
	for _, o := range []logs.ReadOptions{{Tail: -1, Stdout: true}, {Stderr: true, Follow: true, Details: true, Since: time.Unix(1, 2).UTC()}} {
		if got, err := optionsOf(queryOf(o)); err != nil || got != o {
			t.Errorf("%+v, %v; want %+v", got, err, o)
		}
	}
	for key, v := range map[string]string{"tail": "x", "since": "yesterday", "until": "0"} {
		q := queryOf(logs.ReadOptions{})
		q.Set(key, v)
		if _, err := optionsOf(q); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s=%s: %v", key, v, err)
		}
	}
}

// Whatever another node sends as a log, it is lines and then an error.
func FuzzLines(f *testing.F) {
	for _, s := range []string{
		`{"t":"2026-11-22T04:00:00Z","s":"stdout","d":"eA=="}` + "\n" + `{"end":"eof"}`, `{"end":"no"}`, `{"s":"stdin"}`, "{", "", "\n\n", `{"t":1}`, `{"s":"stdout","d":"!"}`, `null`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		r := newLines("n", io.NopCloser(strings.NewReader(string(raw))), func() {})
		for n := 0; ; n++ {
			l, err := r.Next()
			if err != nil {
				if _, again := r.Next(); again == nil {
					t.Error("it goes on after an error")
				}
				break
			}
			if l.Stream != "stdout" && l.Stream != "stderr" || n > len(raw) {
				t.Errorf("%d: %+v", n, l)
			}
		}
		r.Close()
		if _, err := r.Next(); err != io.EOF {
			t.Error(err)
		}
	})
}

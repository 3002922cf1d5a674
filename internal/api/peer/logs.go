package peer

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"escale.dev/escale/internal/logs"
	"github.com/containerd/errdefs"
)

// line is a line of a log on its way: one of JSON.
type line struct {
	Time   time.Time         `json:"t"`
	Stream string            `json:"s"`
	Data   []byte            `json:"d"`
	Attrs  map[string]string `json:"a,omitempty"`
	End    string            `json:"end,omitempty"` // of the last one: "eof", or what went wrong
}

// Bounds of what is read of another node's log, in bytes.
const (
	maxLine  = 8 << 20 // an entry's 4 MB, as base64, and its attributes
	lineRoom = 64 << 10
)

// endOfLog is End of a log that was read to its end.
const endOfLog = "eof"

// query are options in the form in which they travel.
func queryOf(o logs.ReadOptions) url.Values {
	q := url.Values{"tail": {strconv.Itoa(o.Tail)}}
	for name, on := range map[string]bool{"stdout": o.Stdout, "stderr": o.Stderr, "follow": o.Follow, "details": o.Details} {
		if on {
			q.Set(name, "1")
		}
	}
	for name, at := range map[string]time.Time{"since": o.Since, "until": o.Until} {
		if !at.IsZero() {
			q.Set(name, at.UTC().Format(time.RFC3339Nano))
		}
	}
	return q
}

// optionsOf reads them. InvalidArgument.
func optionsOf(q url.Values) (o logs.ReadOptions, err error) {
	o = logs.ReadOptions{Stdout: q.Get("stdout") == "1", Stderr: q.Get("stderr") == "1", Follow: q.Get("follow") == "1", Details: q.Get("details") == "1"}
	if o.Tail, err = strconv.Atoi(q.Get("tail")); err != nil {
		return o, fmt.Errorf("tail %q: %w", q.Get("tail"), errdefs.ErrInvalidArgument)
	}
	for name, to := range map[string]*time.Time{"since": &o.Since, "until": &o.Until} {
		if text := q.Get(name); text != "" {
			if *to, err = time.Parse(time.RFC3339Nano, text); err != nil {
				return o, fmt.Errorf("%s %q: %w", name, text, errdefs.ErrInvalidArgument)
			}
		}
	}
	return o, nil
}

// logs sends the log of a task's container, line by line.
func (s *Server) logs(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	o, err := optionsOf(q)
	if err != nil {
		return err
	}
	reader, err := s.cfg.Logs.Open(r.Context(), q.Get("container"), o)
	if err != nil {
		return err
	}
	defer reader.Close()
	defer context.AfterFunc(r.Context(), func() { reader.Close() })() // it wakes a reader that follows
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := http.NewResponseController(w)
	if err := out.Flush(); err != nil {
		return nil // who asked has gone
	}
	enc := json.NewEncoder(w)
	for {
		l, err := reader.Next()
		send := line{Time: l.Time, Stream: l.Stream, Data: l.Data, Attrs: l.Attrs}
		switch {
		case r.Context().Err() != nil:
			panic(http.ErrAbortHandler)
		case errors.Is(err, io.EOF):
			send = line{End: endOfLog}
		case err != nil:
			send = line{End: err.Error()}
		}
		if enc.Encode(send) != nil || o.Follow && out.Flush() != nil || err != nil {
			return nil
		}
	}
}

// Logs opens the log of a task's container on another node; who asks closes it. Its reader
// ends with an error that is not io.EOF when the connection breaks. NotFound, Unavailable.
func (d *Dialer) Logs(ctx context.Context, node, container string, o logs.ReadOptions) (logs.Reader, error) {
	ctx, cancel := context.WithCancel(ctx)
	q := queryOf(o)
	q.Set("container", container)
	res, err := d.get(ctx, node, pathLogs, q)
	if err != nil {
		cancel()
		return nil, err
	}
	return newLines(node, res.Body, cancel), nil
}

// lines reads a log that another node sends. It implements logs.Reader.
type lines struct {
	node   string
	in     *bufio.Scanner
	body   io.Closer
	cancel context.CancelFunc
	once   sync.Once
	closed chan struct{}
	err    error
}

func newLines(node string, body io.ReadCloser, cancel context.CancelFunc) *lines {
	l := &lines{node: node, in: bufio.NewScanner(body), body: body, cancel: cancel, closed: make(chan struct{})}
	l.in.Buffer(make([]byte, 0, lineRoom), maxLine)
	return l
}

// Next implements logs.Reader.
func (l *lines) Next() (logs.Line, error) {
	if l.err == nil {
		var out logs.Line
		if out, l.err = l.next(); l.err == nil {
			return out, nil
		}
	}
	select {
	case <-l.closed:
		return logs.Line{}, io.EOF
	default:
		return logs.Line{}, l.err
	}
}

func (l *lines) next() (logs.Line, error) {
	if !l.in.Scan() {
		err := l.in.Err()
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		return logs.Line{}, fmt.Errorf("node %s disconnected unexpectedly: %w: %w", l.node, err, errdefs.ErrUnavailable)
	}
	var got line
	switch err := json.Unmarshal(l.in.Bytes(), &got); {
	case err != nil:
		return logs.Line{}, fmt.Errorf("log of node %s: %w: %w", l.node, err, errdefs.ErrDataLoss)
	case got.End == endOfLog:
		return logs.Line{}, io.EOF
	case got.End != "":
		return logs.Line{}, fmt.Errorf("node %s: %s: %w", l.node, got.End[:min(len(got.End), maxWords)], errdefs.ErrUnknown)
	case got.Stream != "stdout" && got.Stream != "stderr":
		return logs.Line{}, fmt.Errorf("log of node %s: a line of stream %.20q: %w", l.node, got.Stream, errdefs.ErrDataLoss)
	}
	return logs.Line{Time: got.Time, Stream: got.Stream, Data: got.Data, Attrs: got.Attrs}, nil
}

// Hold implements logs.Reader: what the other node has is not ours to hold.
func (l *lines) Hold() error { return nil }

// Close implements logs.Reader. It wakes a Next that waits.
func (l *lines) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.cancel()
		_ = l.body.Close() // the stream is reset already
	})
	return nil
}

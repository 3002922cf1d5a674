package engine

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"net/url"
	"sync"

	"escale.dev/escale/internal/logs"
	"escale.dev/escale/internal/sys/errtext"
)

func (c containerRoutes) logs(w *response, r *request) error {
	o, err := logOptions(r)
	if err != nil {
		return err
	}
	reader, terminal, err := c.cfg.Containers.Logs(r.Context(), r.name, o)
	if err != nil {
		return err
	}
	return sendLines(w, r, reader, terminal, o)
}

// logLines are what is sent of a log, or of several.
type logLines interface {
	Next() (logs.Line, error)
	Close() error
}

// sendLines answers with the lines of a log, which it closes.
func sendLines(w *response, r *request, reader logLines, terminal bool, o logs.ReadOptions) error {
	closeReader := sync.OnceFunc(func() { reader.Close() })
	defer closeReader()
	// A follower sleeps in Next: closing the log wakes it.
	defer context.AfterFunc(r.Context(), closeReader)()

	w.Header().Set("Content-Type", mediaType(r.version, terminal))
	w.WriteHeader(http.StatusOK)
	if err := w.flush(); err != nil {
		return err
	}
	format := &lineFormat{raw: terminal, times: r.query.bool("timestamps"), details: o.Details}
	return copyLines(w, reader, format)
}

// lineFormat turns lines of a log into what a client reads.
type lineFormat struct {
	raw     bool // no frames
	times   bool
	details bool
	within  [2]bool // whether a stream's last entry was part of a longer line
}

// appendTo appends one entry to b.
func (f *lineFormat) appendTo(b []byte, l logs.Line) []byte {
	stream := 0
	if l.Stream == "stderr" {
		stream = 1
	}
	begin := len(b)
	if !f.raw {
		b = append(b, byte(stream+1), 0, 0, 0, 0, 0, 0, 0)
	}
	// What belongs to a line begun before gets no mark of its own in its middle.
	if !f.within[stream] {
		if f.times {
			b = append(l.Time.UTC().AppendFormat(b, "2006-01-02T15:04:05.000000000Z07:00"), ' ')
		}
		if f.details {
			b = append(appendAttrs(b, l.Attrs), ' ')
		}
	}
	b = append(b, l.Data...)
	f.within[stream] = len(l.Data) > 0 && l.Data[len(l.Data)-1] != '\n'
	if !f.raw {
		binary.BigEndian.PutUint32(b[begin+4:], uint32(len(b)-begin-8))
	}
	return b
}

// appendError appends an error of the engine's own, which clients tell apart by
// its stream, 3.
func (f *lineFormat) appendError(b []byte, err error) []byte {
	msg := "Error grabbing logs: " + errtext.Of(err) + "\n"
	if !f.raw {
		b = binary.BigEndian.AppendUint32(append(b, 3, 0, 0, 0), uint32(len(msg)))
	}
	return append(b, msg...)
}

func appendAttrs(b []byte, attrs map[string]string) []byte {
	var space [8]string
	for i, k := range sortedKeys(space[:0], attrs) {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, url.QueryEscape(k)...)
		b = append(b, '=')
		b = append(b, url.QueryEscape(attrs[k])...)
	}
	return b
}

// logBatch is how much of a log waits for a client that reads slowly, in bytes.
const logBatch = 64 << 10

// batch hands lines from the goroutine that reads the log to the one that
// writes to the client: a line that comes alone goes out at once, and many
// lines go out together.
type batch struct {
	mu   sync.Mutex
	cond sync.Cond
	buf  []byte
	err  error // the end of either side
}

// copyLines copies a log to a client. It returns when the log has ended or the
// client is gone; then reader's next Next must fail.
func copyLines(w *response, reader logLines, format *lineFormat) error {
	q := &batch{}
	q.cond.L = &q.mu
	read := make(chan struct{})
	go func() {
		defer close(read)
		q.fill(reader, format)
	}()
	err := q.drain(w, format)
	if err != nil {
		reader.Close() // wakes a Next that sleeps
	}
	<-read
	return err
}

// fill reads until the log ends or the writer has stopped.
func (q *batch) fill(reader logLines, format *lineFormat) {
	for {
		line, err := reader.Next()
		q.mu.Lock()
		for err == nil && q.err == nil && len(q.buf) > logBatch {
			q.cond.Wait()
		}
		if err == nil && q.err == nil {
			q.buf = format.appendTo(q.buf, line)
		} else if q.err == nil {
			q.err = err
		}
		stop := q.err != nil
		q.cond.Broadcast()
		q.mu.Unlock()
		if stop {
			return
		}
	}
}

// drain writes until the log has ended and all is written, or the client is gone.
func (q *batch) drain(w *response, format *lineFormat) error {
	var out []byte
	for {
		q.mu.Lock()
		for len(q.buf) == 0 && q.err == nil {
			q.cond.Wait()
		}
		out, q.buf = q.buf, out[:0]
		end := q.err
		q.cond.Broadcast()
		q.mu.Unlock()
		if len(out) > 0 {
			_, err := w.Write(out)
			if err == nil {
				err = w.flush()
			}
			if err != nil {
				q.mu.Lock()
				q.err = err
				q.cond.Broadcast()
				q.mu.Unlock()
				return err
			}
			continue // more may have come before the end
		}
		if errors.Is(end, io.EOF) {
			return nil
		}
		// Said on the stream, as the status has gone out.
		_, err := w.Write(format.appendError(nil, end))
		return errors.Join(end, err)
	}
}

package events

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
)

// Bounds of the file. Two of them stand at a time (path and path.1), so the disk
// holds at most twice maxFileBytes and at least the newest maxLines messages, unless
// these are larger than maxFileBytes.
const (
	maxLineBytes = 1 << 20
	maxFileBytes = 16 << 20
)

// file keeps messages as lines of JSON. It is appended to by single writes, so a
// killed engine leaves whole lines; a full disk or a power cut may leave half a
// line, which costs that line alone. Full, it becomes path.1 and a new one begins.
type file struct {
	path     string
	maxLines int
	log      *slog.Logger

	f     *os.File // nil: not open; appending is tried again at the next message
	lines int
	bytes int64
	torn  bool // the last write may have left half a line
	lost  bool // the last write failed: told once, not at each message

	// pending could not be written and goes before what comes next, so that a full disk
	// makes no gap once it has room: the newest maxLines of them.
	pending []Message
}

// open reads what is kept and makes ready to append.
func (f *file) open() []Message {
	history, _ := f.read(f.path+".1", nil)
	before := len(history)
	history, f.torn = f.read(f.path, history)
	f.lines = len(history) - before
	if n := len(history) - f.maxLines; n > 0 {
		history = history[n:]
	}
	f.reopen()
	return history
}

// read adds the messages of one file to those before it and keeps about the newest maxLines.
func (f *file) read(path string, to []Message) (all []Message, torn bool) {
	r, err := os.Open(path)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			f.log.Warn("event history unreadable", "path", path, "error", err)
		}
		return to, false
	}
	defer r.Close()
	// A regular file grown by others beyond its bound is read from its end only.
	if st, err := r.Stat(); err == nil && st.Size() > 2*maxFileBytes {
		if _, err := r.Seek(st.Size()-2*maxFileBytes, io.SeekStart); err != nil {
			return to, false
		}
	}
	all, bad, torn := decode(r, to)
	if bad > 0 {
		f.log.Warn("event history damaged", "path", path, "lines skipped", bad)
	}
	return all, torn
}

// decode reads lines of JSON, whatever r holds. Lines that are no message are
// counted and skipped. torn: the last line does not end.
func decode(r io.Reader, to []Message) (all []Message, bad int, torn bool) {
	in := bufio.NewReaderSize(r, 64<<10)
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		if len(line) <= maxLineBytes {
			line = append(line, part...)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		torn = err != nil && len(line) > 0
		if text := bytes.TrimSpace(line); len(text) > 0 {
			var m Message
			if len(line) <= maxLineBytes && json.Unmarshal(text, &m) == nil && m.Type != "" && m.TimeNano > 0 {
				to = append(to, m)
			} else {
				bad++
			}
		}
		if err != nil {
			return to, bad, torn
		}
		line = line[:0]
	}
}

func (f *file) reopen() {
	w, err := os.OpenFile(f.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		f.fail(err)
		return
	}
	f.f, f.bytes = w, 0
	if st, err := w.Stat(); err == nil {
		f.bytes = st.Size()
	}
}

// append writes one message, after those that could not be written before. What goes
// wrong is logged once and the message is then kept in memory until writing works.
func (f *file) append(m Message) {
	for len(f.pending) > 0 {
		if !f.write(f.pending[0]) {
			f.postpone(m)
			return
		}
		f.pending = f.pending[1:]
	}
	f.pending = nil
	if !f.write(m) {
		f.postpone(m)
	}
}

func (f *file) postpone(m Message) {
	if len(f.pending) >= f.maxLines {
		f.pending = f.pending[1:]
	}
	f.pending = append(f.pending, m)
}

// write reports false for what may go better later.
func (f *file) write(m Message) bool {
	line, err := json.Marshal(m)
	if err != nil || len(line) >= maxLineBytes {
		f.log.Warn("event not kept on disk", "bytes", len(line), "error", err)
		return true // nor will it ever be
	}
	if f.lines >= f.maxLines || f.bytes >= maxFileBytes {
		f.rotate()
	}
	if f.f == nil {
		if f.reopen(); f.f == nil {
			return false
		}
	}
	if f.torn {
		line = append([]byte{'\n'}, line...)
	}
	n, err := f.f.Write(append(line, '\n'))
	f.bytes += int64(n)
	f.torn = err != nil && (n > 0 || f.torn)
	if err != nil {
		f.fail(err)
		return false
	}
	f.lost = false
	f.lines++
	return true
}

func (f *file) rotate() {
	if f.f != nil {
		_ = f.f.Close() // nothing is buffered
		f.f = nil
	}
	if err := os.Rename(f.path, f.path+".1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		f.fail(err)
		return
	}
	f.lines, f.torn = 0, false
}

func (f *file) fail(err error) {
	if !f.lost {
		f.log.Warn("events are not kept on disk", "error", err)
	}
	f.lost = true
}

func (f *file) close() error {
	if f.f == nil {
		return nil
	}
	err := f.f.Close()
	f.f = nil
	return err
}

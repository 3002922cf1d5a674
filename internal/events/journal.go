package events

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// DefaultSize is how many messages a Journal keeps when Config.Size is not set.
const DefaultSize = 4096

// Config says what a Journal keeps and where.
type Config struct {
	// Size is how many of the newest messages are kept for readers that ask for the
	// past or are late. 0 or less: DefaultSize.
	Size int
	// Path is a file in which they survive a restart and a kill of the engine; a second
	// one, Path+".1", stands beside it. Empty: memory only. One Journal a path.
	Path string
	// Now is the clock that stamps messages; nil: time.Now.
	Now func() time.Time
	// Logger is told what is wrong with the file; nil: nobody. Publishing goes on.
	Logger *slog.Logger
}

// Journal keeps the newest messages in the order in which they were published and
// gives them to any number of readers. Its methods may be called at once from
// several goroutines.
type Journal struct {
	size int
	now  func() time.Time
	log  *slog.Logger
	file *file // nil: memory only

	// pub serialises publishers: the order of stamps, of the file and of the ring is
	// one. It is held while the file is written, so readers have a lock of their own.
	pub    sync.Mutex
	loaded bool
	stamp  int64 // TimeNano of the newest message

	mu     sync.Mutex
	ring   []Message     // message n stands at n % size; grows up to size
	next   uint64        // number of the next message; the ring holds the len(ring) before it
	wake   chan struct{} // closed and replaced when a message comes and someone waits
	asleep int           // readers waiting for wake
	closed bool
}

// New makes a journal. The file, if any, is first read when something is published
// or subscribed.
func New(c Config) *Journal {
	j := &Journal{size: c.Size, now: c.Now, log: c.Logger, wake: make(chan struct{})}
	if j.size <= 0 {
		j.size = DefaultSize
	}
	if j.now == nil {
		j.now = time.Now
	}
	if j.log == nil {
		j.log = slog.New(slog.DiscardHandler)
	}
	if c.Path != "" {
		j.file = &file{path: c.Path, maxLines: j.size, log: j.log}
	}
	return j
}

// clockSlip is how far a clock may seem to stand still or step back before the stamps
// follow it: within it they are kept rising, so that a reader can resume after the
// last one it saw.
const clockSlip = time.Millisecond

// Publish adds a message and wakes the readers; it never waits for one. It fills
// Time and TimeNano from the clock, and Scope with "local" where it is empty, and
// takes a copy of the attributes. It blocks for a write (not a sync) of the file.
// After Close it does nothing.
func (j *Journal) Publish(m Message) {
	m.Actor.Attributes = maps.Clone(m.Actor.Attributes)
	if m.Scope == "" {
		m.Scope = "local"
	}
	j.pub.Lock()
	defer j.pub.Unlock()
	j.load()
	nano := j.now().UnixNano()
	if nano <= j.stamp && j.stamp-nano < int64(clockSlip) {
		nano = j.stamp + 1
	}
	j.stamp = nano
	m.TimeNano, m.Time = nano, time.Unix(0, nano).Unix()

	j.mu.Lock()
	closed := j.closed
	j.mu.Unlock()
	if closed {
		return
	}
	// The file first: what a reader has seen is never forgotten by a kill.
	if j.file != nil {
		j.file.append(m)
	}
	j.mu.Lock()
	j.put(m)
	if j.asleep > 0 {
		j.asleep = 0
		close(j.wake)
		j.wake = make(chan struct{})
	}
	j.mu.Unlock()
}

// put adds to the ring; j.mu is held.
func (j *Journal) put(m Message) {
	if len(j.ring) < j.size {
		j.ring = append(j.ring, m)
	} else {
		j.ring[j.next%uint64(j.size)] = m
	}
	j.next++
}

// oldest is the number of the oldest message kept; j.mu is held.
func (j *Journal) oldest() uint64 { return j.next - uint64(len(j.ring)) }

// load reads the file once; j.pub is held.
func (j *Journal) load() {
	if j.loaded {
		return
	}
	j.loaded = true
	if j.file == nil {
		return
	}
	history := j.file.open()
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, m := range history {
		j.put(m)
		j.stamp = m.TimeNano
	}
}

// Subscribe begins a reader. With neither Since nor Until it sees what is published
// from now on; with one of them also what is kept of the past. A stamp equal to Since
// or Until is within. The stream ends with ctx, too. ErrInvalidArgument when
// Since is after Until, ErrUnavailable after Close.
func (j *Journal) Subscribe(ctx context.Context, sub Subscription) (*Stream, error) {
	if !sub.Since.IsZero() && !sub.Until.IsZero() && sub.Since.After(sub.Until) {
		return nil, fmt.Errorf("`since` time (%d) cannot be after `until` time (%d): %w",
			sub.Since.Unix(), sub.Until.Unix(), errdefs.ErrInvalidArgument)
	}
	j.pub.Lock()
	j.load()
	j.pub.Unlock()

	s := &Stream{j: j, match: sub.Match, gone: ctx.Done(), done: make(chan struct{})}
	if !sub.Since.IsZero() {
		s.since = sub.Since.UnixNano()
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return nil, fmt.Errorf("event journal is closed: %w", errdefs.ErrUnavailable)
	}
	s.live, s.pos = j.next, j.next
	if !sub.Since.IsZero() || !sub.Until.IsZero() {
		s.pos = j.oldest()
	}
	if !sub.Until.IsZero() {
		s.until = sub.Until.UnixNano()
		s.atEnd = time.NewTimer(max(0, sub.Until.Sub(j.now())))
	}
	return s, nil
}

// Close ends every stream once it has read what was published, and closes the file.
// Idempotent.
func (j *Journal) Close() error {
	j.pub.Lock()
	defer j.pub.Unlock()
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return nil
	}
	j.closed = true
	close(j.wake)
	j.mu.Unlock()
	if j.file == nil {
		return nil
	}
	return j.file.close()
}

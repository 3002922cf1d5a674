package events

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// ErrLagged is what the error of Stream.Next is when messages were overwritten before
// the reader came for them. The error is a *LaggedError and the stream goes on with
// the oldest message kept.
var ErrLagged = errors.New("event stream lagged behind")

// LaggedError says how many messages a slow reader lost, whether they would have
// matched or not.
type LaggedError struct{ Lost uint64 }

func (e *LaggedError) Error() string {
	return fmt.Sprintf("event stream lagged behind: %d events lost", e.Lost)
}

// Is makes every LaggedError an ErrLagged.
func (e *LaggedError) Is(target error) bool { return target == ErrLagged }

// batchSize is how many messages a reader takes at one lock of the journal.
const batchSize = 32

// Stream is one reader of a Journal. Next is for one goroutine at a time, Close for any.
type Stream struct {
	j            *Journal
	match        func(Message) bool
	since, until int64  // nanoseconds of the epoch; 0: none
	live         uint64 // number of the first message published after Subscribe
	pos          uint64 // number of the next message to take

	batch []Message // taken and not yet given; its first has the number pos-len(batch)
	space [batchSize]Message

	atEnd *time.Timer     // fires at until; nil without
	ended bool            // it has fired
	gone  <-chan struct{} // the subscriber's context
	done  chan struct{}   // Close
	once  sync.Once
}

// Next gives the next message that matches. It blocks until there is one. io.EOF:
// Until has come, the stream or the journal was
// closed, or the context of Subscribe has ended. ErrLagged: see there. The
// error of ctx when that ends; the stream then stays usable. Attributes of a message
// are shared between readers and not to be changed.
func (s *Stream) Next(ctx context.Context) (Message, error) {
	for {
		select {
		case <-s.done:
			return Message{}, io.EOF
		case <-s.gone:
			return Message{}, io.EOF
		default:
		}
		for len(s.batch) > 0 {
			m := s.batch[0]
			number := s.pos - uint64(len(s.batch))
			s.batch = s.batch[1:]
			if s.wanted(m, number) {
				return m, nil
			}
		}
		wake, err := s.take()
		if err != nil {
			return Message{}, err
		}
		if wake == nil {
			continue
		}
		if err := s.sleep(ctx, wake); err != nil {
			return Message{}, err
		}
	}
}

func (s *Stream) wanted(m Message, number uint64) bool {
	if number < s.live && m.TimeNano < s.since {
		return false
	}
	if s.until != 0 && m.TimeNano > s.until {
		return false
	}
	return s.match == nil || s.match(m)
}

// take fills the batch, or returns the channel to wait on when nothing is there.
func (s *Stream) take() (wake <-chan struct{}, err error) {
	j := s.j
	j.mu.Lock()
	defer j.mu.Unlock()
	if oldest := j.oldest(); s.pos < oldest {
		lost := oldest - s.pos
		s.pos = oldest
		return nil, &LaggedError{Lost: lost}
	}
	if s.pos == j.next {
		if s.ended || j.closed {
			return nil, io.EOF
		}
		j.asleep++
		return j.wake, nil
	}
	n := 0
	for ; n < batchSize && s.pos < j.next; n++ {
		s.space[n] = j.ring[s.pos%uint64(j.size)]
		s.pos++
	}
	s.batch = s.space[:n]
	return nil, nil
}

// sleep waits for a message, the end, or ctx.
func (s *Stream) sleep(ctx context.Context, wake <-chan struct{}) error {
	var atEnd <-chan time.Time
	if s.atEnd != nil {
		atEnd = s.atEnd.C
	}
	select {
	case <-wake:
	case <-s.done:
	case <-s.gone:
	case <-ctx.Done():
		return ctx.Err()
	case <-atEnd:
		s.ended = true
		// A message stamped before the end may be on its way into the ring: wait for it.
		s.j.pub.Lock()
		// Only the wait is wanted.
		s.j.pub.Unlock()
	}
	return nil
}

// Close ends the stream; a Next that waits returns io.EOF. Idempotent.
func (s *Stream) Close() {
	s.once.Do(func() {
		close(s.done)
		if s.atEnd != nil {
			s.atEnd.Stop()
		}
	})
}

package ship

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	"escale.dev/escale/internal/logs"
)

// shipper sends one log on. It lives from a start of its container until that has
// ended and all was sent.
type shipper struct {
	log    *slog.Logger
	l      Log
	driver Driver
	policy Policy

	ctx    context.Context
	cancel context.CancelFunc

	mu      sync.Mutex
	opened  sync.Cond // file was set, or the shipper has ended
	running bool
	ended   <-chan struct{} // of the newest run
	file    *logs.Follower  // nil: between two passes
	held    bool            // the container is removed

	book  *book
	pos   logs.Position // behind what was sent
	reach int64         // number of the line behind all that were ever sent or told to be lost
	lost  []logs.Gap    // of those before reach, what was told, as far as it may come again
	sent  int64         // lines, those sent again counted once
	floor int64         // lines before this one have been sent again
	backs int           // how often in a row the position was put back among those
	marks []mark        // of the batches sent within Repeat
	ill   bool          // told that the server does not answer

	unkept bool // told that the position cannot be written
}

// mark is where a batch that was sent begins.
type mark struct {
	at     time.Time
	before logs.Position
	sent   int64
}

// item is an entry with what was missed before it and the place behind it.
type item struct {
	Entry
	gap    logs.Gap
	behind logs.Position
}

// again makes a running shipper follow the next run, too; false: it does not run.
func (s *shipper) again(ended <-chan struct{}) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running {
		s.ended = ended
	}
	return s.running
}

func (s *shipper) open(ctx context.Context, ended <-chan struct{}) (err error) {
	if s.book, s.pos, err = openBook(s.l.State); err != nil {
		return err
	}
	s.reach = max(0, s.pos.Number())
	s.ctx, s.cancel = context.WithCancel(ctx)
	s.opened.L = &s.mu
	s.running, s.ended = true, ended
	return nil
}

// run makes passes over the log until it has ended.
func (s *shipper) run() {
	defer s.cancel()
	defer s.book.close()
	for {
		s.mu.Lock()
		ended := s.ended
		s.mu.Unlock()
		whole, err := s.pass(ended)
		if err != nil {
			s.log.Error("log is not sent on", "error", err)
		}
		if s.ctx.Err() == nil && err == nil && !whole {
			continue
		}
		s.mu.Lock()
		if s.ctx.Err() != nil || s.ended == ended {
			s.running = false
			s.opened.Broadcast()
			s.mu.Unlock()
			break
		}
		s.mu.Unlock()
	}
	if err := s.driver.Close(); err != nil {
		s.log.Debug("closing log driver", "error", err)
	}
}

// hold keeps the files of a removed container open.
func (s *shipper) hold() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held = true
	for s.running && s.file == nil { // between two passes
		s.opened.Wait()
	}
	if s.file == nil {
		return
	}
	if err := s.file.Hold(); err != nil {
		s.log.Warn("holding the log of a removed container", "error", err)
	}
}

// pass sends what follows the present position. whole: to the end of the log;
// otherwise another pass has to begin where the position now is.
func (s *shipper) pass(ended <-chan struct{}) (whole bool, err error) {
	f, err := logs.Follow(s.l.Path, s.l.MaxFiles, s.pos, ended)
	if err != nil {
		return true, err
	}
	s.mu.Lock()
	s.file = f
	s.opened.Broadcast()
	s.mu.Unlock()
	items := make(chan item, Batch)
	stop := make(chan struct{})
	var reading sync.WaitGroup
	reading.Go(func() {
		defer close(items)
		s.read(f, items, stop)
	})
	defer func() {
		close(stop)
		s.mu.Lock()
		s.file = nil
		s.mu.Unlock()
		_ = f.Close() // only read from
		reading.Wait()
	}()
	for {
		batch, more := s.gather(items)
		if s.ctx.Err() != nil {
			s.tellUnsent(len(batch), items)
			return true, nil
		}
		if !s.deliver(batch) {
			if s.ctx.Err() != nil {
				s.tellUnsent(len(batch), items)
				return true, nil
			}
			if !s.isHeld() { // the files of a removed container are open only here
				return false, nil
			}
		}
		if !more {
			s.tellGap(f.Gap())
			return true, nil
		}
	}
}

func (s *shipper) isHeld() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held
}

// read copies the lines of the log to items.
func (s *shipper) read(f *logs.Follower, items chan<- item, stop <-chan struct{}) {
	parts := partials{}
	for {
		line, err := f.Next()
		if err != nil {
			return // its end, or Close
		}
		it := item{Entry: parts.entry(line), gap: f.Gap(), behind: f.Position()}
		select {
		case items <- it:
		case <-stop:
			return
		}
	}
}

// partials are the lines of which only a part has come, by stream.
type partials map[string]*Partial

// entry is a line of the log as drivers take it.
func (p partials) entry(l logs.Line) Entry {
	text, whole := bytes.CutSuffix(l.Data, []byte{'\n'})
	e := Entry{Time: l.Time, Stream: l.Stream, Line: bytes.Clone(text)}
	part := p[l.Stream]
	if whole && part == nil {
		return e
	}
	if part == nil {
		part = &Partial{ID: strconv.FormatInt(l.Time.UnixNano(), 36) + l.Stream}
	}
	next := *part
	next.Ordinal++
	next.Last = whole
	p[l.Stream] = &next
	if whole {
		delete(p, l.Stream)
	}
	e.Partial = &next
	return e
}

// gather waits for a line, and takes what else is there. more is false when the
// log has ended.
func (s *shipper) gather(items <-chan item) (batch []item, more bool) {
	select {
	case it, ok := <-items:
		if !ok {
			return nil, false
		}
		batch = append(batch, it)
	case <-s.driver.Gone():
		return nil, true
	case <-s.ctx.Done():
		return nil, true
	}
	for size := len(batch[0].Line); len(batch) < Batch && size < batchBytes; {
		select {
		case it, ok := <-items:
			if !ok {
				return batch, false
			}
			batch = append(batch, it)
			size += len(it.Line)
		default:
			return batch, true
		}
	}
	return batch, true
}

// deliver hands a batch over, however long it takes. false: ctx has ended, or the
// position was put back.
func (s *shipper) deliver(batch []item) bool {
	entries := make([]Entry, len(batch))
	for i := range batch {
		entries[i] = batch[i].Entry
	}
	for fails := 0; ; {
		n, err := s.driver.Send(s.ctx, entries)
		if n > 0 {
			s.advance(batch[:n])
			batch, entries, fails = batch[n:], entries[n:], 0
		}
		if err == nil && len(batch) == 0 {
			s.well()
			return true
		}
		if s.ctx.Err() != nil {
			return false
		}
		if err == nil {
			continue
		}
		var refused *RefusedError
		if errors.As(err, &refused) && len(batch) > 0 {
			s.log.Warn("log line cannot be sent", "bytes", len(batch[0].Line), "error", err)
			s.advance(batch[:1])
			batch, entries = batch[1:], entries[1:]
			continue
		}
		s.complain(err)
		var broken *BrokenError
		if errors.As(err, &broken) {
			if s.putBack(broken.At) {
				return false
			}
		}
		if len(batch) == 0 {
			return true // only the connection was looked at
		}
		if fails++; s.policy.Retries > 0 && fails > s.policy.Retries {
			s.log.Warn("log lines given up", "lines", len(batch), "retries", s.policy.Retries)
			s.advance(batch)
			return true
		}
		if !s.sleep(fails) {
			return false
		}
	}
}

// advance notes that lines were sent, and tells what was missed before them.
func (s *shipper) advance(done []item) {
	now := time.Now()
	for len(s.marks) > 0 && now.Sub(s.marks[0].at) > 2*Repeat {
		s.marks = s.marks[1:]
	}
	if s.pos.Head != 0 || s.sent == 0 {
		s.marks = append(s.marks, mark{now, s.pos, s.sent})
	}
	for _, it := range done {
		s.tellGap(it.gap)
		s.reach = max(s.reach, it.behind.Number())
	}
	s.sent += int64(len(done))
	to := done[len(done)-1].behind
	if to.Head == 0 {
		return // a place that cannot be named: the one before stands
	}
	s.keep(to)
}

func (s *shipper) keep(p logs.Position) {
	s.pos = p
	err := s.book.write(p)
	if err != nil && !s.unkept { // told once, not at each batch
		s.log.Warn("noting how far the log was sent", "error", err)
	}
	s.unkept = err != nil
}

// putBack goes back to what was sent shortly before a connection broke, unless that
// happened to the same lines too often: a server that hangs up again and again
// would get nothing else. false: there is nothing to send again.
func (s *shipper) putBack(broke time.Time) bool {
	if s.isHeld() {
		return false
	}
	for _, m := range s.marks {
		if broke.Sub(m.at) > Repeat || m.sent < s.floor && s.backs >= maxBacks {
			continue
		}
		if s.backs++; m.sent >= s.floor {
			s.backs = 0
		}
		s.floor, s.sent, s.marks = max(s.floor, s.sent), m.sent, nil
		s.keepBack(m.before)
		return true
	}
	return false
}

// keepBack puts the position back, also to the beginning, which has no record.
func (s *shipper) keepBack(p logs.Position) {
	if p.Head != 0 {
		s.keep(p)
		return
	}
	s.pos = p
	if err := s.book.f.Truncate(0); err != nil {
		s.log.Warn("noting how far the log was sent", "error", err)
	}
}

// sleep waits before another try, longer each time.
func (s *shipper) sleep(fails int) bool {
	wait := s.policy.Wait
	if wait <= 0 {
		wait = firstWait
	}
	wait = min(wait<<min(fails-1, 10), max(longWait, wait))
	select {
	case <-time.After(wait):
		return true
	case <-s.ctx.Done():
		return false
	}
}

func (s *shipper) complain(err error) {
	if !s.ill {
		s.log.Warn("log server does not answer: lines wait in the file", "error", err)
	}
	s.ill = true
}

func (s *shipper) well() {
	if s.ill {
		s.log.Info("log server takes lines again")
	}
	s.ill = false
}

// tellGap says what was rotated away before it could be sent: each line once, although
// the position was put back before it; and what cannot be sent again.
func (s *shipper) tellGap(g logs.Gap) {
	first := max(g.From, s.reach)
	if lines := max(0, g.To-first); lines > 0 || g.Blind {
		s.log.Warn("log lines were rotated away before they could be sent", "lines", lines, "more", g.Blind)
	}
	again := max(0, min(g.To, s.reach)-g.From)
	oldest := s.pos.Number()
	if len(s.marks) > 0 {
		oldest = s.marks[0].before.Number()
	}
	s.lost = slices.DeleteFunc(s.lost, func(l logs.Gap) bool { return l.To <= oldest })
	for _, l := range s.lost {
		again -= max(0, min(g.To, l.To)-max(g.From, l.From))
	}
	if again > 0 {
		s.log.Warn("log lines that a broken connection may have lost were rotated away", "lines", again)
	}
	if g.To > first {
		s.lost = append(s.lost, logs.Gap{From: first, To: g.To})
		s.reach = g.To
	}
}

// tellUnsent says, of a removed container, what was not sent in time.
func (s *shipper) tellUnsent(lines int, items <-chan item) {
	if !s.isHeld() {
		return // the next engine goes on with them
	}
	timeout := time.After(time.Second)
	for {
		select {
		case _, ok := <-items:
			if ok {
				lines++
				continue
			}
		case <-timeout:
		}
		break
	}
	if lines > 0 {
		s.log.Warn("log lines of a removed container were not sent", "lines", lines)
	}
}

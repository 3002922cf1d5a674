package load

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"time"

	"escale.dev/escale/test/internal/harness"
)

// Every container prints numbered lines under an identity that its process
// draws: "<uuid> <n>", from 0, and last "<uuid> <n> end" where n is the number
// of lines before. So a log can be judged without knowing when who was killed.

// identity begins every line; rest is what follows it. The newline, and more, is
// missing where a process was killed amid a write.
var (
	identity = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
	rest     = regexp.MustCompile(`^ ([0-9]+)( end)?\n`)
)

// runLog is what a log holds of one run of a container.
type runLog struct {
	id      string
	lines   int // numbers 0 … lines-1, gaps counted as if they were there
	lost    int
	doubled int
	ended   bool // the last line is there
}

// boxLog is a whole log.
type boxLog struct {
	runs []runLog
	junk []string
}

func (l *boxLog) last() *runLog {
	if len(l.runs) == 0 {
		return nil
	}
	return &l.runs[len(l.runs)-1]
}

// parseLog judges a log. It may end anywhere: what must be there is the
// caller's to know.
func parseLog(b []byte) *boxLog {
	l := &boxLog{}
	at := identity.FindAllIndex(b, -1)
	if len(at) == 0 && len(b) > 0 || len(at) > 0 && at[0][0] > 0 {
		l.junk = append(l.junk, fmt.Sprintf("%.80q before the first line", b))
	}
	for i, m := range at {
		id, end := string(b[m[0]:m[1]]), len(b)
		last := i == len(at)-1 // of its run
		if !last {
			end = at[i+1][0]
			last = string(b[at[i+1][0]:at[i+1][1]]) != id
		}
		r := l.run(id)
		tail := b[m[1]:end]
		if f := rest.FindSubmatch(tail); f != nil {
			n, _ := strconv.Atoi(string(f[1]))
			r.take(n, len(f[2]) > 0)
			tail = tail[len(f[0]):]
		}
		// A killed process leaves the first piece of a line, only at its very end.
		if len(tail) > 0 && (!last || len(tail) > 48) {
			l.junk = append(l.junk, fmt.Sprintf("%.80q", tail))
		}
	}
	return l
}

// run finds or begins the run id.
func (l *boxLog) run(id string) *runLog {
	if r := l.last(); r != nil && r.id == id {
		return r
	}
	for i := range l.runs {
		if l.runs[i].id == id {
			l.junk = append(l.junk, fmt.Sprintf("run %s comes back after another", id))
			return &l.runs[i]
		}
	}
	l.runs = append(l.runs, runLog{id: id})
	return l.last()
}

// take judges the next line of a run.
func (r *runLog) take(n int, end bool) {
	switch {
	case n > r.lines:
		r.lost += n - r.lines
		r.lines = n
	case n < r.lines || r.ended:
		r.doubled++
		return
	}
	if end {
		r.ended = true
		return
	}
	r.lines++
}

// knows tells whether a run was seen in the log before.
func (b *box) knows(run string) bool {
	_, ok := b.seen[run]
	return ok
}

// counting tells whether the current run has printed a line.
func (b *box) counting(since time.Time) (bool, error) {
	path := fmt.Sprintf("/containers/%s/logs?stdout=1&tail=1&since=%d.%09d", b.id, since.Unix(), since.Nanosecond())
	for {
		ctx, cancel := context.WithTimeout(b.ctx, 40*time.Second)
		status, body, err := b.api.Raw(ctx, "GET", path, nil)
		late := ctx.Err() != nil
		cancel()
		switch {
		case err == nil && status == 200:
			return len(body) > 0, nil
		case err == nil:
			return false, fmt.Errorf("logs of %s: %d: %s", b.name, status, body)
		case late:
			return false, fmt.Errorf("logs of %s: %w", b.name, err)
		}
		b.Cut.Add(1)
		b.pause(20 * time.Millisecond)
	}
}

// readLog reads the container's log through the engine.
func (b *box) readLog() (*boxLog, error) {
	for {
		ctx, cancel := context.WithTimeout(b.ctx, 40*time.Second)
		out, _, err := b.api.Logs(ctx, b.id)
		late := ctx.Err() != nil
		cancel()
		if err == nil {
			return parseLog(out), nil
		}
		if harness.Status(err) != 0 || late {
			return nil, fmt.Errorf("logs of %s: %w", b.name, err)
		}
		b.Cut.Add(1)
		b.pause(20 * time.Millisecond)
	}
}

// look reads the log of a running container and remembers how far it was.
func (b *box) look() (*boxLog, error) {
	l, err := b.readLog()
	if err != nil {
		return nil, err
	}
	for _, r := range l.runs {
		b.seen[r.id] = max(b.seen[r.id], r.lines)
	}
	return l, nil
}

// check judges the whole log of a container that has ended: no gap, no line
// twice, nothing of what was seen gone; lines ≥ 0 tells that the last run came to
// its own end after so many lines at least; fresh, that it is not one seen before.
func (b *box) check(lines int, fresh bool) error {
	l, err := b.readLog()
	if err != nil {
		return err
	}
	if last := l.last(); last != nil && fresh && b.knows(last.id) {
		b.blame(&b.lost, lines+1, "%s (%.12s): nothing in the log of the run that just ended", b.name, b.id)
	}
	have := map[string]int{}
	for _, r := range l.runs {
		have[r.id] = r.lines
		b.Lines.Add(int64(r.lines))
		b.blame(&b.lost, r.lost, "%s (%.12s): %d lines lost within run %.8s of %d lines", b.name, b.id, r.lost, r.id, r.lines)
		b.blame(&b.doubled, r.doubled, "%s (%.12s): %d lines twice in run %.8s of %d lines", b.name, b.id, r.doubled, r.id, r.lines)
	}
	for id, n := range b.seen {
		if have[id] < n {
			b.blame(&b.lost, n-have[id], "%s (%.12s): run %.8s had %d lines, now %d", b.name, b.id, id, n, have[id])
		}
	}
	for _, j := range l.junk {
		b.blame(&b.lost, 1, "%s (%.12s): log holds %s", b.name, b.id, j)
	}
	if len(l.runs) > b.starts {
		b.blame(&b.odd, 1, "%s (%.12s): %d runs after %d starts", b.name, b.id, len(l.runs), b.starts)
	}
	last := l.last()
	switch {
	case lines < 0:
	case last == nil:
		b.blame(&b.lost, lines+1, "%s (%.12s): log is empty", b.name, b.id)
	case !last.ended:
		b.blame(&b.lost, max(1, lines+1-last.lines), "%s (%.12s): last run %.8s stops at line %d of %d", b.name, b.id, last.id, last.lines, lines)
	}
	return nil
}

// follow reads the log with follow=1 for some time and remembers how far it came.
func (b *box) follow(d time.Duration) error {
	ctx, cancel := context.WithTimeout(b.ctx, d)
	defer cancel()
	res, err := b.api.Open(ctx, "GET", "/containers/"+b.id+"/logs?stdout=1&stderr=1&follow=1&tail=all", nil)
	if err != nil {
		return nil // cut off by a kill, or the time was over
	}
	defer res.Body.Close()
	if res.StatusCode != 200 {
		body, _ := io.ReadAll(io.LimitReader(res.Body, 1<<16))
		return fmt.Errorf("logs -f of %s: %d: %s", b.name, res.StatusCode, body)
	}
	var out bytes.Buffer
	if err := harness.Demux(res.Body, &out, io.Discard); err != nil && ctx.Err() == nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		b.Cut.Add(1)
	}
	text := out.Bytes()
	text = text[:bytes.LastIndexByte(text, '\n')+1]
	l := parseLog(text)
	for _, r := range l.runs {
		b.seen[r.id] = max(b.seen[r.id], r.lines)
		b.blame(&b.lost, r.lost, "%s (%.12s): logs -f skipped %d lines of run %.8s", b.name, b.id, r.lost, r.id)
		b.blame(&b.doubled, r.doubled, "%s (%.12s): logs -f gave %d lines of run %.8s twice", b.name, b.id, r.doubled, r.id)
	}
	return nil
}

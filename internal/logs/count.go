package logs

import (
	"fmt"
	"time"
)

// Gap is a run of lines that were rotated away before they could be read. Lines of a
// log are numbered from 0, over all its files. The zero value: none was missed.
type Gap struct {
	From, To int64 // the first line missed, and the first after it that was not
	Blind    bool  // there may be more, which cannot be counted
}

// count finds gaps by the numbers that files carry. A file is asked for its number
// only when something of it has been read, because the writer numbers a file after making it
// and before writing to it: what is not there then will never be.
type count struct {
	next   int64 // number of the line after those of the files left; negative: not known
	gap    bool  // a file may have gone unread, whatever the numbers say
	missed Gap   // not told yet
	quiet  bool  // Follower tells of gaps in its own way
}

// enter compares the number of a file's first line with the one that has to follow.
func (r *reader) enter(l *logFile) {
	if l.entered {
		return
	}
	l.entered, l.base = true, baseOf(l)
	if r.watch == nil {
		return
	}
	c := &r.count
	// A log without any numbers (no attributes in this file system) tells readers nothing: one
	// of a single file would tell at each rotation.
	switch {
	case l.base >= 0 && c.next >= 0:
		if n := l.base - c.next; n > 0 {
			c.missed.From, c.missed.To = l.base-n-(c.missed.To-c.missed.From), l.base
		}
	case c.gap && l.base != 0 && (l.base >= 0 || c.next >= 0 || c.quiet):
		c.missed.Blind = true
	}
	c.gap = false
}

// leave adds a file that was read to its end to what is known to be behind.
func (r *reader) leave(l *logFile) {
	if r.watch == nil || l.left {
		return
	}
	l.left = true
	r.count.next = l.behind(r.count.next)
}

// lastGap looks, at the end of the log, whether its last file, which is empty, tells of
// lines that were missed, and reports whether they are still to be told.
func (r *reader) lastGap() bool {
	if len(r.files) == 0 || r.files[0].entered || !r.files[0].last.IsZero() {
		return false
	}
	if baseOf(r.files[0]) >= 0 {
		r.enter(r.files[0])
	}
	return !r.count.quiet && r.count.missed != (Gap{})
}

// missedLine tells a follower that it was slower than the log was rotated.
func (r *reader) missedLine() Line {
	text := "escale: more log lines may have been rotated away before they were read\n"
	if g := &r.count.missed; g.To > g.From {
		text = fmt.Sprintf("escale: %d log lines were rotated away before they were read\n", g.To-g.From)
		g.From, g.To = 0, 0
	} else {
		g.Blind = false
	}
	l := Line{Time: time.Now().UTC(), Stream: "stderr", Data: []byte(text)}
	if len(r.files) > 0 {
		if head := headOf(r.files[0], &r.dec); head != 0 {
			l.Time = time.Unix(0, head).UTC()
		}
	}
	if !r.o.Stderr {
		l.Stream = "stdout"
	}
	return l
}

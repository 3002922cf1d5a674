// Package logs reads what monitors write: json-file logs with their rotated
// predecessors, from either end, followed live.
package logs

import "time"

// Line is one entry of a log. Data ends with a newline unless the entry is part of a
// longer line.
type Line struct {
	Time   time.Time
	Stream string // "stdout", "stderr"
	Data   []byte // valid until the next call of Next
	Attrs  map[string]string
}

// ReadOptions says what part of a log is wanted.
type ReadOptions struct {
	Stdout, Stderr bool
	Since, Until   time.Time // zero: unbounded
	Tail           int       // last n lines; negative: all
	Follow         bool
	Details        bool
	// Ended is closed when no more can be written (the container has ended and
	// its log is complete); a follower then reads to the end and stops.
	Ended <-chan struct{}
}

// Reader yields lines. Next blocks while following; io.EOF ends the log. Hold opens all
// files that belong to the log, so that a follower can read them although they are removed; nothing
// may write the log any more then, and ReadOptions.Ended be closed: it waits for a Next that blocks.
type Reader interface {
	Next() (Line, error)
	Hold() error
	Close() error
}

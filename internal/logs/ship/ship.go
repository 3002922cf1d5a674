// Package ship sends the logs of containers on to where their log driver says. The
// monitor writes every log as a json-file, whatever the driver; a shipper follows
// that file from a durable position, so that neither a server that is away nor an
// engine that is restarted loses a line, and no container ever waits for either.
//
// Lines arrive at least once. Repeated may be: after the engine was killed, the batch
// that was under way (Batch lines); after a connection without acknowledgements
// broke, what was sent in the Repeat before, at most five times in all. Lost can be only what was rotated
// away before it could be sent, which is counted and logged, and what a
// datagram's way lost.
package ship

import (
	"context"
	"fmt"
	"slices"
	"time"
)

const (
	// Batch is how many lines at most are handed to a driver at once.
	Batch = 256
	// Repeat is how far back sending begins again after a connection broke, because
	// what the other side had not read is gone with it.
	Repeat = 2 * time.Second
	// DrainTime is how long lines of a removed container are still sent.
	DrainTime = 10 * time.Second

	maxBacks   = 3 // how often the same lines are sent again
	batchBytes = 512 << 10
	firstWait  = 100 * time.Millisecond
	longWait   = 5 * time.Second
)

// Entry is one entry of a log on its way.
type Entry struct {
	Time    time.Time
	Stream  string   // "stdout", "stderr"
	Line    []byte   // without its newline
	Partial *Partial // nil: a whole line
}

// Partial tells which part of a line an entry is.
type Partial struct {
	ID      string // the same for all parts of a line
	Ordinal int    // 1 and up
	Last    bool
}

// Driver hands entries to one kind of server. It is used by one goroutine at a time.
type Driver interface {
	// Send hands a batch over, in order, and returns how many entries of it were
	// taken. It connects when it must and blocks while the server is slow, until
	// ctx ends. A *BrokenError: what was taken before may be lost. A
	// *RefusedError: the first entry not taken can never be sent. Any other
	// error: nothing more was taken, and trying again may help. An empty batch only
	// looks whether the connection lives.
	Send(ctx context.Context, batch []Entry) (int, error)
	// Gone is closed when the connection of the last Send breaks; nil when that
	// cannot be known.
	Gone() <-chan struct{}
	// Close lets go of the connection. Idempotent.
	Close() error
}

// BrokenError says that an established connection broke.
type BrokenError struct {
	At  time.Time
	Err error
}

func (e *BrokenError) Error() string { return e.Err.Error() }

// Unwrap gives what broke it.
func (e *BrokenError) Unwrap() error { return e.Err }

// RefusedError says that an entry can never be sent: it is too large for the protocol.
type RefusedError struct{ Err error }

func (e *RefusedError) Error() string { return e.Err.Error() }

// Unwrap gives the reason.
func (e *RefusedError) Unwrap() error { return e.Err }

// Policy says how patient a shipper is with a server.
type Policy struct {
	Wait    time.Duration // before the first retry, doubled with each up to 5 s; 0: 100 ms
	Retries int           // after so many the batch is given up; 0: never
}

// Kind is a log driver by its name.
type Kind struct {
	Name string
	// Check refuses options in Docker's words. Those of all drivers (mode,
	// max-buffer-size, cache-*) are checked and taken out before.
	Check func(opts map[string]string) error
	// New makes a driver; it does not connect. nil: the file is all there is.
	New func(info Info) (Driver, Policy, error)
}

// Kinds are the log drivers of an engine.
type Kinds []Kind

// Names are those that `docker info` shows: all but "none".
func (k Kinds) Names() []string {
	var out []string
	for _, kind := range k {
		out = append(out, kind.Name)
	}
	slices.Sort(out)
	return out
}

func (k Kinds) find(name string) (Kind, bool) {
	i := slices.IndexFunc(k, func(kind Kind) bool { return kind.Name == name })
	if i < 0 {
		return Kind{}, false
	}
	return k[i], true
}

// Files are the drivers that keep a log on this machine only.
func Files() Kinds {
	return Kinds{{Name: "json-file", Check: checkJSONFile}, {Name: "local", Check: checkLocal}}
}

// errUnknown is an option nobody knows.
func errUnknown(key, driver string) error {
	return fmt.Errorf("unknown log opt '%s' for %s log driver", key, driver)
}

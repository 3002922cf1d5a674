// Package child keeps the server of the cluster's store running, as a process of its own:
// etcd ends its process on a full disk or damaged files, and may not take the engine
// along. The process gets its configuration on its standard input, tells on its standard
// output how it is, and ends when its input does: with the engine, however that ends.
package child

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// Config is what the server is told, as one line of JSON.
type Config struct {
	Name   string // of this member, one of a kind in the cluster: the node's id
	Dir    string // of its data, made when it is not there
	Socket string // on which it answers this machine
	Listen string // URL on which other members reach it: https://ADDRESS:PORT, or unix:PATH of a socket, without
	// TLS, to which somebody leads them who knows who they are
	// Advertise is that URL as the others see it; "" is Listen.
	Advertise string `json:",omitempty"`

	// Cluster is NAME=URL of each member of a new cluster, or, with Join, of the one that
	// this member was added to, itself included; comma-separated. "" is this member
	// alone. Of a member that has been in a cluster it is not read.
	Cluster string `json:",omitempty"`
	Join    bool   `json:",omitempty"`
	// Fresh says that there need not be data yet: the member has just been made, or added. It
	// holds until the server was ready once; who keeps the configuration keeps that, too.
	// Without it a server whose data is gone does not begin anew with nothing.
	Fresh bool   `json:",omitempty"`
	Token string `json:",omitempty"` // one of a kind: clusters that do not know each other never mix
	// Force makes a cluster of this member alone of what it has, once: for a cluster of which
	// most members are lost.
	Force bool `json:",omitempty"`

	Cert, Key, CA string `json:",omitempty"` // PEM files for talk with other members; all or none
	// Role is a name that certificates of members bear; those of others that the same CA
	// has signed are refused.
	Role string `json:",omitempty"`

	Quota     int64         `json:",omitempty"` // bytes of the database; 0 is 2 GiB
	Keep      time.Duration `json:",omitempty"` // for how long what was overwritten is kept; 0 is 5 minutes
	Heartbeat time.Duration `json:",omitempty"` // 0 is 100 ms
	Election  time.Duration `json:",omitempty"` // of silence until members choose a leader anew; 0 is 1 s
}

// Report is what the server tells, one line of JSON each time it changes.
type Report struct {
	Ready  bool   // it answers
	Leads  bool   // it is the one of the members through which all writes go
	Member uint64 // its id
	// Choices are how often the members have chosen who leads while it ran: what was on its way to the
	// one before may never arrive.
	Choices uint64 `json:",omitempty"`
	Err     string `json:",omitempty"` // why it ends
	Gone    bool   `json:",omitempty"` // it ends because its data is gone (Config.Fresh)
	Again   bool   `json:",omitempty"` // it ends to be started anew: what it trusts has changed
}

// State is how the server is.
type State struct {
	Report
	PID     int   // 0: it does not run
	Starts  int   // how often it was started
	Reason  error // why it is not ready, when it has ended
	Removed bool  // it is no member any more, or its data is gone, as Reason says: it is not started again
}

// Child is the server as a process.
type Child struct {
	cfg     Config
	program []string
	log     *slog.Logger

	mu      sync.Mutex
	state   State
	changed chan struct{}
}

// New makes a Child of a program and its arguments. Run runs it.
func New(cfg Config, program []string, log *slog.Logger) *Child {
	return &Child{cfg: cfg, program: program, log: log, changed: make(chan struct{})}
}

// Pauses before the server is started again: they double while it does not live long.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = 10 * time.Second
	lives      = 30 * time.Second // so long: what was before is forgotten
)

// Run runs the server, and again when it ends, until ctx does: then it ends the server,
// waits for that and gives nil. FailedPrecondition when the cluster has removed this
// member: then its data is of no use; and when its data is gone: then it would be taken for
// one that knows all, and has to be removed and added anew.
func (c *Child) Run(ctx context.Context) error {
	pause := firstPause
	for {
		began := time.Now()
		err := c.once(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, errRemoved) || errors.Is(err, errGone) {
			c.set(func(s *State) { s.Removed = true })
			return fmt.Errorf("cluster's store: %w: %w", err, errdefs.ErrFailedPrecondition)
		}
		if errors.Is(err, errAgain) {
			c.log.Info("the cluster's store is started anew", "because", err)
			continue
		}
		if time.Since(began) > lives {
			pause = firstPause
		}
		c.log.Error("the cluster's store has ended: it is started again", "error", err, "in", pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil
		}
		pause = min(2*pause, lastPause)
	}
}

// State is how the server is, and what is closed when that changes.
func (c *Child) State() (State, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state, c.changed
}

// Leads tells whether the server is the one through which all writes go, and what is
// closed when that may have changed, or which of the others it is.
func (c *Child) Leads() (bool, <-chan struct{}) {
	s, changed := c.State()
	return s.Ready && s.Leads, changed
}

// Ready blocks until the server answers. When ctx ends before: Unavailable, with the
// reason that the server gave when it ended last: one that starts answers nothing until most
// members are there. FailedPrecondition when it is no member any more, or its data is gone.
func (c *Child) Ready(ctx context.Context) error {
	for {
		s, changed := c.State()
		switch {
		case s.Ready:
			return nil
		case s.Removed:
			return fmt.Errorf("cluster's store: %w: %w", s.Reason, errdefs.ErrFailedPrecondition)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if s.Reason == nil {
				s.Reason = errors.New("it does not answer yet")
			}
			return fmt.Errorf("cluster's store: %w: %w", s.Reason, errdefs.ErrUnavailable)
		}
	}
}

// set changes the state and tells.
func (c *Child) set(change func(*State)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(&c.state)
	close(c.changed)
	c.changed = make(chan struct{})
}

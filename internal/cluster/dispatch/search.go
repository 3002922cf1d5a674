package dispatch

import (
	"context"
	"errors"
	"time"
)

// Doubt is how long nothing is heard of who leads until all managers are asked who does. The connection
// stays: it ends when another leads by a later term, or after Dead.
const Doubt = Beat * 5 / 2

// early is how long a manager that is called has to say its first word until all others are asked beside it: one
// that starts takes calls before it answers.
const early = 300 * time.Millisecond

// errFound ends a connection, or attempts at one, because another leads.
var errFound = errors.New("another manager leads")

// search is asking all managers at once.
type search struct {
	after uint64 // a term: for who leads by a later one
	end   context.CancelFunc
}

// search asks all managers, unless that is under way, who leads by a later term than those that are known.
// One that was found counts among these while it is called: it may be lost before it says a word.
// It goes on until one answers that or rest is called, at most as long as Run.
func (r *Remote) search() {
	r.mu.Lock()
	defer r.mu.Unlock()
	after := r.term
	if r.calls() {
		after = max(after, r.found)
	}
	if r.cfg.Ask == nil || r.life.Err() != nil || r.searching != nil && r.searching.after <= after {
		return
	}
	if r.searching != nil { // for one after who was called, and does not lead
		r.searching.end()
	}
	ctx, end := context.WithCancel(r.life)
	s := &search{after, end}
	r.searching = s
	for _, m := range r.managers {
		if m.Addr != "" {
			r.asking.Go(func() { r.ask(ctx, s, m.Addr, after) })
		}
	}
}

// ask asks a manager until it knows a later leader, or ctx ends.
func (r *Remote) ask(ctx context.Context, s *search, addr string, after uint64) {
	for pause := firstPause; ctx.Err() == nil; pause = min(2*pause, lastPause) {
		c, err := r.cfg.Ask(ctx, addr, after)
		if err == nil && c.Term > after && !r.tried(c.Term) {
			r.discover(s, c)
			return
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// tried tells whether a term was found before, and followed in vain: who led by it may not be ready yet.
// Then it is tried again after a pause.
func (r *Remote) tried(term uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return term <= r.found && time.Since(r.foundAt) < firstPause
}

// discover takes over what a search has found, and ends it. It does nothing when that has ended already.
func (r *Remote) discover(s *search, c Cluster) {
	r.mu.Lock()
	current := r.searching == s
	if current {
		r.searching, r.found, r.foundAt = nil, c.Term, time.Now()
	}
	r.mu.Unlock()
	s.end()
	if !current {
		return
	}
	r.told(c)
	select {
	case r.finds <- struct{}{}:
	default:
	}
}

// rest ends a search: something was heard of who leads.
func (r *Remote) rest() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.searching != nil {
		r.searching.end()
		r.searching = nil
	}
}

// calls tells whether the manager that is called, or followed, is the one that leads as far as is known.
// Called with the lock held.
func (r *Remote) calls() bool {
	return len(r.managers) > 0 && r.managers[0].Leader && r.managers[0].Addr == r.at
}

// call notes which manager is called, or followed, from now on; "" is none.
func (r *Remote) call(addr string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.at = addr
}

// last is the manager that is called after all others, for it has just fallen silent and would cost as long
// again; "" is none. One that was found to lead since is not: whoever is called instead is left for it.
func (r *Remote) last() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.found > r.term && len(r.managers) > 0 && r.managers[0].Leader && r.managers[0].Addr == r.silent {
		return ""
	}
	return r.silent
}

// superseded blocks until another was found to lead than who was followed and is being asked, and ends
// attempts with that; or until ctx ends.
func (r *Remote) superseded(ctx context.Context, cancel context.CancelCauseFunc) {
	for {
		select {
		case <-r.finds:
		case <-ctx.Done():
			return
		}
		r.mu.Lock()
		later := r.found > r.term && !r.calls()
		r.mu.Unlock()
		if later {
			cancel(errFound)
			return
		}
	}
}

package dns

import (
	"sync"
	"time"
)

const (
	// rest is how long a server that did not answer is asked last.
	rest = 30 * time.Second

	// maxFailed is how many servers are remembered that did not answer.
	maxFailed = 4096
)

// health remembers which servers did not answer. The zero value is ready.
type health struct {
	mu     sync.Mutex
	failed map[seen]time.Time
}

// seen is a server as it is seen from one place: of the same address every
// container may see another.
type seen struct {
	Server
	box *box // nil: from the host
}

func sight(b *box, s Server) seen {
	if s.InContainer {
		return seen{s, b}
	}
	return seen{s, nil}
}

// order puts those last that failed a short while ago. A server whose rest is over
// has its place again; it is probed: the next is asked at the same time.
func (h *health) order(b *box, servers []Server) (sorted []Server, probing []bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var last []Server
	for _, s := range servers {
		at, failed := h.failed[sight(b, s)]
		switch {
		case failed && time.Since(at) < rest:
			last = append(last, s)
			continue
		case failed:
			h.failed[sight(b, s)] = time.Now() // one question is enough
		}
		sorted, probing = append(sorted, s), append(probing, failed)
	}
	for _, s := range last {
		sorted, probing = append(sorted, s), append(probing, false)
	}
	return sorted, probing
}

// allFailed tells whether all of the servers failed a short while ago.
func (h *health) allFailed(b *box, servers []Server) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range servers {
		if at, failed := h.failed[sight(b, s)]; !failed || time.Since(at) >= rest {
			return false
		}
	}
	return true
}

// tell notes how a server's turn ended.
func (h *health) tell(b *box, s Server, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case err == nil || err == errRefusing:
		delete(h.failed, sight(b, s))
	case b.ctx.Err() != nil: // it was given up
	case h.failed == nil:
		h.failed = map[seen]time.Time{sight(b, s): time.Now()}
	default:
		if len(h.failed) >= maxFailed {
			clear(h.failed) // it only costs a second for each
		}
		h.failed[sight(b, s)] = time.Now()
	}
}

// drop forgets what was seen from a container.
func (h *health) drop(b *box) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for k := range h.failed {
		if k.box == b {
			delete(h.failed, k)
		}
	}
}

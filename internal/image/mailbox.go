package image

import "sync"

// mailbox passes progress on from several goroutines to a reader that may be
// slow: nobody waits for it, and of steps that differ only in bytes it gets the
// last.
type mailbox struct {
	to   func(Progress)
	mu   sync.Mutex
	list []Progress
	last map[string]int // id → its last place in list
	wake chan struct{}
	done chan struct{}
}

// newMailbox begins to pass on to a reader; nil: to nobody.
func newMailbox(to func(Progress)) *mailbox {
	if to == nil {
		return nil
	}
	m := &mailbox{to: to, last: map[string]int{}, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go func() {
		defer close(m.done)
		for range m.wake {
			m.empty()
		}
		m.empty()
	}()
	return m
}

func (m *mailbox) empty() {
	m.mu.Lock()
	list := m.list
	m.list = nil
	clear(m.last)
	m.mu.Unlock()
	for _, p := range list {
		m.to(p)
	}
}

// post never blocks. It must not be called after close.
func (m *mailbox) post(p Progress) {
	if m == nil {
		return
	}
	m.mu.Lock()
	if i, ok := m.last[p.ID]; ok && p.ID != "" && m.list[i].Status == p.Status {
		m.list[i] = p
	} else {
		m.last[p.ID] = len(m.list)
		m.list = append(m.list, p)
	}
	m.mu.Unlock()
	ring(m.wake)
}

// close returns when all is passed on.
func (m *mailbox) close() {
	if m != nil {
		close(m.wake)
		<-m.done
	}
}

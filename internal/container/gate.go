package container

import (
	"context"
	"sync"
)

// gate holds back what the engine would start by itself. Open unless shut.
type gate struct {
	mu     sync.Mutex
	opened chan struct{} // nil: it is open; closed when it opens again
}

// shut holds back whoever comes from now on.
func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.opened == nil {
		g.opened = make(chan struct{})
	}
}

// open lets all go on.
func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.opened != nil {
		close(g.opened)
		g.opened = nil
	}
}

// wait blocks while the gate is shut.
func (g *gate) wait(ctx context.Context) error {
	g.mu.Lock()
	opened := g.opened
	g.mu.Unlock()
	if opened == nil {
		return ctx.Err()
	}
	select {
	case <-opened:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// HoldRestarts holds back all that the engine starts by itself, or lets it go
// on: restart policies, the starts at boot, restarts of what is unhealthy. What
// clients start is not concerned.
func (m *Manager) HoldRestarts(hold bool) {
	if hold {
		m.gate.shut()
	} else {
		m.gate.open()
	}
}

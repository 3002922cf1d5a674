package container

import (
	"context"
	"errors"
	goruntime "runtime"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
)

// Bounds of the starts at boot: one that never gets ready may not hold back
// those that need it for ever, and a thousand starts at once help nobody.
const (
	needPatience  = 2 * time.Minute
	minBootStarts = 8
)

// The labels by which compose tells what a service needs.
const (
	composeProject = "com.docker.compose.project"
	composeService = "com.docker.compose.service"
	composeOneOff  = "com.docker.compose.oneoff"
	composeDepends = "com.docker.compose.depends_on"
)

// condition is what a need waits for.
type condition string

// The conditions, by compose's names; the first is that of links and shared
// namespaces, too.
const (
	whenStarted   condition = "service_started"
	whenHealthy   condition = "service_healthy"
	whenCompleted condition = "service_completed_successfully"
)

// need is a container that has to be somewhere before another starts.
type need struct {
	on   *entry
	when condition
}

// bootStart is a container that is started when the engine comes up.
type bootStart struct {
	e       *entry
	pending pendingRestart
	needs   []need
	tried   chan struct{} // closed when it was started, or that went wrong, or nobody wants it any more
}

// boot starts containers, each after what it needs, the rest side by side.
type boot struct {
	*runner
	starts map[*entry]*bootStart
	slots  chan struct{} // one for each start under way
}

// startAtBoot starts all that are given, in the background.
func (m *runner) startAtBoot(list []*bootStart) {
	b := &boot{runner: m, starts: map[*entry]*bootStart{}, slots: make(chan struct{}, max(minBootStarts, 2*goruntime.GOMAXPROCS(0)))}
	for _, s := range list {
		s.tried = make(chan struct{})
		b.starts[s.e] = s
	}
	services := m.services()
	for _, s := range list {
		s.needs = m.needsOf(s.e, services)
	}
	b.breakCycles(list)
	for _, s := range list {
		m.background(func(context.Context) { b.run(s) })
	}
}

// run waits for what s needs and starts it.
func (b *boot) run(s *bootStart) {
	defer close(s.tried)
	defer s.pending.cancel()
	ctx := s.pending.ctx
	if b.gate.wait(ctx) != nil {
		return
	}
	for _, n := range s.needs {
		b.await(ctx, s, n)
	}
	select {
	case b.slots <- struct{}{}:
	case <-ctx.Done():
		return
	}
	defer func() { <-b.slots }()
	b.restartNow(ctx, s.e)
}

// await waits until a need is met, cannot be met, or its time is over.
func (b *boot) await(ctx context.Context, s *bootStart, n need) {
	t := time.NewTimer(needPatience)
	defer t.Stop()
	late := func() {
		b.log.Warn("starting without what it needs: it has waited long enough", "container", s.e.id.Short(), "needs", n.on.id.Short(), "condition", string(n.when), "waited", needPatience)
	}
	if other := b.starts[n.on]; other != nil {
		select {
		case <-other.tried:
		case <-t.C:
			late()
			return
		case <-ctx.Done():
			return
		}
	}
	for {
		n.on.mu.Lock()
		met, hopeless := n.standing()
		changed := n.on.onChange()
		n.on.mu.Unlock()
		switch {
		case met:
			return
		case hopeless:
			b.log.Warn("starting without what it needs", "container", s.e.id.Short(), "needs", n.on.id.Short(), "condition", string(n.when))
			return
		}
		select {
		case <-changed:
		case <-t.C:
			late()
			return
		case <-ctx.Done():
			return
		}
	}
}

// standing tells whether a need is met, or will not be by itself. Called with mu
// of what is needed held.
func (n need) standing() (met, hopeless bool) {
	st := &n.on.rec.State
	coming := st.Status == Starting || st.Status == Restarting
	switch n.when {
	case whenHealthy:
		h := n.on.health()
		_, probed := newProbe(n.on.rec.Config)
		return st.Running() && (h == string(container.Healthy) || !probed), !st.Running() && !coming
	case whenCompleted:
		over := st.Status == Exited || st.Status == Created
		return st.Status == Exited && st.ExitCode == 0, over && (st.ExitCode != 0 || st.Status == Created)
	}
	return st.Running(), !st.Running() && !coming
}

// onChange is closed at the next change of state or health. Called with mu held.
func (e *entry) onChange() <-chan struct{} {
	if e.changed == nil {
		e.changed = make(chan struct{})
	}
	return e.changed
}

// tellChange wakes who waits for a change. Called with mu held.
func (e *entry) tellChange() {
	if e.changed != nil {
		close(e.changed)
		e.changed = nil
	}
}

// breakCycles takes out the needs that lead back to where they came from.
func (b *boot) breakCycles(list []*bootStart) {
	const open, done = 1, 2
	state := map[*bootStart]int{}
	var visit func(s *bootStart)
	visit = func(s *bootStart) {
		state[s] = open
		kept := s.needs[:0:0]
		for _, n := range s.needs {
			other := b.starts[n.on]
			if other != nil && state[other] == open {
				b.log.Warn("start order: containers need each other in a circle, this need is left out", "container", s.e.id.Short(), "needs", n.on.id.Short())
				continue
			}
			kept = append(kept, n)
			if other != nil && state[other] == 0 {
				visit(other)
			}
		}
		s.needs = kept
		state[s] = done
	}
	for _, s := range list {
		if state[s] == 0 {
			visit(s)
		}
	}
}

// services finds the containers of compose's services, by project and name.
func (m *core) services() map[[2]string][]*entry {
	out := map[[2]string][]*entry{}
	for _, e := range m.store.all() {
		l := e.view().Config.Labels
		if l[composeService] != "" && !strings.EqualFold(l[composeOneOff], "true") {
			key := [2]string{l[composeProject], l[composeService]}
			out[key] = append(out[key], e)
		}
	}
	return out
}

// needsOf lists what e needs: its links, containers whose namespaces or volumes
// it shares, and what compose says.
func (m *core) needsOf(e *entry, services map[[2]string][]*entry) []need {
	v := e.view()
	h := v.HostConfig
	var refs []string
	for _, l := range h.Links {
		ref, _ := cutLink(l)
		refs = append(refs, ref)
	}
	if h.NetworkMode.IsContainer() {
		refs = append(refs, h.NetworkMode.ConnectedContainer())
	}
	if h.PidMode.IsContainer() {
		refs = append(refs, h.PidMode.Container())
	}
	if h.IpcMode.IsContainer() {
		refs = append(refs, h.IpcMode.Container())
	}
	for _, from := range h.VolumesFrom {
		ref, _, _ := strings.Cut(from, ":")
		refs = append(refs, ref)
	}
	var out []need
	for _, ref := range refs {
		if other, err := m.store.find(ref); err == nil && other != e {
			out = append(out, need{other, whenStarted})
		}
	}
	for _, d := range parseDepends(v.Config.Labels[composeDepends]) {
		for _, other := range services[[2]string{v.Config.Labels[composeProject], d.service}] {
			if other != e {
				out = append(out, need{other, d.when})
			}
		}
	}
	return out
}

// dependency is a service in compose's label.
type dependency struct {
	service string
	when    condition
}

// parseDepends reads "service:condition:restart,…". Older forms leave out what
// stands behind the service; a condition nobody knows is that it was started.
func parseDepends(label string) []dependency {
	var out []dependency
	for part := range strings.SplitSeq(label, ",") {
		f := strings.Split(part, ":")
		if f[0] == "" {
			continue
		}
		d := dependency{f[0], whenStarted}
		if len(f) > 1 {
			if c := condition(f[1]); c == whenHealthy || c == whenCompleted {
				d.when = c
			}
		}
		out = append(out, d)
	}
	return out
}

// restartNow starts a container that waits for its restart, unless somebody
// stopped, started or removed it first.
func (m *runner) restartNow(ctx context.Context, e *entry) {
	if err := e.op.lock(ctx); err != nil {
		return
	}
	defer e.op.unlock()
	if ctx.Err() != nil || e.state().Status != Restarting {
		return
	}
	if err := m.startLocked(ctx, e, false); err != nil && !errors.Is(err, ErrNotModified) {
		m.log.Warn("restarting", "container", e.id.Short(), "error", err)
	}
}

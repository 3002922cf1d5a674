package container

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/container"
	apievents "github.com/moby/moby/api/types/events"
)

// healLabel overrides the engine's choice for one container.
const healLabel = "escale.restart-unhealthy"

// A container that falls ill again and again waits longer for each next
// restart, and starts afresh once it has been well for a while.
const (
	firstHealBackoff = 10 * time.Second
	maxHealBackoff   = 10 * time.Minute
	healReset        = 5 * time.Minute
)

// actionHeal tells of a restart for the sake of health; die and start follow.
const actionHeal apievents.Action = "restart_unhealthy"

// Heal says whether containers that stay unhealthy are restarted, and how long
// they must have been unhealthy before.
type Heal struct {
	On    bool
	After time.Duration
}

// ParseHeal reads "true", "false" or a duration such as "5m"; InvalidArgument else.
func ParseHeal(s string) (Heal, error) {
	if on, err := strconv.ParseBool(s); err == nil {
		return Heal{On: on}, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return Heal{}, kindf(errInvalid, "%q is neither true nor false nor a duration such as 5m", s)
	}
	return Heal{On: true, After: d}, nil
}

// checkHealLabel refuses a label that says nothing.
func checkHealLabel(c *container.Config) error {
	v, ok := c.Labels[healLabel]
	if !ok {
		return nil
	}
	if _, err := ParseHeal(v); err != nil {
		return kindf(errInvalid, "label %s: %s", healLabel, err)
	}
	return nil
}

// healOf is what holds for one container: its label's word, else the engine's.
func (m *core) healOf(rec *Record) Heal {
	if v, ok := rec.Config.Labels[healLabel]; ok {
		if h, err := ParseHeal(v); err == nil {
			return h
		}
	}
	return m.defaults().Heal
}

// mayHeal tells whether the restart policy would start the container again, and
// nobody has stopped it. Called with mu held.
func (e *entry) mayHeal() bool {
	return !e.stopping && !e.rec.ManuallyStopped && e.wantsRestart(1)
}

// healthy tells whether a health check says so. Called with mu held.
func (e *entry) health() string {
	if e.rec.State.Health == nil {
		return ""
	}
	return e.rec.State.Health.Status
}

// cancelHeal ends a restart for health that waits. Called with mu held.
func (rs *restartState) cancelHeal() {
	if rs.heal != nil {
		rs.heal()
		rs.heal = nil
	}
}

// healBackoff is how much longer the restart after n others waits.
func healBackoff(n int) time.Duration {
	if n == 0 {
		return 0
	}
	d := firstHealBackoff
	for ; n > 1 && d < maxHealBackoff; n-- {
		d *= 2
	}
	return min(d, maxHealBackoff)
}

// judged is told the standing after each probe, and prepares the restart of a
// container that is unhealthy.
func (m *runner) judged(e *entry, r *run) {
	e.mu.Lock()
	defer e.mu.Unlock()
	rs := &e.restart
	if !r.leaving {
		m.cfg.Networks.SetHealth(m.ctx, string(e.id), e.health())
	}
	switch container.HealthStatus(e.health()) {
	case container.Healthy:
		if rs.wellSince.IsZero() {
			rs.wellSince = time.Now()
		}
		rs.cancelHeal()
	case container.Unhealthy:
		if !rs.wellSince.IsZero() && time.Since(rs.wellSince) >= healReset {
			rs.heals = 0
		}
		rs.wellSince = time.Time{}
		h := m.healOf(&e.rec)
		if rs.heal != nil || !h.On || !e.mayHeal() || e.healing == r {
			return
		}
		delay := h.After + healBackoff(rs.heals)
		ctx, cancel := context.WithCancel(m.ctx)
		rs.heal = cancel
		m.background(func(context.Context) {
			defer cancel()
			if err := m.healAfter(ctx, e, r, delay); err != nil && ctx.Err() == nil {
				m.log.Warn("restarting what is unhealthy", "container", e.id.Short(), "error", err)
			}
		})
	}
}

// healAfter ends the run r when it is still unhealthy after delay; its restart
// policy does the rest.
func (m *runner) healAfter(ctx context.Context, e *entry, r *run, delay time.Duration) error {
	t := time.NewTimer(delay)
	defer t.Stop()
	select {
	case <-t.C:
	case <-r.ended:
		return nil
	case <-ctx.Done():
		return nil
	}
	if m.gate.wait(ctx) != nil || e.op.lock(ctx) != nil {
		return nil
	}
	e.mu.Lock()
	if ctx.Err() != nil { // the end of the run has cancelled it; the next run may have its own
		e.mu.Unlock()
		e.op.unlock()
		return nil
	}
	e.restart.heal = nil // the next probe may ask again
	ill := e.run == r && e.rec.State.Status == Running && e.health() == string(container.Unhealthy) && e.mayHeal()
	if ill {
		e.healing = r
		e.restart.heals++
	}
	n := e.restart.heals
	e.mu.Unlock()
	if !ill {
		e.op.unlock()
		return nil
	}
	m.log.Warn("restarting: it stays unhealthy", "container", e.id.Short(), "name", e.view().Name, "time", n, "next-not-before", healBackoff(n))
	m.publish(e, actionHeal, map[string]string{"count": strconv.Itoa(n)})
	err := m.sendStop(ctx, e, r, Stop{})
	e.op.unlock()
	if err != nil {
		return fmt.Errorf("asking it to stop: %w", err)
	}
	return m.awaitEnd(ctx, e, r, Stop{})
}

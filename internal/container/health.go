package container

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	apievents "github.com/moby/moby/api/types/events"

	"escale.dev/escale/internal/runtime"
)

// Docker's defaults and bounds of a health check.
const (
	defaultProbeInterval = 30 * time.Second
	defaultProbeTimeout  = 30 * time.Second
	defaultStartInterval = 5 * time.Second
	defaultProbeRetries  = 3
	maxProbeOutput       = 4096 // bytes kept of a probe's output
	maxHealthLog         = 5    // results kept
)

// checkHealth refuses health checks that cannot be, in Docker's words.
func checkHealth(h *container.HealthConfig) error {
	if h == nil {
		return nil
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{{"Interval", h.Interval}, {"Timeout", h.Timeout}, {"StartPeriod", h.StartPeriod}, {"StartInterval", h.StartInterval}} {
		if d.value != 0 && d.value < container.MinimumDuration {
			return kindf(errInvalid, "%s in Healthcheck cannot be less than %s", d.name, container.MinimumDuration)
		}
	}
	if h.Retries < 0 {
		return kindf(errInvalid, "Retries in Healthcheck cannot be negative")
	}
	if len(h.Test) > 0 {
		switch h.Test[0] {
		case "", "NONE", "CMD", "CMD-SHELL":
		default:
			return kindf(errInvalid, "Unknown healthcheck type %q (expected 'CMD')", h.Test[0])
		}
	}
	return nil
}

// probe is a health check with its defaults filled in.
type probe struct {
	cmd                                           []string
	interval, timeout, startPeriod, startInterval time.Duration
	retries                                       int
}

// newProbe reads the health check of a container; false: it has none.
func newProbe(c *container.Config) (probe, bool) {
	h := c.Healthcheck
	if h == nil || len(h.Test) == 0 || h.Test[0] == "NONE" || h.Test[0] == "" {
		return probe{}, false
	}
	p := probe{
		interval: h.Interval, timeout: h.Timeout, startPeriod: h.StartPeriod, startInterval: h.StartInterval, retries: h.Retries,
	}
	if h.Test[0] == "CMD" {
		p.cmd = h.Test[1:]
	} else {
		shell := c.Shell
		if len(shell) == 0 {
			shell = []string{"/bin/sh", "-c"}
		}
		p.cmd = append(append([]string{}, shell...), strings.Join(h.Test[1:], " "))
	}
	orDefault(&p.interval, defaultProbeInterval)
	orDefault(&p.timeout, defaultProbeTimeout)
	orDefault(&p.startInterval, defaultStartInterval)
	if p.retries == 0 {
		p.retries = defaultProbeRetries
	}
	return p, len(p.cmd) > 0
}

func orDefault(d *time.Duration, v time.Duration) {
	if *d == 0 {
		*d = v
	}
}

// prober runs health checks.
type prober struct {
	*execs
	judged func(*entry, *run) // is told after each probe
}

// begin starts the health check of a run, if the container has one. A
// container taken up from an earlier engine keeps its standing.
func (m prober) begin(e *entry) {
	e.mu.Lock()
	p, ok := newProbe(e.rec.Config)
	r := e.run
	if !ok || r == nil {
		e.mu.Unlock()
		return
	}
	ctx, cancel := context.WithCancel(m.ctx)
	e.probing = cancel
	started := e.rec.State.StartedAt
	if e.rec.State.Health == nil || !e.adopted {
		e.rec.State.Health = &Health{Status: string(container.Starting)}
	}
	m.cfg.Networks.SetHealth(m.ctx, string(e.id), e.rec.State.Health.Status)
	e.mu.Unlock()
	m.background(func(context.Context) {
		defer cancel()
		m.loop(ctx, e, r, p, started)
	})
}

// loop runs the probe at its interval until the run or the engine ends.
func (m prober) loop(ctx context.Context, e *entry, r *run, p probe, started time.Time) {
	for {
		wait := p.interval
		if inStart(e, p, started) {
			wait = min(p.startInterval, p.interval)
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		case <-r.ended:
			t.Stop()
			return
		}
		if e.state().Status == Paused {
			continue
		}
		result := m.once(ctx, e, p)
		if ctx.Err() != nil {
			return
		}
		m.judge(e, r, p, started, result)
	}
}

// inStart tells whether failures do not count yet.
func inStart(e *entry, p probe, started time.Time) bool {
	h := e.state().Health
	return p.startPeriod > 0 && h != nil && h.Status == string(container.Starting) && time.Since(started) < p.startPeriod
}

// judge records a result and what it makes of the container's health.
func (m prober) judge(e *entry, r *run, p probe, started time.Time, result *container.HealthcheckResult) {
	starting := inStart(e, p, started)
	e.mu.Lock()
	if e.run != r || !e.rec.State.Running() {
		e.mu.Unlock()
		return
	}
	h := Health{Status: string(container.Starting)}
	if old := e.rec.State.Health; old != nil {
		h = *old
	}
	before := h.Status
	h.Log = append(append([]*container.HealthcheckResult{}, h.Log...), result)
	if n := len(h.Log); n > maxHealthLog {
		h.Log = h.Log[n-maxHealthLog:]
	}
	switch {
	case result.ExitCode == 0:
		h.FailingStreak, h.Status = 0, string(container.Healthy)
	case starting:
	default:
		if h.FailingStreak++; h.FailingStreak >= p.retries {
			h.Status = string(container.Unhealthy)
		}
	}
	changed := h.Status != before
	e.rec.State.Health = &h
	var err error
	if changed {
		e.tellChange()
		err = m.updateLocked(e, false, func(*Record) error { return nil })
	}
	e.mu.Unlock()
	if err != nil {
		m.log.Warn("recording health", "container", e.id.Short(), "error", err)
	}
	if changed {
		m.publish(e, apievents.Action("health_status: "+h.Status), nil)
	}
	m.judged(e, r)
}

// once runs the probe as an exec and collects its output.
func (m prober) once(ctx context.Context, e *entry, p probe) *container.HealthcheckResult {
	res := &container.HealthcheckResult{Start: time.Now()}
	out := &boundedBuffer{max: maxProbeOutput}
	code, err := m.exec(ctx, e, p, out)
	res.End, res.Output, res.ExitCode = time.Now(), out.String(), code
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		res.ExitCode = -1
		res.Output = "Health check exceeded timeout (" + p.timeout.String() + "): " + res.Output
	case err != nil:
		res.ExitCode = -1
		res.Output = err.Error()
	}
	return res
}

func (m prober) exec(ctx context.Context, e *entry, p probe, out io.Writer) (int, error) {
	return m.collect(ctx, e, ExecConfig{Cmd: p.cmd}, p.timeout, out)
}

// collect runs an exec to its end, writes all its output to out and gives its code. After
// timeout, 0 for never, it is killed, and the error is DeadlineExceeded; when ctx ends it
// is left.
func (m *execs) collect(ctx context.Context, e *entry, c ExecConfig, patience time.Duration, out io.Writer) (int, error) {
	c.AttachStdout, c.AttachStderr = true, true
	x := newExec(e, c)
	m.add(x)
	defer m.forget(x)
	m.publish(e, execAction(apievents.ActionExecCreate, c.Cmd), map[string]string{"execID": x.id})
	stream, err := m.attach(ctx, x)
	if err != nil {
		return 0, err
	}
	defer stream.Close()
	if err := m.run(ctx, x, [2]uint16{}); err != nil {
		return 0, err
	}
	var timeout <-chan time.Time
	if patience > 0 {
		t := time.NewTimer(patience)
		defer t.Stop()
		timeout = t.C
	}
	copied := make(chan struct{})
	go func() { demux(out, stream); close(copied) }()
	select {
	case <-x.done:
		<-copied
		return *x.code, nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-timeout:
		if task := e.live(); task != nil {
			task.Signal(ctx, x.id, 9)
		}
		err = context.DeadlineExceeded
	}
	stream.Close() // out is the caller's again
	<-copied
	return 0, err
}

// demux takes Docker's frames apart and writes what they carry, either stream.
func demux(w io.Writer, r runtime.Stream) {
	var h [8]byte
	for {
		if _, err := io.ReadFull(r, h[:]); err != nil {
			return
		}
		n := int64(h[4])<<24 | int64(h[5])<<16 | int64(h[6])<<8 | int64(h[7])
		if _, err := io.CopyN(w, r, n); err != nil {
			return
		}
	}
}

// boundedBuffer keeps the first max bytes and drops the rest.
type boundedBuffer struct {
	buf       bytes.Buffer
	max       int
	truncated bool
}

func (b *boundedBuffer) Write(p []byte) (int, error) {
	if room := b.max - b.buf.Len(); len(p) > room {
		b.truncated = true
		b.buf.Write(p[:room])
	} else {
		b.buf.Write(p)
	}
	return len(p), nil
}

func (b *boundedBuffer) String() string {
	if b.truncated {
		return b.buf.String() + "..."
	}
	return b.buf.String()
}

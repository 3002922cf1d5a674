package systemd

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// StartTransient makes a unit and starts it. Blocks until systemd has done so, some
// milliseconds, Patience at most. AlreadyExists when there is one that does not go: one
// that has failed is forgotten, one that is just ending is waited for, for a second.
func (c *Conn) StartTransient(ctx context.Context, unit string, properties []Property) error {
	for pause := time.Millisecond; ; pause *= 2 {
		err := c.begin(ctx, unit, "StartTransientUnit", unit, "replace", properties, []aux{})
		if !errdefs.IsAlreadyExists(err) || pause > 500*time.Millisecond {
			return said(unit, err)
		}
		if err := c.ResetFailed(ctx, unit); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Stop ends a unit with all its processes, and has systemd forget it, also when it has
// failed. Blocks until then. One that is not there is no error.
func (c *Conn) Stop(ctx context.Context, unit string) error {
	err := c.begin(ctx, unit, "StopUnit", unit, "replace")
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return said(unit, err)
	}
	if err := c.ResetFailed(ctx, unit); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}

// ResetFailed has systemd forget that a unit has failed. NotFound without such a unit.
func (c *Conn) ResetFailed(ctx context.Context, unit string) error {
	return said(unit, c.within(ctx, func() error {
		_, err := c.ask("ResetFailedUnit", unit)
		return err
	}))
}

// SetProperties changes a unit that is there, until the machine stops. NotFound without
// it, InvalidArgument when systemd does not know a property or does not take its value.
func (c *Conn) SetProperties(ctx context.Context, unit string, properties []Property) error {
	if len(properties) == 0 {
		return nil
	}
	return said(unit, c.within(ctx, func() error {
		_, err := c.ask("SetUnitProperties", unit, true, properties)
		return err
	}))
}

// Version is systemd's: 252.
func (c *Conn) Version(ctx context.Context) (n int, err error) {
	err = c.within(ctx, func() error {
		m := &message{path: managerPath, iface: "org.freedesktop.DBus.Properties", member: "Get", body: []any{manager, "Version"}}
		if !c.peer {
			m.dest = managerName
		}
		got, err := c.call(m)
		if err != nil {
			return err
		}
		if len(got.body) == 1 {
			if v, ok := got.body[0].(variant); ok {
				if words, ok := v.value.(string); ok {
					n, err = versionOf(words)
					return err
				}
			}
		}
		return errMessage
	})
	return n, err
}

// versionOf reads "252.6-1", "v249".
func versionOf(s string) (int, error) {
	s = strings.TrimPrefix(s, "v")
	end := strings.IndexFunc(s, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(s)
	}
	n, err := strconv.Atoi(s[:end])
	if err != nil {
		return 0, fmt.Errorf("version %q of systemd: %w", s, err)
	}
	return n, nil
}

// begin calls a method that begins a job and waits for the job's end.
func (c *Conn) begin(ctx context.Context, unit, member string, args ...any) error {
	return c.within(ctx, func() error {
		c.ended = map[job]string{}
		defer func() { c.ended = nil }()
		got, err := c.ask(member, args...)
		if err != nil {
			return err
		}
		if len(got.body) != 1 {
			return errMessage
		}
		path, ok := got.body[0].(objectPath)
		if !ok {
			return errMessage
		}
		for {
			if how, ok := c.ended[c.job(got, path)]; ok {
				if how != "done" && how != "skipped" {
					return fmt.Errorf("its job ended with %q", how)
				}
				return nil
			}
			if _, err := c.next(); err != nil {
				return err
			}
		}
	})
}

// said puts the unit's name before what was said of it. systemd's own words have it.
func said(unit string, err error) error {
	var e *Error
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if errors.As(err, &e) && strings.Contains(e.Message, unit) {
		return err
	}
	return fmt.Errorf("unit %s: %w", unit, err)
}

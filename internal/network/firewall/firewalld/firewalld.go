// Package firewalld asks firewalld, over D-Bus, to let containers through: their
// bridges go into a zone that accepts, and a policy accepts what is forwarded to it.
// What may pass is decided in the engine's own table.
//
// The interface is that of firewalld 0.9 and later: see firewalld.dbus(5).
package firewalld

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
)

// Table is the nftables table that firewalld has while it runs.
const Table = "firewalld"

// patience is how long firewalld may take for an answer; it loads its whole
// configuration anew when a zone is made.
const patience = 20 * time.Second

const (
	service    = "org.fedoraproject.FirewallD1"
	path       = "/org/fedoraproject/FirewallD1"
	configPath = "/org/fedoraproject/FirewallD1/config"
)

// caller makes a call on the bus, like dbus.BusObject.
type caller interface {
	call(ctx context.Context, path dbus.ObjectPath, method string, out any, args ...any) error
}

// Zone keeps bridges in a zone of an engine's own.
type Zone struct {
	name   string // at most 17 characters
	policy string
	dial   func() (caller, func(), error)

	mu   sync.Mutex
	ours map[string]bool // bridges that were put into the zone
}

// NewZone makes a Zone; nothing is touched before Set. The name is shortened to
// what firewalld takes, 17 characters.
func NewZone(name string) *Zone {
	name = name[:min(len(name), 17)]
	return &Zone{name: name, policy: name[:min(len(name), 13)] + "-fwd", dial: systemBus, ours: map[string]bool{}}
}

// Set makes the zone, unless it is there, and the bridges its members; bridges that
// were set before and are not any more leave it. Without firewalld it is an error
// that wraps ErrAbsent. Idempotent; blocks for milliseconds, or a second when the
// zone has to be made.
func (z *Zone) Set(ctx context.Context, bridges []string) error {
	z.mu.Lock()
	defer z.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	bus, hangUp, err := z.dial()
	if err != nil {
		return fmt.Errorf("firewalld: %w: %w", ErrAbsent, err)
	}
	defer hangUp()
	if err := z.ensure(ctx, bus); err != nil {
		return fmt.Errorf("firewalld zone %q: %w", z.name, err)
	}
	for _, b := range bridges {
		var in string
		if err := bus.call(ctx, path, service+".zone.getZoneOfInterface", &in, b); err != nil {
			return fmt.Errorf("firewalld zone of %q: %w", b, err)
		}
		if in != z.name {
			if err := bus.call(ctx, path, service+".zone.changeZoneOfInterface", &in, z.name, b); err != nil {
				return fmt.Errorf("firewalld zone %q: interface %q: %w", z.name, b, err)
			}
		}
		z.ours[b] = true
	}
	for b := range z.ours {
		if slices.Contains(bridges, b) {
			continue
		}
		var in string
		err := bus.call(ctx, path, service+".zone.removeInterface", &in, z.name, b)
		if err != nil && !is(err, "UNKNOWN_INTERFACE") {
			return fmt.Errorf("firewalld zone %q: interface %q: %w", z.name, b, err)
		}
		delete(z.ours, b)
	}
	return nil
}

// ErrAbsent says that there is no firewalld to talk to.
var ErrAbsent = errors.New("no firewalld on the system bus")

// ensure makes the zone and the policy. They are permanent: they bring nothing
// about until a bridge is in the zone, which is for as long as firewalld runs.
func (z *Zone) ensure(ctx context.Context, bus caller) error {
	var zones, policies []string
	if err := bus.call(ctx, path, service+".zone.getZones", &zones); err != nil {
		return absent(err)
	}
	if err := bus.call(ctx, path, service+".policy.getPolicies", &policies); err != nil {
		return err
	}
	if slices.Contains(zones, z.name) && slices.Contains(policies, z.policy) {
		return nil
	}
	var made dbus.ObjectPath
	err := bus.call(ctx, configPath, service+".config.addZone2", &made, z.name, map[string]dbus.Variant{
		"description": dbus.MakeVariant("bridges of containers; made by Escale"), "target": dbus.MakeVariant("ACCEPT"),
	})
	if err != nil && !is(err, "NAME_CONFLICT") {
		return err
	}
	err = bus.call(ctx, configPath, service+".config.addPolicy", &made, z.policy, map[string]dbus.Variant{
		"description": dbus.MakeVariant("what is forwarded to containers; made by Escale"), "target": dbus.MakeVariant("ACCEPT"),
		"ingress_zones": dbus.MakeVariant([]string{"ANY"}), "egress_zones": dbus.MakeVariant([]string{z.name}),
	})
	if err != nil && !is(err, "NAME_CONFLICT") {
		return err
	}
	return bus.call(ctx, path, service+".reload", nil)
}

// is tells whether firewalld's error is of this kind: its text begins with it.
func is(err error, kind string) bool {
	var e dbus.Error
	if !errors.As(err, &e) || len(e.Body) == 0 {
		return false
	}
	text, _ := e.Body[0].(string)
	return strings.HasPrefix(text, kind)
}

func absent(err error) error {
	var e dbus.Error
	if errors.As(err, &e) && (e.Name == "org.freedesktop.DBus.Error.ServiceUnknown" || e.Name == "org.freedesktop.DBus.Error.NameHasNoOwner") {
		return fmt.Errorf("%w: %w", ErrAbsent, err)
	}
	return err
}

// systemBus connects to the system bus.
func systemBus() (caller, func(), error) {
	c, err := dbus.ConnectSystemBus()
	if err != nil {
		return nil, nil, err
	}
	return connection{c}, func() { c.Close() }, nil
}

type connection struct{ *dbus.Conn }

// call makes a call that does not start firewalld where it is installed and off.
func (c connection) call(ctx context.Context, path dbus.ObjectPath, method string, out any, args ...any) error {
	call := c.Object(service, path).CallWithContext(ctx, method, dbus.FlagNoAutoStart, args...)
	if out == nil || call.Err != nil {
		return call.Err
	}
	return call.Store(out)
}

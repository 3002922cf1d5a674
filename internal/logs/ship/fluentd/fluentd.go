// Package fluentd is the log driver "fluentd": the forward protocol, version 1, over TCP,
// TLS and unix sockets, with acknowledgements when they are asked for
// (https://github.com/fluent/fluentd/wiki/Forward-Protocol-Specification-v1).
package fluentd

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"escale.dev/escale/internal/logs/ship"
	"escale.dev/escale/internal/logs/ship/conn"
	"github.com/docker/go-units"
)

// Kind is the driver for ship.Kinds.
func Kind() ship.Kind { return ship.Kind{Name: "fluentd", Check: check, New: open} }

// ackTime is how long an acknowledgement may take before the connection is
// taken for broken.
const ackTime = 60 * time.Second

// config is what the options say.
type config struct {
	network, address string
	bufferLimit      int // bytes of one batch at most
	retryWait        time.Duration
	maxRetries       int
	reconnect        time.Duration // 0: never without need
	writeTimeout     time.Duration
	precise, ack     bool
}

func check(opts map[string]string) error {
	for key := range opts {
		switch key {
		case "fluentd-address", "fluentd-async", "fluentd-async-reconnect-interval", "fluentd-buffer-limit", "fluentd-max-retries",
			"fluentd-request-ack", "fluentd-retry-wait", "fluentd-sub-second-precision", "fluentd-write-timeout":
		default:
			if !ship.Attribute(key) {
				return fmt.Errorf("unknown log opt '%s' for fluentd log driver", key)
			}
		}
	}
	_, err := parse(opts)
	return err
}

func parse(opts map[string]string) (c config, err error) {
	c = config{bufferLimit: 1 << 20, retryWait: time.Second}
	if c.network, c.address, err = parseAddress(opts["fluentd-address"]); err != nil {
		return c, fmt.Errorf("invalid fluentd-address (%s): %w", opts["fluentd-address"], err)
	}
	if v := opts["fluentd-buffer-limit"]; v != "" {
		n, err := units.RAMInBytes(v)
		if err != nil {
			return c, err
		}
		c.bufferLimit = int(min(n, math.MaxInt32))
	}
	if v := opts["fluentd-retry-wait"]; v != "" {
		if c.retryWait, err = time.ParseDuration(v); err != nil {
			return c, err
		}
	}
	if v := opts["fluentd-max-retries"]; v != "" {
		n, err := strconv.ParseUint(v, 10, 32)
		if err != nil {
			return c, err
		}
		if n > math.MaxInt32 {
			return c, errors.New("invalid fluentd-max-retries: value out of range")
		}
		c.maxRetries = max(1, int(n))
	}
	for key, to := range map[string]*bool{"fluentd-async": new(bool), "fluentd-sub-second-precision": &c.precise, "fluentd-request-ack": &c.ack} {
		if v := opts[key]; v != "" {
			if *to, err = strconv.ParseBool(v); err != nil {
				return c, err
			}
		}
	}
	return c, c.parseTimes(opts)
}

// parseTimes reads the interval of reconnecting and the timeout of writing.
func (c *config) parseTimes(opts map[string]string) (err error) {
	const key, least, most = "fluentd-async-reconnect-interval", 100 * time.Millisecond, 10 * time.Second
	if v := opts[key]; v != "" {
		if c.reconnect, err = time.ParseDuration(v); err != nil {
			return fmt.Errorf("invalid value for %s: %w", key, err)
		}
		if c.reconnect != 0 && (c.reconnect < least || c.reconnect > most) {
			return fmt.Errorf("invalid value for %s: value (%q) must be between %s and %s", key, c.reconnect, least, most)
		}
	}
	if v := opts["fluentd-write-timeout"]; v != "" {
		if c.writeTimeout, err = time.ParseDuration(v); err != nil {
			return fmt.Errorf("invalid value for fluentd-write-timeout: value must be a duration: %w", err)
		}
		if c.writeTimeout < 0 {
			return errors.New("invalid value for fluentd-write-timeout: value must be a duration that is non-negative")
		}
	}
	return nil
}

func parseAddress(s string) (network, address string, err error) {
	host, port := "127.0.0.1", "24224"
	if s == "" {
		return "tcp", net.JoinHostPort(host, port), nil
	}
	if !strings.Contains(s, "://") {
		s = "tcp://" + s
	}
	u, err := url.Parse(s)
	if err != nil {
		return "", "", err
	}
	switch u.Scheme {
	case "unix":
		if strings.TrimLeft(u.Path, "/") == "" {
			return "", "", errors.New("path is empty")
		}
		return "unix", u.Path, nil
	case "tcp", "tls":
	default:
		return "", "", fmt.Errorf("unsupported scheme: '%s'", u.Scheme)
	}
	if u.Path != "" {
		return "", "", errors.New("should not contain a path element")
	}
	if h := u.Hostname(); h != "" {
		host = h
	}
	if p := u.Port(); p != "" {
		if _, err := strconv.ParseUint(p, 10, 16); err != nil {
			return "", "", fmt.Errorf("invalid port: %w", err)
		}
		port = p
	}
	return u.Scheme, net.JoinHostPort(host, port), nil
}

// driver sends to one server.
type driver struct {
	c      config
	tag    string
	fields []byte // what is the same in each record, encoded
	count  int    // of the fields

	stream *conn.Stream
	buf    []byte
}

func open(info ship.Info) (ship.Driver, ship.Policy, error) {
	c, err := parse(info.Config)
	if err != nil {
		return nil, ship.Policy{}, err
	}
	d := &driver{c: c}
	if d.tag, err = info.Tag(ship.DefaultTag); err != nil {
		return nil, ship.Policy{}, err
	}
	extra, err := info.ExtraAttributes(nil)
	if err != nil {
		return nil, ship.Policy{}, err
	}
	fields := map[string]string{"container_id": info.ContainerID, "container_name": info.ContainerName}
	maps.Copy(fields, extra)
	for _, k := range slices.Sorted(maps.Keys(fields)) {
		d.fields = appendString(appendString(d.fields, k), fields[k])
	}
	d.count = len(fields)
	dial := conn.To(c.network, c.address)
	if c.network == "tls" {
		cfg, err := conn.TLS("", "", "", false)
		if err != nil {
			return nil, ship.Policy{}, err
		}
		dial = conn.SecurelyTo(c.address, cfg)
	}
	d.stream = &conn.Stream{Dial: dial, Timeout: c.writeTimeout, Answers: c.ack}
	return d, ship.Policy{Wait: c.retryWait, Retries: c.maxRetries}, nil
}

// Send implements ship.Driver: as many entries as the buffer limit allows in one
// message, in forward mode.
func (d *driver) Send(ctx context.Context, batch []ship.Entry) (int, error) {
	if len(batch) == 0 {
		return 0, d.stream.Connect(ctx)
	}
	if d.c.reconnect > 0 && d.stream.Age() > d.c.reconnect {
		d.stream.Drop()
	}
	n, size := 0, 0
	for n < len(batch) && (n == 0 || size+len(batch[n].Line) <= d.c.bufferLimit) {
		size += len(batch[n].Line)
		n++
	}
	chunk := ""
	if d.c.ack {
		var id [16]byte
		rand.Read(id[:])
		chunk = base64.StdEncoding.EncodeToString(id[:])
	}
	d.encode(batch[:n], chunk)
	if err := d.stream.Write(ctx, d.buf); err != nil {
		return 0, err
	}
	if chunk != "" {
		if err := d.await(ctx, chunk); err != nil {
			return 0, err
		}
	}
	return n, nil
}

// encode makes [tag, [[time, record], …], {option}].
func (d *driver) encode(batch []ship.Entry, chunk string) {
	b := appendArray(d.buf[:0], 3)
	b = appendString(b, d.tag)
	b = appendArray(b, len(batch))
	for _, e := range batch {
		b = appendArray(b, 2)
		b = appendTime(b, e.Time, d.c.precise)
		n := d.count + 2
		if e.Partial != nil {
			n += 4
		}
		b = append(appendMap(b, n), d.fields...)
		b = appendString(appendString(b, "source"), e.Stream)
		b = appendString(appendString(b, "log"), string(e.Line))
		if p := e.Partial; p != nil {
			b = appendString(appendString(b, "partial_message"), "true")
			b = appendString(appendString(b, "partial_id"), p.ID)
			b = appendString(appendString(b, "partial_ordinal"), strconv.Itoa(p.Ordinal))
			b = appendString(appendString(b, "partial_last"), strconv.FormatBool(p.Last))
		}
	}
	if chunk == "" {
		b = appendMap(b, 1)
	} else {
		b = appendMap(b, 2)
		b = appendString(appendString(b, "chunk"), chunk)
	}
	b = appendInt(appendString(b, "size"), int64(len(batch)))
	d.buf = b
}

// await reads the acknowledgement of a message.
func (d *driver) await(ctx context.Context, chunk string) error {
	return d.stream.During(ctx, time.Now().Add(ackTime), func(c net.Conn) error {
		var buf [maxAnswer]byte
		for n := 0; n < len(buf); {
			m, err := c.Read(buf[n:])
			if err != nil {
				return err
			}
			n += m
			id, _, err := parseAck(buf[:n])
			switch {
			case errors.Is(err, errShort):
				continue
			case err != nil:
				return err
			case id != chunk:
				return fmt.Errorf("acknowledgement of %q, want that of %q", id, chunk)
			}
			return nil
		}
		return errAnswer
	})
}

// Gone implements ship.Driver.
func (d *driver) Gone() <-chan struct{} { return d.stream.Gone() }

// Close implements ship.Driver.
func (d *driver) Close() error {
	d.stream.Drop()
	return nil
}

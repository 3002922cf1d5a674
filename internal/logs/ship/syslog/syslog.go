// Package syslog is the log driver "syslog": RFC 3164 and RFC 5424 over UDP, TCP, TLS and
// unix sockets, in the forms that Docker sends.
package syslog

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"escale.dev/escale/internal/logs/ship"
	"escale.dev/escale/internal/logs/ship/conn"
)

// Kind is the driver for ship.Kinds.
func Kind() ship.Kind { return ship.Kind{Name: "syslog", Check: check, New: open} }

// localSockets are where the machine's own syslog listens.
var localSockets = []string{"/dev/log", "/var/run/syslog", "/var/run/log"}

// facilities of RFC 5424, table 1, by name; the number is the place.
var facilities = []string{
	"kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp",
	"", "", "", "", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
}

// Severities of RFC 5424, table 2.
const (
	severityError = 3
	severityInfo  = 6
)

func check(opts map[string]string) error {
	for key := range opts {
		switch key {
		case "syslog-address", "syslog-facility", "syslog-format",
			"syslog-tls-ca-cert", "syslog-tls-cert", "syslog-tls-key", "syslog-tls-skip-verify":
		default:
			if !ship.Attribute(key) {
				return fmt.Errorf("unknown log opt '%s' for syslog log driver", key)
			}
		}
	}
	if _, _, err := parseAddress(opts["syslog-address"]); err != nil {
		return err
	}
	if _, err := parseFacility(opts["syslog-facility"]); err != nil {
		return err
	}
	_, err := parseFormat(opts["syslog-format"])
	return err
}

// parseAddress splits an address; "", "" is the machine's own syslog.
func parseAddress(s string) (network, address string, err error) {
	if s == "" {
		return "", "", nil
	}
	u, err := url.Parse(s)
	if err != nil {
		return "", "", err
	}
	switch u.Scheme {
	case "unix", "unixgram":
		if _, err := os.Stat(u.Path); err != nil {
			return "", "", err
		}
		return u.Scheme, u.Path, nil
	case "udp", "tcp", "tcp+tls":
	default:
		return "", "", fmt.Errorf("unsupported scheme: '%s'", u.Scheme)
	}
	host := u.Host
	if _, _, err := net.SplitHostPort(host); err != nil {
		if !strings.Contains(err.Error(), "missing port in address") {
			return "", "", err
		}
		host = net.JoinHostPort(strings.Trim(host, "[]"), "514")
	}
	return u.Scheme, host, nil
}

func parseFacility(s string) (int, error) {
	if s == "" {
		s = "daemon"
	}
	for n, name := range facilities {
		if name == s {
			return n, nil
		}
	}
	if n, err := strconv.Atoi(s); err == nil && n >= 0 && n <= 23 {
		return n, nil
	}
	return 0, errors.New("invalid syslog facility")
}

// layout appends a message without its frame.
type layout func(b []byte, priority int, at time.Time, d *driver, line []byte) []byte

func parseFormat(s string) (layout, error) {
	switch s {
	case "":
		return appendUnix, nil
	case "rfc3164":
		return append3164, nil
	case "rfc5424":
		return append5424(time.RFC3339), nil
	case "rfc5424micro":
		return append5424("2006-01-02T15:04:05.000000Z07:00"), nil
	}
	return nil, errors.New("Invalid syslog format") //nolint:staticcheck // Docker's words
}

// appendUnix is the form of the C library's syslog(3).
func appendUnix(b []byte, priority int, at time.Time, d *driver, line []byte) []byte {
	b = fmt.Appendf(b, "<%d>%s %s[%d]: ", priority, at.Format(time.Stamp), d.tag, d.pid)
	return append(b, line...)
}

func append3164(b []byte, priority int, at time.Time, d *driver, line []byte) []byte {
	b = fmt.Appendf(b, "<%d>%s %s %s[%d]: ", priority, at.Format(time.Stamp), d.host, d.tag, d.pid)
	return append(b, line...)
}

// append5424 has the tag as APP-NAME and as MSGID, as Docker does for rsyslog.
func append5424(stamp string) layout {
	return func(b []byte, priority int, at time.Time, d *driver, line []byte) []byte {
		b = fmt.Appendf(b, "<%d>1 %s %s %s %d %s - ", priority, at.Format(stamp), d.host, d.tag, d.pid, d.tag)
		return append(b, line...)
	}
}

// driver sends to one server.
type driver struct {
	tag      string
	host     string
	pid      int
	facility int
	layout   layout
	counted  bool // frames of RFC 5425: length, blank, message

	conn.Link
	buf []byte
}

func open(info ship.Info) (ship.Driver, ship.Policy, error) {
	d, err := newDriver(info)
	if err != nil {
		return nil, ship.Policy{}, err
	}
	return d, ship.Policy{}, nil
}

func newDriver(info ship.Info) (*driver, error) {
	opts := info.Config
	d := &driver{pid: os.Getpid()}
	var err error
	if d.tag, err = info.Tag(ship.DefaultTag); err != nil {
		return nil, err
	}
	if d.host, err = info.Hostname(); err != nil {
		return nil, err
	}
	if d.facility, err = parseFacility(opts["syslog-facility"]); err != nil {
		return nil, err
	}
	if d.layout, err = parseFormat(opts["syslog-format"]); err != nil {
		return nil, err
	}
	network, address, err := parseAddress(opts["syslog-address"])
	if err != nil {
		return nil, err
	}
	switch network {
	case "":
		d.Packet = &conn.Datagram{Dial: dialLocal}
	case "udp", "unixgram":
		d.Packet = &conn.Datagram{Dial: conn.To(network, address)}
	case "tcp+tls":
		_, skip := opts["syslog-tls-skip-verify"]
		cfg, err := conn.TLS(opts["syslog-tls-ca-cert"], opts["syslog-tls-cert"], opts["syslog-tls-key"], skip)
		if err != nil {
			return nil, err
		}
		d.Stream = &conn.Stream{Dial: conn.SecurelyTo(address, cfg)}
		d.counted = strings.HasPrefix(opts["syslog-format"], "rfc5424")
	default:
		d.Stream = &conn.Stream{Dial: conn.To(network, address)}
	}
	return d, nil
}

// dialLocal finds the machine's own syslog.
func dialLocal(ctx context.Context) (net.Conn, error) {
	for _, path := range localSockets {
		if c, err := conn.To("unixgram", path)(ctx); err == nil {
			return c, nil
		}
	}
	return nil, errors.New("Unix syslog delivery error") //nolint:staticcheck // Docker's words
}

// append adds an entry as it goes out. Each ends with a newline, which is the frame
// where there is no other.
func (d *driver) append(b []byte, e ship.Entry) []byte {
	severity := severityInfo
	if e.Stream == "stderr" {
		severity = severityError
	}
	at := e.Time.Local()
	if !d.counted {
		return append(d.layout(b, d.facility<<3|severity, at, d, e.Line), '\n')
	}
	msg := append(d.layout(nil, d.facility<<3|severity, at, d, e.Line), '\n')
	b = append(strconv.AppendInt(b, int64(len(msg)), 10), ' ')
	return append(b, msg...)
}

// Send implements ship.Driver. Empty lines are not sent, as in Docker.
func (d *driver) Send(ctx context.Context, batch []ship.Entry) (int, error) {
	if d.Stream == nil {
		return d.sendPackets(ctx, batch)
	}
	d.buf = d.buf[:0]
	for _, e := range batch {
		if len(e.Line) > 0 {
			d.buf = d.append(d.buf, e)
		}
	}
	if err := d.Stream.Write(ctx, d.buf); err != nil {
		return 0, err
	}
	return len(batch), nil
}

func (d *driver) sendPackets(ctx context.Context, batch []ship.Entry) (int, error) {
	for n, e := range batch {
		if len(e.Line) == 0 {
			continue
		}
		d.buf = d.append(d.buf[:0], e)
		err := d.Packet.Write(ctx, d.buf)
		if conn.TooLarge(err) {
			return n, &ship.RefusedError{Err: err}
		}
		if err != nil {
			return n, err
		}
	}
	return len(batch), nil
}

// Package gelf is the log driver "gelf": Graylog's extended log format 1.1 over UDP
// (compressed, in chunks) and TCP (frames that end in a zero byte).
package gelf

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"escale.dev/escale/internal/logs/ship"
	"escale.dev/escale/internal/logs/ship/conn"
)

// Kind is the driver for ship.Kinds.
func Kind() ship.Kind { return ship.Kind{Name: "gelf", Check: check, New: open} }

func check(opts map[string]string) error {
	u, err := parseAddress(opts["gelf-address"])
	if err != nil {
		return err
	}
	for key, v := range opts {
		switch key {
		case "gelf-address":
		case "gelf-compression-level", "gelf-compression-type":
			if u.Scheme != "udp" {
				return errors.New("compression is only supported on UDP")
			}
			if err := checkCompression(key, v); err != nil {
				return err
			}
		case "gelf-tcp-max-reconnect", "gelf-tcp-reconnect-delay":
			if u.Scheme != "tcp" {
				return fmt.Errorf("%q is only valid for TCP", key)
			}
			if n, err := strconv.Atoi(v); err != nil || n < 0 {
				return fmt.Errorf("%q must be a positive integer", key)
			}
		default:
			if !ship.Attribute(key) {
				return fmt.Errorf("unknown log opt %q for gelf log driver", key)
			}
		}
	}
	return nil
}

func checkCompression(key, v string) error {
	ok := v == "gzip" || v == "zlib" || v == "none"
	if key == "gelf-compression-level" {
		n, err := strconv.Atoi(v)
		ok = err == nil && n >= flate.DefaultCompression && n <= flate.BestCompression
	}
	if !ok {
		return fmt.Errorf("unknown value %q for log opt %q for gelf log driver", v, key)
	}
	return nil
}

func parseAddress(s string) (*url.URL, error) {
	if s == "" {
		return nil, errors.New("gelf-address is a required parameter")
	}
	u, err := url.Parse(s)
	if err != nil {
		return nil, err
	}
	if u.Scheme != "udp" && u.Scheme != "tcp" {
		return nil, errors.New("gelf: endpoint needs to be TCP or UDP")
	}
	if _, _, err := net.SplitHostPort(u.Host); err != nil {
		return nil, errors.New("gelf: please provide gelf-address as proto://host:port")
	}
	return u, nil
}

// driver sends to one server.
type driver struct {
	host  string
	extra []byte // `,"_container_id":…`, what is the same in each message

	conn.Link
	zip zipper // nil: not compressed
	buf bytes.Buffer
}

func open(info ship.Info) (ship.Driver, ship.Policy, error) {
	u, err := parseAddress(info.Config["gelf-address"])
	if err != nil {
		return nil, ship.Policy{}, err
	}
	d := &driver{}
	if d.host, err = info.Hostname(); err != nil {
		return nil, ship.Policy{}, errors.New("gelf: cannot access hostname to set source field")
	}
	if d.extra, err = extra(info); err != nil {
		return nil, ship.Policy{}, err
	}
	policy := ship.Policy{}
	if u.Scheme == "tcp" {
		d.Stream = &conn.Stream{Dial: conn.To("tcp", u.Host)}
		policy.Wait = time.Second
		if v, err := strconv.Atoi(info.Config["gelf-tcp-reconnect-delay"]); err == nil {
			policy.Wait = time.Duration(v) * time.Second
		}
		if v, err := strconv.Atoi(info.Config["gelf-tcp-max-reconnect"]); err == nil {
			policy.Retries = max(1, v) // a server that is away costs one attempt at least
		}
		return d, policy, nil
	}
	d.Packet = &conn.Datagram{Dial: conn.To("udp", u.Host)}
	if d.zip, err = compression(info.Config); err != nil {
		return nil, ship.Policy{}, err
	}
	return d, policy, nil
}

// zipper compresses one message after the other: making one anew costs a megabyte.
type zipper interface {
	io.WriteCloser
	Reset(w io.Writer)
}

// compression is gzip at level 1 unless the options say otherwise, as in Docker.
func compression(opts map[string]string) (zipper, error) {
	level := flate.BestSpeed
	if n, err := strconv.Atoi(opts["gelf-compression-level"]); err == nil {
		level = n
	}
	switch opts["gelf-compression-type"] {
	case "none":
		return nil, nil
	case "zlib":
		return zlib.NewWriterLevel(io.Discard, level)
	}
	return gzip.NewWriterLevel(io.Discard, level)
}

// extra are the additional fields of every message, as the end of an object.
func extra(info ship.Info) ([]byte, error) {
	tag, err := info.Tag(ship.DefaultTag)
	if err != nil {
		return nil, err
	}
	fields := map[string]any{
		"_container_id": info.ContainerID, "_container_name": info.Name(),
		"_image_id": info.ContainerImageID, "_image_name": info.ContainerImageName,
		"_command": info.Command(), "_tag": tag, "_created": info.ContainerCreated,
	}
	own, err := info.ExtraAttributes(func(key string) string { return "_" + strings.TrimPrefix(key, "_") })
	if err != nil {
		return nil, err
	}
	for k, v := range own {
		fields[k] = v
	}
	b, err := json.Marshal(fields)
	if err != nil {
		return nil, err
	}
	b[0] = ','
	return b, nil
}

// Levels are syslog's.
const (
	levelError = 3
	levelInfo  = 6
)

// message makes the JSON of an entry.
func (d *driver) message(e ship.Entry) ([]byte, error) {
	level := levelInfo
	if e.Stream == "stderr" {
		level = levelError
	}
	b, err := json.Marshal(struct {
		Version string          `json:"version"`
		Host    string          `json:"host"`
		Short   string          `json:"short_message"`
		Time    json.RawMessage `json:"timestamp"`
		Level   int             `json:"level"`
	}{"1.1", d.host, string(e.Line), seconds(e.Time), level})
	if err != nil {
		return nil, err
	}
	return append(b[:len(b)-1], d.extra...), nil
}

// seconds of the epoch with milliseconds, which is what GELF has.
func seconds(t time.Time) []byte {
	ms := t.UnixMilli()
	return fmt.Appendf(nil, "%d.%03d", ms/1000, ms%1000)
}

// Send implements ship.Driver. Empty lines are not sent, as in Docker.
func (d *driver) Send(ctx context.Context, batch []ship.Entry) (int, error) {
	if d.Stream == nil {
		return d.sendPackets(ctx, batch)
	}
	d.buf.Reset()
	for n, e := range batch {
		if len(e.Line) == 0 {
			continue
		}
		msg, err := d.message(e)
		if err != nil {
			return n, &ship.RefusedError{Err: err}
		}
		d.buf.Write(msg)
		d.buf.WriteByte(0)
	}
	if err := d.Stream.Write(ctx, d.buf.Bytes()); err != nil {
		return 0, err
	}
	return len(batch), nil
}

func (d *driver) sendPackets(ctx context.Context, batch []ship.Entry) (int, error) {
	for n, e := range batch {
		if len(e.Line) == 0 {
			continue
		}
		msg, err := d.message(e)
		if err == nil {
			msg, err = d.compress(msg)
		}
		var packets [][]byte
		if err == nil {
			packets, err = chunks(msg)
		}
		if err != nil {
			return n, &ship.RefusedError{Err: err}
		}
		for _, p := range packets {
			if err := d.Packet.Write(ctx, p); err != nil {
				return n, err
			}
		}
	}
	return len(batch), nil
}

func (d *driver) compress(msg []byte) ([]byte, error) {
	if d.zip == nil {
		return msg, nil
	}
	d.buf.Reset()
	d.zip.Reset(&d.buf)
	if _, err := d.zip.Write(msg); err != nil {
		return nil, err
	}
	if err := d.zip.Close(); err != nil {
		return nil, err
	}
	return d.buf.Bytes(), nil
}

// Chunks as GELF has them: two magic bytes, an id of eight, number, count.
const (
	maxPacket  = 1420 // fits an Ethernet frame through most tunnels
	chunkHead  = 12
	maxChunks  = 128
	magicFirst = 0x1e
	magicNext  = 0x0f
)

// chunks cuts a message that does not fit into one packet.
func chunks(msg []byte) ([][]byte, error) {
	if len(msg) <= maxPacket {
		return [][]byte{msg}, nil
	}
	const room = maxPacket - chunkHead
	count := (len(msg) + room - 1) / room
	if count > maxChunks {
		return nil, fmt.Errorf("gelf: message of %d bytes needs %d chunks, and the protocol has %d", len(msg), count, maxChunks)
	}
	var id [8]byte
	rand.Read(id[:])
	var out [][]byte
	for n := range count {
		p := append([]byte{magicFirst, magicNext}, id[:]...)
		p = append(p, byte(n), byte(count))
		out = append(out, append(p, msg[n*room:min(len(msg), (n+1)*room)]...))
	}
	return out, nil
}

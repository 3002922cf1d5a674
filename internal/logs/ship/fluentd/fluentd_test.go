package fluentd

import (
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"net"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/logs/ship"
	"escale.dev/escale/internal/logs/ship/shiptest"
)

// eventTime is the protocol's time with nanoseconds.
type eventTime time.Time

// unpack reads one value of MessagePack, which is more than the driver writes.
func unpack(r io.Reader) any {
	var b [1]byte
	must(io.ReadFull(r, b[:]))
	size := func(n int) int {
		buf := make([]byte, 8)
		must(io.ReadFull(r, buf[8-n:]))
		return int(binary.BigEndian.Uint64(buf))
	}
	text := func(n int) string {
		s := make([]byte, n)
		must(io.ReadFull(r, s))
		return string(s)
	}
	array := func(n int) (out []any) {
		for range n {
			out = append(out, unpack(r))
		}
		return out
	}
	object := func(n int) map[string]any {
		out := map[string]any{}
		for range n {
			k := unpack(r).(string)
			out[k] = unpack(r)
		}
		return out
	}
	switch c := b[0]; {
	case c < 0x80:
		return int64(c)
	case c&0xf0 == 0x80:
		return object(int(c & 0x0f))
	case c == 0xdf:
		return object(size(4))
	case c&0xf0 == 0x90:
		return array(int(c & 0x0f))
	case c == 0xdd:
		return array(size(4))
	case c&0xe0 == 0xa0:
		return text(int(c & 0x1f))
	case c == 0xd9:
		return text(size(1))
	case c == 0xda:
		return text(size(2))
	case c == 0xd3:
		return int64(size(8))
	case c == 0xd7:
		if kind := size(1); kind != 0 {
			panic(fmt.Errorf("extension %d", kind))
		}
		sec := size(4)
		return eventTime(time.Unix(int64(sec), int64(size(4))))
	default:
		panic(fmt.Errorf("byte %#x", c))
	}
}

func must(_ int, err error) {
	if err != nil {
		panic(err)
	}
}

// collector is a server of the forward protocol.
type collector struct {
	mute    bool // gives no acknowledgement
	records []map[string]any
	times   []any
}

func (f *collector) serve(c net.Conn, add func(...string)) (err error) {
	defer func() {
		if e, ok := recover().(error); ok {
			err = e
		}
	}()
	for {
		m := unpack(c).([]any)
		option := m[2].(map[string]any)
		entries := m[1].([]any)
		if option["size"].(int64) != int64(len(entries)) {
			return fmt.Errorf("size %v of %d entries", option["size"], len(entries))
		}
		var texts []string
		for _, e := range entries {
			pair := e.([]any)
			record := pair[1].(map[string]any)
			record["tag"] = m[0]
			f.times, f.records = append(f.times, pair[0]), append(f.records, record)
			texts = append(texts, record["log"].(string))
		}
		add(texts...)
		if chunk, ok := option["chunk"].(string); ok && !f.mute {
			b := appendString(appendString(appendMap(nil, 1), "ack"), chunk)
			if _, err := c.Write(b); err != nil {
				return err
			}
		}
	}
}

func TestContract(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		for _, ack := range []string{"true", "false"} {
			t.Run(network+" ack="+ack, func(t *testing.T) {
				shiptest.Run(t, shiptest.Case{Kind: Kind(), Server: func(t testing.TB) (shiptest.Server, map[string]string) {
					s := &shiptest.Stream{Network: network, Serve: (&collector{}).serve}
					s.Reserve(t)
					return s, map[string]string{"fluentd-address": network + "://" + s.Address, "fluentd-request-ack": ack, "fluentd-retry-wait": "50ms", "fluentd-buffer-limit": "1k"}
				}})
			})
		}
	}
}

func TestRecord(t *testing.T) {
	for _, precise := range []string{"true", "false"} {
		f := &collector{}
		s := &shiptest.Stream{Network: "tcp", Serve: f.serve}
		s.Reserve(t)
		s.Start(t)
		d, _, err := open(shiptest.Info(map[string]string{
			"fluentd-address": s.Address, "fluentd-sub-second-precision": precise, "tag": "app.{{.Name}}", "env": "SHAPE", "labels-regex": "^com",
		}))
		if err != nil {
			t.Fatal(err)
		}
		at := time.Unix(1700000001, 234567890)
		long := strings.Repeat("x", 70_000)
		batch := []ship.Entry{
			{Time: at, Stream: "stdout", Line: []byte("hello")},
			{Time: at, Stream: "stderr", Line: []byte(long[:300]), Partial: &ship.Partial{ID: "p", Ordinal: 2, Last: true}},
		}
		if n, err := d.Send(t.Context(), batch); n != 2 || err != nil {
			t.Fatal(n, err)
		}
		shiptest.Wait(t, "two records", func() bool { return len(s.Texts()) == 2 })
		d.Close()
		s.Stop()
		first := map[string]any{
			"tag": "app.web", "container_id": shiptest.ID, "container_name": "/web", "source": "stdout", "log": "hello", "SHAPE": "round", "com.example.team": "a",
		}
		second := maps.Clone(first)
		maps.Copy(second, map[string]any{"source": "stderr", "log": long[:300], "partial_message": "true", "partial_id": "p", "partial_ordinal": "2", "partial_last": "true"})
		for i, want := range []map[string]any{first, second} {
			if !maps.Equal(f.records[i], want) {
				t.Errorf("record %d: %v\nwant %v", i, f.records[i], want)
			}
		}
		if precise == "true" {
			if got, ok := f.times[0].(eventTime); !ok || !time.Time(got).Equal(at) {
				t.Errorf("time %v", f.times[0])
			}
		} else if f.times[0] != at.Unix() {
			t.Errorf("time %v", f.times[0])
		}
	}
}

// Without its acknowledgement nothing counts as sent.
func TestAckIsAwaited(t *testing.T) {
	f := &collector{mute: true}
	s := &shiptest.Stream{Network: "tcp", Serve: f.serve}
	s.Reserve(t)
	s.Start(t)
	d, _, err := open(shiptest.Info(map[string]string{"fluentd-address": s.Address, "fluentd-request-ack": "true"}))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for len(s.Texts()) == 0 {
			time.Sleep(time.Millisecond)
		}
		s.Stop()
	}()
	n, err := d.Send(t.Context(), []ship.Entry{{Stream: "stdout", Line: []byte("x")}})
	if _, ok := err.(*ship.BrokenError); n != 0 || !ok {
		t.Errorf("taken: %d, %v", n, err)
	}
}

func TestReconnectInterval(t *testing.T) {
	accepted := make(chan struct{}, 10)
	f := &collector{}
	s := &shiptest.Stream{Network: "tcp", Serve: func(c net.Conn, add func(...string)) error {
		accepted <- struct{}{}
		return f.serve(c, add)
	}}
	s.Reserve(t)
	s.Start(t)
	opts := map[string]string{"fluentd-address": s.Address, "fluentd-async-reconnect-interval": "100ms", "fluentd-request-ack": "1"}
	d, _, err := open(shiptest.Info(opts))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for range 3 {
		if _, err := d.Send(t.Context(), []ship.Entry{{Stream: "stdout", Line: []byte("x")}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(110 * time.Millisecond)
	}
	if len(accepted) != 3 {
		t.Errorf("%d connections", len(accepted))
	}
}

func TestOptions(t *testing.T) {
	for _, c := range []struct{ key, value, want string }{
		{"fluentd-address", "udp://x", "invalid fluentd-address (udp://x): unsupported scheme: 'udp'"},
		{"fluentd-address", "unix://", "invalid fluentd-address (unix://): path is empty"},
		{"fluentd-address", "tcp://x/y", "invalid fluentd-address (tcp://x/y): should not contain a path element"},
		{"fluentd-address", "x:99999", `invalid fluentd-address (x:99999): invalid port: strconv.ParseUint: parsing "99999": value out of range`},
		{"fluentd-address", "tls://x", ""},
		{"fluentd-address", "x", ""},
		{"fluentd-async", "perhaps", `strconv.ParseBool: parsing "perhaps": invalid syntax`},
		{"fluentd-async-reconnect-interval", "20s", `invalid value for fluentd-async-reconnect-interval: value ("20s") must be between 100ms and 10s`},
		{"fluentd-buffer-limit", "much", "invalid size: 'much'"},
		{"fluentd-max-retries", "-1", `strconv.ParseUint: parsing "-1": invalid syntax`},
		{"fluentd-max-retries", "4294967295", "invalid fluentd-max-retries: value out of range"},
		{"fluentd-retry-wait", "x", `time: invalid duration "x"`},
		{"fluentd-write-timeout", "-1s", "invalid value for fluentd-write-timeout: value must be a duration that is non-negative"},
		{"nosuch", "1", "unknown log opt 'nosuch' for fluentd log driver"},
	} {
		err := (ship.Kinds{Kind()}).Check("fluentd", map[string]string{c.key: c.value})
		if got := fmt.Sprint(err); (c.want == "") != (err == nil) || c.want != "" && got != c.want {
			t.Errorf("%s=%s: %v, want %q", c.key, c.value, err, c.want)
		}
	}
}

// Whatever a server answers: reading it ends, and what reads as an acknowledgement
// names one.
func FuzzParseAck(f *testing.F) {
	f.Add(appendString(appendString(appendMap(nil, 1), "ack"), "chunk"))
	f.Add([]byte{0xdf, 0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0x81, 0xc6, 0, 0, 0, 3, 'a', 'c', 'k', 0xd9, 1, 'x'})
	f.Fuzz(func(t *testing.T, b []byte) {
		id, n, err := parseAck(b)
		if err == nil && (id == "" || n > len(b)) {
			t.Errorf("%x: %q, %d bytes", b, id, n)
		}
		if err == nil {
			if _, _, err := parseAck(b[:n-1]); err == nil {
				t.Errorf("%x reads without its last byte, too", b[:n])
			}
		}
	})
}

func TestParseAck(t *testing.T) {
	for _, c := range []struct {
		in   string
		id   string
		fail error
	}{
		{"\x81\xa3ack\xa1x", "x", nil},
		{"\x82\xa1a\xa1b\xa3ack\xda\x00\x01x", "x", nil},
		{"\x81\xa3ack", "", errShort},
		{"\x81\xa3ack\xd9", "", errShort},
		{"\x81\xa3nak\xa1x", "", errAnswer},
		{"\x93", "", errAnswer},
		{"", "", errShort},
	} {
		if id, _, err := parseAck([]byte(c.in)); id != c.id || err != c.fail {
			t.Errorf("%q: %q, %v", c.in, id, err)
		}
	}
}

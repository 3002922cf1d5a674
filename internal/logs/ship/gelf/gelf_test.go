package gelf

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/logs/ship"
	"escale.dev/escale/internal/logs/ship/shiptest"
)

// graylog puts chunks together and unpacks, as a server does.
type graylog struct {
	parts map[string][][]byte
	last  map[string]any
}

func (g *graylog) read(p []byte, _ []*os.File) []string {
	if len(p) > chunkHead && p[0] == magicFirst && p[1] == magicNext {
		id, n, count := string(p[2:10]), int(p[10]), int(p[11])
		if g.parts[id] == nil {
			g.parts[id] = make([][]byte, count)
		}
		g.parts[id][n] = bytes.Clone(p[chunkHead:])
		for _, part := range g.parts[id] {
			if part == nil {
				return nil
			}
		}
		p = bytes.Join(g.parts[id], nil)
		delete(g.parts, id)
	}
	var r io.Reader = bytes.NewReader(p)
	var err error
	switch {
	case bytes.HasPrefix(p, []byte{0x1f, 0x8b}):
		r, err = gzip.NewReader(r)
	case bytes.HasPrefix(p, []byte{0x78}):
		r, err = zlib.NewReader(r)
	}
	if err != nil {
		return []string{err.Error()}
	}
	g.last = nil
	if err := json.NewDecoder(r).Decode(&g.last); err != nil {
		return []string{err.Error()}
	}
	return []string{g.last["short_message"].(string)}
}

func packets(t testing.TB) (*shiptest.Packets, *graylog) {
	g := &graylog{parts: map[string][][]byte{}}
	s := &shiptest.Packets{Network: "udp", Read: g.read}
	s.Reserve(t)
	return s, g
}

func TestPackets(t *testing.T) {
	shiptest.Run(t, shiptest.Case{Kind: Kind(), Server: func(t testing.TB) (shiptest.Server, map[string]string) {
		s, _ := packets(t)
		return s, map[string]string{"gelf-address": "udp://" + s.Address}
	}})
}

func TestStream(t *testing.T) {
	shiptest.Run(t, shiptest.Case{Kind: Kind(), Server: func(t testing.TB) (shiptest.Server, map[string]string) {
		s := &shiptest.Stream{Network: "tcp", Serve: func(c net.Conn, add func(...string)) error {
			r := bufio.NewReader(c)
			for {
				msg, err := r.ReadBytes(0)
				if err != nil {
					return err
				}
				var m struct {
					Short string `json:"short_message"`
				}
				if err := json.Unmarshal(msg[:len(msg)-1], &m); err != nil {
					return err
				}
				add(m.Short)
			}
		}}
		s.Reserve(t)
		return s, map[string]string{"gelf-address": "tcp://" + s.Address, "gelf-tcp-reconnect-delay": "0"}
	}})
}

// Long lines go in chunks, whatever the compression, and every field is there.
func TestMessage(t *testing.T) {
	for _, kind := range []string{"", "gzip", "zlib", "none"} {
		s, g := packets(t)
		s.Start(t)
		opts := map[string]string{"gelf-address": "udp://" + s.Address, "tag": "{{.Name}}", "labels": "tier", "env-regex": "^COL"}
		if kind != "" {
			opts["gelf-compression-type"], opts["gelf-compression-level"] = kind, "0"
		}
		if err := (ship.Kinds{Kind()}).Check("gelf", opts); err != nil {
			t.Fatal(err)
		}
		d, _, err := open(shiptest.Info(opts))
		if err != nil {
			t.Fatal(err)
		}
		long := strings.Repeat("0123456789<\"é", 1200)
		at := time.Unix(1700000001, 234567890)
		if n, err := d.Send(t.Context(), []ship.Entry{{Time: at, Stream: "stdout", Line: []byte(long)}, {Time: at, Stream: "stderr"}, {Time: at, Stream: "stderr", Line: []byte("short")}}); n != 3 || err != nil {
			t.Fatal(n, err)
		}
		d.Close()
		shiptest.Wait(t, "two messages", func() bool { return len(s.Texts()) == 2 })
		if got := s.Texts(); got[0] != long || got[1] != "short" {
			t.Errorf("%s: arrived as %.40q, %q", kind, got[0], got[1])
		}
		s.Stop()
		host, _ := os.Hostname()
		want := map[string]any{
			"version": "1.1", "host": host, "short_message": "short", "timestamp": 1700000001.234, "level": 3.0, "_container_id": shiptest.ID,
			"_container_name": "web", "_image_id": "sha256:abcdef", "_image_name": "debian:12", "_command": "sh -c x", "_tag": "web",
			"_created": "2023-11-14T22:13:20Z", "_tier": "front", "_COLOUR": "red",
		}
		if fmt.Sprint(g.last) != fmt.Sprint(want) {
			t.Errorf("%s: %v\nwant %v", kind, g.last, want)
		}
	}
}

func TestTooLargeIsRefused(t *testing.T) {
	s, _ := packets(t)
	s.Start(t)
	info := shiptest.Info(map[string]string{"gelf-address": "udp://" + s.Address, "gelf-compression-type": "none", "labels": "big"})
	info.ContainerLabels["big"] = strings.Repeat("x", 200_000)
	d, _, err := open(info)
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.Send(t.Context(), []ship.Entry{{Line: []byte("x")}})
	if _, ok := err.(*ship.RefusedError); !ok {
		t.Errorf("answered %v", err)
	}
}

func TestOptions(t *testing.T) {
	for _, c := range []struct{ address, key, value, want string }{
		{"", "tag", "x", "gelf-address is a required parameter"},
		{"http://x:1", "tag", "x", "gelf: endpoint needs to be TCP or UDP"},
		{"udp://x", "tag", "x", "gelf: please provide gelf-address as proto://host:port"},
		{"udp://x:1", "gelf-compression-type", "lz4", `unknown value "lz4" for log opt "gelf-compression-type" for gelf log driver`},
		{"udp://x:1", "gelf-compression-level", "10", `unknown value "10" for log opt "gelf-compression-level" for gelf log driver`},
		{"tcp://x:1", "gelf-compression-level", "1", "compression is only supported on UDP"},
		{"udp://x:1", "gelf-tcp-max-reconnect", "1", `"gelf-tcp-max-reconnect" is only valid for TCP`},
		{"tcp://x:1", "gelf-tcp-max-reconnect", "-1", `"gelf-tcp-max-reconnect" must be a positive integer`},
		{"tcp://x:1", "gelf-tcp-reconnect-delay", "3", ""},
		{"udp://x:1", "nosuch", "3", `unknown log opt "nosuch" for gelf log driver`},
	} {
		err := (ship.Kinds{Kind()}).Check("gelf", map[string]string{"gelf-address": c.address, c.key: c.value})
		if got := fmt.Sprint(err); (c.want == "") != (err == nil) || c.want != "" && got != c.want {
			t.Errorf("%s %s=%s: %v, want %q", c.address, c.key, c.value, err, c.want)
		}
	}
}

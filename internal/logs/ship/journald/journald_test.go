package journald

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/logs/ship"
	"escale.dev/escale/internal/logs/ship/conn"
	"escale.dev/escale/internal/logs/ship/shiptest"
)

// journal reads messages as journald does.
type journal struct{ last map[string]string }

func (j *journal) read(p []byte, files []*os.File) []string {
	for _, f := range files {
		p, _ = io.ReadAll(io.NewSectionReader(f, 0, 1<<20))
		f.Close()
	}
	fields, err := parse(p)
	if err != nil {
		return []string{err.Error()}
	}
	j.last = fields
	return []string{fields["MESSAGE"]}
}

func parse(p []byte) (map[string]string, error) {
	out := map[string]string{}
	for len(p) > 0 {
		i := bytes.IndexAny(p, "=\n")
		if i < 0 {
			return nil, fmt.Errorf("no end in %q", p)
		}
		key := string(p[:i])
		if p[i] == '=' {
			value, rest, ok := bytes.Cut(p[i+1:], []byte{'\n'})
			if !ok {
				return nil, fmt.Errorf("no newline after %s", key)
			}
			out[key], p = string(value), rest
			continue
		}
		if p = p[i+1:]; len(p) < 8 {
			return nil, fmt.Errorf("no length after %s", key)
		}
		n := binary.LittleEndian.Uint64(p)
		if p = p[8:]; uint64(len(p)) <= n || p[n] != '\n' {
			return nil, fmt.Errorf("%s: length %d of %d", key, n, len(p))
		}
		out[key], p = string(p[:n]), p[n+1:]
	}
	return out, nil
}

func TestContract(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s") // only to be there when the driver is made
	if err := os.WriteFile(socket, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	kind := Kind(Socket)
	kind.New = func(info ship.Info) (ship.Driver, ship.Policy, error) {
		d, err := open(info, socket)
		if err == nil {
			d.packet.Dial = conn.To("unixgram", info.Config["tag"])
		}
		return d, ship.Policy{}, err
	}
	shiptest.Run(t, shiptest.Case{Kind: kind, Server: func(t testing.TB) (shiptest.Server, map[string]string) {
		s := &shiptest.Packets{Network: "unixgram", Read: (&journal{}).read}
		s.Reserve(t)
		return s, map[string]string{"tag": s.Address}
	}})
}

func TestMessage(t *testing.T) {
	j := &journal{}
	s := &shiptest.Packets{Network: "unixgram", Read: j.read}
	s.Reserve(t)
	s.Start(t)
	info := shiptest.Info(map[string]string{"tag": "{{.Name}}", "labels": "com.example.team", "env": "SHAPE"})
	info.ContainerEnv = []string{"SHAPE=two\nlines"}
	d, err := open(info, s.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	at := time.Unix(1700000001, 234567890).UTC()
	long := strings.Repeat("é", 200_000) // larger than a packet: goes as a file
	if n, err := d.Send(t.Context(), []ship.Entry{
		{Time: at, Stream: "stdout", Line: []byte(long)},
		{Time: at, Stream: "stderr", Line: []byte("a=b"), Partial: &ship.Partial{ID: "p", Ordinal: 1}},
	}); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	shiptest.Wait(t, "two messages", func() bool { return len(s.Texts()) == 2 })
	if s.Texts()[0] != long {
		t.Errorf("the long line arrived as %d bytes", len(s.Texts()[0]))
	}
	s.Stop()
	delete(j.last, "CONTAINER_LOG_EPOCH")
	want := map[string]string{
		"PRIORITY": "3", "MESSAGE": "a=b", "CONTAINER_ID": "0123456789ab", "CONTAINER_ID_FULL": shiptest.ID, "CONTAINER_NAME": "web",
		"CONTAINER_TAG": "web", "SYSLOG_IDENTIFIER": "web", "IMAGE_NAME": "debian:12", "SYSLOG_TIMESTAMP": "2023-11-14T22:13:21.23456789Z",
		"CONTAINER_LOG_ORDINAL": "2", "CONTAINER_PARTIAL_ID": "p", "CONTAINER_PARTIAL_ORDINAL": "1", "CONTAINER_PARTIAL_LAST": "false",
		"CONTAINER_PARTIAL_MESSAGE": "true", "COM_EXAMPLE_TEAM": "a", "SHAPE": "two\nlines",
	}
	if fmt.Sprint(j.last) != fmt.Sprint(want) {
		t.Errorf("%q\nwant %q", j.last, want)
	}
}

func TestNoJournal(t *testing.T) {
	if _, err := open(shiptest.Info(nil), "/no/such/socket"); err == nil || err.Error() != "journald is not enabled on this host" {
		t.Error(err)
	}
	if got := fieldName("__com.example-Team9"); got != "COM_EXAMPLE_TEAM9" {
		t.Error(got)
	}
}

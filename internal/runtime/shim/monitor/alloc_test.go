package monitor

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// carrier is a monitor with a container whose output the test writes, a log and
// one attached client that the test reads.
func carrier(t testing.TB, logSize int64) (m *Monitor, write, read int) {
	t.Helper()
	l, err := newLoop()
	if err != nil {
		t.Fatal(err)
	}
	m = &Monitor{loop: l, lis: -1, null: -1}
	m.grace.m, m.grace.fd = m, -1
	if m.log, err = openLog(filepath.Join(t.TempDir(), "x-json.log"), "", logSize, 2); err != nil {
		t.Fatal(err)
	}
	p := &process{m: m, log: m.log, state: stateRunning}
	m.init = p
	if err := p.makeStdio(false); err != nil {
		t.Fatal(err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	c := &client{m: m, p: p, fd: pair[0]}
	c.out[1] = true
	m.clients, m.conns = 1, 1
	p.clients = []*client{c}
	t.Cleanup(func() {
		m.log.close()
		p.close()
		_ = unix.Close(pair[1])
		_ = unix.Close(l.ep)
	})
	return m, p.child[1], pair[1]
}

// The hot path, from the container's pipe to the log and a client: nothing of
// it may allocate, or a monitor would grow with what passes through it.
func TestNoAllocationPerLine(t *testing.T) {
	m, w, r := carrier(t, 1<<20)
	data := []byte(strings.Repeat("a line with \"quotes\" and <brackets>\n", 100))
	buf := make([]byte, len(data)+header)
	src := m.init.out[0]
	n := testing.AllocsPerRun(200, func() {
		if _, err := unix.Write(w, data); err != nil {
			t.Fatal(err)
		}
		src.ready(unix.EPOLLIN)
		if n, err := unix.Read(r, buf); n != len(buf) || err != nil {
			t.Fatal(n, err)
		}
	})
	if n > 0.5 { // a rotation, every megabyte, makes a few names
		t.Errorf("%v allocations for 100 lines", n)
	}
	if !bytes.Equal(buf[header:], data) || buf[0] != 1 {
		t.Error("the client got something else")
	}
	if m.log.lost != 0 || m.log.size == 0 {
		t.Errorf("log has %d bytes, %d lines lost", m.log.size, m.log.lost)
	}
}

func BenchmarkCarry(b *testing.B) {
	m, w, r := carrier(b, 10<<20)
	line := "127.0.0.1 - - [21/Nov/2026:05:48:39 +0000] \"GET / HTTP/1.1\" 200 612\n"
	data := []byte(strings.Repeat(line, chunk/len(line)))
	buf := make([]byte, len(data)+header)
	src := m.init.out[0]
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := unix.Write(w, data); err != nil {
			b.Fatal(err)
		}
		src.ready(unix.EPOLLIN)
		if _, err := unix.Read(r, buf); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*float64(chunk/len(line))/b.Elapsed().Seconds(), "lines/s")
}

func TestItoa(t *testing.T) {
	for n, want := range map[int64]string{0: "0", 7: "7", -1: "-1", 1234567890: "1234567890", -1 << 63: "-9223372036854775808", 1<<63 - 1: "9223372036854775807"} {
		if got := itoa(n); got != want {
			t.Errorf("%d: %s", n, got)
		}
	}
	for s, want := range map[string]int64{" 42\n": 42, "7 x": 7, "0": 0} {
		if n, ok := atoi([]byte(s)); !ok || n != want {
			t.Errorf("%q: %d %v", s, n, ok)
		}
	}
	if _, ok := atoi([]byte("x")); ok {
		t.Error("x is a number")
	}
	if startTime(unix.Getpid()) <= 0 || startTime(999999999) != 0 || len(bootID()) != 36 {
		t.Error("/proc is read wrongly")
	}
}

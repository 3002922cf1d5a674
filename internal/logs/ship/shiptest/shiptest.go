// Package shiptest holds what every log driver must keep to, whatever its protocol, and
// the servers of sockets that its tests need.
package shiptest

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"escale.dev/escale/internal/logs/format"
	"escale.dev/escale/internal/logs/ship"
)

// ID is the container of the tests.
const ID = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// Server is the other side. Start and Stop may follow each other often and keep
// the address; Stop is a kill: what was not read is gone.
type Server interface {
	Start(t testing.TB)
	Stop()
	// Texts are the lines received since the beginning, in the order of their arrival.
	Texts() []string
}

// Log writes a log as a monitor does.
type Log struct {
	t     testing.TB
	Dir   string
	f     *os.File
	clock format.Clock
	files int
	size  int64
	lines int64
	Max   int64 // bytes at which it rotates; 0: never
}

// NewLog makes an empty log that is rotated to at most files.
func NewLog(t testing.TB, files int) *Log {
	l := &Log{t: t, Dir: filepath.Join(t.TempDir(), ID), files: files}
	if err := os.Mkdir(l.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	l.clock.Set(now.Unix(), int32(now.Nanosecond()))
	l.create()
	t.Cleanup(func() { l.f.Close() })
	return l
}

// Path is the newest file.
func (l *Log) Path() string { return filepath.Join(l.Dir, ID+"-json.log") }

func (l *Log) create() {
	f, err := os.OpenFile(l.Path(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		l.t.Fatal(err)
	}
	l.f, l.size = f, 0
	setLinesBefore(l.t, f, l.lines)
}

// Line writes one entry; text ends with a newline unless it is part of a line.
func (l *Log) Line(stream, text string) {
	if l.Max > 0 && l.size >= l.Max {
		l.Rotate()
	}
	l.clock.Tick()
	n, err := l.f.Write(format.Append(nil, []byte(text), stream, "", &l.clock))
	if err != nil {
		l.t.Error(err)
	}
	l.size += int64(n)
	l.lines++
}

// Numbered writes "line 17" for each number from from to before to.
func (l *Log) Numbered(from, to int) {
	for n := from; n < to; n++ {
		l.Line("stdout", fmt.Sprintf("line %d\n", n))
	}
}

// Rotate begins a new file.
func (l *Log) Rotate() {
	l.f.Close()
	name := func(n int) string {
		if n == 0 {
			return l.Path()
		}
		return l.Path() + "." + strconv.Itoa(n)
	}
	for n := l.files - 1; n > 0; n-- {
		_ = os.Rename(name(n-1), name(n)) // it need not be there
	}
	if l.files == 1 {
		os.Remove(l.Path())
	}
	l.create()
}

// Sender is an engine's side: a set with one log.
type Sender struct {
	Set   *ship.Set
	Ended chan struct{}
	Said  *Words
}

// Words collects what a set logs.
type Words struct {
	mu sync.Mutex
	b  strings.Builder
}

func (w *Words) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(p)
}

func (w *Words) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}

// Send begins to send a log with a driver.
func Send(t testing.TB, kind ship.Kind, opts map[string]string, l *Log) *Sender {
	t.Helper()
	if err := (ship.Kinds{kind}).Check(kind.Name, opts); err != nil {
		t.Fatal(err)
	}
	said := &Words{}
	s := &Sender{Set: ship.New(slog.New(slog.NewTextHandler(io.MultiWriter(said), nil)), ship.Kinds{kind}), Ended: make(chan struct{}), Said: said}
	t.Cleanup(func() { s.Set.Close() })
	if err := s.Set.Begin(Described(kind.Name, opts, l), s.Ended); err != nil {
		t.Fatal(err)
	}
	return s
}

// Described is the log as the engine hands it to a set.
func Described(driver string, opts map[string]string, l *Log) ship.Log {
	return ship.Log{ID: ID, Driver: driver, Path: l.Path(), MaxFiles: l.files, State: filepath.Join(l.Dir, "log-position"), Info: Info(opts)}
}

// Info is the container of the tests.
func Info(opts map[string]string) ship.Info {
	return ship.Info{
		Config: opts, ContainerID: ID, ContainerName: "/web", ContainerEntrypoint: "sh", ContainerArgs: []string{"-c", "x"},
		ContainerImageID: "sha256:abcdef", ContainerImageName: "debian:12", ContainerCreated: time.Unix(1700000000, 0).UTC(),
		ContainerEnv: []string{"COLOUR=red", "SHAPE=round"}, ContainerLabels: map[string]string{"com.example.team": "a", "tier": "front"}, DaemonName: "escale",
	}
}

// Wait waits until ok holds.
func Wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// Numbers counts the numbered lines among texts and fails unless all below n are
// there; it returns how many were repeated.
func Numbers(t testing.TB, texts []string, n int) (repeated int) {
	t.Helper()
	seen := make([]int, n)
	for _, s := range texts {
		if i, err := strconv.Atoi(strings.TrimPrefix(s, "line ")); err == nil && i < n {
			seen[i]++
		}
	}
	missing := 0
	for i, c := range seen {
		if c == 0 {
			if missing++; missing < 4 {
				t.Errorf("line %d was lost", i)
			}
		}
		repeated += max(0, c-1)
	}
	if missing > 3 {
		t.Errorf("%d lines were lost", missing)
	}
	return repeated
}

// has reports whether all numbers below n arrived.
func has(s Server, n int) bool {
	seen := map[string]bool{}
	for _, text := range s.Texts() {
		seen[text] = true
	}
	for i := range n {
		if !seen["line "+strconv.Itoa(i)] {
			return false
		}
	}
	return true
}

// Case is a driver with a server of its kind.
type Case struct {
	Kind   ship.Kind
	Server func(t testing.TB) (s Server, opts map[string]string)
	// Present: the driver cannot be made while its server has never been there.
	Present bool
}

// Run checks the contract of a driver: order, nothing lost when the server comes
// late, is killed, or the engine is; a removed container's lines still go out.
func Run(t *testing.T, c Case) {
	t.Run("order", func(t *testing.T) { t.Parallel(); order(t, c) })
	t.Run("server comes late", func(t *testing.T) { t.Parallel(); late(t, c) })
	t.Run("server killed", func(t *testing.T) { t.Parallel(); serverKilled(t, c) })
	t.Run("engine ended", func(t *testing.T) { t.Parallel(); engineEnded(t, c) })
	t.Run("container removed", func(t *testing.T) { t.Parallel(); removed(t, c) })
	t.Run("unknown option", func(t *testing.T) {
		_, opts := c.Server(t)
		opts["nosuch"] = "x"
		if err := (ship.Kinds{c.Kind}).Check(c.Kind.Name, opts); err == nil || !strings.HasPrefix(err.Error(), "unknown log opt ") {
			t.Errorf("answered %v", err)
		}
	})
}

func order(t *testing.T, c Case) {
	server, opts := c.Server(t)
	server.Start(t)
	l := NewLog(t, 5)
	l.Max = 20 << 10
	l.Numbered(0, 50)
	s := Send(t, c.Kind, opts, l)
	for n := 50; n < 1000; n += 50 {
		l.Numbered(n, n+50)
		time.Sleep(time.Millisecond)
	}
	close(s.Ended)
	Wait(t, "all lines", func() bool { return len(server.Texts()) >= 1000 })
	for i, text := range server.Texts() {
		if text != fmt.Sprintf("line %d", i) {
			t.Fatalf("line %d arrived as %q", i, text)
		}
	}
}

func late(t *testing.T, c Case) {
	server, opts := c.Server(t)
	if c.Present {
		server.Start(t)
	}
	l := NewLog(t, 5)
	s := Send(t, c.Kind, opts, l)
	server.Stop()
	l.Numbered(0, 300)
	Wait(t, "the complaint", func() bool { return strings.Contains(s.Said.String(), "does not answer") })
	server.Start(t)
	Wait(t, "all lines", func() bool { return has(server, 300) })
	l.Numbered(300, 301)
	Wait(t, "the next line", func() bool { return has(server, 301) })
	Wait(t, "the all-clear", func() bool { return strings.Contains(s.Said.String(), "takes lines again") })
	close(s.Ended)
}

func serverKilled(t *testing.T, c Case) {
	server, opts := c.Server(t)
	server.Start(t)
	l := NewLog(t, 5)
	s := Send(t, c.Kind, opts, l)
	n := 0
	write := func(d time.Duration) {
		for end := time.Now().Add(d); time.Now().Before(end); n++ {
			l.Numbered(n, n+1)
			time.Sleep(500 * time.Microsecond)
		}
	}
	for range 2 {
		write(200 * time.Millisecond)
		server.Stop()
		write(100 * time.Millisecond)
		server.Start(t)
	}
	write(50 * time.Millisecond)
	close(s.Ended)
	Wait(t, "all lines", func() bool { return has(server, n) })
	if repeated := Numbers(t, server.Texts(), n); repeated > 5*n {
		t.Errorf("%d of %d lines were repeated by two kills", repeated, n)
	}
}

// engineEnded takes the sender away and begins another, over and over.
func engineEnded(t *testing.T, c Case) {
	server, opts := c.Server(t)
	server.Start(t)
	l := NewLog(t, 5)
	const total, lives = 2000, 5
	var s *Sender
	for i := range lives {
		s = Send(t, c.Kind, opts, l)
		for n := i * total / lives; n < (i+1)*total/lives; n += 20 {
			l.Numbered(n, n+20)
			time.Sleep(time.Millisecond)
		}
		if i < lives-1 {
			s.Set.Close()
		}
	}
	close(s.Ended)
	Wait(t, "all lines", func() bool { return has(server, total) })
	if repeated := Numbers(t, server.Texts(), total); repeated > (lives-1)*ship.Batch {
		t.Errorf("%d lines were repeated", repeated)
	}
}

func removed(t *testing.T, c Case) {
	server, opts := c.Server(t)
	if c.Present {
		server.Start(t)
	}
	l := NewLog(t, 5)
	l.Max = 10 << 10
	s := Send(t, c.Kind, opts, l)
	server.Stop()
	l.Numbered(0, 500)
	close(s.Ended)
	s.Set.Drop(ID)
	if err := os.RemoveAll(l.Dir); err != nil {
		t.Fatal(err)
	}
	server.Start(t)
	Wait(t, "all lines", func() bool { return has(server, 500) })
}

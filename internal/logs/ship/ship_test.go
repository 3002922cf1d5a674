package ship_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"escale.dev/escale/internal/logs/ship"
	"escale.dev/escale/internal/logs/ship/shiptest"
)

// fake is a driver whose answers a test decides.
type fake struct {
	mu     sync.Mutex
	got    []ship.Entry
	answer func(batch []ship.Entry) (int, error) // nil: takes all
	gone   chan struct{}
	closed int
	most   int // entries of the largest batch
}

func (f *fake) Send(ctx context.Context, batch []ship.Entry) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.most = max(f.most, len(batch))
	n, err := len(batch), error(nil)
	if f.answer != nil {
		n, err = f.answer(batch)
	}
	f.got = append(f.got, batch[:n]...)
	return n, err
}

func (f *fake) Gone() <-chan struct{} { return f.gone }

func (f *fake) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed++
	return nil
}

func (f *fake) texts() (out []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.got {
		out = append(out, string(e.Line))
	}
	return out
}

func (f *fake) set(answer func([]ship.Entry) (int, error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answer = answer
}

func (f *fake) kind(p ship.Policy) ship.Kind {
	return ship.Kind{Name: "fake", Check: func(map[string]string) error { return nil }, New: func(ship.Info) (ship.Driver, ship.Policy, error) { return f, p, nil }}
}

func count(f *fake, n int) func() bool { return func() bool { return len(f.texts()) >= n } }

// What was rotated away before it could be sent is counted, to the line, whether the
// engine was there or not.
func TestRotatedAwayIsCounted(t *testing.T) {
	for _, away := range []bool{true, false} {
		t.Run(fmt.Sprintf("engine away %v", away), func(t *testing.T) {
			f := &fake{}
			l := shiptest.NewLog(t, 3)
			s := shiptest.Send(t, f.kind(ship.Policy{}), nil, l)
			l.Numbered(0, 100)
			shiptest.Wait(t, "the first lines", count(f, 100))
			if away {
				s.Set.Close()
			} else {
				f.set(func([]ship.Entry) (int, error) { return 0, errors.New("down") })
			}
			for i := range 40 { // far more than is read ahead
				l.Numbered(100+i*50, 150+i*50)
				l.Rotate()
			}
			if away {
				s = shiptest.Send(t, f.kind(ship.Policy{}), nil, l)
			} else {
				f.set(nil)
			}
			close(s.Ended)
			shiptest.Wait(t, "the last line", func() bool { return slices.Contains(f.texts(), "line 2099") })
			missing := 2100 - len(f.texts())
			if missing == 0 {
				t.Fatal("nothing was rotated away")
			}
			told := 0
			for _, m := range regexp.MustCompile(`lines=(\d+) more=false`).FindAllStringSubmatch(s.Said.String(), -1) {
				n, _ := strconv.Atoi(m[1])
				told += n
			}
			if told != missing {
				t.Errorf("%d are missing, and was said: %s", missing, s.Said)
			}
		})
	}
}

func TestGivenUpAndRefused(t *testing.T) {
	f := &fake{answer: func([]ship.Entry) (int, error) { return 0, errors.New("down") }}
	l := shiptest.NewLog(t, 3)
	s := shiptest.Send(t, f.kind(ship.Policy{Wait: time.Millisecond, Retries: 3}), nil, l)
	l.Numbered(0, 10)
	shiptest.Wait(t, "giving up", func() bool { return strings.Contains(s.Said.String(), "given up") })
	f.set(func(batch []ship.Entry) (int, error) {
		for i, e := range batch {
			if string(e.Line) == "line 15" {
				return i, &ship.RefusedError{Err: errors.New("too large")}
			}
		}
		return len(batch), nil
	})
	l.Numbered(10, 20)
	close(s.Ended)
	shiptest.Wait(t, "the rest", func() bool { return slices.Contains(f.texts(), "line 19") })
	if slices.Contains(f.texts(), "line 15") || !strings.Contains(s.Said.String(), "cannot be sent") {
		t.Errorf("refused line: %s", s.Said)
	}
	shiptest.Wait(t, "the end", func() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.closed == 1 })
}

// A server that hangs up after every batch gets everything all the same.
func TestHangsUpAlways(t *testing.T) {
	f := &fake{}
	odd := false
	f.answer = func(batch []ship.Entry) (int, error) {
		if odd = !odd; !odd {
			return 0, &ship.BrokenError{At: time.Now(), Err: io.EOF}
		}
		return len(batch), nil
	}
	l := shiptest.NewLog(t, 3)
	l.Numbered(0, 3*ship.Batch)
	s := shiptest.Send(t, f.kind(ship.Policy{Wait: time.Millisecond}), nil, l)
	close(s.Ended)
	shiptest.Wait(t, "the last line", func() bool { return slices.Contains(f.texts(), fmt.Sprintf("line %d", 3*ship.Batch-1)) })
	if repeated := shiptest.Numbers(t, f.texts(), 3*ship.Batch); repeated == 0 {
		t.Error("nothing was repeated after a break")
	}
	if f.most > ship.Batch {
		t.Errorf("a batch of %d", f.most)
	}
}

// A break that nobody writes into is noticed, too: what was lost is sent again
// without waiting for the next line.
func TestGoneIsNoticed(t *testing.T) {
	f := &fake{gone: make(chan struct{})}
	f.answer = func(batch []ship.Entry) (int, error) {
		if len(batch) == 0 {
			f.gone = nil
			return 0, &ship.BrokenError{At: time.Now(), Err: io.EOF}
		}
		return len(batch), nil
	}
	l := shiptest.NewLog(t, 3)
	shiptest.Send(t, f.kind(ship.Policy{}), nil, l)
	l.Numbered(0, 1)
	shiptest.Wait(t, "the line", count(f, 1))
	close(f.gone)
	shiptest.Wait(t, "the line again", count(f, 2))
}

func TestPartialLines(t *testing.T) {
	f := &fake{}
	l := shiptest.NewLog(t, 3)
	l.Line("stdout", "a")
	l.Line("stderr", "whole\n")
	l.Line("stdout", "b")
	l.Line("stdout", "c\n")
	l.Line("stdout", "\n")
	s := shiptest.Send(t, f.kind(ship.Policy{}), nil, l)
	close(s.Ended)
	shiptest.Wait(t, "the lines", count(f, 5))
	var got []string
	for _, e := range f.got {
		text := string(e.Line)
		if p := e.Partial; p != nil {
			text += fmt.Sprintf(" %d %v %v", p.Ordinal, p.Last, p.ID == f.got[0].Partial.ID)
		}
		got = append(got, text)
	}
	if want := "[a 1 false true|whole|b 2 false true|c 3 true true|]"; fmt.Sprint("[", strings.Join(got, "|"), "]") != want {
		t.Errorf("%q, want %s", got, want)
	}
}

// The next run of a container goes to the same server, and the run after the engine
// was away begins where the last ended.
func TestRuns(t *testing.T) {
	f := &fake{}
	l := shiptest.NewLog(t, 3)
	s := shiptest.Send(t, f.kind(ship.Policy{}), nil, l)
	for run := range 4 {
		l.Numbered(run*10, run*10+10)
		close(s.Ended)
		if run%2 == 1 {
			shiptest.Wait(t, "the lines of the run", count(f, run*10+10))
		}
		s.Ended = make(chan struct{})
		if err := s.Set.Begin(shiptest.Described("fake", nil, l), s.Ended); err != nil {
			t.Fatal(err)
		}
	}
	close(s.Ended)
	shiptest.Wait(t, "all lines", count(f, 40))
	s.Set.Close()
	if repeated := shiptest.Numbers(t, f.texts(), 40); repeated != 0 {
		t.Errorf("%d lines were sent twice", repeated)
	}
}

// What a damaged or missing position costs is repetition.
func TestDamagedPosition(t *testing.T) {
	for _, damage := range []string{"", "\x00\x00\x00", `{"version":9}`, `{"version":1,"Head":5,"Offset":3,"Lines":1}`} {
		f := &fake{}
		l := shiptest.NewLog(t, 3)
		l.Numbered(0, 10)
		s := shiptest.Send(t, f.kind(ship.Policy{}), nil, l)
		shiptest.Wait(t, "the lines", count(f, 10))
		s.Set.Close()
		if err := os.WriteFile(filepath.Join(l.Dir, "log-position"), []byte(damage), 0o600); err != nil {
			t.Fatal(err)
		}
		l.Numbered(10, 20)
		s = shiptest.Send(t, f.kind(ship.Policy{}), nil, l)
		shiptest.Wait(t, "the lines", func() bool { return slices.Contains(f.texts(), "line 19") })
		shiptest.Numbers(t, f.texts(), 20)
		s.Set.Close()
	}
}

// A removed container's lines are sent for so long, and what is left is counted.
func TestRemovedAndServerAway(t *testing.T) {
	f := &fake{answer: func([]ship.Entry) (int, error) { return 0, errors.New("down") }}
	l := shiptest.NewLog(t, 3)
	s := shiptest.Send(t, f.kind(ship.Policy{}), nil, l)
	l.Numbered(0, 700)
	close(s.Ended)
	begin := time.Now()
	s.Set.Drop(shiptest.ID)
	if d := time.Since(begin); d > time.Second {
		t.Errorf("dropping took %v", d)
	}
	os.RemoveAll(l.Dir)
	shiptest.Wait(t, "the count", func() bool { return strings.Contains(s.Said.String(), "were not sent") })
	if d := time.Since(begin); d < ship.DrainTime-time.Second || d > ship.DrainTime+5*time.Second {
		t.Errorf("given up after %v", d)
	}
	if !strings.Contains(s.Said.String(), "lines=700") {
		t.Errorf("said %s", s.Said)
	}
}

func TestKinds(t *testing.T) {
	k := ship.Files()
	if got := fmt.Sprint(k.Names()); got != "[json-file local]" {
		t.Error(got)
	}
	for _, c := range []struct{ driver, opts, want string }{
		{"json-file", "max-size=10m max-file=3 compress=true labels=a labels-regex=^a env=b env-regex=b tag={{.ID}}", ""},
		{"json-file", "max-size=-1", ""},
		{"json-file", "max-size=0", "invalid value for max-size: 0: max-size must be a positive number"},
		{"json-file", "max-size=big", "invalid value for max-size: big: invalid size: 'big'"},
		{"json-file", "max-file=0", "invalid value for max-file: 0: max-file cannot be less than 1"},
		{"json-file", "max-file=1 compress=true", "compress cannot be true when max-file is less than 2 or max-size is not set"},
		{"json-file", "compress=perhaps", `invalid value for compress: perhaps: strconv.ParseBool: parsing "perhaps": invalid syntax`},
		{"json-file", "nosuch=1", "unknown log opt 'nosuch' for json-file log driver"},
		{"json-file", "env-regex=(", "invalid value for env-regex: error parsing regexp: missing closing ): `(`"},
		{"json-file", "tag={{.ID", "template: log-tag:1: unclosed action"},
		{"json-file", "cache-nosuch=1", "unknown log opt 'cache-nosuch'"},
		{"json-file", "mode=non-blocking max-buffer-size=x", "error parsing option max-buffer-size: invalid size: 'x'"},
		{"local", "max-size=1k max-file=2 compress=false mode=non-blocking max-buffer-size=4m", ""},
		{"local", "labels=a", "unknown log opt 'labels' for log driver local"},
		{"none", "whatever=1", ""},
		{"awslogs", "", "logger: no log driver named 'awslogs' is registered"},
		{"splunk", "splunk-token=x", "logger: no log driver named 'splunk' is registered"},
	} {
		opts := map[string]string{}
		for _, kv := range strings.Fields(c.opts) {
			k, v, _ := strings.Cut(kv, "=")
			opts[k] = v
		}
		err := k.Check(c.driver, opts)
		if got := fmt.Sprint(err); (c.want == "") != (err == nil) || c.want != "" && got != c.want {
			t.Errorf("%s %s: %v, want %q", c.driver, c.opts, err, c.want)
		}
	}
}

func TestTag(t *testing.T) {
	for tag, want := range map[string]string{
		"":                "0123456789ab",
		"{{.FullID}}":     shiptest.ID,
		"{{.Name}}":       "web",
		"{{.ImageID}}":    "sha256:abcde",
		"{{.DaemonName}}": "escale",
		"{{.ImageFullID}} {{.ImageName}} {{.Command}}":                        "sha256:abcdef debian:12 sh -c x",
		`{{upper .Name}}{{truncate .ID 3}}{{pad "x" 1 2}}{{title "ab cd"}}`:   "WEB012 x  Ab Cd",
		`{{index .ContainerLabels "tier"}} {{join (split "a,b" ",") "-"}}`:    "front a-b",
		`{{json .ContainerEnv}} {{len (.ExtraAttributes nil)}}{{lower "A"}}!`: `["COLOUR=red","SHAPE=round"] 0a!`,
	} {
		info := shiptest.Info(map[string]string{"tag": tag})
		if got, err := info.Tag(ship.DefaultTag); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", tag, got, err, want)
		}
	}
}

func TestBeginAfterClose(t *testing.T) {
	f := &fake{}
	s := ship.New(slog.New(slog.DiscardHandler), ship.Kinds{f.kind(ship.Policy{})})
	s.Close()
	if err := s.Begin(shiptest.Described("fake", nil, shiptest.NewLog(t, 1)), nil); err == nil {
		t.Error("a closed set began to send")
	}
}

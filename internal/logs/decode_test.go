package logs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"escale.dev/escale/internal/logs/format"
)

// Whatever the bytes: reading ends, gives no more than was there, and what stands
// before and after the garbage is read, forward and from the end.
func FuzzReadGarbage(f *testing.F) {
	f.Add([]byte(`{"log":"half`))
	f.Add([]byte("\x00\x00\n{\"log\":\"\\ud800\",\"stream\":\"stdout\",\"attrs\":{\"a\":{}},\"time\":\"2026-03-01T12:00:00Z\"}"))
	f.Add([]byte(`{"log":"x","stream":"stdout","attrs":{},"time":"2026-03-01T12:00:00.123456789Z"}`))
	f.Fuzz(func(t *testing.T, garbage []byte) {
		path := filepath.Join(t.TempDir(), "log")
		content := line(0) + string(garbage) + "\n" + line(1)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		o := all()
		o.Details = true
		got := drain(t, open(t, path, 1, o))
		if len(got) < 2 || len(got) > 3+bytes.Count(garbage, []byte("\n")) || got[0] != "line 0" || got[len(got)-1] != "line 1" {
			t.Fatalf("read %q", got)
		}
		o.Tail = 1
		if last := drain(t, open(t, path, 1, o)); len(last) == 0 || last[len(last)-1] != "line 1" {
			t.Fatalf("tail %q", last)
		}
	})
}

// The fast decoder agrees with encoding/json on all that both accept.
func FuzzDecodeAgrees(f *testing.F) {
	f.Add([]byte(strings.TrimSpace(line(1))))
	f.Add([]byte(`{"log":"\u00e9\ud83d\ude00\ud800\\\"","stream":"stderr","attrs":{"a":"b"},"time":"2026-03-01T12:00:00.000000009Z"}`))
	f.Add([]byte(`{"log":"a","stream":"stdout","time":"2026-02-30T12:00:60Z"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if !utf8.Valid(text) || bytes.ContainsAny(text, "\r\n") {
			return // json replaces such bytes; the monitor has done so already
		}
		fast, general := decoder{details: true}, decoder{details: true}
		var a, b Line
		if !fast.fast(text, &a) || !general.general(text, &b) {
			return
		}
		if !a.Time.Equal(b.Time) || a.Stream != b.Stream || !bytes.Equal(a.Data, b.Data) || fmt.Sprint(a.Attrs) != fmt.Sprint(b.Attrs) {
			t.Errorf("%s\nfast    %+v %q\ngeneral %+v %q", text, a, a.Data, b, b.Data)
		}
		if at, ok := fast.stamp(text); ok && !at.Equal(a.Time) {
			t.Errorf("%s\nstamp %v, time %v", text, at, a.Time)
		}
	})
}

func BenchmarkRead(b *testing.B) {
	path := filepath.Join(b.TempDir(), "log")
	var content bytes.Buffer
	const lines = 200_000
	for n := range lines {
		text, _ := json.Marshal(fmt.Sprintf("GET /index.html 200 \x1b[32mok\x1b[0m %d \"agent\"\n", n))
		fmt.Fprintf(&content, `{"log":%s,"stream":"stdout","attrs":{"tag":"web"},"time":%q}`+"\n", text,
			epoch.Add(time.Duration(n)*time.Millisecond).Format(time.RFC3339Nano))
	}
	if err := os.WriteFile(path, content.Bytes(), 0o600); err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		name string
		o    ReadOptions
		want int
	}{
		{"all", all(), lines},
		{"since", ReadOptions{Stdout: true, Tail: -1, Since: epoch.Add((lines - 10) * time.Millisecond)}, 10},
		{"tail=10", ReadOptions{Stdout: true, Tail: 10}, 10},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for range b.N {
				r := open(b, path, 1, c.o)
				n := 0
				for {
					if _, err := r.Next(); err != nil {
						break
					}
					n++
				}
				r.Close()
				if n != c.want {
					b.Fatal(n)
				}
			}
			b.ReportMetric(lines*float64(b.N)/b.Elapsed().Seconds()/1e6, "Mlines/s")
			b.ReportMetric(float64(content.Len())*float64(b.N)/b.Elapsed().Seconds()/1e6, "MB/s")
		})
	}
}

// What the monitor writes, the fast decoder reads.
func TestReadsWhatMonitorsWrite(t *testing.T) {
	at := epoch.Add(123_456_700)
	var clock format.Clock
	clock.Set(at.Unix(), int32(at.Nanosecond()))
	d := decoder{details: true}
	for _, text := range []string{"", "plain\n", "tab\tquote\"back\\slash\r\n", "\x00\x01\x1b[0m\x7f", "é😀\u2028<&>", "bad \xff utf8\n"} {
		clock.Tick()
		at = at.Add(1)
		raw := format.Append(nil, []byte(text), "stdout", `{"a":"b"}`, &clock)
		var l Line
		if !d.fast(bytes.TrimSuffix(raw, []byte{'\n'}), &l) {
			t.Errorf("%q: %s not read on the fast path", text, raw)
			continue
		}
		if want := strings.ToValidUTF8(text, "\ufffd"); string(l.Data) != want || l.Stream != "stdout" || l.Attrs["a"] != "b" {
			t.Errorf("%q: read %+v %q", text, l, l.Data)
		}
		if !l.Time.Equal(at) && !l.Time.Equal(at.Add(-1)) { // whether the first tick counts is the clock's affair
			t.Errorf("%q: time %v, written at %v", text, l.Time, at)
		}
	}
}

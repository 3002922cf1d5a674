package format

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestAppendIsDockersForm(t *testing.T) {
	var c Clock
	at := time.Date(2026, 11, 21, 5, 48, 39, 55255302, time.UTC)
	c.Set(at.Unix(), int32(at.Nanosecond()))
	for _, tt := range []struct{ text, attrs, want string }{
		// What Docker writes for the same bytes.
		{"tail\t\001<>\177\u2028\xff", "", `{"log":"tail\u0009\u0001\u003c\u003e` + "\177" + `\u2028\ufffd","stream":"stdout","time":"2026-11-21T05:48:39.055255302Z"}`},
		{"a\"b\\c&\r\n", "", `{"log":"a\"b\\c\u0026\r\n","stream":"stdout","time":"2026-11-21T05:48:39.055255302Z"}`},
		{"\n", `{"tag":"x"}`, `{"log":"\n","stream":"stdout","attrs":{"tag":"x"},"time":"2026-11-21T05:48:39.055255302Z"}`},
		{"grün €😀\u2029\n", "", `{"log":"grün €😀\u2029\n","stream":"stdout","time":"2026-11-21T05:48:39.055255302Z"}`},
	} {
		if got := string(Append(nil, []byte(tt.text), "stdout", tt.attrs, &c)); got != tt.want+"\n" {
			t.Errorf("%q:\n got %s\nwant %s", tt.text, got, tt.want)
		}
	}
}

func TestClockMatchesTimePackage(t *testing.T) {
	var c Clock
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 20000 {
		sec := r.Int64N(4102444800*2) - 4102444800/2 // 1902 to 2164
		nsec := r.Int32N(1e9)
		switch i % 4 {
		case 0:
			nsec = 0
		case 1:
			nsec -= nsec % 1000000
		}
		c.Set(sec, nsec)
		want := time.Unix(sec, int64(nsec)).UTC().Format(time.RFC3339Nano)
		if got := string(c.append(nil)); got != want {
			t.Fatalf("%d.%09d: got %s, want %s", sec, nsec, got, want)
		}
	}
	c.Set(59, 999999999)
	if !c.Before(60, 0) || c.Before(59, 999999999) {
		t.Error("Before is wrong")
	}
	c.Tick()
	if got := string(c.append(nil)); got != "1970-01-01T00:01:00Z" || c.Seconds() != 60 {
		t.Errorf("after the tick: %s", got)
	}
}

// split runs data through a Splitter in pieces whose sizes next gives.
func split(data []byte, next func() int) (entries []string) {
	var s Splitter
	for len(data) > 0 {
		n := min(max(1, next()), len(data))
		piece := bytes.Clone(data[:n])
		data = data[n:]
		for {
			entry, left, ok := s.Next(piece)
			if !ok {
				break
			}
			entries = append(entries, string(entry))
			piece = left
		}
	}
	if r := s.Rest(); len(r) > 0 {
		entries = append(entries, string(r))
	}
	return entries
}

func TestSplit(t *testing.T) {
	long := strings.Repeat("b", 40000)
	for name, tt := range map[string]struct {
		in   string
		want []int
	}{
		"lines":              {"a\nbc\n\nd", []int{2, 3, 1, 1}},
		"fits exactly":       {strings.Repeat("a", MaxText-1) + "\n", []int{MaxText}},
		"one byte too long":  {strings.Repeat("a", MaxText) + "\nx\n", []int{MaxText, 1, 2}},
		"long":               {long + "x\n", []int{MaxText, MaxText, 40000 + 2 - 2*MaxText}},
		"rune over the cut":  {strings.Repeat("a", MaxText-2) + "€\n", []int{MaxText - 2, 4}},
		"rune up to the cut": {strings.Repeat("a", MaxText-3) + "€\n", []int{MaxText, 1}},
		"not a rune":         {strings.Repeat("\x80", MaxText+1) + "\n", []int{MaxText, 2}},
		"empty":              {"", nil},
	} {
		for _, step := range []int{1, 7, 1000, MaxText - 1, MaxText, 1 << 20} {
			got := split([]byte(tt.in), func() int { return step })
			var lens []int
			for _, e := range got {
				lens = append(lens, len(e))
			}
			if len(lens) != len(tt.want) {
				t.Errorf("%s in steps of %d: %v, want %v", name, step, lens, tt.want)
				continue
			}
			for i := range lens {
				if lens[i] != tt.want[i] {
					t.Errorf("%s in steps of %d: %v, want %v", name, step, lens, tt.want)
					break
				}
			}
			if strings.Join(got, "") != tt.in {
				t.Errorf("%s in steps of %d: text changed", name, step)
			}
		}
	}
}

// FuzzLog: whatever a container writes, in whatever pieces, encoding/json reads
// the same text back (invalid UTF-8 as the replacement character).
func FuzzLog(f *testing.F) {
	f.Add([]byte("a\nb\xff\u2028<&>\"\\\x00\x7f\n"), uint16(3))
	f.Add(bytes.Repeat([]byte("€"), 9000), uint16(1))
	f.Fuzz(func(t *testing.T, data []byte, step uint16) {
		var clock Clock
		var got strings.Builder
		for _, e := range split(data, func() int { return int(step) }) {
			clock.Tick()
			line := Append(nil, []byte(e), "stderr", `{"k":"v"}`, &clock)
			if len(line) > Bound(len(e), len(`{"k":"v"}`)) {
				t.Fatalf("line of %d bytes for %d of text", len(line), len(e))
			}
			if bytes.IndexByte(line, '\n') != len(line)-1 {
				t.Fatalf("%q is not one line", line)
			}
			var rec struct {
				Log, Stream string
				Attrs       map[string]string
				Time        time.Time
			}
			if err := json.Unmarshal(line, &rec); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			if rec.Stream != "stderr" || rec.Attrs["k"] != "v" || !rec.Time.Equal(time.Unix(clock.sec, int64(clock.nsec))) {
				t.Fatalf("%+v", rec)
			}
			if want, _ := json.Marshal(e); !utf8.ValidString(e) {
				var s string
				if err := json.Unmarshal(want, &s); err != nil || s != rec.Log {
					t.Fatalf("%q reads back as %q", e, rec.Log)
				}
			} else if rec.Log != e {
				t.Fatalf("%q reads back as %q", e, rec.Log)
			}
			got.WriteString(rec.Log)
		}
		if utf8.Valid(data) && got.String() != string(data) {
			t.Fatalf("valid text changed on its way")
		}
	})
}

func TestNoAllocation(t *testing.T) {
	var s Splitter
	var c Clock
	data := []byte(strings.Repeat("an ordinary line of a log, with \"quotes\"\n", 1000) + "and a beginning")
	dst := make([]byte, 0, 1<<20)
	n := testing.AllocsPerRun(50, func() {
		dst = dst[:0]
		for left := data; ; {
			e, l, ok := s.Next(left)
			if !ok {
				break
			}
			c.Tick()
			dst, left = Append(dst, e, "stdout", "", &c), l
		}
	})
	if n != 0 {
		t.Errorf("%v allocations for 1000 lines", n)
	}
}

func BenchmarkLines(b *testing.B) {
	var s Splitter
	var c Clock
	data := []byte(strings.Repeat("127.0.0.1 - - [21/Nov/2026:05:48:39 +0000] \"GET / HTTP/1.1\" 200 612\n", 900))
	dst := make([]byte, 0, 1<<20)
	b.SetBytes(int64(len(data)))
	lines := 0
	for b.Loop() {
		dst = dst[:0]
		for left := data; ; {
			e, l, ok := s.Next(left)
			if !ok {
				break
			}
			c.Tick()
			dst, left = Append(dst, e, "stdout", "", &c), l
			lines++
		}
	}
	b.ReportMetric(float64(lines)/b.Elapsed().Seconds(), "lines/s")
}

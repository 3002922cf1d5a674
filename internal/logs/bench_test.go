package logs

import (
	"bufio"
	"os"
	"path/filepath"
	"testing"
	"time"

	"escale.dev/escale/internal/logs/format"
)

// BenchmarkGigabyte opens a log of a gigabyte in one file and reads the few lines that
// are wanted of it; the last reads everything.
func BenchmarkGigabyte(b *testing.B) {
	path := filepath.Join(b.TempDir(), "log")
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	out := bufio.NewWriterSize(f, 1<<20)
	var clock format.Clock
	clock.Set(epoch.Unix(), 0)
	text := []byte("127.0.0.1 - - [21/Nov/2026:05:48:39 +0000] \"GET /index.html HTTP/1.1\" 200 612\n")
	var raw []byte
	lines := 0
	for size := 0; size < 1<<30; lines++ {
		if lines%100 == 0 {
			clock.Set(epoch.Unix()+int64(lines/1000), int32(lines%1000)*1_000_000)
		}
		clock.Tick()
		raw = format.Append(raw[:0], text, "stdout", "", &clock)
		size += len(raw)
		if _, err := out.Write(raw); err != nil {
			b.Fatal(err)
		}
	}
	if err := out.Flush(); err != nil {
		b.Fatal(err)
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
	at := func(share float64) time.Time {
		return epoch.Add(time.Duration(share * float64(lines) * float64(time.Millisecond)))
	}
	for _, c := range []struct {
		name string
		o    ReadOptions
		n    int // lines read; 0: all
	}{
		{"tail=10", ReadOptions{Stdout: true, Tail: 10}, 10},
		{"since=middle", ReadOptions{Stdout: true, Tail: -1, Since: at(0.5)}, 10},
		{"since+until", ReadOptions{Stdout: true, Tail: -1, Since: at(0.7), Until: at(0.7001)}, 100},
		{"until+tail=10", ReadOptions{Stdout: true, Tail: 10, Until: at(0.3)}, 10},
		{"follow+tail=0", ReadOptions{Stdout: true, Follow: true}, -1},
		{"follow+since", ReadOptions{Stdout: true, Tail: -1, Follow: true, Since: at(0.9)}, 10},
		{"all", ReadOptions{Stdout: true, Tail: -1}, 0},
	} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				r, err := Open(path, 5, c.o)
				if err != nil {
					b.Fatal(err)
				}
				read := 0
				for c.n == 0 || read < c.n {
					if _, err := r.Next(); err != nil {
						break
					}
					read++
				}
				r.Close()
				if c.n > 0 && read != c.n || c.n == 0 && read != lines {
					b.Fatalf("%d lines", read)
				}
			}
		})
	}
}

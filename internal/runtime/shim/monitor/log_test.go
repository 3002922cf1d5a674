package monitor

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/logs/format"
)

// writer gives a log lines of which it knows the numbers.
type writer struct {
	t *testing.T
	*logFile
	n int
}

func newWriter(t *testing.T, path string, size int64, files int) *writer {
	t.Helper()
	l, err := openLog(path, "", size, files)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if l.fd >= 0 {
			l.close()
		}
	})
	return &writer{t: t, logFile: l}
}

func (w *writer) lines(n int) {
	var split format.Splitter
	for range n {
		w.write(&split, "stdout", []byte("line "+strconv.Itoa(w.n)+"\n"))
		w.n++
	}
}

// first is the number of the first line of a file, as it says itself, and as its text does.
func first(t *testing.T, path string) (said, is string) {
	t.Helper()
	var buf [24]byte
	if n, err := unix.Getxattr(path, format.LinesBefore, buf[:]); err == nil {
		said = string(buf[:n])
	} else if err == unix.ENOTSUP {
		t.Skip("this file system keeps no attributes")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, is, _ = strings.Cut(string(b), `{"log":"line `)
	is, _, _ = strings.Cut(is, `\n`)
	return said, is
}

// A monitor that was killed between any two steps of a rotation left a log in which the
// next one goes on counting.
func TestNumbersAfterAKill(t *testing.T) {
	for name, kill := range map[string]func(w *writer) error{
		"nothing is current":    func(w *writer) error { return os.Rename(w.path, w.numbered(1)) },
		"the next one was made": func(w *writer) error { return os.WriteFile(w.path+".next", nil, 0o640) },
		"it was made and not put in": func(w *writer) error {
			return errors.Join(os.Rename(w.path, w.numbered(1)), os.WriteFile(w.path+".next", []byte("garbage"), 0o640))
		},
		"the current one has no number": func(w *writer) error {
			return errors.Join(os.Rename(w.path, w.numbered(1)), os.WriteFile(w.path, nil, 0o640))
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "x-json.log")
			w := newWriter(t, path, 1000, 3)
			w.lines(100)
			w.close()
			if err := kill(w); err != nil {
				t.Fatal(err)
			}
			again := newWriter(t, path, 1000, 3)
			again.n = w.n
			for range 2 {
				again.lines(3)
				if said, is := first(t, path); said != is {
					t.Errorf("the file begins with line %s and says %q", is, said)
				}
				again.lines(30)
			}
		})
	}
}

// Without any number in .1, as an old monitor or a foreign file system left it, none is invented.
func TestNoNumberIsInvented(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x-json.log")
	if err := os.WriteFile(path+".1", []byte("{}\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	w := newWriter(t, path, 1000, 3)
	w.lines(1)
	if said, _ := first(t, path); said != "" {
		t.Errorf("the file says %q", said)
	}
}

// When no file can be made, the one in use goes on under its name, whatever it grows to, and
// rotations go on when that is over.
func TestRotationWithoutRoom(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts a file system without room for files")
	}
	for _, files := range []int{1, 2, 3} {
		t.Run(strconv.Itoa(files), func(t *testing.T) {
			dir := t.TempDir()
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m,nr_inodes=20"); err != nil {
				t.Skip("needs the right to mount: ", err)
			}
			t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
			path := filepath.Join(dir, "x-json.log")
			w := newWriter(t, path, 1000, files)
			w.lines(1)
			full := fillWithFiles(t, dir)
			w.lines(100)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal("the log has no name: ", err)
			}
			if n := strings.Count(string(b), "\n"); n != 101 {
				t.Errorf("the log has %d lines, want 101", n)
			}
			for _, name := range full {
				if err := os.Remove(name); err != nil {
					t.Fatal(err)
				}
			}
			w.lines(2)
			st, err := os.Stat(path)
			if err != nil || st.Size() > 1000 {
				t.Errorf("the log was not rotated: %v, %v", st, err)
			}
			if said, is := first(t, path); said != "" && said != is {
				t.Errorf("the file begins with line %s and says %q", is, said)
			}
			if w.lost != 0 {
				t.Errorf("%d lines lost", w.lost)
			}
		})
	}
}

// fillWithFiles makes files until there can be no more.
func fillWithFiles(t *testing.T, dir string) (names []string) {
	t.Helper()
	for i := 0; ; i++ {
		name := filepath.Join(dir, "filler"+strconv.Itoa(i))
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			return names
		}
		if names = append(names, name); i > 100 {
			t.Fatal("the file system does not get full")
		}
	}
}

// A power cut leaves the beginning of a line, which goes; one that lacks but its newline, which
// readers have shown, stays; zeros, where the size reached the disk and the text did not, go.
func TestTornLine(t *testing.T) {
	for name, c := range map[string]struct {
		torn string
		keep bool
	}{
		"half a text":         {`{"log":"li`, false},
		"all but the end":     {`{"log":"line 3\n","stream":"stdout","time":"2026-01-01T00:00:00Z`, false},
		"within attributes":   {`{"log":"line 3\n","stream":"stdout","attrs":{"k":"Z"}`, false},
		"all but a newline":   {`{"log":"line 3\n","stream":"stdout","time":"2026-01-01T00:00:00.000000001Z"}`, true},
		"zeros":               {strings.Repeat("\x00", 9000), false},
		"the text says so":    {`{"log":"\"time\":\"2026-01-01T00:00:00Z\"}`, false},
		"longer than a block": {`{"log":"` + strings.Repeat("x", 20000), false},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "x-json.log")
			w := newWriter(t, path, 0, 1)
			w.lines(3)
			w.close()
			before, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, append(before, c.torn...), 0o640); err != nil {
				t.Fatal(err)
			}
			newWriter(t, path, 0, 1)
			want := string(before)
			if c.keep {
				want += c.torn + "\n"
			}
			if after, err := os.ReadFile(path); err != nil || string(after) != want {
				t.Errorf("the log is %d bytes, want %d: %.200q, %v", len(after), len(want), after[min(len(before), len(after)):], err)
			}
		})
	}
}

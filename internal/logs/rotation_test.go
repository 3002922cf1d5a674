package logs

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/logs/format"
)

// stepWriter rotates in single steps, between which a test lets a reader look.
type stepWriter struct {
	*logWriter
	n int // lines written
}

func newStepWriter(t testing.TB, maxFiles int) *stepWriter {
	w := &stepWriter{logWriter: newWriter(t, maxFiles)}
	w.number()
	return w
}

// number notes how many lines are before the current file.
func (w *stepWriter) number() {
	w.t.Helper()
	if err := unix.Fsetxattr(int(w.f.Fd()), format.LinesBefore, []byte(strconv.Itoa(w.n)), 0); err != nil {
		w.t.Skip("this file system keeps no attributes: ", err)
	}
}

func (w *stepWriter) more(lines int) {
	w.lines(w.n, w.n+lines)
	w.n += lines
}

// moveAway is a rotation until the current file is to be made.
func (w *stepWriter) moveAway() {
	w.f.Close()
	if w.maxFiles == 1 {
		os.Remove(w.path)
	}
	for n := w.maxFiles - 1; n > 0; n-- {
		_ = os.Rename(w.name(n-1), w.name(n)) // it need not be there
	}
}

// next fills a file of ten lines after a whole rotation.
func (w *stepWriter) next() {
	w.moveAway()
	w.create()
	w.number()
	w.more(10)
}

// nextSeen is next, looked at while there is no current file.
func (w *stepWriter) nextSeen(f *follower) {
	w.moveAway()
	f.look()
	f.look()
	w.create()
	w.number()
	w.more(10)
}

// follower is a reader that is moved by hand, so that it looks just when it is told to.
type follower struct {
	t *testing.T
	*reader
	got []string
}

func follow(t *testing.T, w *stepWriter, o ReadOptions) *follower {
	o.Follow = true
	return &follower{t: t, reader: open(t, w.path, w.maxFiles, o).(*reader)}
}

// look reads on until there is nothing to do; true: the log has ended.
func (f *follower) look() bool {
	f.t.Helper()
	for range 100_000 {
		l, ok, idle, err := f.step()
		if err == io.EOF {
			return true
		} else if err != nil {
			f.t.Fatal(err)
		}
		if ok {
			f.got = append(f.got, strings.TrimSuffix(string(l.Data), "\n"))
		}
		if idle {
			return false
		}
	}
	f.t.Fatal("the reader turns in circles")
	return false
}

func (f *follower) end() {
	f.t.Helper()
	f.ending = true
	if !f.look() {
		f.t.Error("the log has not ended")
	}
}

func told(n int) []string {
	return []string{fmt.Sprintf("escale: %d log lines were rotated away before they were read", n)}
}

func joined(parts ...[]string) (out []string) {
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

// A follower that looks between any two steps of a writer misses nothing untold.
func TestLooksAmidRotation(t *testing.T) {
	for _, c := range []struct {
		name  string
		files int
		o     ReadOptions
		act   func(w *stepWriter, f *follower)
		want  []string
	}{
		{"outrun, seen while no file is current", 2, all(), func(w *stepWriter, f *follower) {
			for range 5 {
				w.next()
			}
			w.moveAway() // the file that was read is gone, and so is its name
			f.look()
			f.look()
			w.create()
			w.number()
			w.more(10)
		}, joined(numbers(0, 10), told(40), numbers(50, 70))},
		{"let go of before the next is made", 1, all(), func(w *stepWriter, f *follower) {
			w.nextSeen(f)
			w.next()
			w.next()
		}, joined(numbers(0, 10), told(20), numbers(30, 40))},
		{"let go of from the middle", 1, ReadOptions{Stdout: true, Stderr: true, Tail: 3}, func(w *stepWriter, f *follower) {
			w.nextSeen(f)
			w.next()
		}, joined(numbers(7, 10), told(10), numbers(20, 30))},
		{"the new file has no number yet", 1, all(), func(w *stepWriter, f *follower) {
			w.next()
			w.moveAway()
			w.create()
			f.look()
			w.number()
			f.look()
			w.more(10)
		}, joined(numbers(0, 10), told(10), numbers(20, 30))},
		{"a file that never has a number", 1, all(), func(w *stepWriter, f *follower) {
			w.next()
			w.moveAway()
			w.create()
			w.more(10)
			f.look()
			w.next()
		}, joined(numbers(0, 10), []string{"escale: more log lines may have been rotated away before they were read"}, numbers(20, 30), told(10), numbers(30, 40))},
		{"files opened and left behind", 3, all(), func(w *stepWriter, f *follower) {
			w.next()
			w.next()
			if more, err := f.successors(); !more || err != nil {
				f.t.Fatal(more, err)
			}
			for range 6 {
				w.next()
			}
		}, joined(numbers(0, 30), told(30), numbers(60, 90))},
		{"the monitor died amid a rotation", 4, all(), func(w *stepWriter, f *follower) {
			w.next()
			w.next()
			w.moveAway()
		}, numbers(0, 30)},
		{"the last file is empty", 1, all(), func(w *stepWriter, f *follower) {
			w.next()
			w.moveAway()
			w.create()
			w.number()
		}, joined(numbers(0, 10), told(10))},
		{"cut back by somebody", 2, all(), func(w *stepWriter, f *follower) {
			if err := os.Truncate(w.path, 0); err != nil {
				f.t.Fatal(err)
			}
			w.more(5)
			f.look()
			w.next()
		}, numbers(0, 25)},
		{"the clock was set back", 2, all(), func(w *stepWriter, f *follower) {
			for range 4 {
				w.next()
				old := unix.NsecToTimeval(epoch.UnixNano())
				if err := unix.Utimes(w.path, []unix.Timeval{old, old}); err != nil {
					f.t.Fatal(err)
				}
			}
		}, joined(numbers(0, 10), told(20), numbers(30, 50))},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newStepWriter(t, c.files)
			w.more(10)
			f := follow(t, w, c.o)
			f.look()
			c.act(w, f)
			f.end()
			same(t, "followed", f.got, c.want)
		})
	}
}

// A log that did not exist when it was opened begins with its first line.
func TestFollowFromBeforeTheFirstLine(t *testing.T) {
	w := newStepWriter(t, 2)
	os.Remove(w.path)
	f := follow(t, w, all())
	f.look()
	w.create()
	w.number()
	w.more(10)
	for range 3 {
		w.next()
	}
	f.end()
	same(t, "followed", f.got, joined(told(20), numbers(20, 40)))
}

// Rotations before each file that is opened: at the beginning and later nothing is
// missed untold.
func TestRotationsBetweenOpens(t *testing.T) {
	for _, often := range []int{1, 2, 3, 7} {
		t.Run(fmt.Sprint(often), func(t *testing.T) {
			w := newStepWriter(t, 4)
			w.more(10)
			for range 6 {
				w.next()
			}
			opens := 0
			f := follow(t, w, all())
			f.openFile = func(path string, zipped bool) (*logFile, error) {
				for range often {
					if opens < 400 {
						w.next()
					}
				}
				opens++
				return openLog(path, zipped)
			}
			first := 30
			f.look()
			for range 3 {
				w.next()
				f.look()
			}
			f.end()
			next := first
			for _, text := range f.got {
				var n int
				if _, err := fmt.Sscanf(text, "escale: %d log lines", &n); err == nil {
					next += n
				} else if text != "line "+strconv.Itoa(next) {
					t.Fatalf("%q, want line %d", text, next)
				} else {
					next++
				}
			}
			if next != w.n {
				t.Errorf("%d lines read or told, of %d", next, w.n)
			}
		})
	}
}

// A writer in a tight loop and followers that cannot keep up: what they read and what they
// are told make up the log.
func TestOutrunFollowersAreTold(t *testing.T) {
	for _, files := range []int{1, 2, 5} {
		t.Run(fmt.Sprint(files), func(t *testing.T) {
			w := newStepWriter(t, files)
			ended := make(chan struct{})
			done := make(chan error)
			for range 6 {
				o := all()
				o.Follow, o.Ended = true, ended
				r := open(t, w.path, files, o)
				go func() { done <- readAll(r, 10_000) }()
			}
			for range 1000 {
				w.next()
			}
			close(ended)
			for range 6 {
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func readAll(r Reader, lines int) error {
	next := 0
	for {
		l, err := r.Next()
		if err == io.EOF {
			break
		} else if err != nil {
			return err
		}
		var n int
		if _, err := fmt.Sscanf(string(l.Data), "escale: %d log lines", &n); err == nil {
			next += n
		} else if string(l.Data) != fmt.Sprintf("line %d\n", next) {
			return fmt.Errorf("%q, want line %d", l.Data, next)
		} else {
			next++
		}
	}
	if next != lines {
		return fmt.Errorf("%d lines read or told, of %d", next, lines)
	}
	return nil
}

// Follow counts from the place it was given, whatever is there when it opens the log.
func TestFollowFromAPlaceThatIsGone(t *testing.T) {
	for _, empty := range []bool{false, true} {
		t.Run(fmt.Sprintf("no file %v", empty), func(t *testing.T) {
			w := newStepWriter(t, 1)
			w.more(10)
			w.next()
			w.next()
			if empty {
				w.moveAway()
			}
			ended := make(chan struct{})
			close(ended)
			from := Position{Head: epoch.UnixNano(), Offset: 1, Lines: 4}
			f, err := Follow(w.path, 1, from, ended)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			want := Gap{From: 4, To: 20}
			if empty {
				w.create()
				w.number()
				w.more(10)
				want.To = 30
			}
			l, err := f.Next()
			if err != nil || string(l.Data) != fmt.Sprintf("line %d\n", want.To) {
				t.Fatalf("%q, %v", l.Data, err)
			}
			if got := f.Gap(); got != want {
				t.Errorf("missed %+v, want %+v", got, want)
			}
			if got := f.Position().Number(); got != want.To+1 {
				t.Errorf("behind the line is %d", got)
			}
		})
	}
}

// A reader that holds the log of what is being removed misses nothing of what was there,
// and counts what was not.
func TestHeldLogIsReadToItsEnd(t *testing.T) {
	for _, c := range []struct {
		files, rotations int
		want             []string
	}{
		{1, 0, numbers(0, 10)},
		{1, 3, joined(numbers(0, 10), told(20), numbers(30, 40))},
		{5, 3, numbers(0, 40)},
		{3, 6, joined(numbers(0, 10), told(30), numbers(40, 70))},
	} {
		t.Run(fmt.Sprintf("%d files, rotated %d times", c.files, c.rotations), func(t *testing.T) {
			w := newStepWriter(t, c.files)
			w.more(10)
			f := follow(t, w, all())
			for range c.rotations {
				w.next()
			}
			if err := f.Hold(); err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(filepath.Dir(w.path)); err != nil {
				t.Fatal(err)
			}
			f.end()
			same(t, "followed", f.got, c.want)
		})
	}
}

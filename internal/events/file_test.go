package events

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func history(t testing.TB, path string, size int) []string {
	t.Helper()
	j := New(Config{Path: path, Size: size})
	defer j.Close()
	s := subscribe(t, j, Subscription{Until: time.Now()})
	return read(t, s)
}

func TestRestartKeepsTheNewest(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events")
	for run := range 5 { // 50 messages over 5 lives of the engine, 20 of them kept
		j := New(Config{Path: path, Size: 20})
		for i := range 10 {
			j.Publish(msg(run*10 + i))
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
		got := history(t, path, 20)
		want := min((run+1)*10, 20)
		if len(got) != want || got[len(got)-1] != strconv.Itoa(run*10+9) || got[0] != strconv.Itoa((run+1)*10-want) {
			t.Fatalf("run %d: %q", run, got)
		}
	}
}

func TestFileIsBounded(t *testing.T) {
	dir := t.TempDir()
	j := New(Config{Path: filepath.Join(dir, "events"), Size: 10})
	for i := range 1000 {
		j.Publish(msg(i))
	}
	j.Close()
	lines := 0
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		content, _ := os.ReadFile(filepath.Join(dir, e.Name()))
		lines += bytes.Count(content, []byte("\n"))
	}
	if len(entries) != 2 || lines > 20 {
		t.Errorf("%d files, %d lines", len(entries), lines)
	}
}

// Half a line, as a power cut leaves it, costs that line alone.
func TestTornLineAndGarbage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events")
	j := New(Config{Path: path})
	j.Publish(msg(1))
	j.Close()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(f, "\x00\x00\x00\nnull\n{}\n[1,2]\n%s\n{\"Type\":\"contai", strings.Repeat("x", 3<<20))
	f.Close()
	j = New(Config{Path: path})
	j.Publish(msg(2))
	j.Close()
	if got := fmt.Sprint(history(t, path, 0)); got != "[1 2]" {
		t.Errorf("kept %s", got)
	}
}

// A file that cannot be written costs the durability, not the event.
func TestUnwritableFile(t *testing.T) {
	j := New(Config{Path: filepath.Join(t.TempDir(), "missing", "events")})
	defer j.Close()
	s := subscribe(t, j, Subscription{})
	j.Publish(msg(1))
	if m, err := s.Next(t.Context()); err != nil || m.Actor.ID != "1" {
		t.Errorf("%v %v", m, err)
	}
}

// kill -9 of the publisher: what it had published is there, in order, without a gap.
func TestKilledPublisher(t *testing.T) {
	if path := os.Getenv("EVENTS_PUBLISHER"); path != "" {
		j := New(Config{Path: path, Size: 500})
		for i := 0; ; i++ {
			j.Publish(msg(i))
			fmt.Println(i)
		}
	}
	for round := range 5 {
		path := filepath.Join(t.TempDir(), "events")
		var out bytes.Buffer
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledPublisher$")
		cmd.Env = append(os.Environ(), "EVENTS_PUBLISHER="+path)
		cmd.Stdout = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(50+30*round) * time.Millisecond)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		told := strings.Split(strings.TrimSpace(out.String()), "\n")
		got := history(t, path, 500)
		if len(got) < min(500, len(told)-1) {
			t.Fatalf("round %d: %d published, %d kept", round, len(told), len(got))
		}
		for i := 1; i < len(got); i++ {
			a, _ := strconv.Atoi(got[i-1])
			if b, _ := strconv.Atoi(got[i]); b != a+1 {
				t.Fatalf("round %d: %d after %d", round, b, a)
			}
		}
		last, _ := strconv.Atoi(told[max(0, len(told)-2)]) // the last line may be half a number
		if newest, _ := strconv.Atoi(got[len(got)-1]); newest < last {
			t.Fatalf("round %d: published up to %d, kept up to %d", round, last, newest)
		}
		t.Logf("round %d: %s published, %d kept", round, told[max(0, len(told)-2)], len(got))
	}
}

func FuzzDecode(f *testing.F) {
	good, _ := json.Marshal(Message{Type: "container", Action: "die", TimeNano: 5})
	f.Add(append(good, '\n'))
	f.Add([]byte("{\"Type\":\"x\"}\n\n\x00{"))
	f.Add(bytes.Repeat([]byte("["), 100_000))
	f.Fuzz(func(t *testing.T, garbage []byte) {
		path := filepath.Join(t.TempDir(), "events")
		if err := os.WriteFile(path, garbage, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, id := range []int{1, 2} {
			j := New(Config{Path: path, Size: 8})
			j.Publish(msg(id))
			j.Close()
		}
		j := New(Config{Path: path, Size: 8})
		defer j.Close()
		j.pub.Lock()
		j.load()
		j.pub.Unlock()
		n := len(j.ring)
		if n < 2 || n > 8 {
			t.Fatalf("%d messages kept", n)
		}
		for i, want := range []string{"1", "2"} {
			if m := j.ring[(j.next-2+uint64(i))%8]; m.Actor.ID != want {
				t.Fatalf("message %q after garbage, want %q", m.Actor.ID, want)
			}
		}
		for _, m := range j.ring {
			if m.Type == "" || m.TimeNano <= 0 {
				t.Fatalf("kept %+v", m)
			}
		}
	})
}

// A disk that is full for a while makes no gap in what a later engine reads, and the
// half of a line that it left costs nothing.
func TestFullDiskMakesNoGap(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts a small tmpfs")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skip("needs a mount: ", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	path := filepath.Join(dir, "events")
	j := New(Config{Path: path, Size: 500})
	for i := range 100 {
		j.Publish(msg(i))
	}
	filler := filepath.Join(dir, "filler")
	_ = os.WriteFile(filler, make([]byte, 64<<10), 0o600) // as much as there is room for
	for i := range 150 {
		j.Publish(msg(100 + i))
	}
	kept, _ := os.ReadFile(path)
	if bytes.Count(kept, []byte("\n")) >= 250 {
		t.Fatal("the disk was not full")
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	j.Publish(msg(250))
	j.Close()
	got := history(t, path, 500)
	if len(got) != 251 {
		t.Fatalf("%d events kept, want 251", len(got))
	}
	for i, id := range got {
		if id != strconv.Itoa(i) {
			t.Fatalf("event %d is %s", i, id)
		}
	}
}

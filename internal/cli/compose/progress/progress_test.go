package progress

import (
	"strings"
	"testing"
)

func TestBoard(t *testing.T) {
	for _, c := range []struct {
		mode       Mode
		note, want string
	}{
		{Plain, "", " a  Starting\n b  Waiting\n a  Started\n"},
		{Auto, "", " a  Starting\n b  Waiting\n a  Started\n"}, // it is no terminal
		{Plain, " DRY-RUN MODE - ", " DRY-RUN MODE -  a  Starting\n DRY-RUN MODE -  b  Waiting\n DRY-RUN MODE -  a  Started\n"},
		{Quiet, "", ""},
		{JSON, "", `{"id":"a","status":"Working","text":"Starting"}
{"id":"b","status":"Working","text":"Waiting"}
{"id":"a","status":"Done","text":"Started"}
`},
	} {
		var out strings.Builder
		b := New(&out, c.mode, false, c.note, "Running")
		b.Set("a", Working, "Starting")
		b.Set("b", Working, "Waiting")
		b.Set("b", Working, "Waiting") // nothing new
		b.Set("a", Done, "Started")
		b.Close()
		b.Close()
		if out.String() != c.want {
			t.Errorf("%s: %q, want %q", c.mode, out.String(), c.want)
		}
	}
}

// On a terminal each thing has its line, which is drawn over; what is under way goes
// before what is done when there is no room for all.
func TestBoardOnATerminal(t *testing.T) {
	var out strings.Builder
	b := New(&out, TTY, false, "", "Running")
	for _, id := range strings.Fields("a b c d") {
		b.Set(id, Working, "Starting")
	}
	b.Set("b", Done, "Started")
	b.Set("c", Failed, "Error")
	b.Close()
	last := out.String()
	last = last[strings.LastIndex(last, "[+]"):]
	lines := strings.Split(strings.TrimSpace(last), "\n")
	if len(lines) != 5 || lines[0] != "[+] Running 2/4" || !strings.Contains(lines[2], " ✔ b  Started") || !strings.Contains(lines[3], " ✘ c  Error") {
		t.Errorf("%q", lines)
	}
	if n := strings.Count(out.String(), "\x1b[5A"); strings.Count(out.String(), "[+]") != n+1 {
		t.Errorf("drawn %d times, over what was there %d times", strings.Count(out.String(), "[+]"), n)
	}
	if got := strings.Join(b.shown(3), " "); got != "a d b" {
		t.Errorf("in three lines: %s", got)
	}
}

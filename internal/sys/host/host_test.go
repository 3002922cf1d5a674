package host

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"testing"
)

func TestRead(t *testing.T) {
	f, err := Read()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("uname", "-r", "-m").Output()
	if err != nil {
		t.Skip("needs uname: ", err)
	}
	if got, want := f.Kernel+" "+f.Machine, strings.TrimSpace(string(out)); got != want {
		t.Errorf("kernel %q, uname says %q", got, want)
	}
	if len(f.BootID) != 36 || f.CPUs < 1 || f.Memory < 1<<20 || f.OperatingSystem == "" || f.Hostname == "" {
		t.Errorf("facts are incomplete: %+v", f)
	}
}

func TestStartTime(t *testing.T) {
	own, err := StartTime(os.Getpid())
	if err != nil || own == 0 {
		t.Fatalf("own start time %d, %v", own, err)
	}
	child := exec.Command("sleep", "60")
	if err := child.Start(); err != nil {
		t.Skip("needs sleep: ", err)
	}
	then, err := StartTime(child.Process.Pid)
	_ = child.Process.Kill()
	_ = child.Wait()
	if err != nil || then < own {
		t.Errorf("child started at %d (%v), its parent at %d", then, err, own)
	}
	if _, err := StartTime(child.Process.Pid); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of an ended process: %v", err)
	}
}

func TestParseStat(t *testing.T) {
	const tail = " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20\n"
	for in, want := range map[string]uint64{
		"12 (sh)" + tail:              4711,
		"12 (a) S 1 (b c)) 9)" + tail: 4711,
	} {
		if got, err := parseStat([]byte(in)); err != nil || got != want {
			t.Errorf("%q: %d, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "12 (sh)", "12 (sh) S 1 2", "12 (sh" + tail} {
		if got, err := parseStat([]byte(in)); err == nil {
			t.Errorf("%q: %d and no error", in, got)
		}
	}
}

func TestParseMeminfo(t *testing.T) {
	m, s, err := parseMeminfo([]byte("MemTotal:       1024 kB\nMemFree: 7 kB\nSwapTotal:  2 kB\n"))
	if err != nil || m != 1<<20 || s != 2048 {
		t.Errorf("%d %d %v", m, s, err)
	}
	for _, in := range []string{"", "MemTotal: x kB\n", "MemTotal: -1 kB\n", "MemTotal: 99999999999999999999 kB\n"} {
		if _, _, err := parseMeminfo([]byte(in)); err == nil {
			t.Errorf("%q: no error", in)
		}
	}
}

func TestParseOSRelease(t *testing.T) {
	const in = "# c\nNAME=x\nPRETTY_NAME=\"A \\\"B\\\" \\$1\"\nVERSION_ID='12'\nJUNK\n"
	if n, v := parseOSRelease(strings.NewReader(in)); n != `A "B" $1` || v != "12" {
		t.Errorf("%q %q", n, v)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("12 (sh) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20\n"))
	f.Add([]byte("MemTotal:       1024 kB\nSwapTotal:  2 kB\n"))
	f.Add([]byte("PRETTY_NAME=\"A\\"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = parseStat(b)
		if m, s, err := parseMeminfo(b); err == nil && (m <= 0 || s < 0 && !strings.Contains(string(b), "-")) {
			t.Errorf("memory %d, swap %d", m, s)
		}
		_, _ = parseOSRelease(strings.NewReader(string(b)))
	})
}

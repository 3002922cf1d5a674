package native

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// waiting is a runtime that was started ahead, and the socket at which it waits.
type waiting struct {
	t      *testing.T
	cmd    *exec.Cmd
	socket int
	own    bytes.Buffer // what it said before it had other streams
}

func newWaiting(t *testing.T) *waiting {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "socket")
	defer theirs.Close()
	w := &waiting{t: t, socket: pair[0], cmd: exec.Command("/proc/self/exe", aheadArg+strings.Repeat(" ", 100))}
	w.cmd.Env, w.cmd.ExtraFiles = append(os.Environ(), asRuntime+"=1"), []*os.File{theirs}
	w.cmd.Stdout, w.cmd.Stderr = &w.own, &w.own
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *waiting) tell(text string, fds ...int) {
	w.t.Helper()
	if err := unix.Sendmsg(w.socket, []byte(text), unix.UnixRights(fds...), nil, 0); err != nil {
		w.t.Fatal(err)
	}
}

// status closes the socket and is the exit status, for which it blocks.
func (w *waiting) status() int {
	_ = unix.Close(w.socket)
	var exit *exec.ExitError
	if err := w.cmd.Wait(); err != nil && !errors.As(err, &exit) {
		w.t.Error(err)
	}
	return w.cmd.ProcessState.ExitCode()
}

func TestAhead(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mkfifo(filepath.Join(dir, "its.log"), 0o600); err != nil {
		t.Fatal(err)
	}
	w := newWaiting(t)
	r, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	w.tell(strings.Join([]string{dir, "--root", "states", "--log", "its.log", "state", "nobody"}, "\x00"), int(null.Fd()), int(out.Fd()), int(out.Fd()))
	out.Close()
	// It stops where it is to write its log; till then it shows what it does.
	words := "/proc/self/exe\x00--root\x00states\x00--log\x00its.log\x00state\x00nobody\x00"
	line, end := []byte(nil), time.Now().Add(10*time.Second)
	for ; !strings.HasPrefix(string(line), words) && time.Now().Before(end); time.Sleep(time.Millisecond) {
		line, _ = os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", w.cmd.Process.Pid))
	}
	if strings.TrimRight(string(line), "\x00")+"\x00" != words {
		t.Errorf("it shows %q", line)
	}
	log := make(chan string)
	go func() {
		text, err := os.ReadFile(filepath.Join(dir, "its.log"))
		if err != nil {
			t.Error(err)
		}
		log <- string(text)
	}()
	said, err := io.ReadAll(r) // ends when it has ended: nobody else has the other end
	if s := w.status(); err != nil || s != 1 || !strings.Contains(string(said), "does not exist") {
		t.Errorf("status %d, %q, %v", s, said, err)
	}
	if text := <-log; !strings.Contains(text, "does not exist") {
		t.Errorf("its log in the directory it was told: %q", text)
	}
	if w.own.Len() > 0 {
		t.Errorf("the first streams got %q", w.own.String())
	}
}

// Told nothing it ends without a word, and told something else with one.
func TestAheadRefuses(t *testing.T) {
	if w := newWaiting(t); w.status() != 0 || w.own.Len() > 0 {
		t.Errorf("told nothing: %q", w.own.String())
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	fd := int(null.Fd())
	for name, tell := range map[string]func(w *waiting){
		"nothing":            func(w *waiting) { w.tell("/", fd, fd, fd) },
		"no streams":         func(w *waiting) { w.tell("/\x00list") },
		"two streams":        func(w *waiting) { w.tell("/\x00list", fd, fd) },
		"four streams":       func(w *waiting) { w.tell("/\x00list", fd, fd, fd, fd) },
		"a long message":     func(w *waiting) { w.tell("/\x00"+strings.Repeat("x", aheadSize), fd, fd, fd) },
		"a directory of air": func(w *waiting) { w.tell("/nowhere/at/all\x00list", fd, fd, fd) },
	} {
		w := newWaiting(t)
		tell(w)
		if s := w.status(); s != 1 {
			t.Errorf("%s: status %d, %q", name, s, w.own.String())
		}
	}
}

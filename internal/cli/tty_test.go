package cli_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// session is escale on a terminal.
type session struct {
	t      *testing.T
	cmd    *exec.Cmd
	master *os.File
	slave  *os.File
	before *unix.Termios
	mu     sync.Mutex
	screen bytes.Buffer
}

// onTerminal starts escale on a terminal of 24 rows and 80 columns against f.
func onTerminal(t *testing.T, f *fakeEngine, home string, args ...string) *session {
	t.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		t.Skipf("needs pseudo-terminals: %v", err)
	}
	if err := pty.Setsize(master, &pty.Winsize{Rows: 24, Cols: 80}); err != nil {
		t.Fatal(err)
	}
	s := &session{t: t, master: master, slave: slave, cmd: exec.Command("escale", args...)}
	s.before = s.termios()
	s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = slave, slave, slave
	s.cmd.Env = append(os.Environ(), "DOCKER_HOST="+f.host, "ESCALE_HOST=", "HOME="+home, "DOCKER_CONFIG="+home)
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := master.Read(b)
			s.mu.Lock()
			s.screen.Write(b[:n])
			s.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		if s.cmd.ProcessState == nil {
			s.cmd.Process.Kill()
			s.cmd.Wait()
		}
		master.Close()
		slave.Close()
	})
	return s
}

func (s *session) termios() *unix.Termios {
	s.t.Helper()
	tio, err := unix.IoctlGetTermios(int(s.slave.Fd()), unix.TCGETS)
	if err != nil {
		s.t.Fatal(err)
	}
	return tio
}

func (s *session) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.screen.String()
}

// see waits for a text on the screen.
func (s *session) see(want string) {
	s.t.Helper()
	for range 500 {
		if strings.Contains(s.text(), want) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	s.t.Fatalf("no %q on the screen:\n%s", want, s.text())
}

func (s *session) keys(k string) {
	s.t.Helper()
	if _, err := s.master.WriteString(k); err != nil {
		s.t.Fatal(err)
	}
}

// end waits for the exit and checks that the terminal is as it was.
func (s *session) end(code int) {
	s.t.Helper()
	done := make(chan error, 1)
	go func() { done <- s.cmd.Wait() }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		s.t.Fatalf("it does not end; screen:\n%s", s.text())
	}
	if got := s.cmd.ProcessState.ExitCode(); got != code {
		s.t.Errorf("exit code %d, want %d; screen:\n%s", got, code, s.text())
	}
	if after := s.termios(); *after != *s.before {
		s.t.Errorf("the terminal is left changed: %+v, was %+v", after, s.before)
	}
}

func TestRunOnTerminal(t *testing.T) {
	f := startFake(t, "")
	s := onTerminal(t, f, t.TempDir(), "run", "-it", "--rm", "debian", "terminal")
	s.see("ready")
	s.see("size 24x80") // at once, not at the first change
	s.keys("\x03")      // Ctrl-C is a key like any other
	s.see("key 3")
	s.keys("\x10x") // the first of the detach keys, but not the second
	s.see("key 16")
	s.see("key 120")
	if err := pty.Setsize(s.master, &pty.Winsize{Rows: 30, Cols: 100}); err != nil {
		t.Fatal(err)
	}
	s.see("size 30x100")
	s.keys("q")
	s.end(5)
	if !f.noted("create") || f.noted2("kill") {
		t.Errorf("requests: %v", f.requests)
	}
}

// noted2 looks once.
func (f *fakeEngine) noted2(word string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.requests {
		if strings.Contains(r, word) {
			return true
		}
	}
	return false
}

func TestDetachKeys(t *testing.T) {
	for _, c := range []struct {
		name, config, flag, keys string
	}{
		{"default", "", "", "\x10\x11"},
		{"of the configuration", `{"detachKeys":"ctrl-a,d"}`, "", "\x01d"},
		{"of the flag", `{"detachKeys":"ctrl-a,d"}`, "ctrl-@,ctrl-[", "\x00\x1b"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, home := startFake(t, ""), t.TempDir()
			if c.config != "" {
				if err := os.WriteFile(filepath.Join(home, "config.json"), []byte(c.config), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			args := []string{"run", "-it", "--name", "d"}
			if c.flag != "" {
				args = append(args, "--detach-keys", c.flag)
			}
			s := onTerminal(t, f, home, append(args, "debian", "terminal")...)
			s.see("ready")
			s.keys(c.keys)
			s.end(0)
			f.mu.Lock()
			state := f.find("d").state
			f.mu.Unlock()
			if state != "running" {
				t.Errorf("the container is %s", state)
			}
			s = onTerminal(t, f, home, "attach", "d")
			s.see("size 25x81") // one more, to make programs draw themselves
			s.see("size 24x80")
			s.keys("q")
			s.end(5)
		})
	}
}

func TestExecOnTerminal(t *testing.T) {
	f, home := startFake(t, ""), t.TempDir()
	if err := exec.Command("escale", "-H", f.host, "run", "-d", "--name", "c", "debian", "sleep").Run(); err != nil {
		t.Fatal(err)
	}
	s := onTerminal(t, f, home, "exec", "-it", "c", "terminal")
	s.see("size 24x80")
	s.keys("\x10\x11")
	s.see("read escape sequence")
	s.end(1)
	s = onTerminal(t, f, home, "exec", "-it", "c", "terminal")
	s.see("ready")
	s.keys("q")
	s.end(5)
}

func TestSignalsReachTheContainer(t *testing.T) {
	f := startFake(t, "")
	s := onTerminal(t, f, t.TempDir(), "run", "-it", "debian", "terminal")
	s.see("ready")
	if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	s.see("got HUP")
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.end(7)

	// Without a terminal in the container Ctrl-C is a signal.
	s = onTerminal(t, f, t.TempDir(), "run", "--rm", "debian", "signals")
	s.see("ready")
	s.keys("\x03")
	s.see("got INT")
	s.keys("\x03")
	s.keys("\x1c")
	s.see("got QUIT")
	if err := pty.Setsize(s.master, &pty.Winsize{Rows: 30, Cols: 100}); err != nil {
		t.Fatal(err)
	}
	s.cmd.Process.Signal(syscall.SIGTERM)
	s.see("got TERM")
	s.end(7)
	if strings.Contains(s.text(), "WINCH") {
		t.Error("a change of the window is no signal for the container")
	}
}

func TestSigProxyOff(t *testing.T) {
	f := startFake(t, "")
	s := onTerminal(t, f, t.TempDir(), "run", "--name", "n", "--sig-proxy=false", "-it", "debian", "terminal")
	s.see("ready")
	s.cmd.Process.Signal(syscall.SIGTERM)
	s.end(143) // and the terminal is restored
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.find("n").state != "running" {
		t.Error("the container should go on")
	}
}

func TestInterruptedVerbs(t *testing.T) {
	f := startFake(t, "")
	if err := exec.Command("escale", "-H", f.host, "run", "-d", "--name", "c", "debian", "sleep").Run(); err != nil {
		t.Fatal(err)
	}
	s := onTerminal(t, f, t.TempDir(), "wait", "c")
	if !f.noted("/containers/c/wait") {
		t.Fatal("no wait")
	}
	s.keys("\x03")
	s.end(130)
	s = onTerminal(t, f, t.TempDir(), "container", "prune")
	s.see("[y/N]")
	s.keys("\x03")
	s.end(130)
	s = onTerminal(t, f, t.TempDir(), "container", "prune")
	s.see("[y/N]")
	s.keys("\x04") // no answer: a no, and the next prompt gets a line of its own
	s.see("[y/N] \r\n")
	s.end(0)
	if f.noted2("prune") {
		t.Error("pruned")
	}
}

func TestFailedStartRestoresTerminal(t *testing.T) {
	f := startFake(t, "")
	s := onTerminal(t, f, t.TempDir(), "run", "-it", "--rm", "debian", "nosuch")
	s.end(127)
	s.see("executable file not found")
}

func TestImagesOnTerminal(t *testing.T) {
	f, home := startFake(t, ""), t.TempDir()
	s := onTerminal(t, f, home, "save", "debian")
	s.see("cowardly refusing to save to a terminal. Use the -o flag or redirect")
	s.end(1)
	s = onTerminal(t, f, home, "load")
	s.see("requested load from stdin, but stdin is empty")
	s.end(1)
	archive := filepath.Join(home, "a.tar")
	if err := os.WriteFile(archive, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = onTerminal(t, f, home, "load", "-i", archive)
	s.see("Loading layer")
	s.see("Loaded image: debian:latest")
	s.end(0)
	s = onTerminal(t, f, home, "load", "-q", "-i", archive)
	s.see("Loaded image")
	s.end(0)
	if strings.Contains(s.text(), "Loading layer") {
		t.Error("-q is not quiet")
	}
}

// A slow transfer shows a bar and takes it away.
func TestProgressBar(t *testing.T) {
	f, home := startFake(t, ""), t.TempDir()
	fifo := filepath.Join(home, "slow")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	s := onTerminal(t, f, home, "import", fifo, "a:1")
	w, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 8 {
		w.WriteString(strings.Repeat("x", 1000))
		time.Sleep(100 * time.Millisecond)
	}
	s.see("Sending the archive")
	w.Close()
	s.see("sha256:8000 bytes")
	s.end(0)
	if !strings.Contains(s.text(), "\r\x1b[2Ksha256") {
		t.Errorf("the bar stays: %q", s.text())
	}
}

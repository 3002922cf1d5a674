package shim

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime"
	"escale.dev/escale/internal/sys/ready"
)

// preparedAhead is prepared for containers of our own runtime, with one monitor; pid is
// the runtime that waits beside it.
func preparedAhead(t *testing.T) (r *Runtime, pid int) {
	t.Helper()
	if whyNot != "" {
		t.Skip(whyNot)
	}
	if filepath.Base(runcPath) != "escale-runtime" {
		t.Skip("only our own runtime waits ahead")
	}
	r = New(Config{ShimPath: shimPath, Grace: 2 * time.Second})
	t.Cleanup(func() { r.Close() })
	r.last.Store(&runcPath)
	r.pool.Close()
	r.keep(ready.Config[*blank]{Size: 1, Delay: time.Millisecond, Rest: poolRest})
	r.pool.Take()
	return r, waits(t, kept(t, 1)[0])
}

// waits is the runtime that waits beside a monitor.
func waits(t *testing.T, monitor int) int {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		for _, pid := range children(monitor) {
			if line, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline")); err == nil && strings.Contains(string(line), "\x00ahead ") {
				return pid
			}
		}
	}
	t.Fatal("no runtime waits")
	return 0
}

// The runtime that waits is the one that makes the container: while it stands still, so does the start.
func TestRuntimeAhead(t *testing.T) {
	r, pid := preparedAhead(t)
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	b := newBox(t, "echo hello; pwd; echo oh >&2; exit 5", with(r))
	b.launchIt()
	started := make(chan struct{})
	go func() {
		defer close(started)
		b.start()
	}()
	select {
	case <-started:
		t.Error("another runtime was called")
	case <-time.After(200 * time.Millisecond):
	}
	if err := unix.Kill(pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	<-started
	if e := b.wait(""); e.Code != 5 {
		t.Errorf("exit %+v", e)
	}
	gone(t, pid)
	var said strings.Builder
	for _, e := range readLog(t, b.launch.Log.Path) {
		said.WriteString(e.Log)
	}
	if !strings.Contains(said.String(), "hello\n/\n") || !strings.Contains(said.String(), "oh\n") {
		t.Errorf("it said %q", said.String())
	}
}

// Whatever has become of the one that waits, the container starts.
func TestRuntimeAheadDies(t *testing.T) {
	r, pid := preparedAhead(t)
	b := newBox(t, "exit 3", with(r))
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	gone(t, pid)
	b.launchIt()
	b.start()
	if e := b.wait(""); e.Code != 3 {
		t.Errorf("exit %+v", e)
	}
}

// For another runtime, and for a terminal by a long path, it is not asked. It does not wait on
// while the container runs.
func TestAnotherThanAhead(t *testing.T) {
	r, pid := preparedAhead(t)
	other := filepath.Join(t.TempDir(), "escale-runtime")
	if err := os.Symlink(runcPath, other); err != nil {
		t.Fatal(err)
	}
	b := newBox(t, "read line; exit 4", with(r), withStdin, func(b *box) { b.launch.Runtime = runtime.Binary{Path: other} })
	b.launchIt()
	in := b.attach("", runtime.Attach{Stdin: true})
	b.start()
	gone(t, pid)
	if _, err := in.Write([]byte("go on\n")); err != nil {
		t.Fatal(err)
	}
	if e := b.wait(""); e.Code != 4 {
		t.Errorf("exit %+v", e)
	}
	if last := r.last.Load(); last == nil || *last != other {
		t.Error("what was launched last is not what is expected next")
	}
}

// A runtime that is no more the one on the disk makes no container.
func TestAheadIsExchanged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "escale-runtime")
	text, err := os.ReadFile(runcPath)
	if err == nil {
		err = os.WriteFile(path, text, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	r, first := preparedAhead(t)
	r.pool.Close()
	gone(t, first)
	r.last.Store(&path)
	r.keep(ready.Config[*blank]{Size: 1, Delay: time.Millisecond, Rest: poolRest})
	r.pool.Take()
	pid := waits(t, kept(t, 1)[0])
	if err := errors.Join(os.WriteFile(path+".new", text, 0o755), os.Rename(path+".new", path)); err != nil {
		t.Fatal(err)
	}
	b := newBox(t, "exit 8", with(r), func(b *box) { b.launch.Runtime = runtime.Binary{Path: path} })
	b.launchIt()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil { // a start by it would not end
		t.Fatal(err)
	}
	b.start()
	if err := unix.Kill(pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	gone(t, pid)
	if e := b.wait(""); e.Code != 8 {
		t.Errorf("exit %+v", e)
	}
}

// It ends with the monitor that nobody wants, and with one that is killed.
func TestAheadEndsWithTheMonitor(t *testing.T) {
	r, pid := preparedAhead(t)
	r.Close()
	gone(t, pid)
	_, pid = preparedAhead(t)
	if err := unix.Kill(kept(t, 1)[0], unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	gone(t, pid)
}

// A terminal reaches the runtime that waits, too.
func TestAheadWithTerminal(t *testing.T) {
	r, pid := preparedAhead(t)
	b := newBox(t, "stty size; exit 6", with(r), withTerminal)
	b.launchIt()
	b.start()
	if e := b.wait(""); e.Code != 6 {
		t.Errorf("exit %+v", e)
	}
	gone(t, pid)
	if log := readLog(t, b.launch.Log.Path); len(log) != 1 || log[0].Log != "24 80\r\n" {
		t.Errorf("it said %+v", log)
	}
}

// Execs that follow each other find a runtime that waits; when none follows it ends.
func TestExecsAhead(t *testing.T) {
	if whyNot != "" {
		t.Skip(whyNot)
	}
	if filepath.Base(runcPath) != "escale-runtime" {
		t.Skip("only our own runtime waits ahead")
	}
	t.Parallel()
	b := sleeper(t)
	monitor := b.task.Monitor()
	none := func(when string) {
		t.Helper()
		time.Sleep(100 * time.Millisecond)
		for _, pid := range children(monitor) {
			if pid != b.task.Pid() {
				t.Errorf("%s: there is %d: %q", when, pid, of(t, pid, "cmdline"))
			}
		}
	}
	run := func(id string) {
		t.Helper()
		if _, err := b.exec(id, nil, "true"); err != nil {
			t.Fatal(err)
		}
		if e, err := b.task.Wait(ctxFor(t), id); err != nil || e.Code != 0 {
			t.Errorf("exec %s: %+v, %v", id, e, err)
		}
	}
	run("e1")
	none("after one exec")
	run("e2")
	pid := waits(t, monitor)
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		text, err := json.Marshal(process(false, "true"))
		if err == nil {
			_, err = b.task.Exec(ctxFor(t), runtime.Exec{ID: "e3", Process: text})
		}
		ended <- err
	}()
	select {
	case err := <-ended:
		t.Errorf("another runtime was called: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	if err := unix.Kill(pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	gone(t, pid)
	pid = waits(t, monitor)
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	gone(t, pid)
	run("e4")
	// Its last one ends by itself.
	pid = waits(t, monitor)
	gone(t, pid)
	none("long after the last exec")
}

package shim

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime"
)

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

// waiting is a container beside whose monitor a runtime of our own waits for the next exec.
func waiting(t *testing.T, change ...func(*box)) (b *box, pid int) {
	t.Helper()
	if whyNot != "" {
		t.Skip(whyNot)
	}
	if filepath.Base(runcPath) != "escale-runtime" {
		t.Skip("only our own runtime waits ahead")
	}
	b = sleeper(t, change...)
	for _, id := range []string{"first", "second"} {
		if _, err := b.exec(id, nil, "true"); err != nil {
			t.Fatal(err)
		}
		b.wait(id)
	}
	return b, waits(t, b.task.Monitor())
}

// A runtime that is no more the one on the disk starts nothing.
func TestAheadIsExchanged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "escale-runtime")
	text, err := os.ReadFile(runcPath)
	if err == nil {
		err = os.WriteFile(path, text, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	b, pid := waiting(t, func(b *box) { b.launch.Runtime = runtime.Binary{Path: path} })
	if err := errors.Join(os.WriteFile(path+".new", text, 0o755), os.Rename(path+".new", path)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil { // an exec by it would not end
		t.Fatal(err)
	}
	if _, err := b.exec("third", nil, "sh", "-c", "exit 8"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	gone(t, pid)
	if e := b.wait("third"); e.Code != 8 {
		t.Errorf("exit %+v", e)
	}
}

// It ends with its monitor.
func TestAheadEndsWithTheMonitor(t *testing.T) {
	b, pid := waiting(t)
	if err := unix.Kill(b.task.Monitor(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	gone(t, pid)
}

// A terminal reaches the runtime that waits, too.
func TestAheadWithTerminal(t *testing.T) {
	b, pid := waiting(t)
	s := b.attach("third", all)
	if _, err := b.exec("third", func(e *runtime.Exec) { e.Terminal, e.Rows, e.Cols = true, 24, 80 }, "sh", "-c", "tty; exit 6"); err != nil {
		t.Fatal(err)
	}
	said, err := io.ReadAll(s)
	if err != nil || !strings.HasPrefix(string(said), "/dev/pts/") {
		t.Errorf("it said %q, %v", said, err)
	}
	if e := b.wait("third"); e.Code != 6 {
		t.Errorf("exit %+v", e)
	}
	gone(t, pid)
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

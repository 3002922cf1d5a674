package native

import (
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime/native/plan"
)

// That the container has ended is heard though signals arrive meanwhile, as they do when
// children of ours end; and one that has not is waited for no longer than it is to be.
func TestOverInterrupted(t *testing.T) {
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()
	tid, done := unix.Gettid(), make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(time.Millisecond):
				_ = unix.Tgkill(os.Getpid(), tid, unix.SIGURG) // the test waits on the thread
			}
		}
	}()
	for life, wait := range map[string]time.Duration{"0.05": time.Minute, "1000": 100 * time.Millisecond} {
		cmd := exec.Command("sleep", life)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		pidfd := os.NewFile(uintptr(fd), "pidfd")
		if life == "1000" && over(pidfd, &plan.Refusal{Words: "said"}) {
			t.Errorf("sleep %s: over at once", life)
		}
		before := time.Now()
		if got := awaitEnd(pidfd, wait); got != (life == "0.05") || time.Since(before) > 30*time.Second {
			t.Errorf("sleep %s: over is %t after %s", life, got, time.Since(before))
		}
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()         // by that
		pidfd.Close()
	}
}

// A record without a process, which nobody's hand should have made, is an error and no crash.
func TestExecWithoutProcess(t *testing.T) {
	r := &runtime{root: t.TempDir()}
	if err := os.Mkdir(r.dir("a"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(r.dir("a"), stateName), []byte(`{"version":1,"id":"a"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := r.load("a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := execProcess(s, values{}, []string{"true"}); err == nil || !strings.Contains(err.Error(), "no process") {
		t.Errorf("exec: %v", err)
	}
}

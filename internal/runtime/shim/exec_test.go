package shim

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime"
	"escale.dev/escale/internal/runtime/shim/wire"
)

func (b *box) exec(id string, change func(*runtime.Exec), args ...string) (int, error) {
	b.t.Helper()
	e := runtime.Exec{ID: id}
	if change != nil {
		change(&e)
	}
	var err error
	if e.Process, err = json.Marshal(process(e.Terminal, args...)); err != nil {
		b.t.Fatal(err)
	}
	return b.task.Exec(ctxFor(b.t), e)
}

func sleeper(t testing.TB, change ...func(*box)) *box {
	b := newBox(t, "sleep 1000", change...)
	b.launchIt()
	b.start()
	return b
}

func TestExec(t *testing.T) {
	b := sleeper(t)
	s := b.attach("e1", all)
	pid, err := b.exec("e1", func(e *runtime.Exec) { e.Stdin = true }, "sh", "-c", "echo out; echo err >&2; cat; exit 42")
	if err != nil || pid == 0 {
		t.Fatal(pid, err)
	}
	if execs, err := b.task.Execs(ctxFor(t)); err != nil || len(execs) != 1 || execs[0] != "e1" {
		t.Errorf("execs %v, %v", execs, err)
	}
	o := collect(s)
	_, _ = io.WriteString(s, "input\n")
	_ = s.CloseWrite()
	if out, err := o.done(t); out != "out\ninput\n" || err != "err\n" {
		t.Errorf("%q %q", out, err)
	}
	if e := b.wait("e1"); e.Code != 42 {
		t.Errorf("exit %+v", e)
	}
	// A second engine asks for what has ended.
	b.task.Close()
	b.adopt()
	if e := b.wait("e1"); e.Code != 42 {
		t.Errorf("asked later: %+v", e)
	}
	if _, err := b.exec("e1", nil, "true"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("the same id again: %v", err)
	}
	if _, err := b.task.Wait(ctxFor(t), "nosuch"); !errdefs.IsNotFound(err) {
		t.Errorf("no such exec: %v", err)
	}
	if _, err := b.task.Attach(ctxFor(t), "e1", all); !errdefs.IsNotFound(err) {
		t.Errorf("attach to one that has ended: %v", err)
	}
	if _, err := b.exec("../e", nil, "true"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("id with a slash: %v", err)
	}
	if joined(readLog(t, b.launch.Log.Path), "stdout") != "" {
		t.Error("an exec's output is in the log")
	}
	b.kill()
	if _, err := b.exec("e2", nil, "true"); !errdefs.IsNotFound(err) {
		t.Errorf("exec after the end: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(b.launch.RunDir, "exec-*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left over: %v", left)
	}
}

func (b *box) adopt() {
	b.t.Helper()
	task, err := b.r.Adopt(ctxFor(b.t), b.launch.ID, b.launch.RunDir, b.launch.StateDir)
	if err != nil {
		b.t.Fatal(err)
	}
	b.task = task.(*Task)
}

func (b *box) kill() {
	b.t.Helper()
	if err := b.task.Signal(ctxFor(b.t), "", syscall.SIGKILL); err != nil {
		b.t.Fatal(err)
	}
	if e := b.wait(""); e.Code != 137 {
		b.t.Errorf("exit %+v", e)
	}
}

func TestExecTerminalAndSignal(t *testing.T) {
	b := sleeper(t)
	s := b.attach("tty", all)
	tty := func(e *runtime.Exec) { e.Terminal, e.Stdin, e.Rows, e.Cols = true, true, 10, 20 }
	if _, err := b.exec("tty", tty, "sh", "-c", "stty size; read x; stty size; exit 3"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 7)
	if _, err := io.ReadFull(s, buf); string(buf) != "10 20\r\n" {
		t.Fatalf("%q %v", buf, err)
	}
	if err := b.task.Resize(ctxFor(t), "tty", 30, 40); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(s, "\n")
	if rest, err := io.ReadAll(s); string(rest) != "\r\n30 40\r\n" || err != nil {
		t.Errorf("%q %v", rest, err)
	}
	if e := b.wait("tty"); e.Code != 3 {
		t.Errorf("exit %+v", e)
	}
	if _, err := b.exec("sig", nil, "sleep", "100"); err != nil {
		t.Fatal(err)
	}
	if err := b.task.Resize(ctxFor(t), "sig", 1, 1); !errdefs.IsInvalidArgument(err) {
		t.Errorf("resize without a terminal: %v", err)
	}
	if err := b.task.Signal(ctxFor(t), "sig", syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if e := b.wait("sig"); e.Code != 143 {
		t.Errorf("exit %+v", e)
	}
	b.kill()
}

// An exec that leaves something behind has ended all the same, and what it left
// goes on: its output is thrown away, not refused.
func TestExecLeavesOrphan(t *testing.T) {
	b := sleeper(t)
	o := collect(b.attach("e", all))
	script := "(sleep 0.5; echo late; echo late; echo alive > /tmp/alive) & echo early"
	if _, err := b.exec("e", nil, "sh", "-c", script); err != nil {
		t.Fatal(err)
	}
	if e := b.wait("e"); e.Code != 0 {
		t.Errorf("exit %+v", e)
	}
	if out, _ := o.done(t); out != "early\n" {
		t.Errorf("%q", out)
	}
	o = collect(b.attach("look", all))
	if _, err := b.exec("look", nil, "sh", "-c", "sleep 0.8; cat /tmp/alive"); err != nil {
		t.Fatal(err)
	}
	b.wait("look")
	if out, _ := o.done(t); out != "alive\n" {
		t.Errorf("the orphan died of its output: %q", out)
	}
	b.kill()
}

func TestExecsInParallel(t *testing.T) {
	b := sleeper(t)
	done := make(chan error)
	const n = 8
	for i := range n {
		go func() {
			id := "p" + strconv.Itoa(i)
			_, err := b.exec(id, nil, "sh", "-c", "exit "+strconv.Itoa(i))
			if err == nil {
				if e, werr := b.task.Wait(ctxFor(t), id); werr != nil || e.Code != i {
					err = errors.Join(werr, errors.New("code "+strconv.Itoa(e.Code)+" of "+id))
				}
			}
			done <- err
		}()
	}
	for range n {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	b.kill()
}

// Containers without a pid namespace of their own: strangers come to the
// monitor, and what outlives the container's process is killed.
func TestHostPidNamespace(t *testing.T) {
	b := sleeper(t, func(b *box) {
		linux := b.spec["linux"].(obj)
		linux["namespaces"] = []obj{{"type": "ipc"}, {"type": "uts"}, {"type": "mount"}}
	})
	if _, err := b.exec("fork", nil, "sh", "-c", "sh -c 'exit 5' & (sleep 1000 &) ; exit 6"); err != nil {
		t.Fatal(err)
	}
	if e := b.wait("fork"); e.Code != 6 {
		t.Errorf("exit %+v", e)
	}
	pid, err := b.exec("stay", nil, "sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	b.kill()
	gone(t, b.task.Monitor())
	gone(t, pid)
	b.cleanup() // and with it the sleep that nobody knows
}

func TestStartErrors(t *testing.T) {
	const create = "failed to create task for container: failed to create shim task: OCI runtime create failed: "
	const unable = create + "runc create failed: unable to start container process: error during container init: "
	for name, tt := range map[string]struct {
		args   []string
		change func(*box)
		code   int
		want   string
	}{
		"not in PATH":     {[]string{"nosuchcmd"}, nil, 127, unable + `exec: "nosuchcmd": executable file not found in $PATH: unknown`},
		"no such file":    {[]string{"/nosuch"}, nil, 127, unable + `exec: "/nosuch": stat /nosuch: no such file or directory: unknown`},
		"directory":       {[]string{"/etc"}, nil, 126, unable + `exec: "/etc": is a directory: unknown`},
		"not executable":  {[]string{"/etc/passwd"}, nil, 126, unable + `exec: "/etc/passwd": permission denied: unknown`},
		"no terminal":     {[]string{"/nosuch"}, withTerminal, 127, unable + `exec: "/nosuch": stat /nosuch: no such file or directory: unknown`},
		"runtime missing": {[]string{"true"}, func(b *box) { b.launch.Runtime.Path = "/nosuch/runc" }, 128, create + "fork/exec /nosuch/runc: no such file or directory: unknown"},
		"broken bundle":   {[]string{"true"}, func(b *box) { b.spec = obj{} }, 128, create + "runc create failed: process property must not be empty: unknown"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t, "", func(b *box) { b.spec["process"].(obj)["args"] = tt.args })
			if tt.change != nil {
				tt.change(b)
				b.writeSpec()
			}
			b.launchIt()
			s := b.attach("", all)
			_, err := b.task.Start(ctxFor(t))
			var se *runtime.StartError
			if !errors.As(err, &se) || se.Code != tt.code || !strings.HasPrefix(se.Message, tt.want) {
				t.Fatalf("%+v\nwant %d %s", err, tt.code, tt.want)
			}
			if rest, err := io.ReadAll(s); len(rest) != 0 || err != nil {
				t.Errorf("attached: %q, %v", rest, err)
			}
			gone(t, b.task.Monitor())
			if list := readLog(t, b.launch.Log.Path); len(list) != 0 {
				t.Errorf("log %v", list)
			}
			if _, err := b.r.LastExit(b.launch.StateDir, 1); !errdefs.IsNotFound(err) {
				t.Errorf("exit record of a container that never ran: %v", err)
			}
		})
	}
}

func TestExecErrors(t *testing.T) {
	b := sleeper(t)
	for _, tt := range []struct {
		cmd  string
		code int
		want string
	}{
		{"nosuchcmd", 127, `OCI runtime exec failed: exec failed: unable to start container process: exec: "nosuchcmd": executable file not found in $PATH: unknown`},
		{"/etc/passwd", 126, `OCI runtime exec failed: exec failed: unable to start container process: exec: "/etc/passwd": permission denied: unknown`},
	} {
		id := "x" + strconv.Itoa(tt.code)
		s := b.attach(id, all)
		_, err := b.exec(id, nil, tt.cmd)
		var se *runtime.StartError
		if !errors.As(err, &se) || se.Code != tt.code || se.Message != tt.want {
			t.Errorf("%v\nwant %d %s", err, tt.code, tt.want)
		}
		if rest, err := io.ReadAll(s); len(rest) != 0 || err != nil {
			t.Errorf("attached: %q, %v", rest, err)
		}
		if _, err := b.task.Wait(ctxFor(t), id); !errdefs.IsNotFound(err) {
			t.Errorf("wait: %v", err)
		}
	}
	if _, err := b.task.Exec(ctxFor(t), runtime.Exec{ID: "j", Process: []byte("{")}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("bad JSON: %v", err)
	}
	b.kill()
}

// fakeRuntime is an OCI runtime in a few lines of shell.
func fakeRuntime(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "runc")
	head := "#!/bin/sh\nwhile [ $# -gt 0 ]; do case $1 in --pid-file) pid=$2;; --log) log=$2;; --root) root=$2;; esac; shift; done\n"
	if err := os.WriteFile(path, []byte(head+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// These need neither root nor runc. What the shell leaves in the background lives
// on for a moment, or the shell itself would reap it.
func TestFakeRuntime(t *testing.T) {
	for name, tt := range map[string]struct {
		script string
		code   int    // of the container
		err    string // of the start
		out    string
	}{
		"runs":             {"sh -c 'sleep 0.1; echo hello; exit 3' & echo $! > $pid", 3, "", "hello\n"},
		"ends before it":   {"(sh -c 'sleep 0.1; exit 4' & echo $! > $pid); sleep 0.5", 4, "", ""},
		"says why in JSON": {`echo '{"level":"info","msg":"no"}{' > $log; echo '{"level":"error","msg":"it \"cannot\""}' >> $log; exit 1`, 0, `OCI runtime create failed: it "cannot": unknown`, ""},
		"says why":         {"echo permission denied by me >&2; exit 1", 0, "OCI runtime create failed: permission denied by me: unknown", ""},
		"says nothing":     {"exit 9", 0, "runc: exit status 9: unknown", ""},
		"is killed":        {"kill -9 $$", 0, "runc: killed by signal 9: unknown", ""},
		"tells a dead pid": {"true & echo $! > $pid; wait", 0, "runc: its process is not there: unknown", ""},
		"tells no pid":     {"exit 0", 0, "runc: told no pid: unknown", ""},
	} {
		t.Run(name, func(t *testing.T) {
			reason := whyNot
			whyNot = ""
			defer func() { whyNot = reason }()
			b := newBox(t, "", func(b *box) { b.launch.Runtime.Path, b.launch.CgroupPath = fakeRuntime(t, tt.script), "" })
			b.launchIt()
			_, err := b.task.Start(ctxFor(t))
			if tt.err != "" {
				var se *runtime.StartError
				if !errors.As(err, &se) || !strings.HasSuffix(se.Message, tt.err) {
					t.Errorf("%v, want %s", err, tt.err)
				}
				gone(t, b.task.Monitor())
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if e := b.wait(""); e.Code != tt.code {
				t.Errorf("exit %+v", e)
			}
			if out := joined(readLog(t, b.launch.Log.Path), "stdout"); out != tt.out {
				t.Errorf("log %q", out)
			}
		})
	}
}

// The runtime dies in the middle of its work: what it left goes with Cleanup.
func TestRuntimeKilledWhileStarting(t *testing.T) {
	for _, delay := range []time.Duration{2, 5, 10, 15, 20, 25} {
		b := newBox(t, "sleep 1000")
		task := b.launchIt()
		killed := make(chan struct{})
		go func() {
			defer close(killed)
			time.Sleep(delay * time.Millisecond)
			for _, pid := range children(task.Monitor()) {
				if line, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline"); err == nil && strings.HasPrefix(string(line), runcPath+"\x00") {
					_ = unix.Kill(pid, unix.SIGKILL)
					return
				}
			}
		}()
		_, err := task.Start(ctxFor(t))
		<-killed
		var se *runtime.StartError
		if err != nil && (!errors.As(err, &se) || se.Code != 128) {
			t.Errorf("after %v ms: %v", delay, err)
		}
		b.cleanup()
	}
}

// An engine whose clients' contexts end gets its goroutines back.
func TestContextFreesWaiters(t *testing.T) {
	b := sleeper(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	for range 10 {
		go func() { _, err := b.task.Wait(ctx, ""); done <- err }()
	}
	cancel()
	for range 10 {
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	}
	b.kill()
}

// Peers of another user are refused, even where the directory would let them in.
func TestOnlyOwnUser(t *testing.T) {
	if socket := os.Getenv("SHIM_TEST_SOCKET"); socket != "" {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err == nil {
			err = unix.Connect(fd, &unix.SockaddrUnix{Name: socket})
		}
		if err != nil {
			t.Fatal(err) // the test has made it reachable
		}
		if n, _ := unix.Read(fd, make([]byte, 10)); n != 0 {
			t.Error("it talks to a stranger")
		}
		return
	}
	b := sleeper(t)
	dir := t.TempDir()
	socket := filepath.Join(b.launch.RunDir, wire.SocketName)
	for d := dir; d != "/"; d = filepath.Dir(d) {
		if st, err := os.Stat(d); err == nil && st.Mode().Perm()&0o005 != 0o005 {
			if err := os.Chmod(d, st.Mode().Perm()|0o055); err != nil {
				t.Fatal(err)
			}
		}
	}
	test := filepath.Join(dir, "test")
	if err := os.Link(os.Args[0], test); err != nil {
		t.Skip("needs the test's binary on the same filesystem: " + err.Error())
	}
	for name, mode := range map[string]os.FileMode{socket: 0o666, b.launch.RunDir: 0o755} {
		if err := os.Chmod(name, mode); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(test, "-test.run", "^TestOnlyOwnUser$")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "SHIM_TEST_SOCKET="+socket)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	b.kill()
}

package shim

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"escale.dev/escale/internal/runtime"
	"escale.dev/escale/internal/runtime/shim/wire"
)

func TestOutputAndExit(t *testing.T) {
	b := newBox(t, "echo out1; echo err1 >&2; printf 'no newline'; exit 7")
	task := b.launchIt()
	if task.Pid() != 0 || task.Monitor() == 0 || task.Generation() != 1 {
		t.Errorf("pid %d, monitor %d", task.Pid(), task.Monitor())
	}
	both := collect(b.attach("", all))
	onlyErr := collect(b.attach("", runtime.Attach{Stderr: true}))
	before := time.Now()
	pid := b.start()
	if pid == 0 || task.Pid() != pid {
		t.Errorf("pid %d, Pid %d", pid, task.Pid())
	}
	e := b.wait("")
	if e.Code != 7 || e.OOMKilled || e.At.Before(before) || e.At.After(time.Now()) {
		t.Errorf("exit %+v", e)
	}
	if out, err := both.done(t); out != "out1\nno newline" || err != "err1\n" {
		t.Errorf("attached: %q %q", out, err)
	}
	if out, err := onlyErr.done(t); out != "" || err != "err1\n" {
		t.Errorf("attached to stderr: %q %q", out, err)
	}
	list := readLog(t, b.launch.Log.Path)
	if joined(list, "stdout") != "out1\nno newline" || joined(list, "stderr") != "err1\n" {
		t.Errorf("log %+v", list)
	}
	for _, l := range list {
		if l.Time.Before(before) || l.Time.After(time.Now()) {
			t.Errorf("time %v", l.Time)
		}
	}
	if last, err := b.r.LastExit(b.launch.StateDir, 1); err != nil || last != (runtime.Exit{Code: 7, At: time.Unix(0, e.At.UnixNano())}) {
		t.Errorf("record %+v, %v; told %+v", last, err, e)
	}
	if _, err := b.r.LastExit(b.launch.StateDir, 2); !errdefs.IsNotFound(err) {
		t.Errorf("record of another start: %v", err)
	}
	gone(t, task.Monitor())
	if _, err := b.r.Adopt(ctxFor(t), b.launch.ID, b.launch.RunDir, b.launch.StateDir); !errdefs.IsNotFound(err) {
		t.Errorf("adopted what is gone: %v", err)
	}
	if err := task.Signal(ctxFor(t), "", syscall.SIGTERM); !errdefs.IsNotFound(err) {
		t.Errorf("signal after the end: %v", err)
	}
	if _, err := task.Attach(ctxFor(t), "", all); !errdefs.IsNotFound(err) {
		t.Errorf("attach after the end: %v", err)
	}
	if b.wait("") != e {
		t.Error("waiting again told another exit")
	}
}

// Nothing of the output may be missing however quickly the process ends.
func TestQuickEndLosesNothing(t *testing.T) {
	for range 10 {
		b := newBox(t, "seq 1 5000; exit 3")
		b.launchIt()
		b.start()
		if e := b.wait(""); e.Code != 3 {
			t.Errorf("exit %+v", e)
		}
		var want strings.Builder
		for i := range 5000 {
			want.WriteString(strconv.Itoa(i+1) + "\n")
		}
		if joined(readLog(t, b.launch.Log.Path), "stdout") != want.String() {
			t.Error("lines are missing")
		}
	}
}

func TestStdin(t *testing.T) {
	b := newBox(t, "cat", withStdin)
	b.launchIt()
	s := b.attach("", all)
	o := collect(s)
	data := make([]byte, 3<<20)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(data)
	go func() {
		_, _ = s.Write(data[:100]) // before the start
		time.Sleep(50 * time.Millisecond)
		_, _ = s.Write(data[100:])
		_ = s.CloseWrite()
	}()
	b.start()
	if e := b.wait(""); e.Code != 0 {
		t.Errorf("exit %+v", e)
	}
	if out, _ := o.done(t); out != string(data) {
		t.Errorf("%d bytes came back of %d", len(out), len(data))
	}
}

// Input that a client sent before it hung up reaches the process even when that
// does not read for now.
func TestStdinOfGoneClient(t *testing.T) {
	b := newBox(t, "sleep 0.5; wc -c", withStdin)
	b.launchIt()
	b.start()
	s := b.attach("", runtime.Attach{Stdin: true})
	if _, err := s.Write(make([]byte, 250000)); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if e := b.wait(""); e.Code != 0 {
		t.Errorf("exit %+v", e)
	}
	if got := joined(readLog(t, b.launch.Log.Path), "stdout"); got != "250000\n" {
		t.Errorf("counted %q", got)
	}
}

func TestStdinStaysOpen(t *testing.T) {
	b := newBox(t, "read a; echo $a; read b; echo $b", func(b *box) { b.launch.OpenStdin = true })
	b.launchIt()
	b.start()
	for _, line := range []string{"one\n", "two\n"} {
		s := b.attach("", runtime.Attach{Stdin: true})
		if _, err := io.WriteString(s, line); err != nil {
			t.Fatal(err)
		}
		_ = s.CloseWrite()
		s.Close()
	}
	b.wait("")
	if got := joined(readLog(t, b.launch.Log.Path), "stdout"); got != "one\ntwo\n" {
		t.Errorf("log %q", got)
	}
}

// A client may send for ever what nobody reads.
func TestUnreadStdinIsBounded(t *testing.T) {
	b := newBox(t, "sleep 100", withStdin)
	b.launchIt()
	b.start()
	s := b.attach("", runtime.Attach{Stdin: true}).(*net.UnixConn)
	_ = s.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
	n, err := s.Write(make([]byte, 64<<20))
	if !errors.Is(err, os.ErrDeadlineExceeded) || n > 8<<20 {
		t.Errorf("took %d bytes, %v", n, err)
	}
	if kb := rssKB(t, b.task.Monitor()); kb > 4096 {
		t.Errorf("monitor has %d kB", kb)
	}
	if err := b.task.Signal(ctxFor(t), "", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if e := b.wait(""); e.Code != 137 {
		t.Errorf("exit %+v", e)
	}
}

func TestTerminal(t *testing.T) {
	long := func(b *box) { // longer than a socket's address
		b.launch.RunDir = filepath.Join(b.launch.RunDir, strings.Repeat("x", 100))
	}
	for name, change := range map[string]func(*box){"short": func(*box) {}, "long run directory": long} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t, "stty size; read x; stty size; echo got $x; exit 4", withTerminal, withStdin, change)
			task := b.launchIt()
			s := b.attach("", all)
			b.start()
			read := make([]byte, 100)
			n, err := io.ReadAtLeast(s, read, len("24 80\r\n"))
			if string(read[:n]) != "24 80\r\n" {
				t.Fatalf("first size %q, %v", read[:n], err)
			}
			if err := task.Resize(ctxFor(t), "", 50, 132); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(s, "hello\n"); err != nil {
				t.Fatal(err)
			}
			rest, err := io.ReadAll(s)
			if want := "hello\r\n50 132\r\ngot hello\r\n"; string(rest) != want || err != nil {
				t.Errorf("%q, %v, want %q", rest, err, want)
			}
			if e := b.wait(""); e.Code != 4 {
				t.Errorf("exit %+v", e)
			}
			if got := joined(readLog(t, b.launch.Log.Path), "stdout"); got != "24 80\r\nhello\r\n50 132\r\ngot hello\r\n" {
				t.Errorf("log %q", got)
			}
		})
	}
}

func TestTwoClients(t *testing.T) {
	b := newBox(t, "seq 1 100000")
	b.launchIt()
	one, two := collect(b.attach("", all)), collect(b.attach("", all))
	gone := b.attach("", all) // hangs up in the middle
	b.start()
	_, _ = io.CopyN(io.Discard, gone, 1000)
	gone.Close()
	b.wait("")
	a, _ := one.done(t)
	c, _ := two.done(t)
	if a != c || strings.Count(a, "\n") != 100000 || joined(readLog(t, b.launch.Log.Path), "stdout") != a {
		t.Errorf("%d and %d bytes", len(a), len(c))
	}
}

// A client that does not read stops the process, not the memory; when it reads
// again it gets every byte.
func TestSlowClient(t *testing.T) {
	const size = 20 << 20
	b := newBox(t, "yes 0123456789abcdef | head -c "+strconv.Itoa(size))
	b.launchIt()
	s := b.attach("", all)
	b.start()
	time.Sleep(700 * time.Millisecond)
	if kb := rssKB(t, b.task.Monitor()); kb > 4096 {
		t.Errorf("monitor has %d kB", kb)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := b.task.Wait(ctx, ""); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the process was not held: %v", err)
	}
	st, err := os.Stat(b.launch.Log.Path)
	if err != nil || st.Size() > 8<<20 {
		t.Errorf("log has %d bytes, %v", st.Size(), err)
	}
	out, _ := collect(s).done(t)
	if len(out) != size || strings.Trim(out, "0123456789abcdef\n") != "" {
		t.Errorf("%d bytes of %d", len(out), size)
	}
	b.wait("")
}

// What fits into the buffers (the socket takes up to 208 KiB) must not hold up the news, and a client that never
// reads not the monitor's end.
func TestStalledClientAtTheEnd(t *testing.T) {
	b := newBox(t, "yes 0123456789abcdef | head -c 250000")
	b.launchIt()
	slow := b.attach("", all)
	never := b.attach("", all)
	b.start()
	begin := time.Now()
	b.wait("")
	limit := time.Second
	if os.Getenv("ESCALE_TEST_SLOW") != "" {
		limit = 6 * time.Second
	}
	if d := time.Since(begin); d > limit {
		t.Errorf("told after %v", d)
	}
	// It holds nothing any more, so cleaning up must leave it alone.
	if err := b.r.Cleanup(ctxFor(t), runtime.Cleanup{ID: b.launch.ID, RunDir: b.launch.RunDir, Runtime: b.launch.Runtime, CgroupPath: b.launch.CgroupPath}); err != nil {
		t.Fatal(err)
	}
	if out, _ := collect(slow).done(t); len(out) != 250000 {
		t.Errorf("%d bytes", len(out))
	}
	gone(t, b.task.Monitor()) // by the bound that the test has set
	if d := time.Since(begin); d < time.Second || d > 10*time.Second {
		t.Errorf("the monitor ended after %v", d)
	}
	never.Close()
}

func TestSignals(t *testing.T) {
	b := newBox(t, "trap 'echo term; exit 9' TERM; echo ready; while :; do sleep 0.1; done")
	b.launchIt()
	s := b.attach("", all)
	if err := b.task.Signal(ctxFor(t), "", syscall.SIGTERM); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("signal before the start: %v", err)
	}
	b.start()
	if _, err := io.CopyN(io.Discard, s, 8+6); err != nil {
		t.Fatal(err)
	}
	if err := b.task.Signal(ctxFor(t), "", 200); !errdefs.IsInvalidArgument(err) {
		t.Errorf("signal 200: %v", err)
	}
	if err := b.task.Signal(ctxFor(t), "", syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if e := b.wait(""); e.Code != 9 {
		t.Errorf("exit %+v", e)
	}
	if err := b.task.Signal(ctxFor(t), "nosuch", syscall.SIGTERM); !errdefs.IsNotFound(err) {
		t.Errorf("signal to no process: %v", err)
	}
}

func TestOOM(t *testing.T) {
	b := newBox(t, "cat /dev/zero | tail; sleep 0.2; exit 5", func(b *box) {
		b.spec["linux"].(obj)["resources"] = obj{
			"memory":  obj{"limit": 20 << 20, "swap": 20 << 20},
			"devices": []obj{{"allow": true, "access": "rwm"}},
		}
	})
	b.launchIt()
	b.start()
	if e := b.wait(""); !e.OOMKilled {
		t.Errorf("exit %+v", e)
	}
	if last, err := b.r.LastExit(b.launch.StateDir, 1); err != nil || !last.OOMKilled {
		t.Errorf("record %+v, %v", last, err)
	}
}

func TestHeldSocketsGoWithTheContainer(t *testing.T) {
	for name, r := range map[string]func(testing.TB) (*Runtime, []int){
		"made": func(testing.TB) (*Runtime, []int) {
			return New(Config{Maker: maker, MakerOf: makerOf, ShimPath: shimPath, Grace: 2 * time.Second}), nil
		},
		"kept ready": prepared,
	} {
		t.Run(name, func(t *testing.T) {
			r, _ := r(t)
			holdSocket(t, r)
		})
	}
}

func holdSocket(t *testing.T, r *Runtime) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	b := newBox(t, "echo ready; read x", with(r), withStdin, func(b *box) { b.launch.Held = []*os.File{f} })
	b.launchIt()
	f.Close()
	addr := l.Addr().String()
	l.Close()
	s := b.attach("", all)
	pid := b.start()
	if _, err := io.CopyN(io.Discard, s, 8+6); err != nil { // only now has runc's init become the process
		t.Fatal(err)
	}
	if l, err := net.Listen("tcp", addr); err == nil {
		l.Close()
		t.Error("the port was free while the container ran")
	}
	// Nothing of the monitor's may be in the container.
	fds, err := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/fd")
	if err != nil || len(fds) != 3 {
		t.Errorf("descriptors in the container: %v, %v", fds, err)
	}
	s.Close()
	b.wait("")
	l, err = net.Listen("tcp", addr)
	if err != nil {
		t.Fatalf("after the end: %v", err)
	}
	l.Close()
}

func TestLaunchWithoutStartLeavesNothing(t *testing.T) {
	b := newBox(t, "true")
	task := b.launchIt()
	s := b.attach("", all)
	task.Close()
	if rest, err := io.ReadAll(s); len(rest) != 0 || err != nil {
		t.Errorf("attached: %q, %v", rest, err)
	}
	gone(t, task.Monitor())
	entries, err := os.ReadDir(b.launch.RunDir)
	if err != nil || len(entries) != 2 || entries[0].Name() != wire.AliveName || entries[1].Name() != wire.StderrName {
		t.Errorf("left over: %v, %v", entries, err)
	}
	if _, err := task.Wait(ctxFor(t), ""); err == nil || errors.Is(err, runtime.ErrMonitorLost) {
		t.Errorf("wait after close: %v", err)
	}
}

func TestLaunchErrors(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*box)
		want   string
	}{
		"log":      {func(b *box) { b.launch.Log.Path = "/nosuch/dir/x.log" }, "failed to initialize logging driver: open /nosuch/dir/x.log: no such file or directory"},
		"shim":     {func(b *box) { b.r.cfg.ShimPath = "/nosuch/shim" }, "fork/exec /nosuch/shim: no such file or directory"},
		"relative": {func(b *box) { b.launch.RunDir = "run" }, `run directory "run" is not an absolute path`},
		"cgroup":   {func(b *box) { b.launch.CgroupPath = "/a/../.." }, `cgroup path "/a/../..": it is no place of a container: invalid argument`},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t, "true")
			launch := b.launch
			tt.change(b)
			_, err := b.r.Launch(ctxFor(t), b.launch)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %s", err, tt.want)
			}
			b.launch = launch
		})
	}
}

// An engine of another version sends what this monitor has never heard of.
func TestOtherVersions(t *testing.T) {
	b := newBox(t, "sleep 100")
	task := b.launchIt()
	b.start()
	_, err := task.conn.call(ctxFor(t), wire.Type(60), func(w *wire.Writer) { w.Text(250, "?") })
	if !errdefs.IsNotImplemented(err) {
		t.Errorf("unknown request: %v", err)
	}
	m, err := task.conn.call(ctxFor(t), wire.Status, func(w *wire.Writer) { w.Text(250, "?"); w.Uint(251, 9) })
	if err != nil || m.Text(wire.TagID) != b.launch.ID {
		t.Errorf("unknown fields: %v, %v", m, err)
	}
	// Garbage ends the connection, not the monitor.
	nc, err := task.dial(ctxFor(t))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	_, _ = nc.Write(bytes.Repeat([]byte{0xff}, 10<<20))
	if n, _ := io.Copy(io.Discard, nc); n != 0 {
		t.Errorf("%d bytes in answer to garbage", n)
	}
	if execs, err := task.Execs(ctxFor(t)); err != nil || len(execs) != 0 {
		t.Errorf("after the garbage: %v, %v", execs, err)
	}
}

func TestRotation(t *testing.T) {
	const lines = 200000
	b := newBox(t, "seq 1 "+strconv.Itoa(lines), func(b *box) { b.launch.Log.MaxSize, b.launch.Log.MaxFiles = 1<<20, 100 })
	b.launchIt()
	b.start()
	b.wait("")
	files, err := filepath.Glob(b.launch.Log.Path + "*")
	if err != nil || len(files) < 10 {
		t.Fatalf("files %v, %v", files, err)
	}
	var all []entry
	for i := len(files) - 1; i >= 0; i-- {
		name := b.launch.Log.Path
		if i > 0 {
			name += "." + strconv.Itoa(i)
		}
		if st, err := os.Stat(name); err != nil || st.Size() > 1<<20+200 || st.Mode().Perm() != 0o640 {
			t.Errorf("%s: %v %v", name, st, err)
		}
		all = append(all, readLog(t, name)...)
	}
	if len(all) != lines {
		t.Errorf("%d lines of %d", len(all), lines)
	}
	for i, e := range all {
		if e.Log != strconv.Itoa(i+1)+"\n" {
			t.Fatalf("line %d is %q", i+1, e.Log)
		}
		if i > 0 && !all[i-1].Time.Before(e.Time) {
			t.Fatalf("line %d is not later than the one before", i+1)
		}
	}
}

func TestRotationKeepsMaxFiles(t *testing.T) {
	for _, keep := range []int{1, 3} {
		b := newBox(t, "seq 1 50000", func(b *box) { b.launch.Log.MaxSize, b.launch.Log.MaxFiles = 100000, keep })
		b.launchIt()
		b.start()
		b.wait("")
		files, err := filepath.Glob(b.launch.Log.Path + "*")
		if err != nil || len(files) != keep {
			t.Errorf("%d files: %v, %v", keep, files, err)
		}
		list := readLog(t, b.launch.Log.Path)
		if len(list) == 0 || list[len(list)-1].Log != "50000\n" {
			t.Errorf("the last line is not in the current file")
		}
		slices.Sort(files)
		var size int64
		for _, f := range files {
			if st, err := os.Stat(f); err == nil {
				size += st.Size()
			}
		}
		if size > int64(keep)*101000 {
			t.Errorf("%d bytes in %d files", size, keep)
		}
	}
}

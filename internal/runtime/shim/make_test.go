package shim

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime"
	"escale.dev/escale/internal/runtime/shim/wire"
)

// making is a Maker that makes nothing: the child is a shell with a script.
type making struct {
	t      *testing.T
	script string
	then   func(ctx context.Context, p runtime.Parent, pid int) error // what comes before it is said to run
}

func (m making) Make(ctx context.Context, _ runtime.Making, p runtime.Parent) (int, error) {
	busybox, err := os.Open("/bin/busybox")
	if err != nil {
		m.t.Skip("needs a static busybox: ", err)
	}
	defer busybox.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	if _, err := io.WriteString(w, "from a file\n"); err != nil {
		return 0, err
	}
	w.Close()
	pid, err := p.Fork(ctx, runtime.Child{Program: busybox, Args: []string{"busybox", "sh", "-c", m.script}, Env: []string{"A=b"}, Null: null, Files: []*os.File{r}, Flags: unix.CLONE_NEWUTS})
	if err != nil {
		return 0, err
	}
	if m.then != nil {
		err = m.then(ctx, p, pid)
	}
	return pid, err
}

// made is a container that a Maker starts.
func made(t *testing.T, script string, then func(context.Context, runtime.Parent, int) error) *box {
	t.Helper()
	if whyNot != "" {
		t.Skip(whyNot)
	}
	return newBox(t, "exit 99", with(New(Config{ShimPath: shimPath, MakerOf: runcPath, Maker: making{t, script, then}})))
}

// awaitEnd waits until a process has ended, collected or not.
func awaitEnd(t *testing.T, pid int) {
	t.Helper()
	f, err := pidfdOpen(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := awaitAll(ctxFor(t), []*os.File{f}, unix.POLLIN); err != nil {
		t.Fatal(err)
	}
}

func TestMonitorForks(t *testing.T) {
	b := made(t, "read line <&3; echo $line $A; hostname here; hostname >&2; exit 7", nil)
	b.launchIt()
	o := collect(b.attach("", all))
	pid := b.start()
	if e := b.wait(""); e.Code != 7 || pid == 0 || b.task.Pid() != pid {
		t.Errorf("pid %d, exit %+v", pid, e)
	}
	if out, err := o.done(t); out != "from a file b\n" || err != "here\n" {
		t.Errorf("it said %q and %q", out, err)
	}
	if name, err := os.Hostname(); err != nil || name == "here" {
		t.Errorf("the host is called %q, %v", name, err)
	}
	if e, err := b.r.LastExit(b.launch.StateDir, 1); err != nil || e.Code != 7 {
		t.Errorf("recorded: %+v, %v", e, err)
	}
}

// A child that has ended before it is said to run has its pid until then, and its exit is not lost.
func TestChildEndsFirst(t *testing.T) {
	b := made(t, "echo over; exit 7", func(_ context.Context, _ runtime.Parent, pid int) error {
		awaitEnd(t, pid)
		time.Sleep(50 * time.Millisecond) // for whoever would collect it
		if state := of(t, pid, "stat"); !strings.Contains(state, ") Z ") {
			t.Errorf("it is %s", state)
		}
		return nil
	})
	b.launchIt()
	b.start()
	if e := b.wait(""); e.Code != 7 {
		t.Errorf("exit %+v", e)
	}
	if log := readLog(t, b.launch.Log.Path); joined(log, "stdout") != "over\n" {
		t.Errorf("log %+v", log)
	}
}

// A start that fails ends the child, the monitor and who is attached, whose exit is never told.
func TestMakerFails(t *testing.T) {
	var child int
	b := made(t, "sleep 1000", func(ctx context.Context, p runtime.Parent, pid int) error {
		child = pid
		for range 2 {
			if ws, err := p.End(ctx); err != nil || ws.Signal() != syscall.SIGKILL {
				t.Errorf("ended %v, %v", ws, err)
			}
		}
		return errors.New("runc run failed: no such thing: permission denied")
	})
	b.launchIt()
	s := b.attach("", all)
	_, err := b.task.Start(ctxFor(t))
	var refused *runtime.StartError
	if !errors.As(err, &refused) || refused.Code != 126 || !strings.HasSuffix(refused.Message, "runc create failed: no such thing: permission denied: unknown") {
		t.Errorf("%v", err)
	}
	gone(t, child)
	gone(t, b.task.Monitor())
	if _, err := io.ReadAll(s); err != nil {
		t.Error(err)
	}
	if _, err := b.r.LastExit(b.launch.StateDir, 1); !errdefs.IsNotFound(err) {
		t.Errorf("recorded: %v", err)
	}
}

// A monitor that stands still when the container runs does not hold the start for ever.
func TestRanUnanswered(t *testing.T) {
	defer func(d time.Duration) { failGrace = d }(failGrace)
	failGrace = 200 * time.Millisecond
	var b *box
	b = made(t, "sleep 1000", func(context.Context, runtime.Parent, int) error { return unix.Kill(b.task.Monitor(), unix.SIGSTOP) })
	b.launchIt()
	_, err := b.task.Start(ctxFor(t))
	var refused *runtime.StartError
	if err == nil || !strings.Contains(err.Error(), "has not answered") || errors.As(err, &refused) {
		t.Errorf("%v", err)
	}
	if err := b.r.Cleanup(ctxFor(t), runtime.Cleanup{ID: b.launch.ID, RunDir: b.launch.RunDir, Runtime: b.launch.Runtime, CgroupPath: b.launch.CgroupPath}); err != nil {
		t.Error(err)
	}
	gone(t, b.task.Monitor())
}

// A monitor that dies ends the start, whatever the child does.
func TestMonitorGoesDuringBirth(t *testing.T) {
	var b *box
	b = made(t, "sleep 1000", func(ctx context.Context, _ runtime.Parent, pid int) error {
		defer unix.Kill(pid, unix.SIGKILL)
		if err := unix.Kill(b.task.Monitor(), unix.SIGKILL); err != nil {
			return err
		}
		<-ctx.Done()
		return context.Cause(ctx)
	})
	b.launchIt()
	if _, err := b.task.Start(ctxFor(t)); !errors.Is(err, runtime.ErrMonitorLost) {
		t.Errorf("%v", err)
	}
}

// A start that fails before there is a child is over as well.
func TestMakerFailsAtOnce(t *testing.T) {
	b := newBox(t, "exit 99", with(New(Config{ShimPath: shimPath, MakerOf: runcPath, Maker: refusing{errors.New("no")}})))
	b.launchIt()
	if _, err := b.task.Start(ctxFor(t)); err == nil || !strings.Contains(err.Error(), "OCI runtime create failed: no: unknown") {
		t.Error(err)
	}
	gone(t, b.task.Monitor())
}

type refusing struct{ error }

func (r refusing) Make(context.Context, runtime.Making, runtime.Parent) (int, error) {
	return 0, r.error
}

// What only the program can make, it makes.
func TestMakerCannot(t *testing.T) {
	b := newBox(t, "exit 5", with(New(Config{ShimPath: shimPath, MakerOf: runcPath, Maker: refusing{runtime.ErrNotDelegable}})))
	b.launchIt()
	b.start()
	if e := b.wait(""); e.Code != 5 {
		t.Errorf("exit %+v", e)
	}
}

// When the engine goes in the middle of a start the child goes, and the monitor.
func TestEngineGoesDuringBirth(t *testing.T) {
	for name, script := range map[string]string{"alive": "sleep 1000", "ended": "exit 3"} {
		t.Run(name, func(t *testing.T) {
			var b *box
			var child int
			b = made(t, script, func(_ context.Context, _ runtime.Parent, pid int) error {
				if child = pid; name == "ended" {
					awaitEnd(t, pid)
				}
				b.task.Close()
				return nil
			})
			b.launchIt()
			if _, err := b.task.Start(ctxFor(t)); err == nil {
				t.Error("it is said to run")
			}
			gone(t, child)
			gone(t, b.task.Monitor())
			if _, err := b.r.LastExit(b.launch.StateDir, 1); !errdefs.IsNotFound(err) {
				t.Errorf("recorded: %v", err)
			}
		})
	}
}

// What is asked at the wrong time is refused, and changes nothing.
func TestBirthOutOfTurn(t *testing.T) {
	refused := func(b *box, what wire.Type, when string) {
		t.Helper()
		if _, err := b.task.conn.call(ctxFor(t), what, nil); err == nil || errors.Is(err, errLost) {
			t.Errorf("%d %s: %v", what, when, err)
		}
	}
	var b *box
	b = made(t, "sleep 0.2; exit 4", func(ctx context.Context, p runtime.Parent, _ int) error {
		for _, what := range []wire.Type{wire.Start, wire.Fork, wire.Terminal, wire.Signal} {
			refused(b, what, "during the birth")
		}
		// Of another connection's birth nobody disposes.
		nc, err := b.task.dial(ctx)
		if err != nil {
			return err
		}
		other := newConn(nc)
		other.hello()
		go other.read()
		defer other.close(errClosed)
		for _, what := range []wire.Type{wire.Ran, wire.Fail, wire.Terminal} {
			if _, err := other.call(ctx, what, nil); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("%d by another: %v", what, err)
			}
		}
		return nil
	})
	b.launchIt()
	for _, what := range []wire.Type{wire.Ran, wire.Terminal, wire.Fork} {
		refused(b, what, "before")
	}
	b.start()
	for _, what := range []wire.Type{wire.Ran, wire.Fail, wire.Terminal, wire.Fork} {
		refused(b, what, "afterwards")
	}
	if e := b.wait(""); e.Code != 4 {
		t.Errorf("exit %+v", e)
	}
}

// A monitor of before Fork is told to call the program.
func TestForkUnknown(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range pair {
		f := os.NewFile(uintptr(fd), "monitor")
		nc, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		ends[i] = nc.(*net.UnixConn)
		defer nc.Close()
	}
	var asked []wire.Type
	go func() {
		buf, n := make([]byte, 0, 4096), 0
		for {
			more := make([]byte, 4096)
			if n, err = ends[1].Read(more); err != nil {
				return
			}
			buf = append(buf, more[:n]...)
			for {
				m, n, err := wire.Next(buf)
				if err != nil || n == 0 {
					break
				}
				if m.Type != wire.Wait { // for the end of the monitor
					asked = append(asked, m.Type)
				}
				var w wire.Writer
				w.Begin(wire.OK)
				if m.Type == wire.Fork {
					w.Reset()
					w.Begin(wire.Error)
					w.Uint(wire.TagKind, wire.KindUnsupported)
				}
				w.Uint(wire.TagRequest, m.Uint(wire.TagRequest))
				w.Uint(wire.TagPid, 17)
				w.End()
				_, _ = ends[1].Write(w.Data())
				buf = buf[n:]
			}
		}
	}()
	c := newConn(ends[0])
	go c.read()
	defer c.close(errClosed)
	task := newTask("id", t.TempDir(), c, nil, nil)
	task.maker = making{t: t, script: "exit 3"}
	pid, err := task.Start(ctxFor(t))
	if err != nil || pid != 17 || len(asked) != 2 || asked[0] != wire.Fork || asked[1] != wire.Start {
		t.Errorf("pid %d, %v; asked %v", pid, err, asked)
	}
}

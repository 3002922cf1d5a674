package shim

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime"
	"escale.dev/escale/internal/runtime/shim/wire"
	"escale.dev/escale/internal/sys/ready"
)

// testSize is how many monitors are kept ready here: two can be told apart.
const testSize = 2

// prepared is a Runtime whose pool is full, with the processes in it.
func prepared(t testing.TB) (*Runtime, []int) {
	t.Helper()
	r := New(Config{Maker: maker, MakerOf: makerOf, ShimPath: shimPath, Grace: 2 * time.Second})
	t.Cleanup(func() { r.Close() })
	return r, r.full(t)
}

// full has the pool filled at once, and soon again after launches.
func (r *Runtime) full(t testing.TB) []int {
	t.Helper()
	r.pool.Close()
	kept(t, 0)
	r.keep(ready.Config[*blank]{Size: testSize, Delay: time.Millisecond, Rest: poolRest})
	r.pool.Take()
	return kept(t, testSize)
}

// kept waits until this process has n monitors without a container.
func kept(t testing.TB, n int) (list []int) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		list = list[:0]
		for _, pid := range children(os.Getpid()) {
			line, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
			if err == nil && string(line) == "escale-shim\x00"+wire.Unnamed+"\x00" {
				list = append(list, pid)
			}
		}
		if len(list) == n {
			return list
		}
	}
	t.Fatalf("%d monitors are kept ready, not %d", len(list), n)
	return nil
}

// of is a file of a process in /proc, or what a link there points to.
func of(t testing.TB, pid int, name string) string {
	t.Helper()
	path := filepath.Join("/proc", strconv.Itoa(pid), name)
	if to, err := os.Readlink(path); err == nil {
		return to
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func with(r *Runtime) func(*box) { return func(b *box) { b.r = r } }

// A monitor that was kept ready is no other than one that was made for its container.
func TestPreparedMonitor(t *testing.T) {
	r, list := prepared(t)
	if kb := rssKB(t, list[0]); kb > 3072 {
		t.Errorf("it has %d kB", kb)
	}
	b := newBox(t, "echo hello; exit 5", with(r))
	b.launchIt()
	first := b.task.Monitor()
	if !slices.Contains(list, first) {
		t.Errorf("monitor %d, kept ready were %d", first, list)
	}
	for name, want := range map[string]string{
		"cmdline": "escale-shim\x00" + b.launch.ID + "\x00", "cwd": b.launch.RunDir,
		"fd/0": os.DevNull, "fd/1": os.DevNull, "fd/2": filepath.Join(b.launch.RunDir, wire.StderrName),
	} {
		if got := of(t, first, name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if !lives(b.launch.RunDir) {
		t.Error("it does not hold its lock")
	}
	b.start()
	if e := b.wait(""); e.Code != 5 {
		t.Errorf("exit %+v", e)
	}
	if got := joined(readLog(t, b.launch.Log.Path), "stdout"); got != "hello\n" {
		t.Errorf("log %q", got)
	}
	gone(t, first)
	if lives(b.launch.RunDir) {
		t.Error("the lock outlives the monitor")
	}
	if again := kept(t, testSize); !slices.Contains(again, list[0]) && !slices.Contains(again, list[1]) {
		t.Error("the other one was not kept")
	}
}

// The command line shows as much of the id as there is room for.
func TestMonitorsName(t *testing.T) {
	for _, id := range []string{"a", strings.Repeat("b", 64), strings.Repeat("c", 100)} {
		b := newBox(t, "true", func(b *box) { b.launch.ID = id })
		b.launchIt()
		got := of(t, b.task.Monitor(), "cmdline")
		if want := "escale-shim\x00" + id[:min(64, len(id))]; strings.TrimRight(got, "\x00") != want || len(got) != len("escale-shim")+66 {
			t.Errorf("%q, want %q", got, want)
		}
		if m, err := b.task.conn.call(ctxFor(t), wire.Status, nil); err != nil || m.Text(wire.TagID) != id {
			t.Errorf("status %q, %v", m.Text(wire.TagID), err)
		}
		b.cleanup()
	}
}

// Monitors are made once there was a start, not before and not while it is on its way.
func TestPoolFillsBehindAStart(t *testing.T) {
	b := newBox(t, "sleep 100")
	b.r.keep(ready.Config[*blank]{Size: testSize, Delay: time.Hour, Rest: time.Hour})
	b.r.pool.Soon(0)
	b.launchIt()
	time.Sleep(20 * time.Millisecond)
	kept(t, 0)
	b.start()
	kept(t, testSize)
}

// One that is launched and not started does not empty the pool for good.
func TestPoolFillsWithoutAStart(t *testing.T) {
	r, list := prepared(t)
	b := newBox(t, "true", with(r))
	b.launchIt().Close()
	gone(t, b.task.Monitor())
	if !slices.Contains(list, b.task.Monitor()) {
		t.Error("none was taken")
	}
	kept(t, testSize)
}

// They are gone when nothing was launched for a time, and come back with the next launch.
func TestPoolEmptiesWhenIdle(t *testing.T) {
	r := New(Config{Maker: maker, MakerOf: makerOf, ShimPath: shimPath, Grace: 2 * time.Second})
	r.keep(ready.Config[*blank]{Size: testSize, Delay: time.Millisecond, Rest: time.Second})
	for range 2 {
		b := newBox(t, "true", with(r))
		b.launchIt()
		b.start()
		for _, pid := range kept(t, testSize) {
			gone(t, pid)
		}
		kept(t, 0)
	}
}

// Who lets go of a Runtime leaves none, and can launch all the same.
func TestClosedPool(t *testing.T) {
	r, list := prepared(t)
	if err := errors.Join(r.Close(), r.Close()); err != nil {
		t.Error(err)
	}
	for _, pid := range list {
		if err := unix.Kill(pid, 0); err != unix.ESRCH {
			t.Errorf("Close did not wait for the end of monitor %d: %v", pid, err)
		}
	}
	b := newBox(t, "exit 3", with(r))
	b.launchIt()
	b.start()
	if e := b.wait(""); e.Code != 3 {
		t.Errorf("exit %+v", e)
	}
	time.Sleep(20 * time.Millisecond)
	kept(t, 0)
}

// One that dies while it is kept is not taken.
func TestPreparedIsDead(t *testing.T) {
	r, list := prepared(t)
	for _, pid := range list {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		gone(t, pid)
	}
	b := newBox(t, "exit 3", with(r))
	b.launchIt()
	b.start()
	if e := b.wait(""); e.Code != 3 {
		t.Errorf("exit %+v", e)
	}
	for _, pid := range kept(t, testSize) {
		if slices.Contains(list, pid) {
			t.Errorf("monitor %d is dead and kept", pid)
		}
	}
}

// One that dies as it is taken, with all that it was told, does not cost the container its start.
func TestPreparedIsKilled(t *testing.T) {
	r, list := prepared(t)
	for _, pid := range list {
		if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	b := newBox(t, "exit 3", with(r))
	killed := make(chan error)
	go func() {
		for !lives(b.launch.RunDir) {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(20 * time.Millisecond) // it was told what to do, and cannot do it
		killed <- errors.Join(unix.Kill(list[0], unix.SIGKILL), unix.Kill(list[1], unix.SIGKILL))
	}()
	b.launchIt()
	if err := <-killed; err != nil {
		t.Fatal(err)
	}
	if slices.Contains(list, b.task.Monitor()) {
		t.Error("launched into one that is dead")
	}
	for _, pid := range list {
		gone(t, pid)
	}
	if !lives(b.launch.RunDir) {
		t.Error("the second does not hold the lock")
	}
	b.start()
	if e := b.wait(""); e.Code != 3 {
		t.Errorf("exit %+v", e)
	}
	gone(t, b.task.Monitor())
	if lives(b.launch.RunDir) {
		t.Error("the lock outlives the monitor")
	}
}

// A monitor of a program that is no more on the disk gets no container.
func TestProgramIsExchanged(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "escale-shim")
	text, err := os.ReadFile(shimPath)
	if err == nil {
		err = os.WriteFile(path, text, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	r, _ := prepared(t)
	r.cfg.ShimPath = path
	list := r.full(t)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	b := newBox(t, "true", with(r))
	if _, err := r.Launch(ctxFor(t), b.launch); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("launched without a program: %v", err)
	}
	for _, pid := range list {
		gone(t, pid)
	}
	exchange := func() {
		if err := errors.Join(os.WriteFile(path+".new", text, 0o755), os.Rename(path+".new", path)); err != nil {
			t.Fatal(err)
		}
	}
	exchange()
	old := r.full(t)
	exchange()
	b.launchIt()
	if exe := of(t, b.task.Monitor(), "exe"); exe != path {
		t.Errorf("it runs %s", exe)
	}
	for _, pid := range old {
		gone(t, pid)
	}
}

// An engine that is killed leaves no monitor without a container, nor one that it was
// just giving to a container, and no lock of it.
func TestEngineKilledWithPrepared(t *testing.T) {
	if dir := os.Getenv("SHIM_TEST_ENGINE"); dir != "" {
		shimPath = os.Getenv("SHIM_TEST_SHIM")
		beEngine(t, dir)
	}
	dir := runDir(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestEngineKilledWithPrepared$")
	cmd.Env = append(os.Environ(), "SHIM_TEST_ENGINE="+dir, "SHIM_TEST_SHIM="+shimPath)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pids []int
	for in := bufio.NewScanner(out); in.Scan() && in.Text() != "go on"; {
		pid, err := strconv.Atoi(in.Text())
		if err != nil {
			t.Errorf("engine: %s", in.Text())
			continue
		}
		pids = append(pids, pid)
	}
	if len(pids) != 4 {
		t.Errorf("the engine told of %v", pids)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	told := filepath.Join(dir, "told")
	if !lives(told) {
		t.Error("the lock is not under way")
	}
	if err := unix.Kill(pids[3], unix.SIGCONT); err != nil {
		t.Error(err)
	}
	for _, pid := range pids {
		gone(t, pid)
	}
	for _, dir := range []string{filepath.Join(dir, "half"), told} {
		if lives(dir) {
			t.Errorf("%s: the lock outlives the monitor", dir)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "[^as]*")); len(left) > 0 || exists(filepath.Join(dir, wire.SocketName)) {
			t.Errorf("%s: left over: %v", dir, left)
		}
	}
}

// beEngine has two monitors ready, one that has half of what makes it a container's, and
// one that has all of it and has not looked, and waits to be killed.
func beEngine(t *testing.T, dir string) {
	r, list := prepared(t)
	for _, name := range []string{"half", "told"} {
		b, err := r.spawn()
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, b.child.pid)
		run := filepath.Join(dir, name)
		if err := os.Mkdir(run, 0o755); err != nil {
			t.Fatal(err)
		}
		lock, err := holdAlive(run)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.conn.call(t.Context(), wire.Type(60), nil); err == nil { // it is up
			t.Fatal("an unknown request was answered")
		}
		if name == "told" {
			if err := unix.Kill(b.child.pid, unix.SIGSTOP); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.conn.give([]*os.File{lock}); err != nil {
			t.Fatal(err)
		}
		var w wire.Writer
		w.Begin(wire.Become)
		encodeLaunch(&w, runtime.Launch{ID: name, Bundle: run, RunDir: run, StateDir: run, Runtime: runtime.Binary{Path: "/nosuch"}}, "", r.cfg)
		w.End()
		text := w.Data()
		if name == "half" {
			text = text[:len(text)/2]
		}
		if _, err := b.conn.nc.Write(text); err != nil {
			t.Fatal(err)
		}
	}
	for _, pid := range list {
		fmt.Println(pid)
	}
	fmt.Println("go on")
	time.Sleep(time.Minute)
	os.Exit(1)
}

// A monitor that did not get all, or cannot go to where it belongs, says so and ends.
func TestBecomeRefuses(t *testing.T) {
	for want, change := range map[string]func(*wire.Writer){
		"1 descriptors have come: some were lost": func(w *wire.Writer) { w.Uint(wire.TagHeld, 2); w.Text(wire.TagRunDir, "/") },
		"/nosuch/run: no such file or directory":  func(w *wire.Writer) { w.Uint(wire.TagHeld, 1); w.Text(wire.TagRunDir, "/nosuch/run") },
	} {
		b, err := New(Config{Maker: maker, MakerOf: makerOf, ShimPath: shimPath}).spawn()
		if err != nil {
			t.Fatal(err)
		}
		lock, err := holdAlive(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		if err := b.conn.give([]*os.File{lock}); err != nil {
			t.Error(err)
		}
		dir := filepath.Dir(lock.Name())
		lock.Close()
		if _, err := b.conn.call(ctxFor(t), wire.Become, change); err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
		gone(t, b.child.pid)
		if lives(dir) {
			t.Error("the lock outlives the monitor")
		}
		b.end()
	}
}

// An engine from before monitors were kept ready starts this one where it belongs, with
// all that it is to hold.
func TestMonitorOfAnOlderEngine(t *testing.T) {
	b := newBox(t, "exit 9")
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	held := filepath.Join(t.TempDir(), "held")
	if err := os.WriteFile(held, []byte("held"), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(held)
	if err != nil {
		t.Fatal(err)
	}
	lock, err := holdAlive(b.launch.RunDir)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "monitor")
	cmd := &exec.Cmd{Path: shimPath, Args: []string{"escale-shim", b.launch.ID}, Dir: b.launch.RunDir, Env: environ, ExtraFiles: []*os.File{theirs, lock, file}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range cmd.ExtraFiles {
		f.Close()
	}
	ours := os.NewFile(uintptr(pair[0]), "monitor")
	defer ours.Close()
	var w wire.Writer
	hello(&w)
	w.Begin(wire.Config)
	w.Uint(wire.TagRequest, 1)
	b.launch.Held = []*os.File{file}
	encodeLaunch(&w, b.launch, "", b.r.cfg)
	w.End()
	if _, err := ours.Write(w.Data()); err != nil {
		t.Fatal(err)
	}
	if _, err := readAnswer(ours); err != nil {
		t.Fatal(err)
	}
	b.adopt()
	files, err := b.task.Held(ctxFor(t))
	if err != nil || len(files) != 1 {
		t.Fatalf("held: %v, %v", files, err)
	}
	if text, err := io.ReadAll(files[0]); err != nil || !bytes.Equal(text, []byte("held")) {
		t.Errorf("%q, %v", text, err)
	}
	files[0].Close()
	b.start()
	if e := b.wait(""); e.Code != 9 {
		t.Errorf("exit %+v", e)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if lives(b.launch.RunDir) {
		t.Error("the lock outlives the monitor")
	}
}

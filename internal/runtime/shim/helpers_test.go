package shim

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime"
	"escale.dev/escale/internal/runtime/native"
	"escale.dev/escale/internal/runtime/shim/wire"
)

var (
	shimPath   string
	runcPath   string
	rootfs     string
	whyNot     string        // why containers cannot be run here
	maker      runtime.Maker // of makerOf, in the round with one
	makerOf    string
	testCgroup = "/escale-shim-test-" + strconv.Itoa(os.Getpid())
)

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(tests *testing.M) int {
	if os.Getenv("SHIM_TEST_SOCKET") != "" {
		return tests.Run() // TestOnlyOwnUser, as the other user
	}
	if os.Getenv("SHIM_TEST_ENGINE") != "" {
		return tests.Run() // TestEngineKilledWithPrepared, as the engine
	}
	dir, err := os.MkdirTemp("", "shim")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := findShim(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	whyNot = prepare(dir)
	code := tests.Run()
	if whyNot == "" && os.Getenv("ESCALE_RUNC") == "" {
		if own := filepath.Join(filepath.Dir(runcPath), "escale-runtime"); exists(own) {
			fmt.Println("and with", own)
			runcPath = own
			code = max(code, tests.Run())
			m, err := native.NewMaker(own)
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
			defer m.Close()
			fmt.Println("and with containers that the engine makes for it")
			maker, makerOf = m, own
			code = max(code, tests.Run())
		}
	}
	info, err := New(Config{}).cgroups()
	if err == nil && os.Geteuid() == 0 {
		for _, d := range info.Dirs(testCgroup) {
			// Containers' cgroups must be gone: rmdir takes no parent of theirs.
			if err := unix.Rmdir(d); err != nil && err != unix.ENOENT {
				fmt.Fprintf(os.Stderr, "left over: %s: %v\n", d, err)
				code = 1
			}
		}
	}
	return code
}

// findShim builds the monitor below dir, or takes the one in $ESCALE_BIN: a
// machine that only runs the tests has no compiler.
func findShim(dir string) error {
	if bin := os.Getenv("ESCALE_BIN"); bin != "" {
		shimPath = filepath.Join(bin, "escale-shim")
		return nil
	}
	shimPath = filepath.Join(dir, "escale-shim")
	build := exec.Command("go", "build", "-buildvcs=false", "-ldflags", "-s -w", "-o", shimPath, "escale.dev/escale/cmd/escale-shim")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// prepare finds what containers need; the answer says what is missing.
func prepare(dir string) string {
	if os.Geteuid() != 0 {
		return "needs root"
	}
	runcPath = os.Getenv("ESCALE_RUNC")
	if runcPath == "" {
		// The tests run in their package's directory, four below the module's root.
		runcPath, _ = filepath.Abs("../../../bin/runc")
	}
	if _, err := os.Stat(runcPath); err != nil {
		return "needs runc (make build, or ESCALE_RUNC): " + err.Error()
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return "needs a static busybox: " + err.Error()
	}
	rootfs = filepath.Join(dir, "rootfs")
	for _, d := range []string{"bin", "proc", "dev", "tmp", "etc", "sys"} {
		if err := os.MkdirAll(filepath.Join(rootfs, d), 0o755); err != nil {
			return err.Error()
		}
	}
	if err := os.WriteFile(filepath.Join(rootfs, "bin/busybox"), busybox, 0o755); err != nil {
		return err.Error()
	}
	for _, name := range []string{"sh", "cat", "sleep", "true", "stty", "seq", "head", "tail", "wc", "yes", "echo", "mkdir", "dd", "trap"} {
		if err := os.Symlink("busybox", filepath.Join(rootfs, "bin", name)); err != nil {
			return err.Error()
		}
	}
	if err := os.WriteFile(filepath.Join(rootfs, "etc/passwd"), []byte("root:x:0:0::/:/bin/sh\n"), 0o644); err != nil {
		return err.Error()
	}
	return ""
}

type obj = map[string]any

func process(terminal bool, args ...string) obj {
	return obj{
		"terminal": terminal, "cwd": "/", "args": args,
		"env":          []string{"PATH=/bin"},
		"user":         obj{"uid": 0, "gid": 0},
		"capabilities": obj{},
	}
}

func spec(id string, terminal bool, args []string) obj {
	return obj{
		"ociVersion": "1.0.2",
		"process":    process(terminal, args...),
		"root":       obj{"path": rootfs, "readonly": true},
		"mounts": []obj{
			{"destination": "/proc", "type": "proc", "source": "proc"},
			{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"mode=755"}},
			{"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": []string{"newinstance", "ptmxmode=0666"}},
			{"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
		},
		"linux": obj{
			"cgroupsPath": testCgroup + "/" + id,
			"namespaces":  []obj{{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}},
		},
	}
}

// box is a container for a test.
type box struct {
	t      testing.TB
	r      *Runtime
	launch runtime.Launch
	spec   obj
	task   *Task
}

// newBox makes a container that runs a script; change may alter it.
func newBox(t testing.TB, script string, change ...func(*box)) *box {
	t.Helper()
	if whyNot != "" {
		t.Skip(whyNot)
	}
	var raw [32]byte
	if _, err := rand.Read(raw[:]); err != nil {
		t.Fatal(err)
	}
	id := hex.EncodeToString(raw[:])
	dir, run := t.TempDir(), runDir(t)
	b := &box{t: t, r: New(Config{Maker: maker, MakerOf: makerOf, ShimPath: shimPath, Grace: 2 * time.Second})}
	b.launch = runtime.Launch{
		ID: id, Generation: 1, Bundle: filepath.Join(dir, "bundle"), RunDir: run, StateDir: filepath.Join(dir, "state"),
		Runtime: runtime.Binary{Path: runcPath}, CgroupPath: testCgroup + "/" + id,
	}
	b.launch.Log = runtime.LogFile{Path: filepath.Join(b.launch.StateDir, id+"-json.log"), MaxFiles: 1}
	b.spec = spec(id, false, []string{"sh", "-c", script})
	for _, f := range change {
		f(b)
	}
	for _, d := range []string{b.launch.Bundle, b.launch.RunDir, b.launch.StateDir} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b.writeSpec()
	t.Cleanup(b.cleanup)
	return b
}

// runDir is on a tmpfs where there is one, as an engine's should be.
func runDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "escale-shim-test-")
	if err != nil {
		return filepath.Join(t.TempDir(), "run")
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func withTerminal(b *box) {
	b.launch.Terminal, b.launch.Rows, b.launch.Cols = true, 24, 80
	process := b.spec["process"].(obj)
	process["terminal"] = true
	process["consoleSize"] = obj{"height": 24, "width": 80} // as the engine has it: the process may look before the monitor can
}

func withStdin(b *box) { b.launch.OpenStdin, b.launch.StdinOnce = true, true }

func (b *box) writeSpec() {
	b.t.Helper()
	text, err := json.Marshal(b.spec)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.launch.Bundle, "config.json"), text, 0o644); err != nil {
		b.t.Fatal(err)
	}
}

func ctxFor(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func (b *box) launchIt() *Task {
	b.t.Helper()
	task, err := b.r.Launch(ctxFor(b.t), b.launch)
	if err != nil {
		b.t.Fatal(err)
	}
	b.task = task.(*Task)
	return b.task
}

func (b *box) start() int {
	b.t.Helper()
	pid, err := b.task.Start(ctxFor(b.t))
	if err != nil {
		b.t.Fatal(err)
	}
	return pid
}

func (b *box) wait(process string) runtime.Exit {
	b.t.Helper()
	e, err := b.task.Wait(ctxFor(b.t), process)
	if err != nil {
		b.t.Fatal(err)
	}
	return e
}

func (b *box) attach(process string, a runtime.Attach) runtime.Stream {
	b.t.Helper()
	s, err := b.task.Attach(ctxFor(b.t), process, a)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { s.Close() })
	return s
}

func (b *box) cleanup() {
	b.t.Helper()
	// The test's context has ended already.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(b.t.Context()), 20*time.Second)
	defer cancel()
	err := b.r.Cleanup(ctx, runtime.Cleanup{ID: b.launch.ID, RunDir: b.launch.RunDir, Runtime: b.launch.Runtime, CgroupPath: b.launch.CgroupPath})
	if err != nil {
		b.t.Error(err)
	}
	if b.task != nil {
		b.task.Close()
	}
	b.r.Close()
	b.checkNothingLeft()
}

func (b *box) checkNothingLeft() {
	b.t.Helper()
	dirs, err := b.r.cgroupDirs(b.launch.CgroupPath)
	if err != nil {
		b.t.Error(err)
	}
	for _, d := range append(dirs, filepath.Join(b.launch.RunDir, wire.RootName), filepath.Join(b.launch.RunDir, wire.SocketName), filepath.Join(b.launch.RunDir, wire.MonitorName)) {
		if exists(d) {
			b.t.Errorf("left over: %s", d)
		}
	}
}

// gone waits for a process that is not ours to be over.
func gone(t testing.TB, pid int) {
	t.Helper()
	f, err := pidfdOpen(pid)
	if errors.Is(err, unix.ESRCH) {
		return
	} else if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := awaitAll(ctxFor(t), []*os.File{f}, unix.POLLIN); err != nil {
		t.Errorf("process %d: %v", pid, err)
	}
}

// entry is a line of a log as encoding/json sees it.
type entry struct {
	Log, Stream string
	Time        time.Time
}

func readLog(t testing.TB, path string) (list []entry) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(text) {
		var e entry
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatalf("%s: %q: %v", path, line, err)
		}
		list = append(list, e)
	}
	return list
}

func joined(list []entry, stream string) string {
	var s strings.Builder
	for _, e := range list {
		if e.Stream == stream {
			s.WriteString(e.Log)
		}
	}
	return s.String()
}

// demux takes Docker's frames apart.
func demux(r io.Reader, out, err io.Writer) error {
	var head [8]byte
	for {
		if _, e := io.ReadFull(r, head[:]); e == io.EOF {
			return nil
		} else if e != nil {
			return e
		}
		w := out
		switch {
		case head[0] == 2:
			w = err
		case head[0] != 1 || head[1]|head[2]|head[3] != 0:
			return fmt.Errorf("frame header %v", head)
		}
		if _, e := io.CopyN(w, r, int64(binary.BigEndian.Uint32(head[4:]))); e != nil {
			return e
		}
	}
}

// output is what a stream carries until its end, read in the background.
type output struct {
	wg       sync.WaitGroup
	out, err bytes.Buffer
	fail     error
}

func collect(r io.Reader) *output {
	o := &output{}
	o.wg.Go(func() { o.fail = demux(r, &o.out, &o.err) })
	return o
}

func (o *output) done(t testing.TB) (out, err string) {
	t.Helper()
	o.wg.Wait()
	if o.fail != nil {
		t.Errorf("stream: %v", o.fail)
	}
	return o.out.String(), o.err.String()
}

func rssKB(t testing.TB, pid int) int {
	t.Helper()
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmRSS:" {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

var all = runtime.Attach{Stdin: true, Stdout: true, Stderr: true}

package seccomp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// dockers is Docker's own profile for a container with these capabilities.
func dockers(t testing.TB, capabilities ...string) *specs.LinuxSeccomp {
	t.Helper()
	s, err := seccomp.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: capabilities}}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestAsRunc has runc put a process under a profile, takes the program that libseccomp
// made of it back out of the kernel, and compares what the two programs answer.
func TestAsRunc(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: runs runc")
	}
	if runtime.GOARCH != "amd64" {
		t.Skip("needs amd64: numbers that this libseccomp does not know are listed for it")
	}
	all := dockers(t, "CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_SYSLOG", "CAP_BPF", "CAP_PERFMON", "CAP_SYS_CHROOT", "CAP_SYS_TIME")
	deny := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{}, Syscalls: []specs.LinuxSyscall{
		ruleOf(specs.ActErrno, []specs.LinuxSeccompArg{{Index: 0, Value: 40, Op: specs.OpEqualTo}}, "socket"),
		ruleOf(specs.ActErrno, []specs.LinuxSeccompArg{{Index: 1, Value: 1<<32 | 3, Op: specs.OpGreaterThan}, {Index: 2, Value: 5, Op: specs.OpLessEqual}}, "keyctl"),
		ruleOf(specs.ActErrno, []specs.LinuxSeccompArg{{Index: 1, Value: 9, Op: specs.OpNotEqual}, {Index: 1, Value: 10, Op: specs.OpLessThan}}, "add_key"),
		{Names: []string{"mount"}, Action: specs.ActErrno, ErrnoRet: ptr(uint(38))},
	}}
	for name, s := range map[string]*specs.LinuxSeccomp{"docker": dockers(t), "docker with capabilities": all, "list of what is denied": deny} {
		t.Run(name, func(t *testing.T) {
			theirs := runcsFilter(t, s)
			ours, err := Compile(s)
			if err != nil {
				t.Fatal(err)
			}
			compareFilters(t, s, theirs, ours.Filter)
		})
	}
}

func compareFilters(t *testing.T, s *specs.LinuxSeccomp, theirs, ours []byte) {
	t.Helper()
	var compared, younger, wrong, ourSteps, theirSteps int
	calls(s, func(c call) {
		want, n, err := interpret(theirs, c)
		if err != nil {
			t.Fatal(err)
		}
		got, m, err := interpret(ours, c)
		if err != nil {
			t.Fatal(err)
		}
		compared++
		ourSteps, theirSteps = ourSteps+m, theirSteps+n
		if got == want {
			return
		}
		// Calls of Linux 5.17 and later are younger than Debian 12's libseccomp: their names
		// in the profile say nothing to it.
		if nr := c.nr &^ x32Bit; nr >= 450 && nr <= 600 || slices.Contains([]uint32{335, 336}, nr) {
			younger++
			return
		}
		if wrong++; wrong < 20 {
			t.Errorf("%+v: %#x, runc's program says %#x", c, got, want)
		}
	})
	t.Logf("%d calls, %d of them too young for libseccomp; %d instructions (theirs %d), a call takes %.1f (theirs %.1f)", compared, younger,
		len(ours)/8, len(theirs)/8, float64(ourSteps)/float64(compared), float64(theirSteps)/float64(compared))
}

// runcsFilter starts a container under a profile and reads its filter by ptrace.
func runcsFilter(t *testing.T, s *specs.LinuxSeccomp) []byte {
	t.Helper()
	runc, err := filepath.Abs("../../../../bin/runc")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(runc); err != nil {
		t.Skip("needs bin/runc: make build makes it: ", err)
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("needs /bin/busybox (Debian: busybox-static): ", err)
	}
	bundle, state := t.TempDir(), t.TempDir()
	for _, dir := range []string{"rootfs/proc", "rootfs/bin"} {
		if err := os.MkdirAll(filepath.Join(bundle, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	spec := specs.Spec{
		Version: "1.2.0", Root: &specs.Root{Path: "rootfs"},
		Process: &specs.Process{Args: []string{"/bin/busybox", "sleep", "60"}, Cwd: "/"},
		Mounts:  []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}},
		Linux:   &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}}, Seccomp: s},
	}
	config, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(filepath.Join(bundle, "rootfs/bin/busybox"), busybox, 0o755), os.WriteFile(filepath.Join(bundle, "config.json"), config, 0o600)); err != nil {
		t.Fatal(err)
	}
	id, pidFile := fmt.Sprintf("escale-seccomp-%d", os.Getpid()), filepath.Join(state, "pid")
	t.Cleanup(func() { _ = exec.Command(runc, "--root", state, "delete", "-f", id).Run() })
	log := filepath.Join(state, "log")
	if err := exec.Command(runc, "--root", state, "--log", log, "run", "-d", "-b", bundle, "--pid-file", pidFile, id).Run(); err != nil {
		b, _ := os.ReadFile(log)
		t.Fatalf("%v: %s", err, b)
	}
	b, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(string(b))
	if err != nil {
		t.Fatal(err)
	}
	// Until then it is runc, with threads, of which the one that executes takes the place of
	// the one that is traced.
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && filepath.Base(exe) == "busybox" {
			return filterOf(t, pid)
		}
		if time.Now().After(deadline) {
			t.Fatal("the program of the container does not run")
		}
	}
}

// filterOf reads the newest filter of a process.
func filterOf(t *testing.T, pid int) []byte {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const getFilter = 0x420c // PTRACE_SECCOMP_GET_FILTER
	if err := unix.PtraceSeize(pid); err != nil {
		t.Fatal("ptrace: ", err)
	}
	if err := unix.PtraceInterrupt(pid); err != nil {
		t.Fatal("ptrace: ", err)
	}
	if _, err := unix.Wait4(pid, nil, unix.WALL, nil); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.PtraceDetach(pid) }()
	n, _, errno := unix.Syscall6(unix.SYS_PTRACE, getFilter, uintptr(pid), 0, 0, 0, 0)
	if errno == unix.EINVAL || errno == unix.EIO {
		t.Skip("needs a kernel with CONFIG_CHECKPOINT_RESTORE: reads filters back")
	}
	if errno != 0 {
		t.Fatal("filter of the process: ", errno)
	}
	filter := make([]byte, n*instruction)
	if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, getFilter, uintptr(pid), 0, uintptr(unsafe.Pointer(&filter[0])), 0, 0); errno != 0 {
		t.Fatal("filter of the process: ", errno)
	}
	return filter
}

// tried is the environment variable that makes this test's program a process that tries
// every call under the filter in that file.
const tried = "ESCALE_SECCOMP_TRY"

// TestInstall has the kernel take programs, and a process under one make calls.
func TestInstall(t *testing.T) {
	if path := os.Getenv(tried); path != "" {
		tryCalls(path)
	}
	s := dockers(t)
	// A filter that refuses with a number of its own, so that what the kernel itself
	// refuses looks otherwise; what the test's process needs to live is allowed.
	s.DefaultErrnoRet = ptr(uint(4000))
	p, err := Compile(s)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "filter")
	if err := os.WriteFile(path, p.Filter, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run", "^TestInstall$")
	cmd.Env = append(os.Environ(), tried+"="+path)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, stderr.Bytes())
	}
	refused := 0
	for line := range strings.Lines(string(out)) {
		var nr uint32
		var errno syscall.Errno
		if _, err := fmt.Sscan(line, &nr, &errno); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		answer := meaning(runtime.GOARCH, s, call{nr: nr, arch: machines[runtime.GOARCH].native.audit})
		want := syscall.Errno(answer & 0xffff)
		if answer&0xffff0000 != retErrno || errno != want {
			t.Errorf("call %d: %d, want answer %#x", nr, errno, answer)
		}
		refused++
	}
	if refused < 100 {
		t.Errorf("%d calls were tried", refused)
	}
}

// tryCalls makes every call that the filter refuses, by its own reading of it, and
// prints what came back. It does not return.
func tryCalls(path string) {
	filter, err := os.ReadFile(path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	runtime.LockOSThread()
	p := &Program{Filter: filter}
	if err := errors.Join(unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), p.Install()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for nr := range uint32(601) {
		if nr == 335 || nr == 336 { // uretprobe and uprobe of x86_64, which the kernel lets past every filter
			continue
		}
		if answer, _, _ := interpret(filter, call{nr: nr, arch: machines[runtime.GOARCH].native.audit}); answer&0xffff0000 != retErrno {
			continue
		}
		_, _, errno := unix.RawSyscall6(uintptr(nr), 0, 0, 0, 0, 0, 0)
		fmt.Println(nr, int(errno))
	}
	os.Exit(0)
}

func BenchmarkCompile(b *testing.B) {
	s := dockers(b)
	for b.Loop() {
		if _, err := Compile(s); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCached(b *testing.B) {
	s, dir := dockers(b), b.TempDir()
	for b.Loop() {
		if _, err := Cached(dir, s); err != nil {
			b.Fatal(err)
		}
	}
}

package vm

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// needs skips where no machine was made, and says where one is.
func needs(t *testing.T) (dir string) {
	t.Helper()
	if dir = os.Getenv("ESCALE_VM"); dir == "" {
		t.Skip("needs a virtual machine of its own: `make test-vm` and `make kill` make one and run this")
	}
	return dir
}

// boot boots a machine that ends with the test.
func boot(t *testing.T, o Options) *Machine {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	m, err := Boot(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Kill)
	return m
}

// TestKernel shows that the machine is what it is for.
func TestKernel(t *testing.T) {
	dir := needs(t)
	m := boot(t, Options{Dir: dir, Console: filepath.Join(t.TempDir(), "console")})
	for _, c := range []struct{ what, line, want string }{
		{"only version 2 of cgroups", "grep -c ' - cgroup' /proc/self/mountinfo; stat -fc %T /sys/fs/cgroup", "1\ncgroup2fs"},
		{"a service has memory to limit", "cat /proc/self/cgroup; cat /sys/fs/cgroup/system.slice/test.service/memory.max", "0::/system.slice/test.service\nmax"},
		{"AppArmor is on", "cat /sys/module/apparmor/parameters/enabled", "Y"},
		{"modules are loaded when they are asked for", "ip link add type veth && echo yes", "yes"},
		{"IPVS is there", "modprobe ip_vs && echo yes", "yes"},
	} {
		if got, err := m.Sh(t.Context(), c.line); err != nil || got != c.want {
			t.Errorf("%s: %q, %v; want %q", c.what, got, err, c.want)
		}
	}
}

// slow is how much longer tests wait in the machine than elsewhere.
const slow = "6"

// patience is how long one line of testdata/suites may take.
const patience = 25 * time.Minute

// TestEngine runs the tests of the engine in the machine: those that
// testdata/suites lists, in its order. $ESCALE_VM_SUITES, a pattern, picks lines.
func TestEngine(t *testing.T) { runSuites(t, "testdata/suites", Options{}) }

// TestSystemd runs those of testdata/suites-systemd where systemd is the first process and
// makes the cgroups of containers.
func TestSystemd(t *testing.T) { runSuites(t, "testdata/suites-systemd", Options{Systemd: true}) }

func runSuites(t *testing.T, file string, o Options) {
	dir := needs(t)
	list, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	only, err := regexp.Compile(os.Getenv("ESCALE_VM_SUITES"))
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(list)) {
		line, _, _ = strings.Cut(strings.TrimSpace(line), "#")
		if line != "" && only.MatchString(line) {
			lines = append(lines, line)
		}
	}
	if len(lines) == 0 {
		t.Skip("no line of " + file + " is asked for by ESCALE_VM_SUITES")
	}
	o.Dir, o.Console = dir, filepath.Join(dir, "console-"+t.Name())
	m := boot(t, o)
	// What a machine that runs dockerd, too, has loaded; and what udev, which this
	// one has not, loads by making /dev/loop-control.
	if _, err := m.Sh(t.Context(), "modprobe br_netfilter && modprobe loop"); err != nil {
		t.Fatal(err)
	}
	total := map[string]int{}
	for _, line := range lines {
		pkg, pattern, _ := strings.Cut(line, " ")
		t.Run(line, func(t *testing.T) { m.suite(t, pkg, pattern, total) })
	}
	fmt.Printf("in the virtual machine: %d tests passed, %d failed, %d skipped\n", total["PASS"], total["FAIL"], total["SKIP"])
	if total["PASS"] == 0 {
		t.Error("no test was run")
	}
	if t.Failed() {
		t.Logf("the kernel said last:\n%s", m.Tail(4000))
	}
}

// suite runs a package's compiled tests and adds up how they ended.
func (m *Machine) suite(t *testing.T, pkg, pattern string, total map[string]int) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	driver := "cgroupfs"
	if m.opts.Systemd {
		driver = "systemd"
	}
	begun := time.Now()
	out := &progress{}
	code, err := m.Run(ctx, out, Command{
		Dir:  "/escale/" + pkg,
		Argv: []string{"./" + path.Base(pkg) + ".test", "-test.v", "-test.timeout", patience.String(), "-test.parallel", "2", "-test.run", pattern},
		Env: []string{
			"ESCALE_BIN=/escale/bin", "ESCALE_TEST_SLOW=" + slow, "ESCALE_RUNTIME=" + os.Getenv("ESCALE_RUNTIME"), "ESCALE_CGROUPDRIVER=" + driver,
			"PATH=/escale/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		},
	})
	ended := out.ended()
	for how, n := range ended {
		total[how] += n
	}
	fmt.Printf("  %s %s: exit code %d; %d passed, %d failed, %d skipped, in %.0f s\n",
		pkg, pattern, code, ended["PASS"], ended["FAIL"], ended["SKIP"], time.Since(begun).Seconds())
	switch {
	case err != nil:
		t.Errorf("the machine did not answer to the end: %v\n%s", err, out.tail())
	case code != 0:
		t.Errorf("exit code %d\n%s", code, out.tail())
	case ended["PASS"]+ended["SKIP"] == 0:
		t.Errorf("no test was run by this line\n%s", out.tail())
	}
	if err != nil || code != 0 {
		total["FAIL"] = max(total["FAIL"], 1)
	}
}

// progress keeps what a test binary prints and shows what ended badly at once.
type progress struct {
	all   bytes.Buffer
	shown int
}

// result is a line that tells how a test ended.
var result = regexp.MustCompile(`(?m)^ *--- (PASS|FAIL|SKIP): (.*)$`)

func (p *progress) Write(b []byte) (int, error) {
	p.all.Write(b)
	whole := p.all.Bytes()[:bytes.LastIndexByte(p.all.Bytes(), '\n')+1]
	for line := range bytes.Lines(whole[min(p.shown, len(whole)):]) {
		if m := result.FindSubmatch(line); m != nil && string(m[1]) != "PASS" {
			fmt.Printf("    %s %s\n", m[1], m[2])
		} else if bytes.Contains(line, []byte("FAIL: testdata")) {
			fmt.Printf("    %s\n", bytes.TrimSpace(line))
		}
	}
	p.shown = len(whole)
	return len(b), nil
}

func (p *progress) ended() map[string]int {
	n := map[string]int{}
	for _, m := range result.FindAllSubmatch(p.all.Bytes(), -1) {
		n[string(m[1])]++
	}
	return n
}

// tail is what a failure is read from: all of it goes to $ESCALE_VM/failed.
func (p *progress) tail() string {
	file := filepath.Join(os.Getenv("ESCALE_VM"), "failed")
	if f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644); err == nil {
		_, _ = f.Write(p.all.Bytes())
		f.Close()
	}
	b := p.all.Bytes()
	return fmt.Sprintf("%s\n(all of it is in %s)", b[max(0, len(b)-6000):], file)
}

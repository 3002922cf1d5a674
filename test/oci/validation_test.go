package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// validationDir is where the programs of the OCI's validation lie, which `make validate`
// builds (opencontainers/runtime-tools, validation/*).
const validationDir = "ESCALE_VALIDATION"

// TestValidation runs the OCI's validation with runc and with the programs under test:
// whatever runc passes on this machine, they must pass. What runc does not pass here
// (cgroups that the kernel has not, things that runc does otherwise on purpose) is
// counted and shown.
func TestValidation(t *testing.T) {
	dir := os.Getenv(validationDir)
	if dir == "" {
		t.Skip("takes minutes and needs the suite: make validate")
	}
	runtimes := programs(t)
	bin, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	base := program{reference, filepath.Join(bin, reference)}
	runtimes = slices.DeleteFunc(runtimes, func(p program) bool { return p == base })
	if len(runtimes) == 0 {
		runtimes = []program{base} // with itself: what differs then is by chance
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	table := &bytes.Buffer{}
	w := tabwriter.NewWriter(table, 0, 0, 2, ' ', 0)
	head := "validation\t" + reference
	for _, p := range runtimes {
		head += "\t" + p.name
	}
	fmt.Fprintln(w, head)
	ran := 0
	for _, e := range entries {
		name := e.Name()
		if name == "runtimetest" || strings.Contains(name, ".") {
			continue
		}
		t.Run(name, func(t *testing.T) {
			ran++
			want := validate(t, dir, name, base)
			line := name + "\t" + want.String()
			for _, p := range runtimes {
				got := validate(t, dir, name, p)
				// Some programs do not wait for what they look at; none fails thrice by chance.
				for again := 0; again < 2 && want.beyond(got) != nil; again++ {
					got = validate(t, dir, name, p)
				}
				line += "\t" + got.String()
				for _, lacks := range want.beyond(got) {
					t.Errorf("%s does not pass what runc passes: %s", p.name, lacks)
				}
				if t.Failed() {
					t.Logf("%s:\n%s\n%s", p.name, got.stdout, got.stderr)
				}
			}
			fmt.Fprintln(w, line)
		})
	}
	_ = w.Flush()
	t.Logf("passed/failed/skipped points; a dash before: the program as a whole failed\n%s", table)
	if ran == 0 {
		t.Errorf("%s has no programs", dir)
	}
}

// verdict is what one program of the validation said about one runtime.
type verdict struct {
	passed, failed map[string]int // points, by their description
	skipped        int
	whole          bool // nothing failed, not even outside of points
	stdout, stderr string
}

func (v verdict) String() string {
	sum := func(m map[string]int) (n int) {
		for _, k := range m {
			n += k
		}
		return n
	}
	mark := " "
	if !v.whole {
		mark = "-"
	}
	return fmt.Sprintf("%s%d/%d/%d", mark, sum(v.passed), sum(v.failed), v.skipped)
}

// beyond lists what v passes and other does not.
func (v verdict) beyond(other verdict) []string {
	var lacks []string
	for _, point := range slices.Sorted(maps.Keys(v.passed)) {
		if other.passed[point] < v.passed[point] && v.failed[point] == 0 {
			lacks = append(lacks, fmt.Sprintf("%q (%d of %d)", point, other.passed[point], v.passed[point]))
		}
	}
	if v.whole && !other.whole {
		lacks = append(lacks, "the program as a whole")
	}
	return lacks
}

var (
	point = regexp.MustCompile(`(?m)^(not )?ok \d+(?: - (.*))?$`)
	// problem is how the suite reports what went wrong where it has no points.
	problem = regexp.MustCompile(`(?m)^\s+"error": `)
	// byChance are parts of descriptions that differ from run to run.
	byChance = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f-]{27}|ocitest\d+|\d{5,}`)
)

// parse reads TAP (testanything.org, version 13).
func parse(stdout, stderr string, failed bool) verdict {
	v := verdict{passed: map[string]int{}, failed: map[string]int{}, stdout: stdout, stderr: stderr}
	for _, m := range point.FindAllStringSubmatch(stdout, -1) {
		what := byChance.ReplaceAllString(m[2], "*")
		switch {
		case strings.Contains(what, "# SKIP"):
			v.skipped++
		case m[1] != "":
			v.failed[what]++
		default:
			v.passed[what]++
		}
	}
	v.whole = !failed && len(v.failed) == 0 && (len(v.passed) > 0 || !problem.MatchString(stdout))
	return v
}

// patience bounds one program of the validation; the longest, linux_ns_itype, takes 60 s.
const patience = 3 * time.Minute

// validate runs one program of the validation on a runtime, in a directory and with
// containers of its own, and removes all that is left.
func validate(t *testing.T, dir, name string, p program) verdict {
	t.Helper()
	work := open(t)
	state := filepath.Join(work, "state")
	for _, file := range []string{"runtimetest", "rootfs-amd64.tar.gz", "rootfs-386.tar.gz"} {
		// Copies: the suite copies them on as they are, links too.
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err == nil {
			err = os.WriteFile(filepath.Join(work, file), b, 0o755)
		}
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	// The suite calls $RUNTIME without options: its containers must not be among others.
	wrapper := filepath.Join(work, p.name)
	script := fmt.Sprintf("#!/bin/sh\nexec '%s' --root '%s' \"$@\"\n", p.path, state)
	if err := errors.Join(os.Mkdir(state, 0o700), os.WriteFile(wrapper, []byte(script), 0o700)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(dir, name))
	cmd.Dir, cmd.Env = work, append(os.Environ(), "RUNTIME="+wrapper, "TMPDIR="+work)
	// Some containers of the suite have no mount namespace: what is mounted for them must
	// not stay on the host, and goes with this one.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Unshareflags: syscall.CLONE_NEWNS}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if ctx.Err() != nil {
		fmt.Fprintf(&stderr, "%s had not ended after %v\n", name, patience)
	}
	purge(p, state)
	return parse(stdout.String(), stderr.String(), err != nil)
}

// purge removes the containers of a state directory, and the cgroups that the suite names.
func purge(p program, state string) {
	entries, _ := os.ReadDir(state)
	for _, e := range entries {
		_ = exec.Command(p.path, "--root", state, "delete", "--force", e.Name()).Run()
	}
	for _, pattern := range []string{"cgrouptest", "testdir/cgrouptest", "testdir", "*/cgrouptest", "*/testdir/cgrouptest", "*/testdir"} {
		dirs, _ := filepath.Glob(filepath.Join("/sys/fs/cgroup", pattern))
		for _, dir := range dirs {
			_ = unix.Rmdir(dir)
		}
	}
}

// TestParse: a suite that fails is not taken for one that passes.
func TestParse(t *testing.T) {
	for _, c := range []struct {
		stdout string
		failed bool
		want   string
	}{
		{"TAP version 13\nok 1 - a\nok 2 - b # SKIP c\n1..2\n", false, " 1/0/1"},
		{"TAP version 13\nok 1 - a\nnot ok 2 - b\n1..2\n", false, "-1/1/0"},
		{"TAP version 13\n  ---\n  {\n    \"error\": \"Hooks MUST be called in the listed order\"\n  }\n  ...\n1..0\n", false, "-0/0/0"},
		{"TAP version 13\n", true, "-0/0/0"},
	} {
		if got := parse(c.stdout, "", c.failed); got.String() != c.want {
			t.Errorf("%q: %s, want %s", c.stdout, got, c.want)
		}
	}
	want := parse("ok 1 - a\nok 2 - a\nok 3 - bundle ocitest12\n", "", false)
	if lacks := want.beyond(parse("ok 1 - bundle ocitest77\nok 2 - a\nnot ok 3 - a\n", "", false)); len(lacks) != 2 {
		t.Errorf("%q, want a point and the whole", lacks)
	}
	if lacks := want.beyond(want); lacks != nil {
		t.Errorf("%q", lacks)
	}
}

package arch

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// promised are the commands, filters and options that docs/coverage.md must have a row for.
const promised = `version info system_df system_prune events login logout
run create start stop restart kill pause unpause wait rm rename ps ls logs attach exec inspect top stats port diff
cp export commit update prune
status= exited= label= name= id= ancestor= network= volume= health= before= since=
--format -q --no-trunc -s -l -n
-d -i -t -a --rm --name -e --env-file -p -P -v --mount --tmpfs --volumes-from -w -u --entrypoint --hostname
--network --network-alias --ip --ip6 --link --add-host --dns --dns-search --restart --init --privileged --cap-add
--cap-drop --security-opt --read-only --pid --ipc --uts --userns --cgroupns --cgroup-parent --device
--device-cgroup-rule --gpus --group-add --ulimit --sysctl --shm-size -m --memory-swap --memory-reservation
--oom-kill-disable --oom-score-adj --cpus --cpu-shares --cpu-quota --cpu-period --cpuset-cpus --cpuset-mems
--blkio-weight --device-read-bps --device-write-bps --device-read-iops --device-write-iops --pids-limit
--stop-signal --stop-timeout --health-* --no-healthcheck --label --label-file --log-driver --log-opt --pull
--platform --cidfile --expose --runtime --isolation --detach-keys --sig-proxy`

var (
	quoted    = regexp.MustCompile("`([^`]+)`")
	testNamed = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	testName  = regexp.MustCompile(`^(Test|Fuzz)[A-Z]\w*$`)
)

// TestCoverage holds docs/coverage.md to what it claims: every promised word
// begins a row, and each row names tests that exist, or says that it is not
// there yet.
func TestCoverage(t *testing.T) {
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(root, "docs/coverage.md"))
	if err != nil {
		t.Fatal(err)
	}
	tests, rows := testNames(t, root), map[string]bool{}
	for n, line := range strings.Split(string(page), "\n") {
		cells := strings.Split(strings.Trim(line, "|"), "|")
		if !strings.HasPrefix(line, "| `") && !strings.HasPrefix(line, "| ") || len(cells) < 2 || strings.Contains(line, "| shown by |") {
			continue
		}
		for _, w := range quoted.FindAllStringSubmatch(cells[0], -1) {
			for _, word := range append(strings.Fields(w[1]), strings.ReplaceAll(w[1], " ", "_")) {
				rows[word] = true
			}
		}
		by := strings.TrimSpace(cells[len(cells)-1])
		if strings.HasPrefix(by, "not yet") {
			continue
		}
		named := quoted.FindAllStringSubmatch(by, -1)
		if len(named) == 0 {
			t.Errorf("docs/coverage.md:%d: no test is named: say which shows it, or `not yet`", n+1)
		}
		for _, w := range named {
			if !tests[w[1]] {
				t.Errorf("docs/coverage.md:%d: there is no test %s", n+1, w[1])
			}
		}
	}
	for _, word := range strings.Fields(promised) {
		if !rows[word] {
			t.Errorf("docs/coverage.md: no row for %s", strings.ReplaceAll(word, "_", " "))
		}
	}
}

// testNames are the tests of the module, and the scripts that tests run, by file name.
func testNames(t *testing.T, root string) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	for _, pattern := range []string{"test/*/testdata/*/*.txtar", "internal/cli/testdata/*.txt"} {
		files, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil || len(files) == 0 {
			t.Fatalf("no %s: %v", pattern, err)
		}
		for _, f := range files {
			names[filepath.Base(f)] = true
		}
	}
	for _, p := range packages(t) {
		for _, name := range slices.Concat(p.TestGoFiles, p.XTestGoFiles) {
			text, err := os.ReadFile(filepath.Join(p.Dir, name))
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range testNamed.FindAllSubmatch(text, -1) {
				if n := string(m[1]); testName.MatchString(n) {
					names[n] = true
				}
			}
		}
	}
	return names
}

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestSame runs the lines of testdata/same through the stock client and through
// escale, against one engine, and compares output, error output and exit code.
//
// A line is a shell's. $N is the same name for both, $M a name of each client's
// own, which counts as the same in what is compared. A line without $M changes
// nothing and is run again when the outputs differ: time may have passed in between.
//
//	# words             a comment
//	+ line              run once, by the stock client: what both then look at
//	~ reason            the next line may differ, for this reason; it must
//	~out ~err ~code     the same, of one of the three only
//
// escale goes by the name docker here and so speaks of itself as docker.
func TestSame(t *testing.T) {
	host, paths := sharedHost(t), clients()
	if paths["docker"] == "" {
		t.Skip("needs the stock docker client on PATH: what escale prints is NOT compared with what it prints")
	}
	files, err := filepath.Glob("testdata/same/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no lines: %v", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			p := newPair(t, host, paths)
			compared := 0
			var differs []string
			for n, line := range strings.Split(string(text), "\n") {
				switch mark, rest, _ := strings.Cut(line, " "); {
				case line == "" || mark == "#":
				case mark == "+":
					if r := p.stock.run(rest); r.code != 0 {
						t.Fatalf("%s:%d: %s: %+v", f, n+1, rest, r)
					}
				case strings.HasPrefix(mark, "~"):
					if rest == "" {
						t.Fatalf("%s:%d: no reason is given", f, n+1)
					}
					differs = append(differs, strings.TrimPrefix(mark, "~"))
				default:
					p.compare(t, fmt.Sprintf("%s:%d", f, n+1), line, differs)
					differs = nil
					compared++
				}
			}
			t.Logf("%d lines compared", compared)
			if t.Failed() && shared.engine != nil {
				t.Logf("the engine said last:\n%s", shared.engine.Tail(3000))
			}
		})
	}
}

// pair is the two clients in places of their own.
type pair struct{ stock, ours place }

type place struct {
	dir, name string
	env       []string
}

func newPair(t *testing.T, host string, paths map[string]string) pair {
	root, err := os.MkdirTemp("", "same") // a short path: it stands in columns
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	base := "same-" + strings.ToLower(filepath.Base(t.Name()))
	make := func(client, letter string) place {
		p := place{dir: filepath.Join(root, letter), name: base + "-" + letter}
		bin := filepath.Join(root, letter+"bin")
		for _, d := range []string{p.dir, bin} {
			if err := os.Mkdir(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink(paths[client], filepath.Join(bin, "docker")); err != nil {
			t.Fatal(err)
		}
		for _, kv := range os.Environ() {
			if k, _, _ := strings.Cut(kv, "="); !strings.HasPrefix(k, "DOCKER_") && !strings.HasPrefix(k, "ESCALE_") && k != "PATH" && k != "HOME" {
				p.env = append(p.env, kv)
			}
		}
		p.env = append(p.env, "PATH="+bin+":"+os.Getenv("PATH"), "HOME="+p.dir, "DOCKER_HOST="+host, "DOCKER_CLI_HINTS=false",
			"N="+base, "M="+p.name, "IMG="+image, "W="+p.dir, "COLUMNS=120",
			// The two are of different ages: what they would agree on with the engine is not the same.
			"DOCKER_API_VERSION=1.50")
		return p
	}
	t.Cleanup(func() { removeNamed(host, base) })
	return pair{make("docker", "d"), make("escale", "e")}
}

// result is what a line did.
type result struct {
	out, err string
	code     int
}

func (p place) run(line string) result {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", line)
	cmd.Dir, cmd.Env, cmd.WaitDelay = p.dir, p.env, time.Second
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run()
	return result{p.normal(out.String()), p.normal(errs.String()), cmd.ProcessState.ExitCode()}
}

// What is chance keeps its width.
var chances = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`\b[0-9a-f]{64}\b`), strings.Repeat("f", 64)},
	{regexp.MustCompile(`\b[0-9a-f]{12}\b`), strings.Repeat("f", 12)},
	{regexp.MustCompile(`\b20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+(Z|[+-]\d\d:\d\d)`), "TIME"},
	{regexp.MustCompile(`(?m)[ \t]+$`), ""},
	{regexp.MustCompile(` in type \*?\w+\.\w+`), ""}, // of which program's
	// Where there is no engine, escale adds what to do about it.
	{regexp.MustCompile(`(?m)^(Start the engine with|Check the address, or name).*\n`), ""},
}

// The containers of the two are made one after the other: how long ago differs, and
// with it how wide the columns of a table are.
var (
	age  = regexp.MustCompile(`(Less than a second|About a minute|\d+ (seconds?|minutes?)) ago`)
	wide = regexp.MustCompile(` {2,}`)
)

func (p place) normal(s string) string {
	s = strings.NewReplacer(p.name, "MINE", p.dir, "/MY").Replace(s)
	for _, c := range chances {
		s = c.pattern.ReplaceAllString(s, c.with)
	}
	if age.MatchString(s) {
		s = wide.ReplaceAllString(age.ReplaceAllString(s, "A WHILE ago"), "  ")
	}
	return s
}

func (p pair) compare(t *testing.T, at, line string, accepted []string) {
	t.Helper()
	var want, got result
	for range 3 {
		want, got = p.stock.run(line), p.ours.run(line)
		if want == got || strings.Contains(line, "$M") || len(accepted) > 0 {
			break
		}
	}
	accept := map[string]bool{}
	for _, a := range accepted {
		accept[a] = true
	}
	differs := false
	for _, part := range []struct {
		name      string
		want, got any
	}{{"out", want.out, got.out}, {"err", want.err, got.err}, {"code", want.code, got.code}} {
		same := part.want == part.got
		differs = differs || !same
		if !same && !accept[""] && !accept[part.name] {
			t.Errorf("%s: %s\n%s:\ndocker %q\nescale %q", at, line, part.name, part.want, part.got)
		}
		if same && accept[part.name] {
			t.Errorf("%s: %s\n%s is said to differ, and does not", at, line, part.name)
		}
	}
	if accept[""] && !differs {
		t.Errorf("%s: %s\nis said to differ, and does not", at, line)
	}
}

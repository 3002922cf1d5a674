package cli_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// TestSwarmAsDocker gives each line of testdata/swarm.list to both clients, against a
// cluster on paper: they print the same, end alike, and ask for the same changes.
//
//	# words           a comment
//	~ reason          the next line may differ, for this reason; it must
//	~out ~err ~code ~sent   the same, of one of them only
//	none LINE         the node is in no swarm
func TestSwarmAsDocker(t *testing.T) {
	needDocker(t)
	if testing.Short() {
		t.Skip("-short: hundreds of programs are not started")
	}
	text, err := os.ReadFile("testdata/swarm.list")
	if err != nil {
		t.Fatal(err)
	}
	type work struct {
		number  int
		line    string
		differs map[string]bool
	}
	tasks := make(chan work)
	var all sync.WaitGroup
	for range 4 {
		both := [2]*paper{newPaper(t), newPaper(t)}
		dir := swarmDir(t)
		all.Go(func() {
			for x := range tasks {
				compareSwarm(t, both, dir, fmt.Sprintf("swarm.list:%d", x.number), x.line, x.differs)
			}
		})
	}
	count, differs := 0, map[string]bool{}
	for n, line := range strings.Split(string(text), "\n") {
		mark, reason, _ := strings.Cut(line, " ")
		switch {
		case line == "" || mark == "#":
		case strings.HasPrefix(mark, "~"):
			if reason == "" {
				t.Fatalf("swarm.list:%d: no reason is given", n+1)
			}
			differs[strings.TrimPrefix(mark, "~")] = true
		default:
			tasks <- work{n + 1, line, differs}
			differs = map[string]bool{}
			count++
		}
	}
	close(tasks)
	all.Wait()
	t.Logf("%d command lines compared", count)
}

func swarmDir(t *testing.T) string {
	dir := bodyDir(t)
	files, err := filepath.Glob("testdata/stack/*")
	if err != nil || len(files) == 0 {
		t.Fatalf("no compose files: %v", err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(f)), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const root = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
	for name, text := range map[string]string{"secret": "hush", "empty": "", "root.pem": root, "root.key": strings.ReplaceAll(root, "CERTIFICATE", "PRIVATE KEY")} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// told is what a line did.
type told struct {
	out, err string
	code     int
	sent     []string
}

var spaceAtEnd = regexp.MustCompile(`(?m)[ \t]+$`)

func compareSwarm(t *testing.T, both [2]*paper, dir, at, line string, differs map[string]bool) {
	line, none := strings.CutPrefix(line, "none ")
	var r [2]told
	for i, client := range []string{"docker", "escale"} {
		r[i] = runSwarm(t, both[i], dir, client, line, !none)
	}
	d, e := r[0], r[1]
	same := 0
	for _, x := range []struct {
		what      string
		got, want any
	}{
		{"out", e.out, d.out}, {"err", e.err, d.err}, {"code", e.code, d.code}, {"sent", strings.Join(e.sent, "\n"), strings.Join(d.sent, "\n")},
	} {
		switch equal := reflect.DeepEqual(x.got, x.want); {
		case equal && differs[x.what]:
			t.Errorf("%s: %s: %s is said to differ, and does not", at, line, x.what)
		case equal:
			same++
		case !differs[x.what] && !differs[""]:
			t.Errorf("%s: %s: %s\n got %v\nwant %v", at, line, x.what, x.got, x.want)
		}
	}
	if differs[""] && same == 4 {
		t.Errorf("%s: %s: is said to differ, and does not", at, line)
	}
}

func runSwarm(t *testing.T, p *paper, dir, client, line string, member bool) told {
	p.mu.Lock()
	p.sent, p.none = nil, !member
	p.mu.Unlock()
	cmd := exec.Command("sh", "-c", client+` -H "$HOST_UNDER_TEST" `+line)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "D="+dir, "HOST_UNDER_TEST="+p.host, "HOME="+dir, "DOCKER_CONFIG="+dir, "DOCKER_HOST=", "ESCALE_HOST=", "B=from-env",
		"DOCKER_CLI_HINTS=false", "COLUMNS=100", "DOCKER_API_VERSION=1.50")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	plain := func(s string) string {
		lines := strings.Split(spaceAtEnd.ReplaceAllString(strings.ReplaceAll(s, "escale", "docker"), ""), "\n")
		return strings.Join(slices.Compact(lines), "\n") // progress on what is no terminal is said again and again
	}
	r := told{plain(out.String()), plain(errs.String()), cmd.ProcessState.ExitCode(), nil}
	for _, s := range p.sent {
		r.sent = append(r.sent, normalRequest(t, s))
	}
	if strings.HasPrefix(line, "stack deploy") {
		// The stock client takes the services, and networks, of a file in an order of chance.
		slices.Sort(r.sent)
		lines := strings.Split(r.out, "\n")
		slices.Sort(lines)
		r.out = strings.Join(slices.Compact(lines), "\n")
	}
	return r
}

// normalRequest makes requests of the two clients comparable.
func normalRequest(t *testing.T, s string) string {
	words := strings.SplitN(s, " ", 3)
	path, query, _ := strings.Cut(words[1], "?")
	values, err := url.ParseQuery(query)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"rotateWorkerToken", "rotateManagerToken", "rotateManagerUnlockKey", "force"} {
		if values.Get(k) == "false" || values.Get(k) == "0" {
			values.Del(k)
		}
	}
	text := words[0] + " " + path + " " + values.Encode()
	if len(words) < 3 {
		return text
	}
	var body any
	if err := json.Unmarshal([]byte(words[2]), &body); err != nil {
		t.Fatalf("%s: %v", s, err)
	}
	sortSets("", body)
	b, err := json.Marshal(plainBody(body))
	if err != nil {
		t.Fatal(err)
	}
	return text + " " + string(b)
}

// sortSets sorts the lists of which Docker's client leaves the order to chance.
func sortSets(key string, v any) {
	switch x := v.(type) {
	case map[string]any:
		for k, e := range x {
			sortSets(k, e)
		}
	case []any:
		for _, e := range x {
			sortSets("", e)
		}
		switch key {
		case "Env", "Ports", "Secrets", "Configs", "GenericResources", "Aliases":
			slices.SortFunc(x, func(a, b any) int { return strings.Compare(text(a), text(b)) })
		}
	}
}

// plainBody leaves out what says nothing: null, "", 0, false, [] and {}, but for the modes
// of a service, which are empty maps, and replicas.
func plainBody(v any) any {
	switch x := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, e := range x {
			if m, ok := e.(map[string]any); ok && len(m) == 0 && strings.HasPrefix(k, "Global") {
				out[k] = "yes"
				continue
			}
			if p := plainBody(e); p != nil || k == "Replicas" && e != nil {
				out[k] = p
			}
		}
		if len(out) == 0 {
			return nil
		}
		return out
	case []any:
		if len(x) == 0 {
			return nil
		}
		for i, e := range x {
			x[i] = plainBody(e)
		}
		return x
	case string:
		if x == "" {
			return nil
		}
	case float64:
		if x == 0 {
			return nil
		}
	case bool:
		if !x {
			return nil
		}
	}
	return v
}

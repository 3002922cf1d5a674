package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
)

// project is an example's directory, its programs built, on an engine of its own.
type project struct {
	*testing.T
	e      *harness.Engine
	dir    string
	env    []string
	client []string // the compose command
	ctx    context.Context
}

func newProject(t *testing.T, name string, client []string, env ...string) *project {
	t.Helper()
	if foreign != "" {
		t.Skip("another's engine keeps no apps")
	}
	e := start(t, harness.Options{})
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(5*time.Minute))
	t.Cleanup(cancel)
	p := &project{T: t, e: e, client: client, ctx: ctx}
	p.env = append(append(os.Environ(), "PATH="+harness.BinDir()+":"+os.Getenv("PATH"), "DOCKER_HOST="+e.Host(), "ESCALE_HOST="+e.Host(),
		"COMPOSE_PROJECT_NAME="+name, "EXAMPLES_DIR="+t.TempDir()), env...)
	p.dir = strings.TrimSpace(p.run("../../examples/build.sh", name))
	return p
}

// run runs a program in the project's directory and gives what it printed.
func (p *project) run(name string, args ...string) string {
	p.Helper()
	out, err := p.command(name, args...).CombinedOutput()
	if err != nil {
		p.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (p *project) command(name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(p.ctx, name, args...)
	cmd.Dir, cmd.Env = p.dir, p.env
	if name == "escale" {
		cmd.Path, cmd.Err = filepath.Join(harness.BinDir(), name), nil
	}
	return cmd
}

// compose runs a verb of compose.
func (p *project) compose(args ...string) string {
	p.Helper()
	return p.run(p.client[0], append(p.client[1:len(p.client):len(p.client)], args...)...)
}

// get asks a page once; an error is told of in place of what it says.
func (p *project) get(c *http.Client, url string) string {
	req, err := http.NewRequestWithContext(p.ctx, "GET", url, nil)
	if err != nil {
		p.Fatal(err)
	}
	res, err := c.Do(req)
	if err != nil {
		return err.Error()
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return fmt.Sprint(string(b), map[bool]string{true: res.Status}[res.StatusCode != http.StatusOK], map[bool]any{false: err, true: ""}[err == nil])
}

// says waits until a page says something.
func (p *project) says(url, pattern string) string {
	p.Helper()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	got := ""
	for end := time.Now().Add(harness.Patience(20 * time.Second)); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if got = p.get(c, url); regexp.MustCompile(pattern).MatchString(got) {
			return got
		}
	}
	p.Fatalf("%s says %q, want %q", url, got, pattern)
	return ""
}

// down takes the app away and looks for what is left.
func (p *project) down() {
	p.Helper()
	p.compose("down", "-v")
	if left := p.run("escale", "network", "ls", "-q", "--filter", "type=custom") + p.run("escale", "ps", "-aq") + p.run("escale", "volume", "ls", "-q"); left != "" {
		p.Errorf("left: %s", left)
	}
}

// TestIdentidock does the exercise of examples/identidock, with Docker Compose 1.29, too.
func TestIdentidock(t *testing.T) {
	for _, client := range [][]string{{"escale", "compose"}, {"docker-compose"}} {
		t.Run(client[0], func(t *testing.T) {
			if _, err := exec.LookPath(client[0]); err != nil && client[0] != "escale" {
				t.Skip("needs docker-compose")
			}
			host, port, _ := strings.Cut(freePort(t), ":")
			p := newProject(t, "identidock", client, "PORT="+port)
			at := "http://" + hostOf(host) + ":" + port
			p.compose("up", "-d", "--build")
			p.says(at+"/", "(?s)Hello.*img src.*1 looks so far")
			from := func(want string) {
				t.Helper()
				res, err := http.Get(at + "/monster/abc")
				if err != nil {
					t.Fatal(err)
				}
				defer res.Body.Close()
				if b, err := io.ReadAll(res.Body); err != nil || !strings.HasPrefix(string(b), "<svg") || res.Header.Get("X-From") != want {
					t.Errorf("from %q came %s, %v, want %s", res.Header.Get("X-From"), b, err, want)
				}
			}
			from("dnmonster")
			from("redis")
			if out := p.compose("ps"); !strings.Contains(out, "dnmonster") || !strings.Contains(out, "redis") {
				t.Errorf("ps: %s", out)
			}
			before := p.run("escale", "ps", "-q", "--no-trunc")
			p.compose("up", "-d")
			if after := p.run("escale", "ps", "-q", "--no-trunc"); after != before {
				t.Errorf("up again: %s, was %s", after, before)
			}
			p.compose("up", "-d", "--scale", "dnmonster=2")
			if out := p.run("escale", "ps", "-q", "--filter", "name=dnmonster"); strings.Count(out, "\n") != 2 {
				t.Errorf("scaled to two: %s", out)
			}
			p.compose("stop")
			p.says(at+"/", "refused")
			p.compose("start")
			p.says(at+"/", "2 looks so far")
			from("redis") // the store has kept it
			p.compose("down")
			if out := p.run("escale", "volume", "ls", "-q"); !strings.Contains(out, "identidock_rdata") {
				t.Errorf("volumes after down: %s", out)
			}
			p.compose("up", "-d")
			p.says(at+"/", "3 looks so far")
			p.down()
		})
	}
}

// hostOf is the address by which a published port is asked.
func hostOf(host string) string {
	if host == "" || host == "0.0.0.0" {
		return "127.0.0.1"
	}
	return host
}

// TestVotingApp does that of examples/voting-app: two fronts, a worker between a queue
// and a database, which is killed meanwhile.
func TestVotingApp(t *testing.T) {
	_, votes, _ := strings.Cut(freePort(t), ":")
	_, results, _ := strings.Cut(freePort(t), ":")
	p := newProject(t, "voting-app", []string{"escale", "compose"}, "VOTE_PORT="+votes, "RESULT_PORT="+results)
	p.compose("up", "-d", "--build", "--wait")
	vote := func(jar *cookiejar.Jar, what string) {
		t.Helper()
		c := &http.Client{Jar: jar, Transport: &http.Transport{DisableKeepAlives: true}}
		for range 2 { // the first visit brings the cookie
			res, err := c.PostForm("http://127.0.0.1:"+votes+"/", url.Values{"vote": {what}})
			if err != nil || res.StatusCode != http.StatusOK {
				t.Fatal(res, err)
			}
			res.Body.Close()
		}
	}
	shows := func(a, b int) {
		t.Helper()
		p.says("http://127.0.0.1:"+results+"/votes", fmt.Sprintf(`{"a":%d,"b":%d}`, a, b))
	}
	shows(0, 0)
	jar := func() *cookiejar.Jar {
		j, err := cookiejar.New(nil)
		if err != nil {
			t.Fatal(err)
		}
		return j
	}
	one, two := jar(), jar()
	warm := func(j *cookiejar.Jar) { // a cookie first, so that each casts one vote
		res, err := (&http.Client{Jar: j}).Get("http://127.0.0.1:" + votes + "/")
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
	}
	warm(one)
	warm(two)
	vote(one, "a")
	shows(1, 0)
	vote(two, "a")
	shows(2, 0)
	vote(two, "b") // who votes again has changed his mind
	shows(1, 1)
	p.compose("up", "-d", "--scale", "vote=3", "--scale", "worker=2")
	seen := map[string]bool{}
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for range 30 {
		seen[p.get(c, "http://127.0.0.1:"+votes+"/")] = true
	}
	if len(seen) != 3 {
		t.Errorf("three replicas answered as %d: %v", len(seen), seen)
	}
	// What fails is healed, with what it had kept.
	kill(p, "voting-app-db-1")
	vote(one, "b")
	shows(0, 2)
	p.down()
}

// kill kills a container's process as a fault does.
func kill(p *project, container string) (id string) {
	p.Helper()
	var found []struct {
		ID    string `json:"Id"`
		State struct{ Pid int }
	}
	if err := json.Unmarshal([]byte(p.run("escale", "inspect", container)), &found); err != nil {
		p.Fatal(err)
	}
	if err := syscall.Kill(found[0].State.Pid, syscall.SIGKILL); err != nil {
		p.Fatal(err)
	}
	return found[0].ID
}

// loadRun is examples/load at work.
type loadRun struct {
	*exec.Cmd
	out strings.Builder
}

func (p *project) load(rate int, url string) *loadRun {
	p.Helper()
	bin := filepath.Join(p.dir, "load")
	if _, err := os.Stat(bin); err != nil {
		cmd := exec.CommandContext(p.ctx, "go", "build", "-o", bin, "../../examples/load")
		if out, err := cmd.CombinedOutput(); err != nil {
			p.Fatalf("%v: %s", err, out)
		}
	}
	l := &loadRun{Cmd: p.command(bin, "-v", "-rate", strconv.Itoa(rate), "-for", "10m", "-timeout", harness.Patience(20*time.Second).String(), url)}
	l.Stdout, l.Stderr = &l.out, &l.out
	if err := l.Start(); err != nil {
		p.Fatal(err)
	}
	p.Cleanup(func() { _ = l.Process.Kill(); _ = l.Wait() })
	return l
}

// end ends it and gives how many requests there were and how many of them failed.
func (l *loadRun) end(p *project) (sent, failed int) {
	p.Helper()
	if err := l.Process.Signal(syscall.SIGINT); err != nil {
		p.Fatal(err)
	}
	var exit *exec.ExitError
	if err := l.Wait(); err != nil && !errors.As(err, &exit) {
		p.Fatal(err)
	}
	m := regexp.MustCompile(`(\d+) requests in .* s, (\d+) failed`).FindStringSubmatch(l.out.String())
	if m == nil {
		p.Fatalf("the load says %s", l.out.String())
	}
	sent, _ = strconv.Atoi(m[1])
	failed, _ = strconv.Atoi(m[2])
	return sent, failed
}

// TestShop: three replicas behind one port under a light load, or five under the one that
// ESCALE_LOAD_RATE=1000 asks for: through rolling updates of both orders and back no request
// fails; through a killed replica only those on it.
func TestShop(t *testing.T) {
	rate, replicas := int(100/harness.Slow()), "3"
	if s := os.Getenv("ESCALE_LOAD_RATE"); s != "" {
		var err error
		replicas = "5"
		if rate, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	rate = max(rate, 5)
	_, port, _ := strings.Cut(freePort(t), ":")
	drain := "DRAIN=" + harness.Patience(time.Second).String()
	p := newProject(t, "shop", []string{"escale", "compose"}, "PORT="+port, "REPLICAS="+replicas, drain)
	at := "http://127.0.0.1:" + port
	p.compose("build", "-q")
	version := func(v string, env ...string) {
		p.env = append(append(p.env, "VERSION="+v), env...)
	}
	version("2")
	p.compose("build", "-q")
	version("1")
	p.compose("up", "-d", "--wait")
	p.says(at+"/who", "^version 1, ")
	if res, err := http.Post(at+"/buy/rope", "", nil); err != nil || res.StatusCode != http.StatusOK {
		t.Fatal(res, err)
	}
	for _, c := range []struct {
		what string
		do   func()
		may  int // fail
	}{
		{"version 2, start first", func() { version("2"); p.compose("up", "-d", "--no-build") }, 0},
		{"back to version 1", func() { p.compose("rollback", "shop") }, 0},
		{"version 2, stop first", func() { version("2", "ORDER=stop-first"); p.compose("up", "-d", "--no-build") }, 0},
		{"a replica killed", func() {
			id := kill(p, "shop-web-3")
			for end := time.Now().Add(harness.Patience(time.Minute)); ; time.Sleep(50 * time.Millisecond) {
				out := p.run("escale", "ps", "--no-trunc", "--filter", "name=shop-web", "--filter", "health=healthy", "--format", "{{.ID}}")
				if fmt.Sprint(strings.Count(out, "\n")) == replicas && !strings.Contains(out, id) {
					return
				}
				if time.Now().After(end) {
					t.Fatalf("it was not replaced: %s", out)
				}
			}
		}, 1 + rate/5}, // of a second's share: the port still led to it until its end was known
	} {
		l := p.load(rate, at+"/who")
		time.Sleep(time.Second)
		begun := time.Now()
		c.do()
		took := time.Since(begun)
		time.Sleep(time.Second)
		sent, failed := l.end(p)
		t.Logf("%s: took %.1f s, %d requests, %d failed", c.what, took.Seconds(), sent, failed)
		if failed > c.may || sent < rate {
			t.Errorf("%s: %d of %d requests at %d a second failed\n%s", c.what, failed, sent, rate, l.out.String())
		}
	}
	p.says(at+"/who", "^version 2, ")
	p.says(at+"/sold", "^1\n$")
	p.down()
}

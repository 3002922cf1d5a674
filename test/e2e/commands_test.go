package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"escale.dev/escale/test/internal/harness"
	"github.com/creack/pty"
	"github.com/rogpeppe/go-internal/testscript"
)

type command = func(ts *testscript.TestScript, neg bool, args []string)

// commands are what scripts have beyond testscript's own:
//
//	code N PROGRAM ARGS…        run; it must end with exit code N
//	until S PATTERN PROGRAM …   run again and again until its output matches, S seconds at most
//	tty FILE PROGRAM ARGS…      run on a terminal, by a dialogue: lines of "expect REGEXP", "send TEXT", "size ROWS COLS"
//	api METHOD PATH [FILE]      a bare request; stdout is the status, the content type, the body
//	get S URL                   fetch a page, trying for S seconds
//	refused S ADDRESS           wait until nothing answers there
//	freeport NAME               put a free TCP port of the host into $NAME
//	save NAME                   put the last output, trimmed, into $NAME
//	within S                    the time since the previous within was at most S seconds
//	engine start|kill|stop|…    the script's own engine
//	leaks                       the script's own engine holds no more than at its start
func commands() map[string]command {
	return map[string]command{
		"code": code, "until": until, "tty": tty, "api": api, "get": get, "refused": refused,
		"freeport": freeport, "save": save, "within": within, "engine": engine, "leaks": leaks, "sh": sh,
	}
}

// sh runs a shell line, for pipes.
func sh(ts *testscript.TestScript, neg bool, args []string) {
	err := ts.Exec("sh", append([]string{"-c", args[0], "sh"}, args[1:]...)...)
	if (err != nil) != neg {
		ts.Fatalf("sh %q: %v", args[0], err)
	}
}

func code(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N PROGRAM ARGS…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	err = ts.Exec(args[1], args[2:]...)
	var ee *exec.ExitError
	if errors.As(err, &ee) {
		got = ee.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// seconds is how long a script waits at most: longer on a slow machine.
func seconds(ts *testscript.TestScript, s string) time.Duration {
	f, err := strconv.ParseFloat(s, 64)
	ts.Check(err)
	return harness.Patience(time.Duration(f * float64(time.Second)))
}

func until(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 3 {
		ts.Fatalf("usage: until SECONDS PATTERN PROGRAM ARGS…")
	}
	re, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	var out []byte
	for end := time.Now().Add(seconds(ts, args[0])); ; {
		out = runIn(ts, args[2], args[3:]...)
		if re.Match(out) != neg {
			_, _ = ts.Stdout().Write(out)
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("until: no match for %q in %s s; last:\n%s", args[1], args[0], out)
		}
		time.Sleep(80 * time.Millisecond)
	}
}

// environment is the script's, for programs that we run ourselves.
func environment(ts *testscript.TestScript) []string {
	env := os.Environ()
	for _, k := range []string{"PATH", "DOCKER_HOST", "DOCKER_CONFIG", "DOCKER_CLI_HINTS", "HOME", "TERM", "ESCALE_HOST", "COMPOSE_PROJECT_NAME"} {
		if v := ts.Getenv(k); v != "" {
			env = append(env, k+"="+v)
		}
	}
	return env
}

// program finds a program on the script's PATH.
func program(ts *testscript.TestScript, name string) string {
	if name == "docker" {
		return ts.MkAbs(ts.Getenv("WORK") + "/.bin/docker")
	}
	return name
}

func runIn(ts *testscript.TestScript, name string, args ...string) []byte {
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(20*time.Second))
	defer cancel()
	cmd := exec.CommandContext(ctx, program(ts, name), args...)
	cmd.Env, cmd.Dir = environment(ts), ts.MkAbs(".")
	out, _ := cmd.CombinedOutput()
	return out
}

// tty runs a program on a pseudo-terminal and holds a dialogue with it.
func tty(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: tty FILE PROGRAM ARGS…")
	}
	cmd := exec.Command(program(ts, args[1]), args[2:]...)
	cmd.Env, cmd.Dir = environment(ts), ts.MkAbs(".")
	f, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 24, Cols: 80})
	ts.Check(err)
	defer f.Close()
	defer cmd.Process.Kill()
	heard := make(chan []byte, 64)
	go func() {
		defer close(heard)
		for {
			b := make([]byte, 4096)
			n, err := f.Read(b)
			if n > 0 {
				heard <- b[:n]
			}
			if err != nil {
				return
			}
		}
	}()
	var all bytes.Buffer
	at := 0
	for l := range strings.Lines(ts.ReadFile(args[0])) {
		verb, rest, _ := strings.Cut(strings.TrimSpace(l), " ")
		switch verb {
		case "", "#":
		case "size":
			var ws pty.Winsize
			_, err := fmt.Sscanf(rest, "%d %d", &ws.Rows, &ws.Cols)
			ts.Check(err)
			ts.Check(pty.Setsize(f, &ws))
		case "send":
			text, err := strconv.Unquote(`"` + rest + `"`)
			ts.Check(err)
			_, err = f.WriteString(text)
			ts.Check(err)
		case "expect":
			re, err := regexp.Compile(rest)
			ts.Check(err)
			at = expect(ts, re, &all, at, heard)
		default:
			ts.Fatalf("tty: no verb %q", verb)
		}
	}
	ended := make(chan error, 1)
	go func() {
		for b := range heard {
			all.Write(b)
		}
		ended <- cmd.Wait()
	}()
	select {
	case err = <-ended:
	case <-time.After(harness.Patience(15 * time.Second)):
		_ = cmd.Process.Kill()
		<-ended
		ts.Fatalf("tty: the program did not end after the dialogue; it said:\n%s", all.String())
	}
	fmt.Fprintf(ts.Stdout(), "%s\nended: %v\n", all.String(), err)
}

// expect reads until re matches what came after position at.
func expect(ts *testscript.TestScript, re *regexp.Regexp, all *bytes.Buffer, at int, heard <-chan []byte) int {
	late := time.After(harness.Patience(15 * time.Second))
	for {
		if m := re.FindIndex(all.Bytes()[at:]); m != nil {
			return at + m[1]
		}
		select {
		case b, ok := <-heard:
			if !ok {
				ts.Fatalf("tty: the program ended before %q; it said:\n%s", re, all.String())
			}
			all.Write(b)
		case <-late:
			ts.Fatalf("tty: no %q within 15 s; it said:\n%s", re, all.String())
		}
	}
}

func api(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: api METHOD PATH [FILE]")
	}
	a := harness.NewAPI(ts.Getenv("HOST"))
	defer a.Close()
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(30*time.Second))
	defer cancel()
	var body io.Reader
	if len(args) > 2 {
		body = strings.NewReader(ts.ReadFile(args[2]))
	}
	req, err := http.NewRequestWithContext(ctx, args[0], "http://docker"+args[1], body)
	ts.Check(err)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	c, err := a.Dial(ctx)
	ts.Check(err)
	tr := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return c, nil }, DisableKeepAlives: true}
	res, err := tr.RoundTrip(req)
	ts.Check(err)
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	ts.Check(err)
	fmt.Fprintf(ts.Stdout(), "%d\n%s\n%s\n", res.StatusCode, res.Header.Get("Content-Type"), b)
}

func get(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: get SECONDS URL")
	}
	c := &http.Client{Timeout: harness.Patience(2 * time.Second), Transport: &http.Transport{DisableKeepAlives: true}}
	for end := time.Now().Add(seconds(ts, args[0])); ; time.Sleep(50 * time.Millisecond) {
		res, err := c.Get(args[1])
		if err == nil {
			b, rerr := io.ReadAll(res.Body)
			res.Body.Close()
			if err = rerr; err == nil && res.StatusCode == 200 {
				_, _ = ts.Stdout().Write(b)
				return
			}
		}
		if time.Now().After(end) {
			ts.Fatalf("get %s: %v", args[1], err)
		}
	}
}

func refused(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: refused SECONDS ADDRESS")
	}
	for end := time.Now().Add(seconds(ts, args[0])); ; time.Sleep(50 * time.Millisecond) {
		c, err := net.DialTimeout("tcp", args[1], time.Second)
		if err != nil {
			return
		}
		c.Close()
		if time.Now().After(end) {
			ts.Fatalf("%s still accepts connections", args[1])
		}
	}
}

func freeport(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: freeport NAME")
	}
	l, err := net.Listen("tcp", ":0")
	ts.Check(err)
	defer l.Close()
	ts.Setenv(args[0], strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
}

func save(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: save NAME")
	}
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
}

func within(ts *testscript.TestScript, neg bool, args []string) {
	now := time.Now()
	if len(args) == 1 {
		since, err := strconv.ParseInt(ts.Getenv("WITHIN"), 10, 64)
		ts.Check(err)
		limit := seconds(ts, args[0])
		if neg { // what must take its time does so on any machine
			limit = time.Duration(float64(limit) / harness.Slow())
		}
		if took := now.Sub(time.Unix(0, since)); (took > limit) != neg {
			ts.Fatalf("took %v; limit %s (negated: %v)", took, limit, neg)
		}
	}
	ts.Setenv("WITHIN", strconv.FormatInt(now.UnixNano(), 10))
}

func own(ts *testscript.TestScript) *harness.Engine {
	e, ok := ts.Value("engine").(*harness.Engine)
	if !ok {
		ts.Fatalf("this script has no engine of its own")
	}
	return e
}

// engine: start [FLAGS…] (with the image, marked), begin [FLAGS…] (no image),
// kill, stop, fail [FLAGS…] (must end by itself with an error, whose text is stdout),
// signal NAME (and wait until it ended), hup, tail.
func engine(ts *testscript.TestScript, neg bool, args []string) {
	e := own(ts)
	if neg || len(args) == 0 {
		ts.Fatalf("usage: engine start|begin|kill|stop|fail|hup|tail [FLAGS…]")
	}
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(30*time.Second))
	defer cancel()
	switch args[0] {
	case "start":
		e.SetArgs(args[1:])
		ts.Check(begin(e))
	case "begin":
		e.SetArgs(args[1:])
		ts.Check(e.Start(ctx))
	case "kill":
		ts.Check(e.Kill())
	case "stop":
		ts.Check(e.Stop())
	case "hup":
		ts.Check(syscall.Kill(e.Pid(), syscall.SIGHUP))
	case "tail":
		fmt.Fprint(ts.Stdout(), e.Tail(1<<16))
	case "fail":
		e.SetArgs(args[1:])
		ts.Check(os.RemoveAll(e.LogFile))
		ts.Check(e.Launch())
		err := e.Ended(harness.Patience(10 * time.Second))
		if err == nil || errors.Is(err, context.DeadlineExceeded) {
			ts.Fatalf("engine with %q: %v, want an error", args[1:], err)
		}
		fmt.Fprintf(ts.Stdout(), "%v\n%s", err, e.Tail(1<<16))
	default:
		ts.Fatalf("engine: no verb %q", args[0])
	}
}

func leaks(ts *testscript.TestScript, neg bool, args []string) {
	r, err := own(ts).Leaks(context.Background())
	ts.Check(err)
	if r.Empty() == neg {
		ts.Fatalf("left behind:\n%s", r)
	}
}

package child_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster/store/etcd/child"
	"escale.dev/escale/internal/cluster/store/etcd/server"
	"github.com/containerd/errdefs"
)

// What the test binary is when it is run anew: a server; or an engine that has one, below a
// directory.
const (
	serverWord = "store-server"
	engineEnv  = "ESCALE_TEST_STORE_ENGINE"
)

func TestMain(m *testing.M) {
	dir := os.Getenv(engineEnv)
	_ = os.Unsetenv(engineEnv) // its own children are servers
	switch {
	case dir != "":
		os.Exit(engine(dir))
	case len(os.Args) == 2 && os.Args[1] == serverWord:
		os.Exit(server.Main(os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// engine runs a server, prints its process id once it is ready, and waits to be killed.
func engine(dir string) int {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	c := child.New(config(dir), []string{os.Args[0], serverWord}, log)
	go func() {
		if c.Ready(context.Background()) == nil {
			s, _ := c.State()
			fmt.Println(s.PID)
		}
	}()
	if err := c.Run(context.Background()); err != nil {
		log.Error("ended", "error", err)
	}
	return 1
}

const soon = time.Minute

func config(dir string) child.Config {
	return child.Config{Name: "m1", Fresh: true, Dir: filepath.Join(dir, "data"), Socket: filepath.Join(dir, "s"),
		Listen: fmt.Sprintf("http://127.%d.%d.%d:2380", 1+rand.IntN(254), rand.IntN(255), 1+rand.IntN(254)), Heartbeat: 20 * time.Millisecond, Election: 200 * time.Millisecond}
}

func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "store") // the path of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// run runs a Child until stop is called, which waits for it.
func run(t *testing.T, cfg child.Config) (c *child.Child, stop func() error) {
	t.Helper()
	c = child.New(cfg, []string{os.Args[0], serverWord}, slog.New(slog.NewTextHandler(t.Output(), nil)))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	done := false
	stop = func() error {
		if done {
			return nil
		}
		done = true
		cancel()
		return <-ended
	}
	t.Cleanup(func() { _ = stop() })
	return c, stop
}

func ready(t *testing.T, c *child.Child, within time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	return c.Ready(ctx)
}

// gone waits until there is no process of an id.
func gone(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(soon); !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("process %d is there still", pid)
		}
	}
}

// A server that dies is started again; one that is stopped ends, and leaves its directory
// to the next.
func TestRun(t *testing.T) {
	dir := tempDir(t)
	c, stop := run(t, config(dir))
	if err := ready(t, c, soon); err != nil {
		t.Fatal(err)
	}
	first, changed := c.State()
	if err := syscall.Kill(first.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-changed
	if err := ready(t, c, soon); err != nil {
		t.Fatal(err)
	}
	second, _ := c.State()
	if second.PID == first.PID || second.Starts != 2 || second.Member != first.Member || second.Reason != nil {
		t.Errorf("started again: %+v, then %+v", first, second)
	}
	for leads := false; !leads; {
		l, changed := c.Leads()
		if leads = l; !leads {
			<-changed
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	gone(t, second.PID)
	if s, _ := c.State(); s.Ready || s.PID != 0 {
		t.Errorf("stopped: %+v", s)
	}
	cfg := config(dir)
	cfg.Socket += "2"
	c, _ = run(t, cfg)
	if err := ready(t, c, soon); err != nil {
		t.Error(err)
	}
}

// What the server cannot start with is said; it is tried again, and once the cause is gone it
// is there.
func TestDamaged(t *testing.T) {
	dir := tempDir(t)
	c, stop := run(t, config(dir))
	if err := ready(t, c, soon); err != nil {
		t.Fatal(err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	db := filepath.Join(dir, "data", "member", "snap", "db")
	good, err := os.ReadFile(db)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(db, []byte(strings.Repeat("rubbish", 10000)), 0o600); err != nil {
		t.Fatal(err)
	}
	c, _ = run(t, config(dir))
	for s, changed := c.State(); s.Reason == nil; s, changed = c.State() {
		<-changed
	}
	err = ready(t, c, time.Millisecond)
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "invalid database") {
		t.Errorf("with a damaged database: %v", err)
	}
	if err := os.WriteFile(db, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ready(t, c, soon); err != nil {
		t.Errorf("with the good one again: %v", err)
	}
}

// A member whose data is gone does not begin with nothing, as if it knew all: not when it is
// started again, and not when the engine is.
func TestDataGone(t *testing.T) {
	dir := tempDir(t)
	c, stop := run(t, config(dir))
	if err := ready(t, c, soon); err != nil {
		t.Fatal(err)
	}
	first, _ := c.State()
	err := errors.Join(syscall.Kill(first.PID, syscall.SIGSTOP), os.RemoveAll(filepath.Join(dir, "data", "member")), syscall.Kill(first.PID, syscall.SIGKILL))
	if err != nil {
		t.Fatal(err)
	}
	cfg := config(dir)
	cfg.Fresh = false
	for _, what := range []string{"started again", "in a new engine"} {
		for s, changed := c.State(); !s.Removed; s, changed = c.State() {
			if s.Ready && s.PID != first.PID {
				t.Fatalf("%s, it has begun with nothing", what)
			}
			<-changed
		}
		if err := ready(t, c, soon); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "its data is gone") {
			t.Errorf("%s: %v", what, err)
		}
		if s, _ := c.State(); s.PID != 0 {
			t.Errorf("%s: it runs: %+v", what, s)
		}
		if err := stop(); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "its data is gone") {
			t.Errorf("%s: %v", what, err)
		}
		c, stop = run(t, cfg)
	}
	if _, err := os.Stat(filepath.Join(dir, "data", "member")); err == nil {
		t.Error("it has made data anew")
	}
}

// A server that ends to be started anew is, at once, and nobody is told that something is wrong.
func TestAgain(t *testing.T) {
	mark := filepath.Join(t.TempDir(), "mark")
	const script = `read config
if [ ! -e "$1" ]; then : > "$1"; echo '{"Err":"the roots have changed","Again":true}'; exit 1; fi
echo '{"Ready":true}'
cat`
	var log bytes.Buffer
	c := child.New(child.Config{}, []string{"/bin/sh", "-c", script, "server", mark}, slog.New(slog.NewTextHandler(&log, nil)))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	if err := ready(t, c, soon); err != nil {
		t.Error(err)
	}
	if s, _ := c.State(); s.Starts != 2 || s.Reason != nil || s.Removed {
		t.Errorf("%+v", s)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if text := log.String(); !strings.Contains(text, "started anew") || strings.Contains(text, "ERROR") {
		t.Error(text)
	}
}

// Configurations with which there is no server end with words.
func TestRefused(t *testing.T) {
	for name, change := range map[string]func(*child.Config){
		"no address": func(c *child.Config) { c.Listen = "http://nowhere.invalid:1" },
		"no URL":     func(c *child.Config) { c.Listen = "%" },
		"no file": func(c *child.Config) {
			c.Listen = "https" + c.Listen[4:]
			c.Cert, c.Key, c.CA = "/no/c", "/no/k", "/no/ca"
		},
		"no member": func(c *child.Config) { c.Cluster = "other=http://127.0.0.1:1" },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(tempDir(t))
			change(&cfg)
			c, _ := run(t, cfg)
			for s, changed := c.State(); s.Reason == nil; s, changed = c.State() {
				<-changed
			}
			if err := ready(t, c, time.Millisecond); !errdefs.IsUnavailable(err) || strings.Contains(err.Error(), "does not answer") {
				t.Error(err)
			}
		})
	}
	c := child.New(child.Config{}, []string{"/no/such/program"}, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for s, changed := c.State(); s.Reason == nil; s, changed = c.State() {
			<-changed
		}
		cancel()
	}()
	if err := c.Run(ctx); err != nil {
		t.Error(err)
	}
	if err := ready(t, c, time.Millisecond); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("no program: %v", err)
	}
}

// The server of an engine that is killed ends too.
func TestEngineKilled(t *testing.T) {
	dir := tempDir(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), engineEnv+"="+dir)
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	text, err := bufio.NewReader(out).ReadString('\n')
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // it was killed
	pid, err2 := strconv.Atoi(strings.TrimSpace(text))
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	gone(t, pid)
}

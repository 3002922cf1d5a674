// Package harness runs engines for tests: it starts the built escaled with an
// instance name, data root, exec root, socket, bridge and subnet of its own,
// waits until it answers, kills and restarts it, says afterwards what it left
// in the kernel and on disk, and removes whatever that is. It also carries a
// small client of the engine's API that shows statuses and bytes as they are.
//
// Everything here needs root and works beside other engines.
package harness

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Options says how an engine is to be run. The zero value is the usual.
type Options struct {
	Args     []string // further flags of escaled
	Env      []string // further environment, "KEY=value"
	DataRoot string   // an existing folder instead of a fresh one; the caller owns it
	Hosts    []string // further addresses, "tcp://127.0.0.1:2375"
	Subnet   string   // address of the bridge, "10.9.8.1/24"; empty: one that is free
}

// Engine is an escaled under test. Its methods are for one goroutine, except
// API, which any number may use.
type Engine struct {
	Instance string // unique: every kernel name of this engine holds it
	Root     string // folder that holds all of the following
	DataRoot string
	ExecRoot string
	Socket   string
	Bridge   string
	Subnet   string
	LogFile  string // what the engine says

	opts     Options
	mu       sync.Mutex
	cmd      *exec.Cmd
	exited   chan struct{}
	exitErr  error
	baseline *inventory
	ids      map[string]bool // containers seen, to find their cgroups by
	ports    map[string]bool // how ports of the bridge begin
}

// rootPrefix begins the name of each engine's folder; what bears it and has no
// living owner is swept away by the next test run.
const rootPrefix = "escale-test-"

// tempDir, in that folder, is where an engine has its temporary files if it thinks
// of nothing better: what is in it counts as a record.
const tempDir = "tmp"

// Needs tells why engines cannot be tested here, or "" when they can.
func Needs() string {
	if os.Geteuid() != 0 {
		return "needs root: namespaces, mounts, nftables and cgroups"
	}
	for _, name := range []string{"escaled", "escale-shim", "escale-runtime", "runc"} {
		if _, err := os.Stat(filepath.Join(BinDir(), name)); err != nil {
			return "needs bin/" + name + ": run `make build` first"
		}
	}
	return ""
}

// BinDir is where the built programs are: $ESCALE_BIN, else bin/ of the checkout.
func BinDir() string {
	if d := os.Getenv("ESCALE_BIN"); d != "" {
		return d
	}
	dir, err := os.Getwd()
	if err != nil {
		return "bin"
	}
	for d := dir; d != "/"; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
			return filepath.Join(d, "bin")
		}
	}
	return filepath.Join(dir, "bin")
}

// New prepares an engine without starting it. Close must be called whatever happens.
func New(o Options) (*Engine, error) {
	var b [3]byte
	if _, err := rand.Read(b[:]); err != nil {
		return nil, err
	}
	id := "t" + hex.EncodeToString(b[:])
	root, err := os.MkdirTemp("", rootPrefix+id+"-")
	if err != nil {
		return nil, err
	}
	e := &Engine{
		Instance: id, Root: root, opts: o, ids: map[string]bool{}, ports: map[string]bool{},
		DataRoot: filepath.Join(root, "data"), ExecRoot: filepath.Join(root, "exec"),
		Socket: filepath.Join(root, "e.sock"), LogFile: filepath.Join(root, "engine.log"),
		Bridge: "br" + id, Subnet: o.Subnet,
	}
	if o.DataRoot != "" {
		e.DataRoot = o.DataRoot
	}
	if e.Subnet == "" {
		if e.Subnet, err = freeSubnet(); err != nil {
			return nil, errors.Join(err, os.RemoveAll(root))
		}
	}
	if err := os.Mkdir(filepath.Join(root, tempDir), 0o700); err != nil {
		return nil, errors.Join(err, os.RemoveAll(root))
	}
	owner := fmt.Sprintf("%d %s\n%s\n", os.Getpid(), startTime(os.Getpid()), id)
	if err := os.WriteFile(filepath.Join(root, "owner"), []byte(owner), 0o600); err != nil {
		return nil, errors.Join(err, os.RemoveAll(root))
	}
	return e, nil
}

// freeSubnet picks a /24 of 10/8 that no interface has.
func freeSubnet() (string, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return "", err
	}
	for range 100 {
		var b [2]byte
		if _, err := rand.Read(b[:]); err != nil {
			return "", err
		}
		ip := net.IPv4(10, 100+b[0]%100, b[1], 1)
		taken := false
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && (n.Contains(ip) || n.IP.Mask(net.CIDRMask(24, 32)).Equal(ip.Mask(net.CIDRMask(24, 32)))) {
				taken = true
			}
		}
		if !taken {
			return ip.String() + "/24", nil
		}
	}
	return "", errors.New("no free subnet in 10.100.0.0-10.199.255.0")
}

// Host is the engine's address as -H and DOCKER_HOST want it.
func (e *Engine) Host() string { return "unix://" + e.Socket }

// API is a client of the engine.
func (e *Engine) API() *API { return NewAPI(e.Host()) }

// Pid is the engine's process, 0 when it does not run.
func (e *Engine) Pid() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.cmd == nil {
		return 0
	}
	return e.cmd.Process.Pid
}

// Args are the flags the engine runs with.
func (e *Engine) Args() []string {
	args := []string{
		"--instance", e.Instance, "--data-root", e.DataRoot, "--exec-root", e.ExecRoot,
		"-H", e.Host(), "--bridge-name", e.Bridge, "--bip", e.Subnet,
		"--pidfile", filepath.Join(e.Root, "pid"), "--config-file", filepath.Join(e.Root, "daemon.json"),
		"--safe-mode", "off", // tests kill engines more often than any should crash
	}
	args = append(args, RuntimeArgs()...)
	for _, h := range e.opts.Hosts {
		args = append(args, "-H", h)
	}
	return append(append(args, e.opts.Args...), cgroupArgs()...)
}

// cgroupArgs are the flags that have an engine make cgroups itself, where tests look for
// them, on machines whose systemd it would have make them; what a test asks for comes
// before and wins. ESCALE_CGROUPDRIVER=systemd leaves that out.
func cgroupArgs() []string {
	if _, err := os.Stat("/run/systemd/system"); err != nil || os.Getenv("ESCALE_CGROUPDRIVER") == "systemd" {
		return nil
	}
	return []string{"--exec-opt=native.cgroupdriver=cgroupfs"}
}

// RuntimeArgs are the flags that have an engine take the OCI runtime $ESCALE_RUNTIME;
// none where that is not set, and the engine takes what it takes for users.
func RuntimeArgs() []string {
	if name := os.Getenv("ESCALE_RUNTIME"); name != "" {
		return []string{"--default-runtime=" + name}
	}
	return nil
}

// RuntimeProgram is the name of the program behind that runtime.
func RuntimeProgram() string {
	if os.Getenv("ESCALE_RUNTIME") == "runc" {
		return "runc"
	}
	return "escale-runtime"
}

// SetArgs replaces the further flags for the next Start.
func (e *Engine) SetArgs(args []string) { e.opts.Args = args }

// Launch starts the engine's process and does not wait for an answer.
func (e *Engine) Launch() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.cmd != nil {
		return errors.New("engine runs already")
	}
	cfg := filepath.Join(e.Root, "daemon.json")
	if _, err := os.Stat(cfg); errors.Is(err, os.ErrNotExist) {
		if err := os.WriteFile(cfg, []byte("{}\n"), 0o600); err != nil {
			return err
		}
	}
	out, err := os.OpenFile(e.LogFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.Command(filepath.Join(BinDir(), "escaled"), e.Args()...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = append(append(os.Environ(), "TMPDIR="+filepath.Join(e.Root, tempDir)), e.opts.Env...)
	// A group of its own, so that ^C at a test's terminal does not reach it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	e.cmd, e.exited = cmd, make(chan struct{})
	go func(done chan struct{}) {
		err := cmd.Wait()
		e.mu.Lock()
		e.exitErr = err
		e.mu.Unlock()
		close(done)
	}(e.exited)
	return nil
}

// Start launches the engine and waits until it answers.
func (e *Engine) Start(ctx context.Context) error {
	if err := e.Launch(); err != nil {
		return err
	}
	return e.Ready(ctx)
}

// Ready waits until the engine answers /_ping, or has ended, or ctx is done.
func (e *Engine) Ready(ctx context.Context) error {
	api := e.API()
	defer api.Close()
	for {
		if st, _, err := api.Raw(ctx, "GET", "/_ping", nil); err == nil && st == 200 {
			e.noteIDs()
			if links, err := allLinks(); err == nil {
				e.noteLinks(links)
			}
			return nil
		}
		select {
		case <-e.exited:
			err := e.Ended(0)
			return fmt.Errorf("engine ended before it answered (%v): %s", err, e.Tail(2000))
		case <-ctx.Done():
			return fmt.Errorf("engine does not answer: %w: %s", ctx.Err(), e.Tail(2000))
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Ended waits up to d for the engine's process and returns how it ended: nil
// for exit 0, an *exec.ExitError, or context.DeadlineExceeded while it lives.
func (e *Engine) Ended(d time.Duration) error {
	e.mu.Lock()
	done := e.exited
	e.mu.Unlock()
	if done == nil {
		return nil
	}
	select {
	case <-done:
	case <-time.After(d):
		select {
		case <-done:
		default:
			return context.DeadlineExceeded
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.cmd = nil
	return e.exitErr
}

// Signal sends the engine sig and waits up to 30 s for its end.
func (e *Engine) Signal(sig syscall.Signal) error {
	e.mu.Lock()
	cmd := e.cmd
	e.mu.Unlock()
	if cmd == nil {
		return nil
	}
	if err := cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return e.Ended(Patience(30 * time.Second))
}

// Kill is kill -9.
func (e *Engine) Kill() error {
	err := e.Signal(syscall.SIGKILL)
	var ee *exec.ExitError
	if errors.As(err, &ee) {
		return nil
	}
	return err
}

// Stop is SIGTERM; an error when the engine does not end with 0.
func (e *Engine) Stop() error { return e.Signal(syscall.SIGTERM) }

// Tail returns the last n bytes of what the engine said.
func (e *Engine) Tail(n int) string {
	b, err := os.ReadFile(e.LogFile)
	if err != nil {
		return err.Error()
	}
	if len(b) > n {
		b = b[len(b)-n:]
	}
	return string(b)
}

// RSS is the engine's resident memory in bytes.
func (e *Engine) RSS() int64 { return rss(e.Pid()) }

func rss(pid int) int64 { return statusBytes(pid, "VmRSS:") }

// statusBytes reads a value in kB from the status of a process; 0: there is none.
func statusBytes(pid int, key string) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == key {
			kb, _ := strconv.ParseInt(f[1], 10, 64)
			return kb << 10
		}
	}
	return 0
}

// noteIDs remembers the containers on disk, so that their cgroups are known later.
func (e *Engine) noteIDs() {
	entries, _ := os.ReadDir(filepath.Join(e.DataRoot, "containers"))
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, d := range entries {
		e.ids[d.Name()] = true
	}
}

// Note remembers a container's id for Leaks.
func (e *Engine) Note(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ids[id] = true
}

package devcluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"escale.dev/escale/internal/sys/cgroup"
	"escale.dev/escale/internal/sys/freezer"
	"escale.dev/escale/internal/sys/netns"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// How long a node may take to answer, and to end.
const (
	startPatience = 30 * time.Second
	endPatience   = 20 * time.Second
)

// freezerRoot is where control groups are mounted.
const freezerRoot = "/sys/fs/cgroup"

// cgroups are those with the node's processes: engine and monitors, its monitors where they
// have one of their own, containers.
func (n *node) cgroups() []string {
	return []string{n.cgroup() + "/engine", "/escale-" + n.instance() + "-monitors", n.cgroup() + "/containers"}
}

// start starts the node's engine and waits until it answers. Idempotent.
func (n *node) start(ctx context.Context) error {
	if n.runs() {
		return nil
	}
	if err := n.connect(); err != nil {
		return err
	}
	for _, d := range []string{n.data(), n.run()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	log, err := os.OpenFile(n.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	config := filepath.Join(n.data(), "daemon.json")
	if _, err := os.Stat(config); errors.Is(err, fs.ErrNotExist) {
		if err := os.WriteFile(config, []byte("{}\n"), 0o600); err != nil {
			return err
		}
	}
	cmd := exec.Command(n.c.engine, append([]string{
		"--instance", n.instance(), "--config-file", config, "--data-root", filepath.Join(n.data(), "data"), "--exec-root", filepath.Join(n.run(), "exec"),
		"--pidfile", n.pidfile(), "--cgroup-parent", n.cgroup() + "/containers", "-H", "unix://" + n.socket(),
	}, n.Options...)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	inside, err := netns.Open(n.namespace())
	if err != nil {
		return err
	}
	defer inside.Close()
	if err := inside.Do(func() error { return n.spawn(cmd) }); err != nil {
		return fmt.Errorf("node %s: %w", n.Name, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	if err := n.enclose(cmd.Process.Pid); err != nil {
		return errors.Join(err, cmd.Process.Kill())
	}
	return n.answers(ctx, ended)
}

// spawn starts a program under the node's host name. It runs on a thread that is in the
// node's network namespace, and ends with it.
func (n *node) spawn(cmd *exec.Cmd) error {
	if err := unix.Unshare(unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("host name: %w", err)
	}
	if err := unix.Sethostname([]byte(n.instance())); err != nil {
		return fmt.Errorf("host name: %w", err)
	}
	return cmd.Start()
}

// enclose puts the engine into the node's control group, with what it starts.
func (n *node) enclose(pid int) error {
	dir := freezerDir(n.cgroups()[0])
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
		return fmt.Errorf("node %s: control group: %w", n.Name, err)
	}
	return nil
}

// freezerDir is the directory of a cgroup in the hierarchy that freezes.
func freezerDir(path string) string {
	if _, err := os.Stat(filepath.Join(freezerRoot, "cgroup.controllers")); err == nil {
		return filepath.Join(freezerRoot, path)
	}
	return filepath.Join(freezerRoot, "freezer", path)
}

// answers waits until the engine does.
func (n *node) answers(ctx context.Context, ended <-chan error) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	hc := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", n.socket())
	}}}
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://escale/_ping", nil)
		if err != nil {
			return err
		}
		if resp, err := hc.Do(req); err == nil {
			_ = resp.Body.Close()
			return nil
		}
		select {
		case err := <-ended:
			return fmt.Errorf("node %s: its engine has ended (%v): %s", n.Name, err, n.lastWords())
		case <-ctx.Done():
			return fmt.Errorf("node %s: its engine does not answer: %w; it wrote: %s", n.Name, context.Cause(ctx), n.lastWords())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// lastWords are the last lines of the engine's log.
func (n *node) lastWords() string {
	f, err := os.Open(n.log())
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	var last []string
	for s := bufio.NewScanner(f); s.Scan(); {
		if last = append(last, s.Text()); len(last) > 3 {
			last = last[1:]
		}
	}
	return strings.Join(last, "\n")
}

// pid is that of the engine; 0 when it does not run.
func (n *node) pid() int {
	b, err := os.ReadFile(n.pidfile())
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || !slices.Contains(n.processes(), pid) {
		return 0
	}
	return pid
}

func (n *node) runs() bool { return n.pid() != 0 }

// processes are all of the node's.
func (n *node) processes() (out []int) {
	for _, path := range n.cgroups() {
		_ = filepath.WalkDir(freezerDir(path), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return nil // one that has just gone has nothing in it
			}
			b, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
			for _, f := range strings.Fields(string(b)) {
				if pid, err := strconv.Atoi(f); err == nil {
					out = append(out, pid)
				}
			}
			return nil
		})
	}
	return out
}

// kill ends everything that runs on the node at once, as a power cut does.
func (n *node) kill(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, endPatience)
	defer cancel()
	for {
		list := n.processes()
		if len(list) == 0 {
			return nil
		}
		// The engine first, so that it starts nothing in the place of what dies.
		for _, pid := range append([]int{n.pid()}, list...) {
			if pid > 0 {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		if err := n.thaw(); err != nil { // a frozen process dies when it thaws
			return err
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("node %s: processes %v do not end: %w", n.Name, list, context.Cause(ctx))
		}
	}
}

// freeze stops everything that runs on the node, in the middle of whatever it does.
func (n *node) freeze() error {
	for _, path := range n.cgroups() {
		if _, err := os.Stat(freezerDir(path)); err != nil {
			continue
		}
		if err := (freezer.Freezer{Root: freezerRoot}).Freeze(path); err != nil {
			return errors.Join(fmt.Errorf("node %s: %w", n.Name, err), n.thaw())
		}
	}
	return nil
}

// thaw lets it go on. Idempotent.
func (n *node) thaw() error {
	var errs []error
	for _, path := range n.cgroups() {
		if _, err := os.Stat(freezerDir(path)); err == nil {
			errs = append(errs, freezer.Freezer{Root: freezerRoot}.Thaw(path))
		}
	}
	return errors.Join(errs...)
}

// stop ends the engine as systemd does; containers go on.
func (n *node) stop(ctx context.Context) error {
	pid := n.pid()
	if pid == 0 {
		return nil
	}
	if err := unix.Kill(pid, unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, endPatience)
	defer cancel()
	for n.runs() {
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("node %s: its engine does not end: %w", n.Name, context.Cause(ctx))
		}
	}
	return nil
}

// remove takes away all that the node was: processes, mounts, control groups, links,
// directories. Idempotent.
func (n *node) remove(ctx context.Context) error {
	if err := n.kill(ctx); err != nil {
		return err
	}
	errs := []error{n.unmount(), unbind(n.namespace())}
	groups, err := cgroup.Detect()
	errs = append(errs, err)
	for _, path := range []string{n.cgroup(), "/escale-" + n.instance(), "/escale-" + n.instance() + "-monitors"} {
		for _, dir := range groups.Dirs(path) {
			errs = append(errs, removeTree(dir))
		}
	}
	if errors.Join(errs...) != nil {
		return fmt.Errorf("node %s: %w", n.Name, errors.Join(errs...))
	}
	return errors.Join(os.RemoveAll(n.run()), os.RemoveAll(n.data()))
}

// unmount takes away mounts below the node's directories, the last one first.
func (n *node) unmount() error {
	for range 10 { // one may hide another
		list, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
			return !strings.HasPrefix(i.Mountpoint, n.run()+"/") && !strings.HasPrefix(i.Mountpoint, n.data()+"/"), false
		})
		if err != nil {
			return err
		}
		if len(list) == 0 {
			return nil
		}
		slices.Reverse(list)
		for _, m := range list {
			if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("%s: %w", m.Mountpoint, err)
			}
		}
	}
	return errors.New("mounts that come again")
}

// removeTree removes a control group with those below it. Idempotent.
func removeTree(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	if err != nil {
		return err
	}
	slices.Reverse(dirs)
	for _, d := range dirs {
		for try := 0; ; try++ { // the kernel lets go of the dead a moment later
			err := unix.Rmdir(d)
			if err == nil || errors.Is(err, unix.ENOENT) {
				break
			}
			if !errors.Is(err, unix.EBUSY) || try == 100 {
				return fmt.Errorf("%s: %w", d, err)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	return nil
}

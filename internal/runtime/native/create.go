package native

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime/native/cgroups"
	"escale.dev/escale/internal/runtime/native/hooks"
)

var createOptions = options{"bundle": true, "console-socket": true, "pid-file": true, "no-pivot": false, "no-new-keyring": false, "preserve-fds": true, "detach": false, "keep": false,
	"no-subreaper": false, "pidfd-socket": true}

// create makes a container, of which the process waits to be started.
func (r *runtime) create(o values, words []string) (int, error) {
	id, err := one(words)
	if err != nil {
		return 0, err
	}
	if _, err := r.make(id, o, false); err != nil {
		return 0, fmt.Errorf("runc create failed: %w", err)
	}
	return 0, nil
}

// run is create and start at once: the process does not wait. Without --detach it
// blocks until the process has ended, whose exit status becomes its own.
func (r *runtime) run(o values, words []string) (int, error) {
	id, err := one(words)
	if err != nil {
		return 0, err
	}
	signals := make(chan os.Signal, 128)
	if !o.has("detach") {
		signal.Notify(signals)
	}
	m, err := r.make(id, o, true)
	if err != nil {
		return 0, fmt.Errorf("runc run failed: %w", err)
	}
	if o.has("detach") {
		return 0, nil
	}
	status := m.attend(signals)
	if o.has("keep") {
		return status, nil
	}
	lock, err := r.lock(id)
	if errors.Is(err, errNone) { // somebody has deleted it
		return status, nil
	} else if err != nil {
		return 0, err
	}
	defer lock.Close()
	return status, r.remove(m.state)
}

// made is a container whose process is our child.
type made struct {
	state *state
	inner *inner
}

// attend passes signals on until the process has ended.
func (m *made) attend(signals <-chan os.Signal) int {
	ended := make(chan int, 1)
	go func() {
		var ws unix.WaitStatus
		for {
			pid, err := unix.Wait4(m.inner.pid, &ws, 0, nil)
			if err == unix.EINTR {
				continue
			}
			if err != nil || pid != m.inner.pid || ws.Exited() || ws.Signaled() {
				break
			}
		}
		if ws.Signaled() {
			ended <- 128 + int(ws.Signal())
			return
		}
		ended <- ws.ExitStatus()
	}()
	for {
		select {
		case status := <-ended:
			return status
		case s := <-signals:
			if n, ok := s.(unix.Signal); ok && n != unix.SIGCHLD && n != unix.SIGURG && n != unix.SIGPIPE {
				_ = unix.Kill(m.inner.pid, n) // it may have ended this moment
			}
		}
	}
}

// make makes a container; now: it is started as well. What was made is undone on an error.
func (r *runtime) make(id string, o values, now bool) (*made, error) {
	bundle, err := filepath.Abs(o.text("bundle", "."))
	if err != nil {
		return nil, err
	}
	spec, err := readSpec(bundle)
	if err != nil {
		return nil, err
	}
	if joined(spec.Linux.Namespaces, specs.PIDNamespace) {
		if err := seal(); err != nil {
			return nil, err
		}
	}
	if spec.Process.Terminal && o.text("console-socket", "") == "" {
		return nil, errors.New("cannot allocate tty if runc will detach without setting console socket")
	}
	if !spec.Process.Terminal && o.text("console-socket", "") != "" {
		return nil, errors.New("cannot use console socket if runc will not detach or allocate tty")
	}
	if err := o.refuse("pidfd-socket"); err != nil {
		return nil, err
	}
	sockets := listening()
	kept, err := preserved(o, sockets)
	if err != nil {
		return nil, err
	}
	b := &birth{runtime: r, id: id, bundle: bundle, spec: spec, now: now, kept: kept, sockets: sockets, keyring: !o.has("no-new-keyring"), pidFile: o.text("pid-file", ""),
		parent: self{o.text("console-socket", "")}}
	return b.bear()
}

// remove runs the last hooks of a container that has ended and takes away what is
// kept of it.
func (r *runtime) remove(s *state) error {
	g, err := s.group()
	if err != nil {
		return err
	}
	if err := g.Remove(); err != nil {
		return fmt.Errorf("unable to remove container's cgroup: %w", err)
	}
	if s.Unit != "" {
		if err := cgroups.StopUnit(asking, s.Unit); err != nil {
			return fmt.Errorf("unable to remove container's cgroup: %w", err)
		}
	}
	s.unmount()
	if err := os.RemoveAll(r.dir(s.ID)); err != nil {
		return err
	}
	if s.Hooks != nil {
		return hooks.Run("poststop", s.Hooks.Poststop, s.told(specs.StateStopped))
	}
	return nil
}

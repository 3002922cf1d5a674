// Package inside is the half of the runtime that becomes the container's process:
// in new namespaces it mounts what the plan says, gives up what it may not keep
// and executes the program. All that decides about safety is done by descriptors:
// each path of the container is looked up once, below the descriptor of its root.
//
// It runs on the first thread of its process, to which namespaces, credentials,
// capabilities and the filter belong; the other threads, which Go has, end when
// the program is executed.
package inside

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime/native/codec"
	"escale.dev/escale/internal/runtime/native/hooks"
	"escale.dev/escale/internal/runtime/native/plan"
)

// half is the inner half at work.
type half struct {
	*plan.Plan
	socket *os.File
	root   int // the container's root
	null   int // the host's /dev/null
	kept   int // descriptors of the caller that the program gets, from plan.FirstFD on
}

// Main carries out the plan that comes over its socket. It returns only when
// that did not go well; the reason has been told by then.
func Main() int {
	var kept int
	var err error
	if word := os.Getenv(plan.PreservedEnv); word != "" {
		if kept, err = strconv.Atoi(word); err != nil || kept < 0 {
			return 1 // not started by the other half
		}
	}
	h := &half{socket: plan.Socket(kept), root: plan.NoFD, null: plan.NoFD, kept: kept}
	unix.CloseOnExec(plan.SocketFD(kept))
	if unix.Gettid() != unix.Getpid() {
		err = errors.New("not on the first thread of the process")
	} else {
		err = h.run()
	}
	if err != nil {
		_ = plan.Send(h.socket, plan.KindError, []byte(err.Error())) // the other half is gone: nobody to tell
		return 1
	}
	return 0
}

func (h *half) run() error {
	// Nobody in a namespace that we join may look into us, or get our binary by us.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl", err)
	}
	if err := unix.CloseRange(plan.FirstFD, 1<<31-1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return os.NewSyscallError("close_range", err)
	}
	var err error
	if h.Plan, err = codec.ReceivePlan(h.socket); err != nil {
		return fmt.Errorf("plan: %w", err)
	}
	if len(h.CreateContainer)+len(h.StartContainer) > 0 {
		// Hooks are waited for on other threads. With this they come from one that stays where
		// we are now: they are not counted by a cgroup that a thread joins (version 1).
		runtime.LockOSThread()
	}
	if err := h.takeTrees(); err != nil {
		return err
	}
	// The program begins a session, and the terminal becomes that session's.
	if _, err := unix.Setsid(); err != nil && err != unix.EPERM {
		return os.NewSyscallError("setsid", err)
	}
	if err := h.keyring(); err != nil {
		return err
	}
	if err := enterSpaces(h.Spaces); err != nil {
		return err
	}
	if err := h.joinCgroups(); err != nil {
		return err
	}
	if err := h.enterMounts(); err != nil {
		return err
	}
	if h.Exec || h.Built {
		err = h.join()
	} else {
		err = h.build()
	}
	switch {
	case err != nil:
		return err
	case h.Leave:
		return h.leave()
	}
	return (&candidate{h}).become()
}

// takeTrees receives what was mounted for us elsewhere.
func (h *half) takeTrees() error {
	for i := range h.Mounts {
		if m := &h.Mounts[i]; m.Sent {
			f, err := plan.ReceiveFile(h.socket, plan.KindTree)
			if err != nil {
				return fmt.Errorf("tree of %s: %w", m.Dest, err)
			}
			defer f.Close()
			if m.Tree, err = unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0); err != nil {
				return os.NewSyscallError("fcntl", err)
			}
		}
	}
	return nil
}

// leave keeps the namespaces until another is in them: that one is born in the pid
// namespace of other containers, and must have nothing there but what the container has.
func (h *half) leave() error {
	if err := plan.Send(h.socket, plan.KindReady, nil); err != nil {
		return err
	}
	_, err := plan.Expect(h.socket, plan.KindReady)
	return err
}

// keyring begins a session keyring, so that the caller's keys stay the caller's.
func (h *half) keyring() error {
	if h.Keyring == "" {
		return nil
	}
	id, err := unix.KeyctlJoinSessionKeyring(h.Keyring)
	if err == unix.ENOSYS || err == unix.EOPNOTSUPP {
		return nil
	}
	if err != nil {
		return fmt.Errorf("session keyring: %w", err)
	}
	if h.Exec {
		return nil
	}
	// Its user may search it (keyctl_setperm(3)): those who lose root need that.
	const ownerSearch, all = 0x08 << 16, 0x3f << 24
	_ = unix.KeyctlSetperm(id, all|ownerSearch) // runs without
	return nil
}

// joinCgroups puts this thread, and thus the program, into the cgroups. Version 1
// takes a thread in a fraction of the time that a whole process takes.
func (h *half) joinCgroups() error {
	for _, fd := range h.Join {
		if _, err := unix.Write(fd, []byte("0")); err != nil {
			return fmt.Errorf("joining a cgroup: %w", err)
		}
		_ = unix.Close(fd) // it was written
	}
	if h.CgroupNS {
		if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
			return fmt.Errorf("cgroup namespace: %w", err)
		}
	}
	return nil
}

// enterSpaces has this thread, and thus the program, go into namespaces of others that
// threads can go into.
func enterSpaces(list []plan.Space) error {
	for _, s := range list {
		if err := unix.Setns(s.FD, s.Kind); err != nil {
			return fmt.Errorf("joining namespace %s: %w", s.Path, err)
		}
		closeFD(s.FD)
	}
	return nil
}

// enterMounts goes into another's mount namespace.
func (h *half) enterMounts() error {
	if h.MountNS == plan.NoFD {
		return nil
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	if err := unix.Setns(h.MountNS, unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("mount namespace: %w", err)
	}
	closeFD(h.MountNS)
	return nil
}

// join takes a container as it is. Its root is ours already.
func (h *half) join() error {
	var err error
	if h.root, err = unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return pathError("open", "/", err)
	}
	if h.SetupDev {
		if err := ownNull(h); err != nil {
			return err
		}
	}
	return h.console()
}

// build makes the container's view: names, mounts, devices, its root.
func (h *half) build() error {
	if err := h.names(); err != nil {
		return err
	}
	if err := h.openRoot(); err != nil {
		return err
	}
	for i := range h.Mounts {
		m := &h.Mounts[i]
		if err := h.mount(m); err != nil {
			return fmt.Errorf("error mounting %q to rootfs at %q: %w", m.Source, m.Dest, err)
		}
	}
	if h.SetupDev {
		if err := h.devices(); err != nil {
			return fmt.Errorf("configuring container /dev: %w", err)
		}
		if err := ownNull(h); err != nil {
			return err
		}
	}
	if err := h.outerHooks(); err != nil {
		return err
	}
	if err := h.runHooks("createContainer", h.CreateContainer); err != nil {
		return err
	}
	terminal := h.console
	if h.Leave {
		terminal = h.placeConsole
	}
	if err := terminal(); err != nil {
		return err
	}
	if err := h.sysctls(); err != nil {
		return err
	}
	if err := h.shield(); err != nil {
		return err
	}
	if err := h.workplace(); err != nil {
		return err
	}
	if err := h.lateReadOnly(); err != nil {
		return err
	}
	return h.enterRoot()
}

// outerHooks has the other half run its hooks: the namespaces are there, the
// root is still the host's.
func (h *half) outerHooks() error {
	if !h.HooksOutside {
		return nil
	}
	if err := plan.Send(h.socket, plan.KindHooks, nil); err != nil {
		return err
	}
	_, err := plan.Expect(h.socket, plan.KindHooks)
	return err
}

func (h *half) runHooks(name string, list []specs.Hook) error {
	if len(list) == 0 {
		return nil
	}
	// The state has the pid that the container itself sees, as runc has it.
	state := h.State
	if state.Pid = unix.Getpid(); name == "startContainer" {
		state.Status = specs.StateCreated
	}
	return hooks.Run(name, list, &state)
}

// names are those of the host that the container sees, and its loopback device.
func (h *half) names() error {
	if h.Hostname != "" {
		if err := unix.Sethostname([]byte(h.Hostname)); err != nil {
			return fmt.Errorf("sethostname: %w", err)
		}
	}
	if h.Domainname != "" {
		if err := unix.Setdomainname([]byte(h.Domainname)); err != nil {
			return fmt.Errorf("setdomainname: %w", err)
		}
	}
	if !h.Loopback {
		return nil
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	return nil
}

func pathError(op, path string, err error) error {
	return &os.PathError{Op: op, Path: path, Err: err}
}

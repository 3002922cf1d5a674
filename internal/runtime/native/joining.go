package native

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime/native/fork"
	"escale.dev/escale/internal/runtime/native/plan"
)

// changeHalves is for a container that joins another's pid namespace, whose processes
// see whoever is in it and may look into it. The half inside makes the container from
// outside of that namespace; then a second one goes into what was made, as an exec
// does, with nothing of the host, and becomes the process. It gives that one's plan.
//
// A hook that runs before is told the first one's pid: it is in all of the container's
// namespaces but this one.
func (b *birth) changeHalves(p *preparation, outside func() error) (*plan.Plan, error) {
	p.plan.Leave = true
	first := conversation{inner: b.inner, plan: p.plan}
	pidfd, err := unix.PidfdOpen(b.inner.pid, 0)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	out := &outfit{kept: b.kept, enter: &fork.Entry{PIDs: p.out.pids, Of: os.NewFile(uintptr(pidfd), "pidfd"), Kinds: b.state.Namespaces &^ unix.CLONE_NEWPID}}
	defer out.close()
	defer func() {
		for _, f := range first.trees {
			_ = f.Close()
		}
	}()
	if first.trees, err = procMounts(p, out.enter); err != nil {
		return nil, err
	}
	if err := first.begin(outside); err != nil {
		return nil, err
	}
	if _, err := plan.Expect(first.socket, plan.KindReady); err != nil {
		return nil, first.words(err)
	}
	second := &plan.Plan{ID: p.plan.ID, Built: true, Process: p.plan.Process, Caps: p.plan.Caps, Keyring: p.plan.Keyring, Listen: p.plan.Listen, MountNS: plan.NoFD, Proc: plan.NoFD, Hold: plan.NoFD, SetupDev: p.plan.SetupDev,
		SeccompFlags: p.plan.SeccompFlags, Filter: p.plan.Filter, Personality: p.plan.Personality, MemoryPolicy: p.plan.MemoryPolicy,
		StartContainer: p.plan.StartContainer, State: p.plan.State}
	if !p.plan.OwnMounts { // its root is by chroot(2)
		if out.enter.Root, err = os.OpenFile(b.spec.Root.Path, unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
			return nil, err
		}
	}
	if !b.now {
		if second.Hold, err = b.hold(out); err != nil {
			return nil, err
		}
	}
	if err := out.enterGroup(b.group); err != nil {
		return nil, err
	}
	in, err := b.parent.spawn(out)
	if err != nil {
		return nil, err
	}
	gone := b.inner
	err = b.take(in)
	if serr := plan.Send(gone.socket, plan.KindReady, nil); err == nil && serr != nil {
		err = first.words(serr)
	}
	gone.end()
	return second, err
}

// procMounts makes the procfs that a container is to have, which are of the pid namespace
// that whoever makes one is in.
func procMounts(p *preparation, e *fork.Entry) (trees []*os.File, err error) {
	// Its own cgroups it has yet to go into, and to the others the maker does not belong.
	const left = unix.CLONE_NEWNS | unix.CLONE_NEWUSER | unix.CLONE_NEWCGROUP
	for i := range p.plan.Mounts {
		m := &p.plan.Mounts[i]
		if m.FS != "proc" || m.Tree != plan.NoFD || m.Again {
			continue
		}
		params := make([]fork.Param, 0, len(m.Params))
		for _, o := range m.Params {
			params = append(params, fork.Param(o))
		}
		f, err := fork.Procfs(&fork.Entry{PIDs: e.PIDs, Of: e.Of, Kinds: e.Kinds &^ left}, params, uint(m.Set))
		if err != nil {
			return trees, fmt.Errorf("error mounting %q to rootfs at %q: %w", m.Source, m.Dest, err)
		}
		m.Sent = true
		trees = append(trees, f)
	}
	return trees, nil
}

package shim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime"
	"escale.dev/escale/internal/runtime/shim/wire"
)

// Cleanup removes what is left of a container; see runtime.Runtime. The
// directories RunDir and StateDir themselves are the caller's.
//
// For runc and our own it does what `delete --force` does, without the 5 ms and more of
// starting them; other runtimes are called, for only they know what they keep.
func (r *Runtime) Cleanup(ctx context.Context, c runtime.Cleanup) error {
	if c.ID == "" || filepath.Base(c.ID) != c.ID || !filepath.IsAbs(c.RunDir) {
		return fmt.Errorf("cleanup of container %q in %q: %w", c.ID, c.RunDir, errdefs.ErrInvalidArgument)
	}
	orphans, err := killMonitor(ctx, c.RunDir)
	defer closeAll(orphans)
	errs := []error{err}
	root := filepath.Join(c.RunDir, wire.RootName)
	state := filepath.Join(root, c.ID)
	if needsRuntime(c.Runtime, state) {
		errs = append(errs, r.deleteByRuntime(ctx, c, root))
	}
	dirs, err := r.cgroupDirs(c.CgroupPath)
	errs = append(errs, err)
	if err == nil {
		errs = append(errs, removeCgroups(ctx, dirs), removeUnit(ctx, c.CgroupPath))
	}
	if err == nil {
		// Those that were frozen can only now have ended.
		errs = append(errs, awaitAll(ctx, orphans, unix.POLLIN))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("cleanup of container %s: %w", c.ID, err)
	}
	if err := os.RemoveAll(root); err != nil {
		return fmt.Errorf("cleanup of container %s: %w", c.ID, err)
	}
	return nil
}

// needsRuntime says whether the OCI runtime itself must delete: it is not one that we know,
// or hooks are to be run after the container.
func needsRuntime(b runtime.Binary, state string) bool {
	if name := filepath.Base(b.Path); name != "runc" && name != "escale-runtime" {
		_, err := os.Lstat(state)
		return err == nil
	}
	kept, err := os.ReadFile(filepath.Join(state, "state.json"))
	return err == nil && bytes.Contains(kept, []byte(`"poststop":[`))
}

func (r *Runtime) deleteByRuntime(ctx context.Context, c runtime.Cleanup, root string) error {
	if out, err := r.call(ctx, c.Runtime, nil, "--root", root, "delete", "--force", c.ID); err != nil {
		return fmt.Errorf("%s delete: %w: %s", c.Runtime.Path, err, bytes.TrimSpace(out))
	}
	return nil
}

// killMonitor ends a monitor that still has a container. It kills its children
// too, the container's process, execs, a runtime at work, and returns them: they
// may be frozen. A monitor whose container has ended has removed its record,
// holds nothing and is left to serve its last clients.
func killMonitor(ctx context.Context, runDir string) (orphans []*os.File, err error) {
	record := filepath.Join(runDir, wire.MonitorName)
	if _, err := os.Lstat(record); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	pidfd, pid, err := recorded(record)
	if err != nil {
		return nil, err
	}
	if pidfd == nil { // it has died
		return nil, removeNames(runDir)
	}
	defer pidfd.Close()
	if orphans, err = killBelow(pid); err != nil {
		return orphans, err
	}
	if err := unix.PidfdSendSignal(int(pidfd.Fd()), unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
		return orphans, os.NewSyscallError("pidfd_send_signal", err)
	}
	if err := awaitAll(ctx, []*os.File{pidfd}, unix.POLLIN); err != nil {
		return orphans, err
	}
	return orphans, removeNames(runDir)
}

// killBelow kills all that descends from the process pid, which lives and adopts
// whoever loses its parent: what an OCI runtime had started and left, too. One
// that forks meanwhile is found in the next round; those that are frozen end later.
func killBelow(pid int) (killed []*os.File, err error) {
	seen := map[int]bool{}
	for {
		opened := map[int]*os.File{}
		for _, p := range descendants(pid) {
			if seen[p] || opened[p] != nil {
				continue
			}
			seen[p] = true
			if f, err := pidfdOpen(p); err == nil {
				opened[p] = f
			}
		}
		if len(opened) == 0 {
			return killed, nil
		}
		// A pid may have become another's before its descriptor was open; who is
		// still listed now is whom we have.
		for _, p := range descendants(pid) {
			f := opened[p]
			if f == nil {
				continue
			}
			delete(opened, p)
			killed = append(killed, f)
			if err := unix.PidfdSendSignal(int(f.Fd()), unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
				return killed, os.NewSyscallError("pidfd_send_signal", err)
			}
		}
		for _, f := range opened {
			_ = f.Close() // nothing was done with it
		}
	}
}

// descendants lists the children of a process, theirs, and so on.
func descendants(pid int) []int {
	list := children(pid)
	for i := 0; i < len(list) && i < maxDescendants; i++ {
		list = append(list, children(list[i])...)
	}
	return list
}

// maxDescendants bounds the look at processes that fork faster than they are listed.
const maxDescendants = 1 << 16

// removeNames removes what a monitor would have removed itself.
func removeNames(runDir string) error {
	for _, name := range []string{wire.MonitorName, wire.SocketName} {
		if err := os.Remove(filepath.Join(runDir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // nothing was written
	}
}

// recorded opens the process that an identity file names; nil without one, or
// when the process is another than that.
func recorded(path string) (*os.File, int, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, nil
	} else if err != nil {
		return nil, 0, err
	}
	f := strings.Fields(string(b))
	if len(f) != 3 {
		return nil, 0, nil // torn: written on no tmpfs before a power cut
	}
	pid, err := strconv.Atoi(f[0])
	if err != nil || pid <= 0 {
		return nil, 0, nil
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, 0, err
	}
	if strings.TrimSpace(string(boot)) != f[2] {
		return nil, 0, nil
	}
	fd, err := pidfdOpen(pid)
	if errors.Is(err, unix.ESRCH) {
		return nil, 0, nil
	} else if err != nil {
		return nil, 0, err
	}
	// The descriptor is open: if the start time fits now, it is that process'.
	if start, err := startTime(pid); err != nil || start != f[1] {
		_ = fd.Close() // it is another's
		return nil, 0, nil
	}
	return fd, pid, nil
}

// startTime is field 22 of /proc/<pid>/stat.
func startTime(pid int) (string, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return "", err
	}
	// The name, field 2, is in parentheses and may hold anything.
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 20 {
		return "", fmt.Errorf("/proc/%d/stat: too short", pid)
	}
	return f[19], nil
}

// children lists those of all threads of a process.
func children(pid int) (list []int) {
	files, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/children")
	if err != nil {
		return nil
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			continue // the thread is gone
		}
		for _, s := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(s); err == nil {
				list = append(list, n)
			}
		}
	}
	return list
}

// pidfdOpen opens a process. The error is ESRCH when there is none with the number,
// which kernels tell as EINVAL while somebody still holds the number (6.1), or when it
// is a thread's by now.
func pidfdOpen(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err == unix.EINVAL {
		err = unix.ESRCH
	}
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// awaitAll blocks until each descriptor has shown the event, or ctx ends.
func awaitAll(ctx context.Context, files []*os.File, event int16) error {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(woken)
		_, _ = unix.Write(wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // cannot fail
	})
	defer func() {
		if !stop() {
			<-woken
		}
		_ = unix.Close(wake) // nothing was written to it that counts
	}()
	for len(files) > 0 {
		fds := []unix.PollFd{{Fd: int32(wake), Events: unix.POLLIN}}
		for _, f := range files {
			fds = append(fds, unix.PollFd{Fd: int32(f.Fd()), Events: event})
		}
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return os.NewSyscallError("poll", err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		var left []*os.File
		for i, f := range files {
			if fds[i+1].Revents == 0 {
				left = append(left, f)
			}
		}
		files = left
	}
	return nil
}

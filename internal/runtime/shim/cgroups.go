package shim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"escale.dev/escale/internal/sys/systemd"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// cgroupPath turns linux.cgroupsPath of the OCI specification into a path below
// the hierarchies' mount points. systemd's form is "slice:prefix:name"; a slice
// "a-b.slice" lies in "a.slice" (systemd.slice(5)). "" stays "".
func cgroupPath(spec string) (string, error) {
	path := systemd.Path(spec)
	// All that lives there is going to be killed: never that of the machine.
	if path != "" && (!strings.HasPrefix(path, "/") || filepath.Clean(path) == "/" || slices.Contains(strings.Split(path, "/"), "..")) {
		return "", fmt.Errorf("cgroup path %q: it is no place of a container: %w", spec, errdefs.ErrInvalidArgument)
	}
	return path, nil
}

// removeUnit waits until systemd has forgotten the unit of a cgroup that is gone, if it was one
// of its own: another of the name could not be started before.
func removeUnit(ctx context.Context, spec string) error {
	_, prefix, name, ok := systemd.Split(spec)
	if !ok {
		return nil
	}
	c, err := systemd.Dial(ctx)
	if errdefs.IsUnavailable(err) {
		return nil // it forgets units without processes by itself, once it is there
	} else if err != nil {
		return err
	}
	defer c.Close()
	return c.Stop(ctx, systemd.Unit(prefix, name))
}

// oomFile is the file that counts the kills of the cgroup's OOM killer.
func (r *Runtime) oomFile(spec string) (string, error) {
	path, err := cgroupPath(spec)
	if path == "" || err != nil {
		return "", err
	}
	info, err := r.cgroups()
	if err != nil {
		return "", err
	}
	if mount, ok := info.Mounts["memory"]; ok {
		return filepath.Join(mount, path, "memory.oom_control"), nil
	}
	if info.Unified != "" {
		return filepath.Join(info.Unified, path, "memory.events"), nil
	}
	return "", nil
}

// cgroupDirs are the cgroup's directories in all hierarchies.
func (r *Runtime) cgroupDirs(spec string) ([]string, error) {
	path, err := cgroupPath(spec)
	if path == "" || err != nil {
		return nil, err
	}
	info, err := r.cgroups()
	if err != nil {
		return nil, err
	}
	return info.Dirs(path), nil
}

// removeCgroups removes one cgroup from all hierarchies, with those below it,
// after killing all that lives there.
func removeCgroups(ctx context.Context, dirs []string) error {
	var busy []string
	for _, dir := range dirs {
		if err := unix.Rmdir(dir); err != nil && err != unix.ENOENT {
			busy = append(busy, dir)
		}
	}
	if len(busy) == 0 { // as a rule
		return nil
	}
	if err := killCgroups(ctx, busy); err != nil {
		return err
	}
	for _, dir := range busy {
		if err := removeTree(ctx, dir); err != nil {
			return err
		}
	}
	return nil
}

// killCgroups kills until nobody is left.
func killCgroups(ctx context.Context, dirs []string) error {
	for _, dir := range dirs {
		// Kernel 5.14 kills a whole tree of version 2 at once, frozen or not. Where a
		// container is in the hierarchies of version 1 as well, it is the same set of
		// processes, and its emptiness is told only here.
		if os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0) != nil {
			continue
		}
		// What is frozen in version 1 dies when it is thawed.
		thaw(dirs)
		if err := awaitEmpty(ctx, dir); err != nil {
			return err
		}
	}
	for {
		alive, err := living(dirs)
		if err != nil || len(alive) == 0 {
			return err
		}
		if err := killAll(ctx, alive, dirs); err != nil {
			return err
		}
	}
}

// killAll kills processes of the cgroups and waits for their end.
func killAll(ctx context.Context, pids []int, dirs []string) error {
	var files []*os.File
	defer func() { closeAll(files) }()
	fds := map[int]*os.File{}
	for _, pid := range pids {
		f, err := pidfdOpen(pid)
		if errors.Is(err, unix.ESRCH) {
			continue
		} else if err != nil {
			return err
		}
		files = append(files, f)
		fds[pid] = f
	}
	// A pid that is still listed is the one that was opened.
	again, err := living(dirs)
	if err != nil {
		return err
	}
	var killed []*os.File
	for _, pid := range again {
		f := fds[pid]
		if f == nil {
			continue
		}
		if err := unix.PidfdSendSignal(int(f.Fd()), unix.SIGKILL, nil, 0); err == nil {
			killed = append(killed, f)
		} else if err != unix.ESRCH {
			return os.NewSyscallError("pidfd_send_signal", err)
		}
	}
	thaw(dirs)
	return awaitAll(ctx, killed, unix.POLLIN)
}

// thaw lets what is frozen in the freezer of version 1 go on, to its death.
func thaw(dirs []string) {
	for _, dir := range dirs {
		walk(dir, func(d string) {
			if path := filepath.Join(d, "freezer.state"); exists(path) {
				_ = os.WriteFile(path, []byte("THAWED"), 0) // as good as gone
			}
		})
	}
}

// living lists the processes of the cgroups and of those below them.
func living(dirs []string) ([]int, error) {
	var pids []int
	var errs []error
	for _, dir := range dirs {
		walk(dir, func(d string) {
			b, err := os.ReadFile(filepath.Join(d, "cgroup.procs"))
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EOPNOTSUPP) {
				errs = append(errs, err) // a threaded cgroup's processes are listed above it
			}
			for _, s := range strings.Fields(string(b)) {
				if n, err := strconv.Atoi(s); err == nil && n > 0 { // 0: in a pid namespace we do not see
					pids = append(pids, n)
				}
			}
		})
	}
	slices.Sort(pids)
	return slices.Compact(pids), errors.Join(errs...)
}

// walk calls f for the directories below dir, then dir.
func walk(dir string, f func(string)) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return // it is gone
	}
	for _, e := range entries {
		if e.IsDir() {
			walk(filepath.Join(dir, e.Name()), f)
		}
	}
	f(dir)
}

// awaitEmpty blocks until a cgroup of version 2 and those below it have no
// processes: cgroup.events tells of the change.
func awaitEmpty(ctx context.Context, dir string) error {
	f, err := os.Open(filepath.Join(dir, "cgroup.events"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 256)
	for {
		n, err := f.ReadAt(buf, 0)
		if errors.Is(err, unix.ENODEV) || !strings.Contains(string(buf[:n]), "populated 1") {
			return nil
		}
		if err := awaitAll(ctx, []*os.File{f}, unix.POLLPRI); err != nil {
			return err
		}
	}
}

// removeTree removes a cgroup and those below it. The kernel may still be at
// work on the last process of one that has no version 2 beside it to tell of
// that; so a few attempts are made, further and further apart.
func removeTree(ctx context.Context, dir string) error {
	for pause := time.Millisecond; ; pause *= 2 {
		var failed error
		walk(dir, func(d string) {
			if err := unix.Rmdir(d); err != nil && err != unix.ENOENT {
				failed = &fs.PathError{Op: "rmdir", Path: d, Err: err}
			}
		})
		if failed == nil || !errors.Is(failed, unix.EBUSY) || pause > time.Second {
			return failed
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

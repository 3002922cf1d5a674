package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"escale.dev/escale/internal/cluster/executor"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// taskFiles keeps the files of tasks, their secrets among them, in memory: in a tmpfs
// that is there as long as there are any, a directory a task.
type taskFiles struct {
	dir string
	mu  *sync.Mutex
}

func (d *Daemon) taskFiles() taskFiles {
	return taskFiles{filepath.Join(d.cfg.ExecRoot, "tasks"), &d.taskFilesMu}
}

// unfinished begins the name of a directory that is being filled.
const unfinished = ".new-"

// of is the directory of a task.
func (f taskFiles) of(task string) string { return filepath.Join(f.dir, task) }

// put writes the files of a task, all or none, unless they are there, and gives their
// paths.
func (f taskFiles) put(task string, files []executor.File) (paths []string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range files {
		paths = append(paths, filepath.Join(f.of(task), strconv.Itoa(i)))
	}
	if _, err := os.Stat(f.of(task)); err == nil {
		return paths, nil
	}
	if err := f.mount(); err != nil {
		return nil, fmt.Errorf("files of task %s: %w", task, err)
	}
	fresh := f.of(unfinished + task)
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("files of task %s: %w", task, err), os.RemoveAll(fresh), f.unmount())
		}
	}()
	if err := errors.Join(os.RemoveAll(fresh), os.Mkdir(fresh, 0o700)); err != nil {
		return nil, err
	}
	for i, file := range files {
		mode := os.FileMode(file.Mode & 0o777)
		if mode == 0 {
			mode = 0o444
		}
		path := filepath.Join(fresh, strconv.Itoa(i))
		if err := errors.Join(os.WriteFile(path, file.Data, 0o600), os.Chown(path, file.UID, file.GID), os.Chmod(path, mode)); err != nil {
			return nil, err
		}
	}
	return paths, os.Rename(fresh, f.of(task))
}

// remove takes away the files of a task. Idempotent.
func (f taskFiles) remove(task string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return errors.Join(os.RemoveAll(f.of(task)), f.unmount())
}

// sweep takes away the files of all tasks but those that are kept, and what was being
// written when an engine was killed.
func (f taskFiles) sweep(kept func(task string) bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	list, err := os.ReadDir(f.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, d := range list {
		if strings.HasPrefix(d.Name(), unfinished) || !kept(d.Name()) {
			errs = append(errs, os.RemoveAll(f.of(d.Name())))
		}
	}
	return errors.Join(append(errs, f.unmount())...)
}

// leave takes down the tmpfs with all that is in it. The next engine puts there again what
// is wanted.
func (f taskFiles) leave() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := unix.Unmount(f.dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "unmount", Path: f.dir, Err: err}
	}
	return os.RemoveAll(f.dir)
}

// mount makes the tmpfs, unless it is there.
func (f taskFiles) mount() error {
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return err
	}
	if mounted, err := mountinfo.Mounted(f.dir); mounted || err != nil {
		return err
	}
	err := unix.Mount("tmpfs", f.dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700")
	if err == nil {
		err = unix.Mount("", f.dir, "", unix.MS_PRIVATE, "")
	}
	if err != nil {
		return &os.PathError{Op: "mount", Path: f.dir, Err: err}
	}
	return nil
}

// unmount takes the tmpfs down when nothing is in it.
func (f taskFiles) unmount() error {
	list, err := os.ReadDir(f.dir)
	if errors.Is(err, os.ErrNotExist) || len(list) > 0 {
		return nil
	}
	if err == nil {
		err = unix.Unmount(f.dir, unix.MNT_DETACH)
	}
	if err != nil && !errors.Is(err, unix.EINVAL) { // it is none
		return &os.PathError{Op: "unmount", Path: f.dir, Err: err}
	}
	if err := os.Remove(f.dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

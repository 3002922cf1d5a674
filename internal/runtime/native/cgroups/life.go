package cgroups

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Tasks opens what a thread writes "0" to in order to get into version 1's cgroups.
// The caller closes them.
func (g *Group) Tasks() (files []*os.File, err error) {
	dirs := slices.Sorted(maps.Values(g.V1))
	for _, d := range slices.Compact(dirs) { // controllers may share one
		f, err := os.OpenFile(filepath.Join(d, "tasks"), os.O_WRONLY, 0)
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// Birth opens version 2's cgroup for processes to be born in (CLONE_INTO_CGROUP of
// clone(2)); nil, where there is none. The caller closes it.
func (g *Group) Birth() (*os.File, error) {
	if g.Unified == "" {
		return nil, nil
	}
	return os.OpenFile(g.Unified, unix.O_PATH|unix.O_DIRECTORY, 0)
}

// Around is the group with, in version 2, the cgroup below it that a process is in:
// one that has put itself lower, in order to hand controllers on, has left a cgroup
// that takes nobody any more (cgroup-v2.rst, "No Internal Process Constraint"). The
// error is fs.ErrNotExist when the process is gone or not below the group.
func (g *Group) Around(pid int) (*Group, error) {
	name := "/proc/" + strconv.Itoa(pid) + "/cgroup"
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::/")
		if !ok || g.Unified == "" {
			continue
		}
		if dir := filepath.Join(g.mount, path); strings.HasPrefix(dir, g.Unified+"/") {
			lower := *g
			lower.Unified = dir
			return &lower, nil
		}
	}
	return nil, &fs.PathError{Op: "cgroup", Path: name, Err: fs.ErrNotExist}
}

// Remove kills what lives in the group and removes it with all below it. Blocks
// until the kernel is done, 10 s at most.
func (g *Group) Remove() error {
	deadline := time.Now().Add(10 * time.Second)
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		var left error
		for _, dir := range g.Dirs() {
			if err := removeTree(dir); err != nil {
				left = err
			}
		}
		if left == nil || time.Now().After(deadline) {
			return left
		}
		if err := g.Kill(unix.SIGKILL); err != nil {
			return err
		}
		_ = g.Freeze(false) // what is frozen in version 1 dies when it goes on
		time.Sleep(pause)
	}
}

func removeTree(dir string) error {
	err := unix.Rmdir(dir)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	entries, rerr := os.ReadDir(dir)
	if rerr != nil {
		return rerr
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && err != unix.ENOENT {
		return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}

// Kill sends a signal to all processes of the group and of those below it.
func (g *Group) Kill(sig unix.Signal) error {
	if sig == unix.SIGKILL && g.Unified != "" && write(filepath.Join(g.Unified, "cgroup.kill"), "1") == nil && g.Pure {
		return nil
	}
	pids, err := g.Pids()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, sig); err != nil && err != unix.ESRCH {
			return fmt.Errorf("kill %d: %w", pid, err)
		}
	}
	return nil
}

// Pids lists the processes of the group and of those below it, sorted. None when
// it is gone.
func (g *Group) Pids() ([]int, error) {
	var pids []int
	dirs := g.Dirs() // somebody may be in some of them only
	for _, root := range dirs {
		err := filepath.WalkDir(root, func(dir string, e fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil || !e.IsDir() {
				return err
			}
			b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EOPNOTSUPP) {
				return err
			}
			for _, s := range strings.Fields(string(b)) {
				if n, err := strconv.Atoi(s); err == nil && n > 0 {
					pids = append(pids, n)
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

// Freeze stops all processes of the group, or lets them go on. Blocks until the
// kernel says that they have stopped, 10 s at most.
func (g *Group) Freeze(on bool) error {
	file, want, wanted := filepath.Join(g.Unified, "cgroup.freeze"), "0", "frozen 0"
	if on {
		want, wanted = "1", "frozen 1"
	}
	told := filepath.Join(g.Unified, "cgroup.events")
	if dir, ok := g.V1["freezer"]; ok {
		file, want = filepath.Join(dir, "freezer.state"), "THAWED"
		if on {
			want = "FROZEN"
		}
		told, wanted = file, want
	} else if g.Unified == "" {
		return errors.New("freezing: no cgroup that could")
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		if err := write(file, want); err != nil {
			return err
		}
		b, err := os.ReadFile(told)
		if err != nil {
			return err
		}
		if strings.Contains(string(b), wanted) {
			return nil
		}
		if time.Now().After(deadline) {
			_ = write(file, map[bool]string{true: "THAWED", false: "0"}[strings.HasSuffix(file, "freezer.state")]) // as it was
			return errors.New("unable to freeze")
		}
		time.Sleep(time.Millisecond)
	}
}

// Frozen says whether the group is stopped.
func (g *Group) Frozen() bool {
	if dir, ok := g.V1["freezer"]; ok {
		b, err := os.ReadFile(filepath.Join(dir, "freezer.state"))
		return err == nil && strings.TrimSpace(string(b)) != "THAWED"
	}
	b, err := os.ReadFile(filepath.Join(g.Unified, "cgroup.events"))
	return err == nil && strings.Contains(string(b), "frozen 1")
}

package cgroup

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Pids lists the processes of cgroup path and of those below it, sorted. One
// hierarchy is asked: in each they are the same. NotExist when the cgroup is
// gone; processes come and go meanwhile.
func (i Info) Pids(path string) ([]int, error) {
	for _, controller := range []string{"pids", "memory", "freezer", "cpuacct", "devices"} {
		if dir, ok := i.Dir(controller, path); ok {
			return pids(dir)
		}
	}
	if i.Unified == "" {
		return nil, fs.ErrNotExist
	}
	return pids(filepath.Join(i.Unified, filepath.Clean("/"+path)))
}

func pids(root string) ([]int, error) {
	var out []int
	err := filepath.WalkDir(root, func(dir string, e fs.DirEntry, err error) error {
		gone := errors.Is(err, fs.ErrNotExist) && dir != root // one below, removed meanwhile
		switch {
		case gone:
			return nil
		case err != nil:
			return err
		case !e.IsDir():
			return nil
		}
		b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if errors.Is(err, unix.ENODEV) || errors.Is(err, fs.ErrNotExist) {
			err = nil
			if dir == root {
				err = fs.ErrNotExist
			}
		} else if errors.Is(err, unix.EOPNOTSUPP) {
			err = nil // a threaded cgroup's processes are listed above it
		}
		for _, s := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(s); err == nil && n > 0 { // 0: in a pid namespace we do not see
				out = append(out, n)
			}
		}
		return err
	})
	slices.Sort(out)
	return slices.Compact(out), err
}

// Cpuset is the processors and memory nodes of cgroup path, as lists; empty
// where cpusets are not there.
func (i Info) Cpuset(path string) (cpus, mems string) {
	dir, ok := i.Dir("cpuset", path)
	if !ok {
		return "", ""
	}
	suffix := ""
	if i.Mode == Unified {
		suffix = ".effective"
	}
	return readLine(filepath.Join(dir, "cpuset.cpus"+suffix)), readLine(filepath.Join(dir, "cpuset.mems"+suffix))
}

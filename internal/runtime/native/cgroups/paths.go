// Package cgroups makes, limits and removes the cgroups of containers, in either
// version and in both (cgroup-v1/, cgroup-v2.rst of the kernel's admin-guide).
// Limits are put as runc puts them.
package cgroups

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"escale.dev/escale/internal/sys/systemd"
	"golang.org/x/sys/unix"
)

// Hierarchy is a mounted one of version 1.
type Hierarchy struct {
	Mount string   // mount point
	Names []string // its controllers as /proc/self/cgroup has them; or one, "name=…"
	Own   string   // the calling process' cgroup there
}

// Name is what its mount point is called after.
func (h *Hierarchy) Name() string { return filepath.Base(h.Mount) }

// Layout is how cgroups are mounted.
type Layout struct {
	V1      []Hierarchy
	Unified string // mount point of version 2; empty: none
	Own     string // the calling process' cgroup in version 2
}

// Pure says whether version 2 is all there is.
func (l *Layout) Pure() bool { return len(l.V1) == 0 }

// Detect reads how cgroups are mounted: two files of procfs, of which that of the mounts
// is only read until all hierarchies are found. They are among the first, and each
// container adds some at the end.
func Detect() (*Layout, error) {
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer mounts.Close()
	return parse(own, mounts)
}

// parse reads lines "4:memory:/a/b" (cgroups(7)) and, until it knows all, those of mountinfo
// "36 35 98:0 /root /point rw,… opt - type source super" (proc(5)).
func parse(own []byte, mounts io.Reader) (*Layout, error) {
	l := &Layout{}
	paths := map[string]string{} // by controllers
	for line := range strings.Lines(string(own)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 || !strings.HasPrefix(f[2], "/") {
			return nil, fmt.Errorf("/proc/self/cgroup: unexpected line %q", line)
		}
		if f[0] == "0" && f[1] == "" {
			l.Own = f[2]
			continue
		}
		paths[f[1]] = f[2]
	}
	unified := l.Own != ""
	lines := bufio.NewReader(mounts) // as much as the kernel gives at once
	for len(l.V1) < len(paths) || unified && l.Unified == "" {
		line, err := lines.ReadBytes('\n')
		if len(line) == 0 && errors.Is(err, io.EOF) {
			break
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		if !bytes.Contains(line, []byte(" - cgroup")) {
			continue
		}
		front, back, _ := strings.Cut(strings.TrimSpace(string(line)), " - ")
		f, b := strings.Fields(front), strings.Fields(back)
		if len(f) < 6 || len(b) < 3 {
			return nil, fmt.Errorf("/proc/self/mountinfo: unexpected line %q", line)
		}
		point := unescape(f[4])
		switch b[0] {
		case "cgroup2":
			if l.Unified == "" {
				l.Unified = point
			}
		case "cgroup":
			l.add(point, b[2], paths)
		}
	}
	return l, nil
}

// add takes a mount of version 1, unless the same hierarchy is mounted elsewhere too.
func (l *Layout) add(point, options string, paths map[string]string) {
	has := strings.Split(options, ",")
	for names, own := range paths {
		list := strings.Split(names, ",")
		if !slices.Contains(has, list[0]) {
			continue
		}
		if !slices.ContainsFunc(l.V1, func(h Hierarchy) bool { return h.Names[0] == list[0] }) {
			l.V1 = append(l.V1, Hierarchy{Mount: point, Names: list, Own: own})
		}
		return
	}
}

// unescape undoes mountinfo's octal escapes.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// Group is one cgroup in all hierarchies.
type Group struct {
	V1      map[string]string // directories by controller ("name=systemd" too)
	Unified string            // directory of version 2; empty: none
	Pure    bool
	mount   string // mount point of version 2
}

// Place says where the cgroup of linux.cgroupsPath lies: an absolute path below the
// hierarchies' mount points, another below the caller's own cgroup, none at "/id"
// there. systemd's form "slice:prefix:name" is the path that systemd would choose.
func (l *Layout) Place(spec, id string) (*Group, error) {
	path := systemd.Path(spec)
	if slices.Contains(strings.Split(path, "/"), "..") {
		return nil, fmt.Errorf("cgroupsPath %q leads upwards", spec)
	}
	if path == "" {
		path = id
	}
	if strings.HasPrefix(path, "/") && filepath.Clean(path) == "/" {
		return nil, fmt.Errorf("cgroupsPath %q is that of the machine", spec)
	}
	below := func(mount, own string) string {
		if strings.HasPrefix(path, "/") {
			return filepath.Join(mount, path)
		}
		return filepath.Join(mount, own, path)
	}
	g := &Group{V1: map[string]string{}, Pure: l.Pure()}
	for _, h := range l.V1 {
		for _, n := range h.Names {
			g.V1[n] = below(h.Mount, h.Own)
		}
	}
	if l.Unified != "" {
		g.Unified, g.mount = below(l.Unified, l.Own), l.Unified
	}
	return g, nil
}

// Dirs are the group's directories, each once, sorted.
func (g *Group) Dirs() []string {
	var list []string
	for _, d := range g.V1 {
		list = append(list, d)
	}
	if g.Unified != "" {
		list = append(list, g.Unified)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// Make makes the directories. made are those that were not there, which is what
// Remove may undo.
func (g *Group) Make() (made []string, err error) {
	for _, dir := range g.Dirs() {
		_, cpuset := g.V1["cpuset"]
		if cpuset && dir == g.V1["cpuset"] {
			err = makeCpuset(dir)
		} else if dir == g.Unified && g.Pure {
			err = makeUnified(dir, g.mount)
		} else {
			err = makeDir(dir)
		}
		switch {
		case errors.Is(err, fs.ErrExist):
		case err != nil:
			RemoveEmpty(made)
			return nil, fmt.Errorf("cgroup: %w", err)
		default:
			made = append(made, dir)
		}
	}
	return made, nil
}

// makeDir makes a directory and those above it; ErrExist when it is there.
func makeDir(dir string) error {
	err := os.Mkdir(dir, 0o755)
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeDir(filepath.Dir(dir)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		err = os.Mkdir(dir, 0o755)
	}
	return err
}

// makeCpuset makes a cgroup of version 1's cpuset, in which nothing can run before
// it has processors and nodes: its parent's.
func makeCpuset(dir string) error {
	// One above may be there and empty: somebody else is just making it.
	if above := filepath.Dir(dir); above != "/" && (!filled(above, "cpuset.cpus") || !filled(above, "cpuset.mems")) {
		if err := makeCpuset(above); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	made := os.Mkdir(dir, 0o755)
	if made != nil && !errors.Is(made, fs.ErrExist) {
		return made
	}
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		file := filepath.Join(dir, name)
		now, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if len(bytes.TrimSpace(now)) > 0 {
			continue
		}
		parent, err := os.ReadFile(filepath.Join(filepath.Dir(dir), name))
		if err != nil {
			return err
		}
		if err := write(file, string(bytes.TrimSpace(parent))); err != nil {
			return err
		}
	}
	return made
}

// filled says whether a file of a cgroup is there and not empty.
func filled(dir, name string) bool {
	b, err := os.ReadFile(filepath.Join(dir, name))
	return err == nil && len(bytes.TrimSpace(b)) > 0
}

// above are the cgroups that a directory lies in, from the mount point down.
func above(dir, mount string) (list []string) {
	for d := filepath.Dir(dir); len(d) >= len(mount) && strings.HasPrefix(d, mount); d = filepath.Dir(d) {
		list = append(list, d)
	}
	slices.Reverse(list)
	return list
}

// makeUnified makes a cgroup of version 2 and has all controllers reach down to it, but from
// one that processes are in: it would become the root of threaded ones, and nobody could get
// into those below it (cgroup-v2.rst, "Threads").
func makeUnified(dir, mount string) error {
	for _, d := range above(dir, mount) {
		if d != mount {
			if err := os.Mkdir(d, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
		}
		if inhabited(d) {
			continue
		}
		b, err := os.ReadFile(filepath.Join(d, "cgroup.controllers"))
		if err != nil {
			return err
		}
		on, err := os.ReadFile(filepath.Join(d, "cgroup.subtree_control"))
		if err != nil {
			return err
		}
		enabled := strings.Fields(string(on))
		for _, c := range strings.Fields(string(b)) {
			if slices.Contains(enabled, c) {
				continue
			}
			// One that a threaded or full parent refuses is missed by who needs it.
			_ = write(filepath.Join(d, "cgroup.subtree_control"), "+"+c)
		}
	}
	return os.Mkdir(dir, 0o755)
}

// inhabited says whether processes are in a cgroup itself. The root of all, which has no
// type, may have any.
func inhabited(dir string) bool {
	if _, err := os.Stat(filepath.Join(dir, "cgroup.type")); err != nil {
		return false
	}
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	return err == nil && len(b) > 0
}

// RemoveEmpty removes cgroups that nobody is in.
func RemoveEmpty(dirs []string) {
	for _, d := range dirs {
		_ = unix.Rmdir(d) // who comes later clears up
	}
}

// write puts a value into a file of a cgroup, in one write.
func write(file, value string) error {
	fd, err := unix.Open(file, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: file, Err: err}
	}
	defer unix.Close(fd)
	for {
		_, err = unix.Write(fd, []byte(value))
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return &fs.PathError{Op: "write", Path: file, Err: fmt.Errorf("%q: %w", value, err)}
	}
	return nil
}

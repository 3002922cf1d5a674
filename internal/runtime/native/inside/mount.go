package inside

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime/native/plan"
)

// mount makes one mount of the container.
func (h *half) mount(m *plan.Mount) error {
	if m.Again {
		return h.remount(m)
	}
	var more uint64
	if m.FS == "proc" || m.FS == "sysfs" {
		more = unix.RESOLVE_NO_SYMLINKS // what masks are put over must be where it is looked for
	}
	h.modeOfPlace(m)
	at, err := h.target(m.Dest, m.Tree == plan.NoFD || isDir(m.Tree), more)
	if err != nil {
		return err
	}
	defer closeFD(at)
	if same(at, h.root) { // it would lie there and nobody would see it
		return fmt.Errorf("mountpoint %q is on the top of rootfs %q", m.Dest, h.Root.Path)
	}
	if err := h.guardProc(m, at); err != nil {
		return err
	}
	if m.FS == "cgroup" {
		return h.mountHierarchies(m, at)
	}
	tree := m.Tree
	if tree == plan.NoFD {
		if m.Fallback != plan.NoFD {
			defer func() {
				if m.Fallback != tree {
					closeFD(m.Fallback)
				}
			}()
		}
		tree, err = makeFS(m)
		if errors.Is(err, errLong) {
			tree, err = makeLong(m, at)
		}
		// In a user namespace without a cgroup namespace there may be no new one.
		if err != nil && m.Fallback != plan.NoFD && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.EBUSY)) {
			tree, err = m.Fallback, nil
		}
		if err != nil {
			return err
		}
	}
	defer closeFD(tree)
	if isDir(tree) != isDir(at) {
		return pathError("mount", m.Dest, unix.ENOTDIR)
	}
	if m.CopyUp && m.FS == "tmpfs" { // as runc: what is somebody's already is not added to
		if err := copyUp(at, tree, m.Params); err != nil {
			return fmt.Errorf("tmpcopyup: %w", err)
		}
	}
	return attach(m, tree, at)
}

// modeOfPlace gives a tmpfs that says nothing about its mode the one of the directory
// that it will lie over, as runc does, if that is there.
func (h *half) modeOfPlace(m *plan.Mount) {
	if m.FS != "tmpfs" || m.CopyUp || slices.ContainsFunc(m.Params, func(p plan.Param) bool { return p.Key == "mode" }) {
		return
	}
	fd, err := h.open(m.Dest, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return // it will be made, or refused
	}
	defer closeFD(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) == nil {
		m.Params = append(m.Params, plan.Param{Key: "mode", Value: fmt.Sprintf("%o", st.Mode&0o7777)})
	}
}

// attach puts a detached tree into its place.
func attach(m *plan.Mount, tree, at int) error {
	if err := unix.MoveMount(tree, "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return os.NewSyscallError("move_mount", err)
	}
	for _, p := range m.Propagation {
		if err := setAttr(tree, &unix.MountAttr{Propagation: uint64(p &^ unix.MS_REC)}, p&unix.MS_REC != 0); err != nil {
			return fmt.Errorf("propagation: %w", err)
		}
	}
	return nil
}

// setAttr changes the attributes of a mount, or of all in its tree.
func setAttr(fd int, attr *unix.MountAttr, recursive bool) error {
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return os.NewSyscallError("mount_setattr", unix.MountSetattr(fd, "", flags, attr))
}

// remount changes the attributes of what is mounted already.
func (h *half) remount(m *plan.Mount) error {
	fd, err := h.open(m.Dest, unix.O_PATH, 0)
	if err != nil {
		return err
	}
	defer closeFD(fd)
	if m.Set|m.Clear != 0 {
		if err := setAttr(fd, &unix.MountAttr{Attr_set: m.Set, Attr_clr: m.Clear}, false); err != nil {
			return err
		}
	}
	for _, p := range m.Propagation {
		if err := setAttr(fd, &unix.MountAttr{Propagation: uint64(p &^ unix.MS_REC)}, p&unix.MS_REC != 0); err != nil {
			return err
		}
	}
	return nil
}

// errLong: a parameter is longer than fsconfig(2) takes.
var errLong = errors.New("parameter too long")

// maxParam is the length of a string that fsconfig(2) takes, in bytes.
const maxParam = 255

// makeFS makes a new mount of a file system, which lies nowhere yet.
func makeFS(m *plan.Mount) (int, error) {
	if len(m.Source) > maxParam || slices.ContainsFunc(m.Params, func(p plan.Param) bool { return len(p.Value) > maxParam }) {
		return -1, errLong
	}
	fs, err := unix.Fsopen(m.FS, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("fsopen", err)
	}
	defer closeFD(fs)
	if m.Source != "" {
		if err := unix.FsconfigSetString(fs, "source", m.Source); err != nil {
			return -1, said(fs, "source", err)
		}
	}
	for _, p := range m.Params {
		if p.Value == "" {
			err = unix.FsconfigSetFlag(fs, p.Key)
		} else {
			err = unix.FsconfigSetString(fs, p.Key, p.Value)
		}
		if err != nil {
			return -1, said(fs, p.Key, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, said(fs, "", err)
	}
	tree, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(early(m)))
	return tree, os.NewSyscallError("fsmount", err)
}

// early are the attributes that a mount has from the beginning.
func early(m *plan.Mount) uint64 {
	if m.Late() {
		return m.Set &^ unix.MOUNT_ATTR_RDONLY
	}
	return m.Set
}

// said adds to an error what the kernel has to say about it: messages are read
// from the file system's descriptor.
func said(fs int, key string, err error) error {
	var buf [512]byte
	var words []string
	for range 8 {
		n, rerr := unix.Read(fs, buf[:])
		if rerr != nil || n <= 0 {
			break
		}
		words = append(words, strings.TrimSpace(string(buf[:n])))
	}
	if key != "" {
		err = fmt.Errorf("%s: %w", key, err)
	}
	if len(words) > 0 {
		err = fmt.Errorf("%w (%s)", err, strings.Join(words, "; "))
	}
	return err
}

// inProc are what may be mounted in a procfs: what others emulate there.
var inProc = []string{"/proc/cpuinfo", "/proc/diskstats", "/proc/meminfo", "/proc/stat", "/proc/swaps", "/proc/uptime", "/proc/loadavg", "/proc/slabinfo",
	"/proc/sys/kernel/ns_last_pid", "/proc/sys/crypto/fips_enabled"}

// guardProc refuses mounts that would have somebody take other files for those of
// procfs: in it, or in its place.
func (h *half) guardProc(m *plan.Mount, at int) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(at, &st); err != nil {
		return os.NewSyscallError("fstatfs", err)
	}
	dest := path.Clean("/" + m.Dest)
	isProc := m.FS == "proc"
	if m.Tree != plan.NoFD {
		var src unix.Statfs_t
		var root unix.Stat_t
		// Its root has the inode 1; a part of it is something else.
		isProc = unix.Fstatfs(m.Tree, &src) == nil && src.Type == unix.PROC_SUPER_MAGIC && unix.Fstat(m.Tree, &root) == nil && root.Ino == 1
	}
	place := h.isAt(at, "/proc")
	switch {
	case place && isProc:
		return nil
	case place || dest == "/proc":
		return fmt.Errorf("%q cannot be mounted because it is not of type proc", dest)
	case (st.Type == unix.PROC_SUPER_MAGIC || strings.HasPrefix(dest, "/proc/")) && !slices.Contains(inProc, dest):
		return fmt.Errorf("%q cannot be mounted because it is inside /proc", dest)
	}
	return nil
}

// isAt says whether a descriptor is what lies at a path now.
func (h *half) isAt(fd int, name string) bool {
	other, err := h.open(name, unix.O_PATH, 0)
	if err != nil {
		return false
	}
	defer closeFD(other)
	var a, b unix.Stat_t
	return unix.Fstat(fd, &a) == nil && unix.Fstat(other, &b) == nil && a.Dev == b.Dev && a.Ino == b.Ino
}

// same says whether two descriptors are of the same file by the same mount.
func same(one, other int) bool {
	var a, b unix.Statx_t
	const mask = unix.STATX_INO | unix.STATX_MNT_ID
	return unix.Statx(one, "", unix.AT_EMPTY_PATH, mask, &a) == nil && unix.Statx(other, "", unix.AT_EMPTY_PATH, mask, &b) == nil && a.Ino == b.Ino && a.Mnt_id == b.Mnt_id
}

// mountHierarchies shows the cgroups of version 1: a small tmpfs with a directory
// for each hierarchy.
func (h *half) mountHierarchies(m *plan.Mount, at int) error {
	const safe = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
	dirs := plan.Mount{FS: "tmpfs", Source: "tmpfs", Params: []plan.Param{{Key: "mode", Value: "755"}}, Set: safe}
	tree, err := makeFS(&dirs)
	if err != nil {
		return err
	}
	defer closeFD(tree)
	if err := attach(m, tree, at); err != nil {
		return err
	}
	for _, c := range m.Hierarchies {
		if err := unix.Mkdirat(tree, c.Name, 0o755); err != nil {
			return pathError("mkdir", c.Name, err)
		}
		place, err := reopen(tree, c.Name, unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		sub := c.Tree
		if sub == plan.NoFD {
			fs := plan.Mount{FS: "cgroup", Source: "cgroup", Set: safe | m.Set&unix.MOUNT_ATTR_RDONLY}
			for _, key := range strings.Split(c.Data, ",") {
				k, v, _ := strings.Cut(key, "=")
				fs.Params = append(fs.Params, plan.Param{Key: k, Value: v})
			}
			sub, err = makeFS(&fs)
		}
		if err == nil {
			err = attach(&plan.Mount{Propagation: m.Propagation}, sub, place)
		}
		closeFD(place)
		if err != nil {
			return fmt.Errorf("cgroup %s: %w", c.Name, err)
		}
		closeFD(sub)
		for _, l := range c.Links {
			if err := unix.Symlinkat(c.Name, tree, l); err != nil && err != unix.EEXIST {
				return pathError("symlink", l, err)
			}
		}
	}
	if m.Set&unix.MOUNT_ATTR_RDONLY != 0 {
		return setAttr(tree, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}, false)
	}
	return nil
}

// shield hides the masked paths and takes the right to write from the read-only ones.
func (h *half) shield() error {
	for _, name := range h.ReadOnly {
		if err := h.readOnly(name); err != nil {
			return fmt.Errorf("can't make %q read-only: %w", name, err)
		}
	}
	empty := plan.NoFD // an empty directory that nobody can write to; all masks show the same
	defer func() {
		if empty != plan.NoFD {
			closeFD(empty)
		}
	}()
	for _, name := range h.Masked {
		if err := h.mask(name, &empty); err != nil {
			return fmt.Errorf("can't mask path %q: %w", name, err)
		}
	}
	return nil
}

func absent(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) }

func (h *half) readOnly(name string) error {
	at, err := h.open(name, unix.O_PATH, 0)
	if absent(err) {
		return nil
	} else if err != nil {
		return err
	}
	defer closeFD(at)
	tree, err := unix.OpenTree(at, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("open_tree", err)
	}
	defer closeFD(tree)
	if err := setAttr(tree, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}, true); err != nil {
		return err
	}
	return attach(&plan.Mount{}, tree, at)
}

// mask puts nothing over a path: over a file the host's null device, which was
// looked at before, over a directory an empty one.
func (h *half) mask(name string, empty *int) error {
	at, err := h.open(name, unix.O_PATH, 0)
	if absent(err) {
		return nil
	} else if err != nil {
		return err
	}
	defer closeFD(at)
	over := h.null
	if isDir(at) {
		if *empty != plan.NoFD {
			over = *empty
		} else {
			m := plan.Mount{FS: "tmpfs", Source: "tmpfs", Set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC, Params: []plan.Param{{Key: "nr_blocks", Value: "1"}, {Key: "nr_inodes", Value: "1"}}, Sealed: true}
			if h.MountLabel != "" {
				m.Params = append(m.Params, plan.Param{Key: "context", Value: h.MountLabel})
			}
			if *empty, err = makeFS(&m); err != nil {
				return err
			}
			// It can be copied once it lies somewhere.
			return attach(&plan.Mount{}, *empty, at)
		}
	}
	tree, err := unix.OpenTree(over, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("open_tree", err)
	}
	defer closeFD(tree)
	// The null device is the host's: nobody here may give it another mode or owner.
	if err := setAttr(tree, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC}, false); err != nil {
		return err
	}
	return attach(&plan.Mount{}, tree, at)
}

package inside

import (
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime/native/plan"
)

// wholes are flags of mount(2) for parameters that have no words there.
var wholes = map[string]uintptr{"ro": unix.MS_RDONLY, "sync": unix.MS_SYNCHRONOUS, "dirsync": unix.MS_DIRSYNC, "lazytime": unix.MS_LAZYTIME, "mand": unix.MS_MANDLOCK}

// maxData is what mount(2) takes of parameters, in bytes: a page with a NUL at its end.
const maxData = 4095

// makeLong makes a new mount of a file system by mount(2), whose parameters may be longer
// than those of fsconfig(2). That one wants a place: a directory of a file system that
// lies for so long at at, where nobody else looks. What was mounted there is copied and
// has then a place nowhere, as what makeFS makes.
func makeLong(m *plan.Mount, at int) (int, error) {
	var flags uintptr
	var data []string
	for _, p := range m.Params {
		if bit, ok := wholes[p.Key]; ok && p.Value == "" {
			flags |= bit
		} else if p.Value == "" {
			data = append(data, p.Key)
		} else {
			v := p.Value
			if p.Key == "context" { // of SELinux, with commas
				v = `"` + v + `"`
			}
			data = append(data, p.Key+"="+v)
		}
	}
	text := strings.Join(data, ",")
	if len(text) > maxData {
		return -1, errors.New("options are longer than a page")
	}
	room, err := makeFS(&plan.Mount{FS: "tmpfs", Source: "tmpfs"})
	if err != nil {
		return -1, err
	}
	defer closeFD(room)
	const place = "place"
	if err := unix.Mkdirat(room, place, 0o700); err != nil {
		return -1, pathError("mkdir", place, err)
	}
	if err := attach(&plan.Mount{}, room, at); err != nil {
		return -1, err
	}
	if err := unix.Fchdir(room); err != nil {
		return -1, os.NewSyscallError("fchdir", err)
	}
	tree, err := mountAt(place, m, flags, text)
	if uerr := unix.Unmount(".", unix.MNT_DETACH); uerr != nil && err == nil {
		closeFD(tree)
		err = os.NewSyscallError("umount2", uerr)
	}
	if cerr := unix.Chdir("/"); cerr != nil && err == nil {
		closeFD(tree)
		err = os.NewSyscallError("chdir", cerr)
	}
	if err != nil {
		return -1, err
	}
	return tree, nil
}

// mountAt mounts below the working directory and gives a copy of that.
func mountAt(place string, m *plan.Mount, flags uintptr, data string) (int, error) {
	if err := unix.Mount(m.Source, place, m.FS, flags, data); err != nil {
		return -1, os.NewSyscallError("mount", err)
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, place, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("open_tree", err)
	}
	attr := unix.MountAttr{Attr_set: early(m), Propagation: unix.MS_PRIVATE}
	if attr.Attr_set&unix.MOUNT_ATTR_RDONLY == 0 {
		attr.Attr_clr = unix.MOUNT_ATTR_RDONLY // the file system as a whole may be
	}
	if attr.Attr_set&unix.MOUNT_ATTR__ATIME != 0 {
		attr.Attr_clr |= unix.MOUNT_ATTR__ATIME // one setting of several values
	}
	if err := setAttr(tree, &attr, false); err != nil {
		closeFD(tree)
		return -1, err
	}
	return tree, nil
}

package inside

import (
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Folder is a folder of sysctls. The kernel finds a path below /proc/sys/net by passing
// the entries of all network namespaces, which have the same name: with a thousand of
// them that takes a tenth of a millisecond and more. So a folder is looked up once, and
// what is in it found from there.
type Folder struct {
	fd   int
	path string
}

// OpenFolder opens a folder of sysctls ("net/ipv6/conf/eth0") of the network namespace of
// the calling thread, and stays in that. fs.ErrNotExist when there is none.
func OpenFolder(name string) (Folder, error) {
	path := "/proc/sys/" + name
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Folder{}, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return Folder{fd, path}, nil
}

// Close closes the folder.
func (f Folder) Close() error { return unix.Close(f.fd) }

// Set writes a sysctl of the folder, unless it has the value already. name may be one of a
// folder in it ("eth0/disable_ipv6"). fs.ErrNotExist when there is none.
func (f Folder) Set(name, value string) error {
	wrong := func(op string, err error) error {
		return &os.PathError{Op: op, Path: f.path + "/" + name, Err: err}
	}
	fd, err := unix.Openat(f.fd, name, unix.O_RDWR|unix.O_CLOEXEC, 0)
	refused := err
	if errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) { // it may be as wanted
		fd, err = unix.Openat(f.fd, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return wrong("open", err)
	}
	defer unix.Close(fd)
	var old [64]byte
	n, err := unix.Pread(fd, old[:], 0)
	switch {
	case err == nil && strings.TrimSpace(string(old[:n])) == value:
		return nil
	case refused != nil:
		return wrong("open", refused)
	}
	if _, err := unix.Pwrite(fd, []byte(value), 0); err != nil {
		return wrong("write", err)
	}
	return nil
}

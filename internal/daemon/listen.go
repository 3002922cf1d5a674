package daemon

import (
	"crypto/tls"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// listen opens every host of the configuration; none stays open on an error.
func (d *Daemon) listen() (err error) {
	defer func() {
		if err != nil {
			for _, l := range d.listeners {
				l.Close()
			}
			d.listeners = nil
		}
	}()
	for _, h := range d.cfg.Hosts {
		proto, addr, err := d.cfg.endpoint(h)
		if err != nil {
			return err
		}
		var l net.Listener
		if proto == "unix" {
			l, err = listenUnix(addr, d.cfg.Group)
		} else {
			l, err = net.Listen("tcp", addr)
			if err == nil && d.tls != nil {
				l = tls.NewListener(l, d.tls)
			}
		}
		if err != nil {
			return fmt.Errorf("host %s: %w", h, err)
		}
		if proto == "tcp" && d.tls == nil {
			d.log.Warn("API is served without TLS: whoever reaches it is root on this machine", "host", h)
		}
		d.listeners = append(d.listeners, l)
	}
	return nil
}

// listenUnix makes the socket at path for root and group (0660). A socket that
// nobody serves any more is replaced; one that answers is another engine's.
func listenUnix(path, group string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return nil, fmt.Errorf("%s: another engine answers there", path)
	} else if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	old := syscall.Umask(0o177) // nobody slips in before the mode is set
	l, err := net.Listen("unix", path)
	syscall.Umask(old)
	if err != nil {
		return nil, err
	}
	gid := 0
	if g, err := user.LookupGroup(group); err == nil {
		gid, _ = strconv.Atoi(g.Gid)
	}
	if err := errors.Join(os.Chown(path, 0, gid), os.Chmod(path, 0o660)); err != nil && os.Geteuid() == 0 {
		l.Close()
		return nil, err
	}
	return l, nil
}

// instancesFile has a byte for each name that an engine can have: who runs
// under a name has locked its byte. One file for all engines of the machine, so
// that none is left when one of them is killed.
const instancesFile = "/run/escale-instances.lock"

// lockAll makes sure that this engine alone has its data root, its exec root and
// its instance's name: an engine takes what it finds under them and does not
// know for the remains of an earlier one, and gives it back to the kernel.
func (d *Daemon) lockAll() error {
	for _, l := range []struct{ path, what, remedy string }{
		{filepath.Join(d.cfg.DataRoot, "lock"), "data root " + d.cfg.DataRoot, "--data-root, --exec-root and --instance"},
		{filepath.Join(d.cfg.ExecRoot, "escaled.lock"), "exec root " + d.cfg.ExecRoot, "--exec-root and --instance"},
	} {
		f, err := lock(l.path)
		switch {
		case errors.Is(err, syscall.EWOULDBLOCK):
			return fmt.Errorf("%s is in use by another engine: give this one its own %s", l.what, l.remedy)
		case err != nil:
			return err
		}
		d.onClose(func() error { return errors.Join(os.Remove(l.path), f.Close()) })
	}
	f, err := lockName(instancesFile, d.cfg.Instance)
	switch {
	case errors.Is(err, syscall.EWOULDBLOCK):
		return fmt.Errorf("instance %s is in use by another engine: give this one its own --instance", d.cfg.Instance)
	case err != nil:
		return err
	}
	d.onClose(f.Close)
	return nil
}

// lockName locks the byte of a name in the file at path, which need not be as
// long; EWOULDBLOCK: another process has. The lock is that of the open file, so
// the kernel frees it when the process ends, however it ends.
func lockName(path, name string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	h := fnv.New64a()
	h.Write([]byte(name))
	l := unix.Flock_t{Type: unix.F_WRLCK, Start: int64(h.Sum64() >> 2), Len: 1} // within what an offset can be
	err = patiently(func() error { return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &l) })
	if err != nil {
		f.Close()
		return nil, &os.PathError{Op: "lock", Path: path, Err: err}
	}
	return f, nil
}

// lockPatience is how long a lock is waited for. A process that a killed engine
// had forked holds its locks until it executes the monitor, some milliseconds.
const lockPatience = 2 * time.Second

// flock locks f for this process alone, as soon as nobody else has it.
func flock(f *os.File) error {
	return patiently(func() error { return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) })
}

// patiently tries to take a lock that another may be about to give up.
func patiently(take func() error) error {
	for end := time.Now().Add(lockPatience); ; time.Sleep(10 * time.Millisecond) {
		err := take()
		if !errors.Is(err, syscall.EWOULDBLOCK) || time.Now().After(end) {
			return err
		}
	}
}

// lock locks the file at path; EWOULDBLOCK: another process has. The kernel
// frees it when the process ends, however it ends. Who is done removes the file
// before closing it.
func lock(path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
		if err != nil {
			return nil, err
		}
		if err := flock(f); err != nil {
			f.Close()
			return nil, &os.PathError{Op: "lock", Path: path, Err: err}
		}
		mine, err := f.Stat()
		if err == nil {
			var there os.FileInfo
			if there, err = os.Stat(path); err == nil && os.SameFile(mine, there) {
				return f, nil
			}
		}
		f.Close()
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		// Its last owner removed it in between: there is another by now, or none.
	}
}

// notify tells systemd a state (sd_notify(3)); nothing without systemd.
func notify(state string) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	c, err := net.Dial("unixgram", path)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte(state))
	return err
}

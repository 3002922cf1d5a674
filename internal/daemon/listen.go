package daemon

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
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

// lock makes sure that one engine at a time has the data root; the kernel frees
// it when the process ends, however it ends.
func lock(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("data root %s is in use by another engine: give this one its own --data-root, --exec-root and --instance", dir)
	}
	return f, nil
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

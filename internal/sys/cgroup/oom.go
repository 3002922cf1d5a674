package cgroup

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// OOMs calls told whenever the cgroup path runs out of memory, once at first,
// with before, when that has happened already, and blocks until ctx ends, or the cgroup is
// gone where the kernel tells that: of version 2 not every kernel does. Nothing is polled: version 1 tells an eventfd (cgroup-v1/memory.rst,
// "OOM Control"), version 2 changes memory.events. Where memory is not
// controlled it returns at once.
func (i Info) OOMs(ctx context.Context, path string, told func(before bool)) error {
	dir, ok := i.Dir("memory", path)
	if !ok {
		return nil
	}
	open, file := openLegacy, "memory.oom_control"
	if i.Mode == Unified {
		open, file = openUnified, "memory.events"
	}
	file = filepath.Join(dir, file)
	f, err := open(dir, file)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("memory events of cgroup %s: %w", path, err)
	}
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { f.Close() })
	defer stop()
	last, ok := oomKills(file)
	if ok && last > 0 {
		told(true)
	}
	for buf := make([]byte, 4096); ; {
		n, err := f.Read(buf)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return err
		}
		count, ok := oomKills(file)
		switch {
		case !ok: // the cgroup was removed, which is told too
			return nil
		case i.Mode != Unified && binary.NativeEndian.Uint64(buf[:n]) > 0, count > last:
			told(false)
		}
		last = count
	}
}

// openLegacy has the kernel count the shortages of version 1 in an eventfd.
func openLegacy(dir, file string) (*os.File, error) {
	control, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	f := os.NewFile(uintptr(fd), "memory events")
	line := strconv.Itoa(fd) + " " + strconv.Itoa(int(control.Fd()))
	if err := os.WriteFile(filepath.Join(dir, "cgroup.event_control"), []byte(line), 0); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// openUnified watches the file of version 2 for changes, and for its end.
func openUnified(_, file string) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	f := os.NewFile(uintptr(fd), "memory events")
	if _, err := unix.InotifyAddWatch(fd, file, unix.IN_MODIFY|unix.IN_DELETE_SELF); err != nil {
		f.Close()
		return nil, &fs.PathError{Op: "watch", Path: file, Err: err}
	}
	return f, nil
}

// oomKills reads how many processes were killed for want of memory; false when
// the cgroup is gone.
func oomKills(file string) (uint64, bool) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, false
	}
	for line := range bytes.Lines(b) {
		if n, ok := bytes.CutPrefix(bytes.TrimSpace(line), []byte("oom_kill ")); ok {
			count, _ := strconv.ParseUint(string(n), 10, 64)
			return count, true
		}
	}
	return 0, true // a kernel that does not count them
}

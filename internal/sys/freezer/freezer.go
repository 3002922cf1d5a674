// Package freezer stops and resumes all processes of a cgroup, with cgroup v1
// (Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst) and v2
// (Documentation/admin-guide/cgroup-v2.rst, cgroup.freeze).
package freezer

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Freezer works on the cgroups under Root.
type Freezer struct {
	Root string // "/sys/fs/cgroup"
}

// patience bounds how long a freeze may take: a process in an uninterruptible
// sleep cannot be frozen before it wakes.
const patience = 10 * time.Second

// Freeze stops the cgroup at path ("/docker/<id>"); returns when all of its
// processes have stopped, or undoes it with an error after ten seconds.
func (f Freezer) Freeze(path string) error {
	var err error
	if f.unified() {
		err = f.freezeV2(path)
	} else {
		err = f.freezeV1(path)
	}
	if err != nil {
		return errors.Join(err, f.Thaw(path))
	}
	return nil
}

// Thaw lets the cgroup at path go on. One that is not frozen is no error.
func (f Freezer) Thaw(path string) error {
	if f.unified() {
		return os.WriteFile(filepath.Join(f.Root, path, "cgroup.freeze"), []byte("0"), 0)
	}
	return os.WriteFile(f.stateV1(path), []byte("THAWED"), 0)
}

func (f Freezer) unified() bool {
	_, err := os.Stat(filepath.Join(f.Root, "cgroup.controllers"))
	return err == nil
}

func (f Freezer) stateV1(path string) string {
	return filepath.Join(f.Root, "freezer", path, "freezer.state")
}

// freezeV1 writes FROZEN until the kernel says so: it reports FREEZING while
// processes are on their way, gives no notice, and may need to be asked again
// when one forked meanwhile.
func (f Freezer) freezeV1(path string) error {
	for end, nap := time.Now().Add(patience), time.Millisecond; ; nap = min(2*nap, 50*time.Millisecond) {
		if err := os.WriteFile(f.stateV1(path), []byte("FROZEN"), 0); err != nil {
			return err
		}
		state, err := os.ReadFile(f.stateV1(path))
		if err != nil {
			return err
		}
		if string(bytes.TrimSpace(state)) == "FROZEN" {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("cgroup %s: not frozen after %s", path, patience)
		}
		time.Sleep(nap)
	}
}

// freezeV2 writes cgroup.freeze and waits for cgroup.events to say "frozen 1",
// which the kernel tells by POLLPRI.
func (f Freezer) freezeV2(path string) error {
	dir := filepath.Join(f.Root, path)
	events, err := os.Open(filepath.Join(dir, "cgroup.events"))
	if err != nil {
		return err
	}
	defer events.Close()
	if err := os.WriteFile(filepath.Join(dir, "cgroup.freeze"), []byte("1"), 0); err != nil {
		return err
	}
	buf := make([]byte, 4096)
	for end := time.Now().Add(patience); ; {
		n, err := events.ReadAt(buf, 0)
		if n == 0 && err != nil {
			return err
		}
		if bytes.Contains(buf[:n], []byte("frozen 1")) {
			return nil
		}
		left := time.Until(end)
		if left <= 0 {
			return fmt.Errorf("cgroup %s: not frozen after %s", path, patience)
		}
		fds := []unix.PollFd{{Fd: int32(events.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(fds, int(left.Milliseconds())+1); err != nil && err != unix.EINTR {
			return err
		}
	}
}

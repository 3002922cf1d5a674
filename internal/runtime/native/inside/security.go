package inside

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const sysAdmin = 1 << unix.CAP_SYS_ADMIN

// setUser takes the user and the groups, and leaves the capabilities that the
// process is to have, with CAP_SYS_ADMIN where the filter still needs it. The
// calls are of this thread alone: Go's own would ask all.
func (h *candidate) setUser() error {
	u := &h.Process.User
	caps := h.Caps
	if caps != nil {
		if err := dropBounding(caps.Bounding); err != nil {
			return err
		}
		if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
			return os.NewSyscallError("prctl(SET_KEEPCAPS)", err)
		}
	}
	if err := setGroups(u.AdditionalGids); err != nil {
		return err
	}
	gid, uid := uintptr(u.GID), uintptr(u.UID)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); errno != 0 {
		return fmt.Errorf("setgid %d: %w", gid, errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); errno != 0 {
		return fmt.Errorf("setuid %d: %w", uid, errno)
	}
	// The change of the user has made us dumpable again, or may have (prctl(2)).
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl", err)
	}
	if caps == nil {
		return nil
	}
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 0, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl(SET_KEEPCAPS)", err)
	}
	var more uint64
	if len(h.Filter) > 0 && !h.Process.NoNewPrivileges {
		more = sysAdmin
	}
	if err := capset(caps.Effective|more, caps.Permitted|more, caps.Inheritable); err != nil {
		return fmt.Errorf("apply caps: %w", err)
	}
	return setAmbient(caps.Ambient)
}

// finalCaps takes away what was left for the filter.
func (h *candidate) finalCaps() error {
	c := h.Caps
	if c == nil || len(h.Filter) == 0 || h.Process.NoNewPrivileges || c.Permitted&c.Effective&sysAdmin != 0 {
		return nil
	}
	if err := capset(c.Effective, c.Permitted, c.Inheritable); err != nil {
		return fmt.Errorf("apply caps: %w", err)
	}
	return nil
}

func setGroups(list []uint32) error {
	var first *uint32
	if len(list) > 0 {
		first = &list[0]
	}
	errno := setgroups(len(list), first)
	if errno == unix.EPERM && len(list) == 0 && has(unix.CAP_SETGID) {
		// The user namespace forbids it to everybody (user_namespaces(7)). Its procfs would say
		// so too, but what lies at /proc may be of the container's making.
		return nil
	}
	if errno != 0 {
		return fmt.Errorf("setgroups: %w", errno)
	}
	return nil
}

// has says whether a capability is effective.
func has(capability int) bool {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&head, &data[0]) == nil && (uint64(data[0].Effective)|uint64(data[1].Effective)<<32)&(1<<capability) != 0
}

// dropBounding takes from the bounding set what is not in keep.
func dropBounding(keep uint64) error {
	for c := range uintptr(64) {
		if keep&(1<<c) != 0 {
			continue
		}
		_, _, errno := unix.RawSyscall6(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0, 0, 0, 0)
		if errno == unix.EINVAL {
			return nil // beyond the last that the kernel knows
		}
		if errno != 0 {
			return fmt.Errorf("drop bounding set: %w", errno)
		}
	}
	return nil
}

// capset sets this thread's three sets (capabilities(7)).
func capset(effective, permitted, inheritable uint64) error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{
		{Effective: uint32(effective), Permitted: uint32(permitted), Inheritable: uint32(inheritable)},
		{Effective: uint32(effective >> 32), Permitted: uint32(permitted >> 32), Inheritable: uint32(inheritable >> 32)},
	}
	return unix.Capset(&head, &data[0])
}

func setAmbient(set uint64) error {
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil && err != unix.EINVAL {
		return fmt.Errorf("ambient capabilities: %w", err)
	}
	for c := range 64 {
		if set&(1<<c) == 0 {
			continue
		}
		// As runc: what is not inheritable or permitted cannot be ambient.
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(c), 0, 0); err != nil && err != unix.EPERM {
			return fmt.Errorf("ambient capability %d: %w", c, err)
		}
	}
	return nil
}

// resources are the limits by name (getrlimit(2)).
var resources = map[string]int{
	"RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_DATA": unix.RLIMIT_DATA, "RLIMIT_STACK": unix.RLIMIT_STACK, "RLIMIT_CORE": unix.RLIMIT_CORE,
	"RLIMIT_RSS": unix.RLIMIT_RSS, "RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_AS": unix.RLIMIT_AS,
	"RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE,
	"RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO, "RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
}

// Resource is the number of a limit by the specification's name of it.
func Resource(name string) (int, bool) {
	n, ok := resources[name]
	return n, ok
}

// rlimits are set again here, where the other half has allowed the hard ones: Go
// puts back the number of files it had found unless this process sets it.
func (h *candidate) rlimits() error {
	for _, l := range h.Process.Rlimits {
		n, ok := Resource(l.Type)
		if !ok {
			return fmt.Errorf("rlimit %q: not known", l.Type)
		}
		if err := syscall.Setrlimit(n, &syscall.Rlimit{Cur: l.Soft, Max: l.Hard}); err != nil {
			return fmt.Errorf("error setting rlimits for container: %s: %w", l.Type, err)
		}
	}
	return nil
}

// ownStreams gives the standard streams to the user of the process, who may want
// to open them again by /dev/stdout.
func (h *candidate) ownStreams() error {
	for fd := range 3 {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) != nil || st.Uid == h.Process.User.UID {
			continue
		}
		// The null device is everybody's. The container's own is not asked what that is.
		if isNull(fd) {
			continue
		}
		err := unix.Fchown(fd, int(h.Process.User.UID), int(st.Gid))
		if err != nil && err != unix.EINVAL && err != unix.EPERM && err != unix.EROFS {
			return fmt.Errorf("standard stream %d: %w", fd, err)
		}
	}
	return nil
}

// labels are those of AppArmor and SELinux that the program is to run with: told
// to the kernel for the next execve (attr/exec, proc(5)).
func (h *candidate) labels() error {
	if label := h.Process.SelinuxLabel; label != "" {
		if err := h.writeProc("thread-self/attr/exec", label); err != nil {
			return fmt.Errorf("can't set process label: %w", err)
		}
	}
	if profile := h.Process.ApparmorProfile; profile != "" {
		err := h.writeProc("thread-self/attr/apparmor/exec", "exec "+profile)
		if err != nil {
			err = h.writeProc("thread-self/attr/exec", "exec "+profile)
		}
		if err != nil {
			return fmt.Errorf("unable to apply apparmor profile: %w", err)
		}
	}
	return nil
}

// personality is the execution domain (personality(2)).
func (h *candidate) personality() error {
	if h.Personality == nil {
		return nil
	}
	domain, ok := map[string]uintptr{"LINUX": 0, "LINUX32": 0x0008}[string(h.Personality.Domain)]
	if !ok {
		return fmt.Errorf("personality %q: not known", h.Personality.Domain)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_PERSONALITY, domain, 0, 0); errno != 0 {
		return fmt.Errorf("set personality: %w", errno)
	}
	return nil
}

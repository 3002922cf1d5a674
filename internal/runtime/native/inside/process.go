package inside

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime/native/plan"
)

// candidate is the half inside once it has its place, on its way to become the program.
type candidate struct{ *half }

// become gives up what the process may not keep and executes its program. The
// order is forced: the filter needs CAP_SYS_ADMIN, unless the process may gain
// no privileges, and is loaded as late as can be, so that no call of ours has to
// be allowed by it but capset and execve.
func (h *candidate) become() error {
	p := &h.Process
	if p.User.Umask != nil {
		unix.Umask(int(*p.User.Umask))
	} else if !h.Exec {
		unix.Umask(0o022)
	}
	if err := h.personality(); err != nil {
		return err
	}
	if err := h.memoryPolicy(); err != nil {
		return err
	}
	if err := h.rlimits(); err != nil {
		return err
	}
	if err := h.ownStreams(); err != nil {
		return err
	}
	if p.NoNewPrivileges {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return os.NewSyscallError("prctl(SET_NO_NEW_PRIVS)", err)
		}
	}
	if err := h.labels(); err != nil {
		return err
	}
	// From here on names are looked up that the image has chosen, and a link of procfs
	// leads to whatever is open.
	if h.Proc != plan.NoFD {
		closeFD(h.Proc)
		h.Proc = plan.NoFD
	}
	entered := h.chdir() // as root: the user may not get there later
	if err := h.setUser(); err != nil {
		return err
	}
	if entered != nil {
		if err := h.chdir(); err != nil {
			return err
		}
	}
	if err := inContainer(); err != nil {
		return err
	}
	env := h.environment()
	name, err := lookPath(p.Args[0], env)
	if err != nil {
		return err
	}
	if err := plan.Send(h.socket, plan.KindReady, nil); err != nil {
		return err
	}
	if _, err := plan.Expect(h.socket, plan.KindReady); err != nil {
		return err
	}
	if err := h.hold(); err != nil {
		return err
	}
	if err := h.runHooks("startContainer", h.StartContainer); err != nil {
		return err
	}
	return h.execute(name, env)
}

// hold waits until somebody says start.
func (h *candidate) hold() error {
	if h.Hold == plan.NoFD {
		return nil
	}
	var b [1]byte
	for {
		n, err := unix.Read(h.Hold, b[:])
		switch {
		case err == unix.EINTR:
		case err != nil:
			return fmt.Errorf("waiting for start: %w", err)
		case n == 1:
			closeFD(h.Hold)
			return nil
		}
	}
}

// execute loads the filter, sets the capabilities and becomes the program.
func (h *candidate) execute(name string, env []string) error {
	// Whatever was opened here meanwhile: the program gets its streams and what is kept for it.
	if err := unix.CloseRange(plan.FirstFD, 1<<31-1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return os.NewSyscallError("close_range", err)
	}
	for fd := plan.FirstFD; fd < plan.FirstFD+h.kept; fd++ {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
			return os.NewSyscallError("fcntl", err)
		}
	}
	if !h.Process.NoNewPrivileges {
		if err := h.loadFilter(); err != nil {
			return err
		}
		if err := h.finalCaps(); err != nil {
			return err
		}
	} else {
		if err := h.finalCaps(); err != nil {
			return err
		}
		if err := h.loadFilter(); err != nil {
			return err
		}
	}
	return fmt.Errorf("exec %s: %w", name, syscall.Exec(name, h.Process.Args, env))
}

// loadFilter confines this thread, and what it executes (seccomp_filter.rst).
func (h *candidate) loadFilter() error {
	if len(h.Filter) == 0 {
		return nil
	}
	prog := unix.SockFprog{Len: uint16(len(h.Filter) / unix.SizeofSockFilter), Filter: (*unix.SockFilter)(unsafe.Pointer(&h.Filter[0]))}
	_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(h.SeccompFlags), uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return fmt.Errorf("seccomp filter: %w", errno)
	}
	return nil
}

// chdir enters the working directory: by no magic link, which could lead to a
// directory of the host that somebody has open.
func (h *candidate) chdir() error {
	cwd := h.Process.Cwd
	if cwd == "" {
		cwd = "/"
	}
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(unix.AT_FDCWD, cwd, &how)
	if err != nil {
		return fmt.Errorf("chdir to cwd (%q) set in config.json failed: %w", cwd, err)
	}
	defer closeFD(fd)
	if err := unix.Fchdir(fd); err != nil {
		return fmt.Errorf("chdir to cwd (%q) set in config.json failed: %w", cwd, err)
	}
	return nil
}

// inContainer checks that the working directory lies below the root: of one that
// does not the kernel says that it cannot be reached (getcwd(2)).
func inContainer() error {
	var buf [unix.PathMax]byte
	n, err := unix.Getcwd(buf[:])
	if err == unix.ENOENT {
		return errors.New("current working directory is outside of container mount namespace root -- possible container breakout detected")
	}
	if err != nil {
		return os.NewSyscallError("getcwd", err)
	}
	if n == 0 || buf[0] != '/' {
		return errors.New("current working directory is outside of container mount namespace root -- possible container breakout detected")
	}
	return nil
}

// environment is the process' own; HOME is what the container's passwd says where
// it was not given.
func (h *candidate) environment() []string {
	seen := map[string]bool{}
	env := make([]string, 0, len(h.Process.Env)+1)
	for i := len(h.Process.Env) - 1; i >= 0; i-- { // of two the last counts
		key, _, ok := strings.Cut(h.Process.Env[i], "=")
		if !ok || key == "" || seen[key] {
			continue
		}
		seen[key] = true
		env = append(env, h.Process.Env[i])
	}
	for i, j := 0, len(env)-1; i < j; i, j = i+1, j-1 {
		env[i], env[j] = env[j], env[i]
	}
	if !seen["HOME"] {
		env = append(env, "HOME="+home(h.Process.User.UID))
	}
	if h.Listen > 0 {
		env = append(env, "LISTEN_FDS="+strconv.Itoa(h.Listen), "LISTEN_PID="+strconv.Itoa(os.Getpid()))
	}
	return env
}

// maxPasswd is how much of a container's passwd is read, in bytes.
const maxPasswd = 1 << 20

// home finds a user's directory in the container's passwd; "/" is that of who is
// not there.
func home(uid uint32) string {
	fd, err := unix.Open("/etc/passwd", unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return "/"
	}
	defer closeFD(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return "/"
	}
	buf := make([]byte, min(st.Size, maxPasswd))
	n, err := unix.Read(fd, buf)
	if err != nil {
		return "/"
	}
	id := fmt.Sprint(uid)
	for line := range strings.Lines(string(buf[:n])) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) >= 6 && f[2] == id && f[5] != "" {
			return f[5]
		}
	}
	return "/"
}

// lookPath finds the program as exec(3) does; the words of its errors are those
// of Go's os/exec, which runc passes on and clients know.
func lookPath(file string, env []string) (string, error) {
	fail := func(err error) error { return fmt.Errorf("exec: %q: %w", file, err) }
	if strings.Contains(file, "/") {
		if err := executable(file); err != nil {
			return "", fail(err)
		}
		return file, nil
	}
	path := ""
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = v
		}
	}
	for _, dir := range strings.Split(path, ":") {
		if file == "" || path == "" {
			break
		}
		if dir == "" {
			dir = "."
		}
		name := dir + "/" + file
		if executable(name) != nil {
			continue
		}
		if !strings.HasPrefix(name, "/") {
			return "", fail(errors.New("cannot run executable found relative to current directory"))
		}
		return name, nil
	}
	return "", fail(errors.New("executable file not found in $PATH"))
}

// executable checks that a file can be executed by who we are now.
func executable(name string) error {
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		return pathError("stat", name, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return unix.EISDIR
	}
	err := unix.Faccessat2(unix.AT_FDCWD, name, unix.X_OK, unix.AT_EACCESS)
	if err == unix.ENOSYS || err == unix.EPERM {
		if err = nil; st.Mode&0o111 == 0 {
			err = unix.EACCES
		}
	}
	return err
}

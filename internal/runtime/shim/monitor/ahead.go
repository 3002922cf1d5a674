package monitor

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// ahead is an OCI runtime of our own that waits to be told what to do: its start is over
// before the container's begins. See aheadArg in internal/runtime/native.
type ahead struct {
	runtime string // its path
	pid     int
	socket  int
}

// expect starts the runtime that will probably be called. One that is not our own
// would not understand, and is not started; nor is it told to anybody when that
// fails: the call starts one then.
func (m *Monitor) expect(runtime string) {
	if m.ahead != nil || m.init != nil {
		return
	}
	null, err := open("/dev/null", unix.O_RDWR, 0)
	if err != nil {
		return
	}
	defer unix.Close(null)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(pair[1])
	files := []uintptr{uintptr(null), uintptr(null), uintptr(null), uintptr(pair[1])}
	program, sealed := seal(runtime, aboveAll(files))
	if sealed < 0 {
		_ = unix.Close(pair[0])
		return
	}
	pid, err := syscall.ForkExec(program, []string{runtime, "ahead"}, &syscall.ProcAttr{Env: m.env, Files: files})
	_ = unix.Close(sealed) // it was only named
	if err != nil {
		_ = unix.Close(pair[0])
		return
	}
	m.ahead = &ahead{runtime, pid, pair[0]}
	m.reaper.wait()
}

// call has the runtime that waits do what args say, after the path of the program; false:
// there is none, or not this one. It waits for one call only.
func (m *Monitor) callAhead(args []string, files []uintptr) (pid int, ok bool) {
	a := m.ahead
	if a == nil || a.runtime != args[0] || len(files) != 3 {
		return 0, false
	}
	m.ahead = nil
	text := []byte(m.cfg.runDir)
	for _, word := range args[1:] {
		text = append(append(text, 0), word...)
	}
	err := unix.Sendmsg(a.socket, text, unix.UnixRights(int(files[0]), int(files[1]), int(files[2])), nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
	_ = unix.Close(a.socket) // what was sent arrives; else it ends by this
	return a.pid, err == nil
}

// dismiss lets the runtime that waits go.
func (m *Monitor) dismiss() {
	if m.ahead != nil {
		_ = unix.Close(m.ahead.socket)
		m.ahead = nil
	}
}

package monitor

import (
	"bytes"
	"syscall"

	"golang.org/x/sys/unix"
)

// aheadArg is a word and room for what takes its place.
var aheadArg = "ahead" + string(bytes.Repeat([]byte{' '}, room-len("ahead")))

// ahead is an OCI runtime of our own that waits to be told what to do: its start is over
// before the exec's begins. See aheadArg in internal/runtime/native.
type ahead struct {
	runtime string // its path
	pid     int
	socket  int
	program program // what lay at the path
	until   int64   // uptime in seconds after which it is not called: it ends soon
}

const (
	// execPatience is for how many seconds one waits for an exec. None waits where execs are rarer than that.
	execPatience = 10

	// room is how long a command line may be that the one that waits shows: by it an exec is
	// found that has to be ended.
	room = 2048

	// parting is how many seconds lie between the last call and its end.
	parting = 2
)

// program is what tells one file at a path from another.
type program struct {
	dev, ino uint64
	size     int64
	mtime    unix.Timespec
}

func programAt(path string) program {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return program{} // nothing there is started either
	}
	return program{uint64(st.Dev), st.Ino, st.Size, st.Mtim}
}

// expect starts the runtime that will probably be called within so many seconds. One
// that is not our own would not understand, and is not started; nor is it told to
// anybody when that fails: the call starts one then.
func (m *Monitor) expect(runtime string, patience int64) {
	if m.ahead != nil || m.leaving {
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
	if unix.SetsockoptTimeval(pair[1], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: patience + parting}) != nil {
		_ = unix.Close(pair[0])
		return
	}
	files := []uintptr{uintptr(null), uintptr(null), uintptr(null), uintptr(pair[1])}
	now := programAt(runtime)
	program, sealed := seal(runtime, aboveAll(files))
	if sealed < 0 {
		_ = unix.Close(pair[0])
		return
	}
	pid, err := syscall.ForkExec(program, []string{runtime, aheadArg}, &syscall.ProcAttr{Env: m.ownEnv, Files: files})
	_ = unix.Close(sealed) // it was only named
	if err != nil {
		_ = unix.Close(pair[0])
		return
	}
	m.ahead = &ahead{runtime: runtime, pid: pid, socket: pair[0], program: now, until: uptime() + patience}
	m.reaper.wait()
}

// execed has a runtime wait for the next exec, when they come one after the other.
func (m *Monitor) execed() {
	now := uptime()
	if m.lastExec > 0 && now-m.lastExec <= execPatience {
		m.loop.rest = func() { m.expect(m.cfg.runtime, execPatience) }
	}
	m.lastExec = now
}

// callAhead has the runtime that waits do what args say, after the path of the program; false:
// there is none, or not this one, nor by the program that lies on the disk: then it goes. It waits
// for the first call only.
func (m *Monitor) callAhead(args []string, files []uintptr) (pid int, ok bool) {
	a := m.ahead
	if a == nil || a.runtime != args[0] || len(files) != 3 || a.program != programAt(a.runtime) {
		m.dismiss() // else it would wait as long as the container runs
		return 0, false
	}
	text := []byte(m.cfg.runDir)
	for _, word := range args[1:] {
		text = append(append(text, 0), word...)
	}
	if uptime() > a.until || len(text)-len(m.cfg.runDir)-1 > room {
		m.dismiss()
		return 0, false
	}
	m.ahead = nil
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

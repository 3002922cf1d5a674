package monitor

import (
	"syscall"

	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime/shim/wire"
)

// maxWords is how much of what a failing runtime said is passed on.
const maxWords = 16 << 10

// call is a run of the OCI runtime: it starts a process and goes.
type call struct {
	p       *process
	r       waiter
	pid     int
	base    string // begins the names of its files in the run directory
	console int    // where the terminal arrives, -1 without one
}

// start runs the container's process.
func (m *Monitor) start(r waiter) {
	if m.init.state != wire.StateConfigured {
		r.refuse(wire.KindConflict, "already started")
		return
	}
	m.init.state = wire.StateStarting
	m.spawn(m.init, r, "init", []string{"run", "--detach", "--bundle", m.cfg.bundle})
}

// exec runs one more process in the container.
func (m *Monitor) exec(r waiter, msg wire.Message) {
	id := msg.Text(wire.TagProcess)
	p := m.find(id)
	_, ended := m.recall(id)
	switch {
	case !validID(id):
		r.refuse(wire.KindInvalid, "exec: invalid id")
		return
	case m.init.state != stateRunning:
		r.refuse(wire.KindNotFound, "container is not running")
		return
	case ended || p != nil && p.state != stateAwaited:
		r.refuse(wire.KindConflict, "exec "+id+" has run already")
		return
	case p == nil:
		p = &process{m: m, id: id}
		m.execs = append(m.execs, p)
	}
	p.terminal, p.closeStdin = msg.Bool(wire.TagTerminal), true
	if rows, cols := uint16(msg.Uint(wire.TagRows)), uint16(msg.Uint(wire.TagCols)); rows|cols != 0 {
		p.rows, p.cols = rows, cols
	}
	p.state = wire.StateStarting
	if err := p.makeStdio(msg.Bool(wire.TagOpenStdin)); err != nil {
		r.refuse(wire.KindInternal, "pipe: "+err.Error())
		return
	}
	m.spawn(p, r, "exec-"+id, []string{"exec", "--detach", "--process", msg.Text(wire.TagFile)})
}

// validID says whether an id can be part of a file's name.
func validID(id string) bool {
	for _, c := range []byte(id) {
		if (c|0x20 < 'a' || c|0x20 > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return id != "" && len(id) <= 80
}

// spawn calls the runtime; returned goes on when it is done.
func (m *Monitor) spawn(p *process, r waiter, base string, command []string) {
	c := &call{p: p, r: r, base: base, console: -1}
	path := m.cfg.runDir + "/" + base
	args := append([]string{m.cfg.runtime}, m.cfg.args...)
	args = append(args, "--root", m.cfg.runDir+"/"+wire.RootName, "--log", path+".log", "--log-format", "json")
	args = append(append(args, command...), "--pid-file", path+".pid")
	files := []uintptr{uintptr(p.child[0]), uintptr(p.child[1]), uintptr(p.child[2])}
	if p.terminal {
		if err := m.listenConsole(c); err != nil {
			m.failed(c, "console: "+err.Error(), nil, nil)
			return
		}
		socket := path + ".sock"
		if len(socket) > 107 { // more than an address holds: go through the directory
			if dir, err := open(".", unix.O_PATH|unix.O_DIRECTORY, 0); err == nil {
				defer unix.Close(dir)
				files = append(files, uintptr(dir))
				socket = "/proc/self/fd/3/" + base + ".sock"
			}
		}
		args = append(args, "--console-socket", socket)
	}
	args = append(args, m.cfg.id)
	_ = unix.Unlink(base + ".log") // of an earlier call
	pid, err := m.call(args, files)
	p.handedOver()
	if err != nil {
		c.close(m)
		m.failed(c, "fork/exec "+m.cfg.runtime+": "+err.Error(), nil, nil)
		return
	}
	c.pid = pid
	m.calls = append(m.calls, c)
	m.reaper.wait()
}

// call starts the runtime, unless one waits already.
func (m *Monitor) call(args []string, files []uintptr) (int, error) {
	if pid, ok := m.callAhead(args, files); ok {
		return pid, nil
	}
	env := m.env
	program, sealed := seal(m.cfg.runtime, aboveAll(files))
	if sealed >= 0 {
		defer unix.Close(sealed) // it was only named
		env = m.ownEnv
	}
	return syscall.ForkExec(program, args, &syscall.ProcAttr{Env: env, Files: files})
}

// seal gives the runtime that is our own by a mount of it that nobody can write
// through: before it goes into a container it would else have to execute itself once
// more from there. fd is -1, and path the runtime's, for others and where that fails.
func seal(runtime string, above int) (path string, fd int) {
	const name = "/escale-runtime"
	if len(runtime) < len(name) || runtime[len(runtime)-len(name):] != name || !isELF(runtime) {
		return runtime, -1
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, runtime, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return runtime, -1
	}
	defer unix.Close(tree)
	if unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}) != nil {
		return runtime, -1
	}
	if fd, err = unix.FcntlInt(uintptr(tree), unix.F_DUPFD_CLOEXEC, above); err != nil {
		return runtime, -1
	}
	return "/proc/self/fd/" + itoa(int64(fd)), fd
}

// isELF is false of scripts, whose interpreter would look for them by the path of a
// descriptor that is closed by then.
func isELF(path string) bool {
	fd, err := open(path, unix.O_RDONLY, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var magic [4]byte
	n, err := unix.Read(fd, magic[:])
	return err == nil && n == len(magic) && string(magic[:]) == "\x7fELF"
}

// aboveAll is above whatever number the files have on their way to 0, 1, 2 … in a
// child. It is no higher: from 64 descriptors on the table grows, for which a process
// with threads waits some 10 ms (expand_fdtable() of the kernel's fs/file.c).
func aboveAll(files []uintptr) int {
	most := len(files)
	for _, f := range files {
		most = max(most, int(f))
	}
	return most + len(files) + 4 // each may move once above the highest, and so does a pipe
}

// listenConsole waits for the runtime to send the process' terminal.
func (m *Monitor) listenConsole(c *call) (err error) {
	if c.console, err = listenUnix(c.base + ".sock"); err != nil {
		return err
	}
	m.loop.watch(c.console, unix.EPOLLIN, handlerFunc(func(uint32) { m.takeConsole(c) }))
	return nil
}

// takeConsole takes the terminal that the runtime has sent. It sends it in the
// same breath as it connects, so reading may wait for it.
func (m *Monitor) takeConsole(c *call) {
	conn, _, err := unix.Accept4(c.console, unix.SOCK_CLOEXEC)
	if err != nil {
		return
	}
	defer unix.Close(conn)
	_ = unix.SetsockoptTimeval(conn, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}) // a runtime that hangs
	var text [256]byte
	oob := make([]byte, unix.CmsgSpace(4*4))
	var n int
	for {
		// With a time limit a signal interrupts it, whatever its handler says (signal(7)).
		if _, n, _, _, err = unix.Recvmsg(conn, text[:], oob, unix.MSG_CMSG_CLOEXEC); err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return // the runtime will say what went wrong
	}
	list, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return
	}
	for i := range list {
		fds, err := unix.ParseUnixRights(&list[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			c.p.setTerminal(fd) // closes what is one too many
		}
	}
}

// close removes what the call needed.
func (c *call) close(m *Monitor) {
	if c.console >= 0 {
		m.loop.close(c.console)
		c.console = -1
		_ = unix.Unlink(c.base + ".sock")
	}
	for i, o := range m.calls {
		if o == c {
			m.calls = append(m.calls[:i], m.calls[i+1:]...)
			break
		}
	}
}

// returned is called when the runtime has done its work, or refused.
func (m *Monitor) returned(c *call, d death) {
	if c.console >= 0 {
		m.takeConsole(c) // its event may come later than the runtime's end; else there is nothing
	}
	c.close(m)
	var buf [32]byte
	pid, ok := atoi(readTail(c.base+".pid", buf[:]))
	switch {
	case d.status.Signaled():
		m.failed(c, m.cfg.runtime+": killed by signal "+itoa(int64(d.status.Signal())), nil, nil)
	case d.status.ExitStatus() != 0:
		words := m.words(c)
		m.failed(c, m.cfg.runtime+": exit status "+itoa(int64(d.status.ExitStatus())), readTail(c.base+".log", make([]byte, maxWords)), words)
	case !ok || pid <= 0:
		m.failed(c, m.cfg.runtime+": told no pid", nil, nil)
	default:
		m.started(c, int(pid))
	}
	// Who waits has its answer by now.
	_ = unix.Unlink(m.cfg.runDir + "/" + c.base + ".pid") // the working directory may be another now
	if c.p.id != "" {
		_ = unix.Unlink(m.cfg.runDir + "/" + c.base + ".log")
	}
}

func (m *Monitor) started(c *call, pid int) {
	early := m.stray(pid)
	if early == nil && unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil) == unix.ECHILD {
		m.failed(c, m.cfg.runtime+": its process is not there", nil, nil)
		return
	}
	if c.p.id != "" && m.leaving {
		_ = unix.Kill(pid, unix.SIGKILL) // started in a container that has ended meanwhile
	}
	m.runs(c.p, c.r, pid)
	if early != nil {
		c.p.finish(*early)
	}
}

// runs is called when a process has become its program.
func (m *Monitor) runs(p *process, r waiter, pid int) {
	r.ok(func(w *wire.Writer) { w.Uint(wire.TagPid, uint64(pid)) })
	p.running(pid)
	if p.id != "" {
		m.execed()
		return
	}
	m.ran = true
	m.oom.watch(m.loop, m.cfg.oomFile)
	_ = replaceFile(wire.StartedName, identity(pid, p.start, m.boot), false) // Status tells the same
}

// stray takes the end of a process that the runtime had not told of yet.
func (m *Monitor) stray(pid int) *death {
	for i, d := range m.strays {
		if d.pid == pid {
			m.strays = append(m.strays[:i], m.strays[i+1:]...)
			return &d
		}
	}
	return nil
}

// words is what a runtime that refused wrote to where the process' errors go.
func (m *Monitor) words(c *call) []byte {
	s := c.p.out[1]
	if s == nil {
		return nil
	}
	n, _ := s.read()
	return append([]byte(nil), m.buf[header:header+min(n, maxWords)]...)
}

// failed tells that the process could not be started. A container that never
// ran is over, without an exit record: an engine that was killed meanwhile left
// its start as not asked for, and may be the cause that it failed.
func (m *Monitor) failed(c *call, text string, log, words []byte) {
	c.r.answer(wire.Error, func(w *wire.Writer) {
		w.Uint(wire.TagKind, wire.KindRuntime)
		w.Text(wire.TagText, text)
		w.Bytes(wire.TagLog, log)
		w.Bytes(wire.TagStderr, words)
	})
	m.never(c.p)
}

// never is called when a process has not been started, and will not be.
func (m *Monitor) never(p *process) {
	p.state = wire.StateEnded
	for _, w := range p.waiters {
		w.refuse(wire.KindNotFound, "process was not started")
	}
	p.close()
	if p.id == "" {
		m.endExecs()
		m.release()
		m.leave()
	}
}

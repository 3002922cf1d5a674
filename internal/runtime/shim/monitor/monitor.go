// Package monitor is the process that stands beside every container: it holds
// the container's standard streams, writes its log, reaps it and records how it
// ended, whether an engine lives or not.
//
// It is one goroutine around epoll and a second that waits for children; see
// loop and reaper. Its imports are kept to the bare minimum because there is one
// such process for each container.
package monitor

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime/shim/wire"
)

const (
	controlFD = 3 // the connection to the engine that launched us
	heldFD    = 4 // from here on: what is only kept open, by one that was born with a container

	// chunk is how much is read from a stream at once, and thus the longest frame
	// that attached clients get.
	chunk = 32 << 10

	maxConns = 512
)

// Monitor is the whole state of the process.
type Monitor struct {
	loop    *loop
	reaper  *reaper
	cfg     config
	boot    string
	env     []string // of OCI runtimes
	ownEnv  []string // of our own
	null    int
	held    []int // first the lock that tells that we live
	lis     int
	log     *logFile
	init    *process
	execs   []*process
	results []result // of ended execs, oldest first
	calls   []*call
	birth   birth
	ahead   *ahead
	oom     oomWatch

	lastExec int64 // uptime in seconds

	strays  []death // children of others that ended while a runtime was at work
	conns   int
	control int // those of conns that speak the protocol, not attached
	clients int
	unsent  int // conns with answers that wait
	grace   grace
	ran     bool
	leaving bool
	counted bool // the engine has said how many are held

	// buf is where every stream is read to; the frame header for attached clients
	// is put before the bytes, so that both go out in one write.
	buf   [header + chunk]byte
	input [16 << 10]byte // where clients' input is read to, while buf may be in use
	w     wire.Writer
}

// config is runtime.Launch as the monitor needs it.
type config struct {
	id         string
	generation uint64
	bundle     string
	runDir     string
	stateDir   string
	passing    bool // the exit record need not be durable
	runtime    string
	args       []string
	oomFile    string
	grace      int64 // seconds
}

// Main runs the monitor until its container has ended; the result is the
// process' exit status.
func Main() int {
	var st unix.Stat_t
	if unix.Fstat(controlFD, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		_, _ = os.Stderr.WriteString("escale-shim is started by escaled, one for each container; it is of no use alone\n")
		return 2
	}
	var held []int
	if len(os.Args) < 2 || os.Args[1] != wire.Unnamed {
		held = openFrom(heldFD)
	}
	prepareSelf()
	l, err := newLoop()
	if err != nil {
		fatal("epoll_create: ", err)
	}
	m := &Monitor{loop: l, lis: -1, null: -1, boot: bootID(), env: environ(), held: held}
	m.ownEnv = append(m.env[:len(m.env):len(m.env)], quick...)
	if m.reaper, err = newReaper(l, m.reap); err != nil {
		fatal("pipe: ", err)
	}
	m.grace.m, m.grace.fd = m, -1
	m.birth.m = m
	if err := unix.SetNonblock(controlFD, true); err != nil {
		fatal("control connection: ", err)
	}
	m.newConn(controlFD)
	l.run()
	return 0
}

// prepareSelf sets what the kernel keeps of a process. Each of these is wanted,
// none is needed: a restricted host may refuse.
func prepareSelf() {
	if fd, err := open("/proc/self/oom_score_adj", unix.O_WRONLY, 0); err == nil {
		_, _ = unix.Write(fd, []byte("-999"))
		_ = unix.Close(fd)
	}
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fatal("subreaper: ", err)
	}
	// Nothing of ours may get into a container.
	if unix.CloseRange(controlFD, 1<<31-1, unix.CLOSE_RANGE_CLOEXEC) != nil {
		for _, fd := range openFrom(controlFD) {
			unix.CloseOnExec(fd)
		}
	}
}

// openFrom lists the descriptors that the engine gave us, without a hole, from
// first on. It comes before anything opens one of ours; the Go runtime does so
// only when it first needs it.
func openFrom(first int) (list []int) {
	for fd := first; ; fd++ {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			return list
		}
		list = append(list, fd)
	}
}

// quick are the settings of our own runtime, which lives for milliseconds: it collects nothing,
// and its threads do not wake each other.
var quick = []string{"GOGC=off", "GOMAXPROCS=1", "GODEBUG=asyncpreemptoff=1"}

// environ is what OCI runtimes get: ours without the settings that are meant
// for this process.
func environ() (env []string) {
	for _, kv := range os.Environ() {
		if hasPrefix(kv, "GOGC=") || hasPrefix(kv, "GOMAXPROCS=") || hasPrefix(kv, "GOTRACEBACK=") || hasPrefix(kv, "GODEBUG=") {
			continue
		}
		env = append(env, kv)
	}
	return env
}

func hasPrefix(s, p string) bool { return len(s) >= len(p) && s[:len(p)] == p }

// become gives a monitor that was born without a container what an engine from before
// this was there gave to it at birth: a working directory, a place for its last words, a name.
func (m *Monitor) become(msg wire.Message) error {
	if n := uint64(len(m.held)); n != msg.Uint(wire.TagHeld) {
		return faultError(itoa(int64(n)) + " descriptors have come: some were lost")
	}
	dir := msg.Text(wire.TagRunDir)
	if err := unix.Chdir(dir); err != nil {
		return fault(dir+": ", err)
	}
	words, err := open(wire.StderrName, unix.O_WRONLY|unix.O_CREAT|unix.O_APPEND, 0o600)
	if err != nil {
		return fault(wire.StderrName+": ", err)
	}
	err = unix.Dup3(words, 2, 0)
	_ = unix.Close(words) // nothing was written
	if err != nil {
		return fault(wire.StderrName+": ", err)
	}
	rename(msg.Text(wire.TagID))
	return nil
}

// rename puts the id where the kernel looks for our first argument: the strings of
// os.Args are that very memory (goargs of the Go runtime).
func rename(id string) {
	if len(os.Args) > 1 {
		arg := unsafe.Slice(unsafe.StringData(os.Args[1]), len(os.Args[1]))
		clear(arg[copy(arg, id):])
	}
}

// configure takes the launch message: opens the log, makes the stdio of the
// container's process, so that clients can attach, and listens.
func (m *Monitor) configure(msg wire.Message) error {
	m.cfg = config{
		id:         msg.Text(wire.TagID),
		generation: msg.Uint(wire.TagGeneration),
		bundle:     msg.Text(wire.TagBundle),
		runDir:     msg.Text(wire.TagRunDir),
		stateDir:   msg.Text(wire.TagStateDir),
		passing:    msg.Bool(wire.TagPassing),
		runtime:    msg.Text(wire.TagRuntime),
		args:       msg.Texts(wire.TagArg),
		oomFile:    msg.Text(wire.TagOOMFile),
		grace:      int64(msg.Uint(wire.TagGrace)),
	}
	// The Go runtime may have opened some behind them.
	if n := int(msg.Uint(wire.TagHeld)); n > 0 && n <= len(m.held) {
		m.held = m.held[:n]
		m.counted = true
	}
	var err error
	if m.null, err = open("/dev/null", unix.O_RDWR, 0); err != nil {
		return fault("/dev/null: ", err)
	}
	if path := msg.Text(wire.TagLogPath); path != "" {
		m.log, err = openLog(path, msg.Text(wire.TagLogAttrs), int64(msg.Uint(wire.TagLogSize)), int(msg.Uint(wire.TagLogFiles)))
		if err != nil {
			return fault("failed to initialize logging driver: open "+path+": ", err)
		}
	}
	p := &process{m: m, log: m.log, state: wire.StateConfigured, terminal: msg.Bool(wire.TagTerminal),
		rows: uint16(msg.Uint(wire.TagRows)), cols: uint16(msg.Uint(wire.TagCols)), closeStdin: msg.Bool(wire.TagStdinOnce)}
	if err := p.makeStdio(msg.Bool(wire.TagOpenStdin)); err != nil {
		return fault("pipe: ", err)
	}
	if err := m.listen(); err != nil {
		return fault(wire.SocketName+": ", err)
	}
	self := os.Getpid()
	if err := replaceFile(wire.MonitorName, identity(self, startTime(self), m.boot), false); err != nil {
		return fault(wire.MonitorName+": ", err)
	}
	m.init = p
	return nil
}

// listen takes connections on the socket in the working directory, which is the
// run directory: its whole path may be longer than a socket's address.
func (m *Monitor) listen() error {
	fd, err := listenUnix(wire.SocketName)
	if err != nil {
		return err
	}
	m.lis = fd
	m.loop.watch(fd, unix.EPOLLIN, handlerFunc(func(uint32) { m.accept() }))
	return nil
}

func listenUnix(name string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	_ = unix.Unlink(name) // of an earlier one in the same directory
	if err = unix.Bind(fd, &unix.SockaddrUnix{Name: name}); err == nil {
		if err = unix.Chmod(name, 0o600); err == nil {
			err = unix.Listen(fd, 64)
		}
	}
	if err != nil {
		_ = unix.Close(fd) // the first error is the one to tell
		_ = unix.Unlink(name)
		return -1, err
	}
	return fd, nil
}

func (m *Monitor) accept() {
	fd, _, err := unix.Accept4(m.lis, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	if err != nil {
		return // the peer went away, or we are told again
	}
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil || (cred.Uid != 0 && int(cred.Uid) != os.Geteuid()) || m.conns >= maxConns {
		_ = unix.Close(fd) // a stranger
		return
	}
	m.newConn(fd)
}

// find is the process with the id, nil without one.
func (m *Monitor) find(id string) *process {
	if id == "" {
		return m.init
	}
	for _, p := range m.execs {
		if p.id == id {
			return p
		}
	}
	return nil
}

func (m *Monitor) forget(p *process) {
	for i, q := range m.execs {
		if q == p {
			m.execs = append(m.execs[:i], m.execs[i+1:]...)
			return
		}
	}
}

// release lets go of all that a container which does not run must not hold:
// its ports, its log, the directory.
func (m *Monitor) release() {
	named := m.lis >= 0 // else the working directory may be none of ours
	m.loop.close(m.lis)
	m.lis = -1
	if m.log != nil {
		m.log.close()
		m.log = nil
	}
	for _, fd := range m.held {
		_ = unix.Close(fd)
	}
	m.held = nil
	m.dismiss()
	if named {
		_ = unix.Unlink(wire.SocketName)
		_ = unix.Unlink(wire.MonitorName)
	}
	if len(m.calls) == 0 {
		_ = unix.Chdir("/") // the run directory may be a mount that is to go
	}
	m.leaving = true
}

// lendable is what is held for the container; nothing when an engine of before
// has not said how much it is.
func (m *Monitor) lendable() []int {
	if !m.counted || len(m.held) == 0 {
		return nil
	}
	return m.held[1:]
}

// leave ends the process once everything was told to everyone.
func (m *Monitor) leave() {
	if m.leaving && m.birth.pid == 0 && m.clients == 0 && m.unsent == 0 && len(m.calls) == 0 && len(m.execs) == 0 {
		m.loop.stop = true
	}
}

// abandon ends a monitor whose container never ran and which nobody knows.
func (m *Monitor) abandon() {
	if m.init != nil {
		m.init.close()
		m.release()
	}
	m.loop.stop = true
}

// fault is an error with words before it.
func fault(what string, err error) error { return faultError(what + err.Error()) }

type faultError string

func (e faultError) Error() string { return string(e) }

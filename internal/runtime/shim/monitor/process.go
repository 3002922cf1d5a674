package monitor

import (
	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime/shim/wire"
)

const (
	stateAwaited = 0 // an exec that clients attached to before it was asked for
	stateRunning = wire.StateRunning
)

// process is the container's own process, with the id "", or an exec.
type process struct {
	m          *Monitor
	id         string
	state      int // stateAwaited or one of wire's
	log        *logFile
	terminal   bool
	rows, cols uint16
	closeStdin bool // the end of a client's input is the end of the process'
	pid        int
	start      int64
	killed     bool // somebody has asked us for a SIGKILL

	child   [3]int // what the process gets as its stdio, until it has it
	out     [2]*source
	in      *sink
	clients []*client
	waiters []waiter
	end     result
}

// result is how a process ended.
type result struct {
	id   string
	code int
	at   unix.Timespec
	oom  bool
}

// maxResults is how many ended execs are remembered.
const maxResults = 1000

// makeStdio makes the pipes of a process, or nothing for a terminal: its
// descriptor comes from the runtime.
func (p *process) makeStdio(stdin bool) error {
	p.child = [3]int{p.m.null, p.m.null, p.m.null}
	if p.terminal {
		return nil
	}
	for i := range p.child {
		if i == 0 && !stdin {
			continue
		}
		var pipe [2]int
		err := unix.Pipe2(pipe[:], unix.O_CLOEXEC)
		ours, theirs := 0, 1
		if i == 0 {
			ours, theirs = 1, 0
		}
		if err == nil {
			// Not blocking for us; the flag belongs to this end of the pipe alone.
			err = unix.SetNonblock(pipe[ours], true)
		}
		if err != nil {
			p.close()
			return err
		}
		p.child[i] = pipe[theirs]
		if i == 0 {
			p.in = &sink{p: p, fd: pipe[ours]}
		} else {
			p.out[i-1] = &source{p: p, fd: pipe[ours], stream: byte(i), name: streams[i]}
		}
	}
	return nil
}

var streams = [...]string{"stdin", "stdout", "stderr"}

// setTerminal takes the controlling side of the process' terminal.
func (p *process) setTerminal(fd int) {
	in, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = unix.SetNonblock(fd, true) // the copy shares the flag
	}
	if err != nil || p.out[0] != nil {
		_ = unix.Close(in)
		_ = unix.Close(fd)
		return
	}
	p.out[0] = &source{p: p, fd: fd, stream: 1, name: streams[1]}
	p.in = &sink{p: p, fd: in}
	p.resize(p.rows, p.cols)
}

func (p *process) resize(rows, cols uint16) {
	p.rows, p.cols = rows, cols
	if s := p.out[0]; s != nil && s.fd >= 0 && rows|cols != 0 {
		_ = unix.IoctlSetWinsize(s.fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}) // it is a terminal
	}
}

// handedOver closes our copies of what the process got.
func (p *process) handedOver() {
	for i, fd := range p.child {
		if fd > 0 && fd != p.m.null {
			_ = unix.Close(fd)
		}
		p.child[i] = -1
	}
}

// running begins to carry the process' streams.
func (p *process) running(pid int) {
	p.pid, p.state = pid, stateRunning
	p.start = startTime(pid)
	p.flow()
	p.feed()
}

// deliver gives n bytes in the monitor's buffer to the log and the clients, and
// stops reading when one of them is behind.
func (p *process) deliver(s *source, n int) {
	p.send(s, n)
	for _, c := range p.clients {
		if c.behind() {
			p.hold()
			return
		}
	}
}

func (p *process) send(s *source, n int) {
	if p.log != nil {
		p.log.write(&s.split, s.name, p.m.buf[header:header+n])
	}
	for i := 0; i < len(p.clients); { // a client that fails drops out
		c := p.clients[i]
		c.send(s.stream, n)
		if i < len(p.clients) && p.clients[i] == c {
			i++
		}
	}
}

// hold stops reading from the process; flow goes on if no client is behind.
func (p *process) hold() {
	for _, s := range p.out {
		if s != nil && s.fd >= 0 && !s.orphan {
			s.pause()
		}
	}
}

func (p *process) flow() {
	if p.state != stateRunning {
		return
	}
	for _, c := range p.clients {
		if c.behind() {
			return
		}
	}
	for _, s := range p.out {
		if s != nil {
			s.watch()
		}
	}
}

// feed lets the clients send input as far as the process takes it.
func (p *process) feed() {
	for i := 0; i < len(p.clients); {
		c := p.clients[i]
		c.feed()
		if i < len(p.clients) && p.clients[i] == c {
			i++
		}
	}
}

// inputEnded is called when a client will send no more.
func (p *process) inputEnded() {
	if p.in != nil && p.closeStdin && !p.terminal {
		p.in.end()
	}
}

// finish takes the end of the process: all output goes to where it belongs
// before anybody is told.
func (p *process) finish(d death) {
	p.state, p.pid = wire.StateEnded, 0
	p.end = result{id: p.id, code: d.code(), at: d.at}
	if p.id == "" { // before anything that takes time
		p.end.oom = p.m.oom.killed(p.m.cfg.oomFile, d.status.Signaled() && d.status.Signal() == unix.SIGKILL && !p.killed)
	}
	for _, s := range p.out {
		if s == nil {
			continue
		}
		s.drain()
		if p.log != nil {
			p.log.end(&s.split, s.name)
		}
	}
	if p.id == "" {
		p.m.containerEnded()
		return
	}
	for _, w := range p.waiters {
		w.exit(p.end)
	}
	p.m.remember(p.end)
	p.retire()
	p.m.leave()
}

// retire lets the clients of a process that has ended, or never ran, go; what
// orphans of an exec still write is thrown away, for a closed pipe would kill
// them.
func (p *process) retire() {
	p.waiters = nil
	if p.in != nil {
		p.in.close()
	}
	for len(p.clients) > 0 {
		p.clients[0].finish()
	}
	for _, s := range p.out {
		if s != nil && s.orphan && p.id != "" {
			s.watch()
		} else if s != nil {
			s.close()
		}
	}
	p.m.forget(p)
}

// close undoes makeStdio.
func (p *process) close() {
	p.handedOver()
	p.retire()
}

func (m *Monitor) remember(r result) {
	if len(m.results) >= maxResults {
		m.results = m.results[:copy(m.results, m.results[1:])]
	}
	m.results = append(m.results, r)
}

func (m *Monitor) recall(id string) (result, bool) {
	for i := len(m.results) - 1; i >= 0; i-- {
		if m.results[i].id == id {
			return m.results[i], true
		}
	}
	return result{}, false
}

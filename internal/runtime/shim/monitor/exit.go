package monitor

import (
	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime/shim/wire"
)

// containerEnded is called when the container's process is gone and its output
// in the log: record it, then tell it, then leave.
func (m *Monitor) containerEnded() {
	p := m.init
	// The record is there before the socket goes: an engine that finds nobody to
	// talk to reads it, and must not take the container for one that lost its monitor.
	m.record(p.end)
	m.release() // the ports are free before anybody hears of the end
	for _, w := range p.waiters {
		w.exit(p.end)
	}
	m.endExecs()
	p.retire()
	m.leave()
}

// endExecs ends what runs beside a container's process that has ended. Where
// the container has a pid namespace of its own the kernel has done it.
func (m *Monitor) endExecs() {
	for _, c := range m.calls {
		_ = unix.Kill(c.pid, unix.SIGKILL) // it is our child
	}
	for i := len(m.execs) - 1; i >= 0; i-- {
		switch p := m.execs[i]; p.state {
		case stateRunning:
			_ = unix.Kill(p.pid, unix.SIGKILL) // it is our child
		case stateAwaited:
			p.state = wire.StateEnded
			for _, w := range p.waiters {
				w.refuse(wire.KindNotFound, "container has ended")
			}
			p.retire()
		}
	}
}

// record writes how the container ended where an engine finds it that was not
// there to be told. The generation in the name keeps it apart from the record
// of another start; that of the start before is removed.
func (m *Monitor) record(e result) {
	g := itoa(int64(m.cfg.generation))
	oom := "false"
	if e.oom {
		oom = "true"
	}
	text := `{"version":1,"generation":` + g + `,"code":` + itoa(int64(e.code)) +
		`,"at":` + itoa(e.at.Nano()) + `,"oom":` + oom + `,"boot":"` + m.boot + "\"}\n"
	dir := m.cfg.stateDir + "/" + wire.ExitPrefix
	if replaceFile(dir+g, text, !m.cfg.passing) != nil {
		return // the disk is full or gone: whoever is connected is told all the same
	}
	_ = unix.Unlink(dir + itoa(int64(m.cfg.generation)-1)) // it need not be there
}

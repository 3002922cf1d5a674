package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"escale.dev/escale/internal/sys/atomicfile"
)

// An engine that crashed so often in so short a time comes up in safe mode, and
// leaves it when it has stayed up for so long.
const (
	crashLimit  = 3
	crashWindow = time.Minute
	safeTime    = 5 * time.Minute
)

// crashFormat is the version of crashRecord on disk (docs/formats.md).
const crashFormat = 1

// crashRecord is what a data root knows of the ends of its engines.
type crashRecord struct {
	Format  int
	Boot    string      // boot id: a machine that went down is no crash
	Running bool        // an engine runs, or has crashed
	Crashes []time.Time // when the engine after each crash came up; those of the last minute
	Safe    bool        // safe mode has not ended yet
}

// crashLog keeps a crashRecord.
type crashLog struct {
	path string
	boot string
}

// begin notes that an engine runs, and tells whether it should hold back: too
// many before it crashed. A record that cannot be read is none.
func (c crashLog) begin(now time.Time) (rec crashRecord, err error) {
	b, err := os.ReadFile(c.path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return rec, err
	}
	if json.Unmarshal(b, &rec) != nil || rec.Boot != c.boot || rec.Format > crashFormat {
		rec = crashRecord{}
	}
	if rec.Running {
		rec.Crashes = append(rec.Crashes, now)
	}
	recent := rec.Crashes[:0]
	for _, t := range rec.Crashes {
		if d := now.Sub(t); d >= 0 && d < crashWindow {
			recent = append(recent, t)
		}
	}
	rec.Crashes = recent
	rec.Safe = rec.Safe || len(recent) >= crashLimit
	rec.Format, rec.Boot, rec.Running = crashFormat, c.boot, true
	return rec, c.write(rec)
}

// calm notes that the crashes are over.
func (c crashLog) calm() error {
	return c.write(crashRecord{Format: crashFormat, Boot: c.boot, Running: true})
}

// end notes that the engine ends as it should.
func (c crashLog) end() error {
	if err := os.Remove(c.path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (c crashLog) write(rec crashRecord) error {
	b, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	return atomicfile.Write(c.path, append(b, '\n'), 0o600, atomicfile.Options{Sync: true})
}

// safeMode is a state of the engine in which it serves clients and starts
// nothing by itself.
type safeMode struct {
	d       *Daemon
	crashes crashLog

	mu    sync.Mutex
	on    bool
	why   string
	timer *time.Timer // ends it; nil: only a word does
}

// SafeMode tells whether the engine holds back, and why.
func (s *safeMode) SafeMode() (on bool, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.on, s.why
}

// SetSafeMode lets the engine hold back, or go on, from now.
func (s *safeMode) SetSafeMode(on bool) error {
	if on {
		s.enter("it was asked for", 0)
		return nil
	}
	return s.leave("it was asked for")
}

// enter begins safe mode, for a time or, with 0, until further notice.
func (s *safeMode) enter(why string, d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.on, s.why = true, why
	s.d.containers.HoldRestarts(true)
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	if d > 0 {
		s.timer = time.AfterFunc(d, func() {
			if err := s.leave(fmt.Sprintf("the engine has stayed up for %s", d)); err != nil {
				s.d.log.Warn("leaving safe mode", "error", err)
			}
		})
	}
	s.d.log.Warn("SAFE MODE: containers are not started by restart policies, at boot or for their health until it ends; what runs goes on and clients may start what they like",
		"why", why, "ends-by-itself-after", d, "end-it", "escale system safe-mode off")
}

// leave ends safe mode; what was held back goes on.
func (s *safeMode) leave(why string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.on {
		return nil
	}
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
	err := s.crashes.calm() // or the next crash would bring it back at once
	s.on, s.why = false, ""
	s.d.containers.HoldRestarts(false)
	s.d.log.Warn("safe mode has ended", "why", why)
	return err
}

// close stops the timer.
func (s *safeMode) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timer != nil {
		s.timer.Stop()
	}
}

// openSafeMode counts the crashes; before anything that could crash.
func (d *Daemon) openSafeMode(path string) error {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	d.safe = &safeMode{d: d, crashes: crashLog{path: path, boot: strings.TrimSpace(string(boot))}}
	if d.crashed, err = d.safe.crashes.begin(time.Now()); err != nil {
		d.log.Warn("counting crashes", "error", err) // a full disk: the engine is needed all the more
	}
	d.onClose(func() error {
		d.safe.close()
		return d.safe.crashes.end()
	})
	return nil
}

// holdBack enters safe mode if the configuration, which says mode, or the crashes say so.
func (d *Daemon) holdBack(mode string) error {
	switch {
	case mode == safeOn:
		d.safe.enter("--safe-mode=on", 0)
	case !d.crashed.Safe:
	case mode == safeOff:
		d.log.Warn("the engine crashes again and again; --safe-mode=off keeps it from holding back", "crashes", len(d.crashed.Crashes), "within", crashWindow)
		return d.safe.crashes.calm()
	default:
		d.safe.enter(fmt.Sprintf("the engine crashed %d times within %s", max(len(d.crashed.Crashes), crashLimit), crashWindow), safeTime)
	}
	return nil
}

// reloadSafeMode follows a change of --safe-mode. From on to auto, only crashes
// before this engine are a reason to hold back any longer, and for a time only.
func (d *Daemon) reloadSafeMode(old, next string) error {
	switch {
	case old == next, next == safeAuto && old != safeOn:
		return nil
	case next == safeAuto && d.crashed.Safe:
		if on, _ := d.safe.SafeMode(); on {
			return d.holdBack(next)
		}
		return nil
	}
	return d.safe.SetSafeMode(next == safeOn)
}

// The values of --safe-mode.
const (
	safeAuto = "auto"
	safeOn   = "on"
	safeOff  = "off"
)

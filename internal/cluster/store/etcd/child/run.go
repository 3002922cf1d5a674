package child

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Why a server has ended that is not to be started again, or at once.
var (
	errRemoved = errors.New("this manager was removed from the cluster")
	errGone    = errors.New("its data is gone")
	errAgain   = errors.New("the roots that it trusts have changed")
)

// grace is how long a server may take to end by itself.
const grace = 10 * time.Second

// once runs the server until it or ctx ends, and says why it ended.
func (c *Child) once(ctx context.Context) error {
	config, err := json.Marshal(c.cfg)
	if err != nil {
		return err
	}
	cmd := exec.Command(c.program[0], c.program[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is the engine's affair
	stdin, err1 := cmd.StdinPipe()
	stdout, err2 := cmd.StdoutPipe()
	stderr, err3 := cmd.StderrPipe()
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		c.set(func(s *State) { s.Reason = err })
		return err
	}
	c.set(func(s *State) { s.PID, s.Starts = cmd.Process.Pid, s.Starts+1 })
	_, _ = stdin.Write(append(config, '\n')) // it has ended already: its output says why
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = stdin.Close() // which ends it
		select {
		case <-ended:
		case <-time.After(grace):
			_ = cmd.Process.Kill()
		}
	})
	words := words{log: c.log}
	var readers sync.WaitGroup
	readers.Go(func() { c.hear(stdout, &words) })
	readers.Go(func() { words.read(stderr) })
	readers.Wait()
	err = cmd.Wait()
	close(ended)
	stop()
	_ = stdin.Close()
	reason := words.reason(err)
	c.set(func(s *State) { s.PID, s.Reason, s.Report = 0, reason, Report{} })
	return reason
}

// hear takes what the server reports.
func (c *Child) hear(r io.Reader, w *words) {
	d := json.NewDecoder(r)
	for {
		var report Report
		if err := d.Decode(&report); err != nil {
			_, _ = io.Copy(io.Discard, r) // or it would block
			return
		}
		if report.Err != "" {
			w.end(report)
		}
		if report.Ready { // once, and never again
			c.cfg.Force, c.cfg.Fresh = false, false
		}
		c.set(func(s *State) {
			s.Report = report
			if report.Ready {
				s.Reason = nil
			}
		})
	}
}

// words are those of the server: its log, and why it ended.
type words struct {
	log *slog.Logger

	mu      sync.Mutex
	last    string // of what was bad
	told    Report // why it ends, as it said itself
	removed bool
	said    map[string]time.Time // warnings, and when they were
}

// line is one line of its log.
type line struct {
	Level, Logger, Msg, Error string
}

// removedWords are what etcd says to a member that the others have removed, when it asks them
// and when it learns it by itself.
var removedWords = []string{"permanently removed from the cluster", "data-dir used by this member must be removed"}

// quietly is how long the same warning is not repeated: of a member that is away there is one
// with each attempt to reach it.
const quietly = time.Minute

// read reads its log until it ends.
func (w *words) read(r io.Reader) {
	lines := bufio.NewReader(r)
	for {
		text, err := lines.ReadString('\n')
		if text = strings.TrimSpace(text); text != "" {
			w.line(text)
		}
		if err != nil {
			return
		}
	}
}

// line takes one line of the log.
func (w *words) line(text string) {
	var l line
	if err := json.Unmarshal([]byte(text), &l); err != nil || l.Msg == "" {
		if strings.HasPrefix(text, "panic:") || strings.HasPrefix(text, "fatal error:") {
			w.panics(text)
		}
		w.log.Debug("cluster's store", "line", text) // of the stack below a panic
		return
	}
	for _, words := range removedWords {
		if strings.Contains(l.Error, words) || strings.Contains(l.Msg, words) {
			w.mu.Lock()
			w.removed = true
			w.mu.Unlock()
		}
	}
	what := l.Msg
	if l.Error != "" {
		what += ": " + l.Error
	}
	switch l.Level {
	case "debug", "info":
		w.log.Debug("cluster's store: " + what)
	case "warn":
		if w.repeats(what) {
			w.log.Debug("cluster's store: " + what)
		} else {
			w.log.Warn("cluster's store: " + what)
		}
	default:
		w.bad(what)
		w.log.Error("cluster's store: " + what)
	}
}

// repeats tells whether a warning was said just now.
func (w *words) repeats(what string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.said == nil || len(w.said) > maxSaid {
		w.said = map[string]time.Time{}
	}
	last := w.said[what]
	if time.Since(last) < quietly {
		return true
	}
	w.said[what] = time.Now()
	return false
}

// maxSaid bounds how many warnings are remembered.
const maxSaid = 1000

// bad keeps what may be why the server ends.
func (w *words) bad(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last = what
}

// panics keeps the words of a panic, unless there are better ones: etcd logs before it does.
func (w *words) panics(text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.last == "" {
		w.last = text
	}
}

// end keeps what the server gave for a reason.
func (w *words) end(r Report) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.told = r
}

// reason is why the server ended.
func (w *words) reason(err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	why := w.told.Err
	var exit *exec.ExitError
	if why == "" && errors.As(err, &exit) && exit.Exited() { // one that was killed had no reason of its own
		why = w.last
	}
	switch {
	case w.removed:
		return errRemoved
	case w.told.Gone:
		return fmt.Errorf("%w: %s", errGone, why)
	case w.told.Again:
		return errAgain
	case why == "" && err == nil:
		return errors.New("it has ended")
	case why == "":
		return fmt.Errorf("it has ended: %w", err)
	}
	return errors.New(why)
}

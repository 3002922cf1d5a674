// Package progress shows how many things at once go on: on a terminal as a board with
// a line for each, elsewhere a line for each step, as text or as JSON.
package progress

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"escale.dev/escale/internal/cli/tty"
)

// Mode is how things are shown.
type Mode string

// The modes. Auto is TTY on a terminal and Plain elsewhere.
const (
	Auto  Mode = "auto"
	TTY   Mode = "tty"
	Plain Mode = "plain"
	JSON  Mode = "json"
	Quiet Mode = "quiet"
)

// Modes are the words that may be said.
var Modes = []Mode{Auto, TTY, Plain, JSON, Quiet}

// State is how one thing stands.
type State int

// The states of things.
const (
	Working State = iota
	Done
	Warning
	Failed
)

var words = []string{"Working", "Done", "Warning", "Error"}

// Board shows things. Its methods may be called by several goroutines.
type Board struct {
	out   io.Writer
	mode  Mode
	color bool
	note  string // before each line: of a dry run
	title string

	mu     sync.Mutex
	order  []string
	things map[string]*thing
	drawn  int // lines that are on the screen
	quit   chan struct{}
	ended  chan struct{}
}

type thing struct {
	id, text   string
	state      State
	begun, end time.Time
}

// New makes a board that writes to out, under a title such as "Running". Close ends it.
func New(out io.Writer, mode Mode, color bool, note, title string) *Board {
	if mode == Auto || mode == "" {
		mode = Plain
		if tty.IsTerminal(out) {
			mode = TTY
		}
	}
	b := &Board{out: out, mode: mode, color: color, note: note, title: title, things: map[string]*thing{}, quit: make(chan struct{}), ended: make(chan struct{})}
	if mode != TTY {
		close(b.ended)
		return b
	}
	go func() {
		defer close(b.ended)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				b.mu.Lock()
				b.draw()
				b.mu.Unlock()
			case <-b.quit:
				return
			}
		}
	}()
	return b
}

// Close shows the last state. Nothing may be set afterwards.
func (b *Board) Close() {
	select {
	case <-b.quit:
		return
	default:
	}
	close(b.quit)
	<-b.ended
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mode == TTY {
		b.draw()
	}
}

// Set says how a thing stands. What has not changed is not shown again.
func (b *Board) Set(id string, state State, text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	t := b.things[id]
	switch {
	case t == nil:
		t = &thing{id: id, begun: now}
		b.things[id] = t
		b.order = append(b.order, id)
	case t.state == state && t.text == text:
		return
	}
	t.state, t.text, t.end = state, text, time.Time{}
	if state != Working {
		t.end = now
	}
	switch b.mode {
	case Plain:
		fmt.Fprintf(b.out, "%s %s  %s\n", b.note, id, text)
	case JSON:
		line, err := json.Marshal(map[string]string{"id": id, "status": words[state], "text": text})
		if err == nil {
			fmt.Fprintf(b.out, "%s\n", line)
		}
	}
}

// Print writes a line above the board.
func (b *Board) Print(line string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch b.mode {
	case Quiet:
		return
	case JSON:
		if text, err := json.Marshal(map[string]string{"text": line}); err == nil {
			line = string(text)
		}
	case TTY:
		b.erase()
	}
	fmt.Fprintf(b.out, "%s\n", line)
	if b.mode == TTY {
		b.draw()
	}
}

// erase takes the board off the screen.
func (b *Board) erase() {
	if b.drawn > 0 {
		fmt.Fprintf(b.out, "\x1b[%dA\x1b[J", b.drawn)
	}
	b.drawn = 0
}

// draw shows the board anew, in the place of what was shown.
func (b *Board) draw() {
	if len(b.order) == 0 {
		return
	}
	rows, cols := tty.Size(b.out)
	if cols == 0 {
		rows, cols = 24, 80
	}
	done, width := 0, 0
	for _, id := range b.order {
		t := b.things[id]
		if t.state != Working {
			done++
		}
		width = max(width, utf8.RuneCountInString(id))
	}
	lines := []string{fmt.Sprintf("[+] %s %d/%d", b.title, done, len(b.order))}
	for _, id := range b.shown(int(rows) - 2) {
		lines = append(lines, b.line(b.things[id], width, int(cols)))
	}
	var s strings.Builder
	if b.drawn > 0 {
		fmt.Fprintf(&s, "\x1b[%dA", b.drawn)
	}
	for _, l := range lines {
		s.WriteString("\r\x1b[K" + l + "\n")
	}
	if b.drawn > len(lines) {
		s.WriteString("\x1b[J")
	}
	b.drawn = len(lines)
	_, _ = io.WriteString(b.out, s.String())
}

// shown are the things that find room: those under way before those that are done.
func (b *Board) shown(room int) []string {
	if room <= 0 || len(b.order) <= room {
		return b.order
	}
	out := make([]string, 0, room)
	for _, working := range []bool{true, false} {
		for _, id := range b.order {
			if len(out) < room && (b.things[id].state == Working) == working {
				out = append(out, id)
			}
		}
	}
	return out
}

var spin = []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")

// line is one thing's: mark, name, text, and how long it has taken.
func (b *Board) line(t *thing, width, cols int) string {
	end := t.end
	if end.IsZero() {
		end = time.Now()
	}
	took := end.Sub(t.begun)
	mark, paint := string(spin[int(took/(100*time.Millisecond))%len(spin)]), "33"
	switch t.state {
	case Done:
		mark, paint = "✔", "32"
	case Warning:
		mark, paint = "!", "33"
	case Failed:
		mark, paint = "✘", "31"
	}
	clock := fmt.Sprintf("%.1fs", took.Seconds())
	text := []rune(b.note + " " + t.id + strings.Repeat(" ", max(width-utf8.RuneCountInString(t.id), 0)) + "  " + t.text)
	if room := max(cols-len(clock)-5, 10); len(text) > room {
		text = append(text[:room-1], '…')
	}
	pad := strings.Repeat(" ", max(cols-len(clock)-4-len(text), 1))
	if b.color {
		mark = "\x1b[" + paint + "m" + mark + "\x1b[0m"
		clock = "\x1b[34m" + clock + "\x1b[0m"
	}
	return " " + mark + string(text) + pad + clock
}

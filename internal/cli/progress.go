package cli

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/client/pkg/jsonmessage"

	"escale.dev/escale/internal/cli/tty"
)

// showMessages prints the stream of messages with which an engine accompanies
// long work: moving bars on a terminal, lines elsewhere. An error in the
// stream is the error of the work.
func showMessages(r io.Reader, out io.Writer) error {
	var fd uintptr
	terminal := tty.IsTerminal(out)
	if f, ok := out.(*os.File); ok {
		fd = f.Fd()
	}
	return jsonmessage.DisplayJSONMessagesStream(r, out, fd, terminal, nil)
}

// meter counts the bytes of a transfer and shows them on a terminal: as a bar
// when the total is known. It draws ten times a second at most, and nothing on
// what is no terminal or in the first half second.
type meter struct {
	label string
	total int64 // 0 when not known
	to    io.Writer

	mu    sync.Mutex
	n     int64
	begun time.Time
	drawn time.Time
	shown bool
	ended bool
}

func newMeter(a *app, label string, total int64) *meter {
	m := &meter{label: label, total: total, begun: time.Now()}
	if tty.IsTerminal(a.err) {
		m.to = a.err
	}
	return m
}

// reader counts what is read from r.
func (m *meter) reader(r io.Reader) io.Reader {
	if m.to == nil {
		return r
	}
	return meterReader{m, r}
}

type meterReader struct {
	m *meter
	r io.Reader
}

func (mr meterReader) Read(p []byte) (int, error) {
	n, err := mr.r.Read(p)
	mr.m.add(int64(n))
	if err != nil {
		mr.m.done()
	}
	return n, err
}

func (m *meter) add(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.n += n
	now := time.Now()
	if m.ended || now.Sub(m.begun) < 500*time.Millisecond || now.Sub(m.drawn) < 100*time.Millisecond {
		return
	}
	m.drawn, m.shown = now, true
	rate := float64(m.n) / now.Sub(m.begun).Seconds()
	fmt.Fprintf(m.to, "\r\x1b[2K%s %s %s/s", m.label, m.bar(), units.HumanSize(rate))
}

// at tells how far it has come, of how much.
func (m *meter) at(n, total int64) {
	if m.to == nil {
		return
	}
	m.mu.Lock()
	n, m.total = n-m.n, total
	m.mu.Unlock()
	m.add(n)
}

// bar is half the line: [=====>     ] 12MB/30MB.
func (m *meter) bar() string {
	if m.total <= 0 {
		return units.HumanSize(float64(m.n))
	}
	const width = 40
	full := int(min(m.n, m.total) * width / m.total)
	b := make([]byte, width)
	for i := range b {
		switch {
		case i < full:
			b[i] = '='
		case i == full:
			b[i] = '>'
		default:
			b[i] = ' '
		}
	}
	return fmt.Sprintf("[%s] %s/%s", b, units.HumanSize(float64(m.n)), units.HumanSize(float64(m.total)))
}

// done takes the bar away. It may be called again.
func (m *meter) done() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ended = true
	if m.shown {
		m.shown = false
		fmt.Fprint(m.to, "\r\x1b[2K")
	}
}

package resolvconf

import (
	"os"
	"sync"
	"time"

	"escale.dev/escale/internal/network/dns"
)

// glance is how long what a Live has seen is taken for what is there.
const glance = time.Second

// Live tells the servers in a host's file as they are now. Nobody waits for changes:
// whoever asks looks, once a second at most. Its methods may be called from several
// goroutines.
type Live struct {
	path string

	mu      sync.Mutex
	looked  time.Time
	seen    os.FileInfo
	servers []dns.Server
}

// NewLive reads nothing yet; "" is the machine's own file.
func NewLive(path string) *Live {
	if path == "" {
		path = Path
	}
	return &Live{path: path}
}

// Servers are those of the file; those of before when it cannot be read. Blocks for
// microseconds.
func (l *Live) Servers() []dns.Server {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); now.Sub(l.looked) >= glance {
		l.looked = now
		l.look()
	}
	return l.servers
}

func (l *Live) look() {
	info, err := os.Stat(l.path)
	if err != nil || l.seen != nil && os.SameFile(info, l.seen) && info.ModTime().Equal(l.seen.ModTime()) && info.Size() == l.seen.Size() {
		return // who replaces it may be at it
	}
	b, err := readFile(l.path)
	if err != nil {
		return
	}
	c := conf{file: parse(l.path, string(b))}
	l.seen, l.servers = info, c.serve().Servers
}

package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"escale.dev/escale/internal/sys/atomicfile"
	"github.com/containerd/errdefs"
)

const format = 1 // of notes; see docs/formats.md

// note is what plugins were told of a network or of an endpoint.
type note struct {
	Version   int
	ID        string // of the network or the endpoint: 64 hexadecimal digits
	Network   string `json:",omitempty"` // of the endpoint; empty: it is of a network itself
	Container string `json:",omitempty"`

	// Of the network driver.
	Driver       string         `json:",omitempty"` // was asked to make it; empty: none, or not any more
	Joined, Open bool           `json:",omitempty"` // was asked to join the endpoint, to open it to the outside
	Ending       bool           `json:",omitempty"` // is being told the end
	Options      map[string]any `json:",omitempty"` // of the endpoint
	Path         string         `json:",omitempty"` // handle of the namespace
	Source       string         `json:",omitempty"` // name of its link on the host
	Inside       string         `json:",omitempty"` // and in the namespace

	// Of the IPAM driver.
	IPAM      string        `json:",omitempty"`
	Pools     []poolNote    `json:",omitempty"`
	Addresses []addressNote `json:",omitempty"`
}

// poolNote is a pool as it was asked for.
type poolNote struct {
	AddressSpace  string
	Pool, SubPool string            // CIDR; empty: any
	Options       map[string]string `json:",omitempty"`
	V6            bool
	ID            string `json:",omitempty"` // empty: the answer is not known
	Prefix        string `json:",omitempty"` // CIDR
}

// addressNote is an address as it was asked for.
type addressNote struct {
	PoolID  string
	Want    string            `json:",omitempty"`
	Options map[string]string `json:",omitempty"`
	Address string            `json:",omitempty"` // CIDR; empty: the answer is not known
	Ending  bool              `json:",omitempty"` // is being given back
}

// empty tells whether there is nothing to end.
func (n *note) empty() bool {
	return n.Driver == "" && len(n.Pools) == 0 && len(n.Addresses) == 0
}

var noteID = regexp.MustCompile(`^[0-9a-f]{64}$`)

// parseNote reads the note of a network or an endpoint. Kind: FailedPrecondition for one
// of a later format.
func parseNote(id string, b []byte) (note, error) {
	var n note
	if err := json.Unmarshal(b, &n); err != nil {
		return n, err
	}
	if n.Version > format {
		return n, fmt.Errorf("it has format %d, this engine knows %d: start a newer engine: %w", n.Version, format, errdefs.ErrFailedPrecondition)
	}
	if n.ID != id || n.Network != "" && !noteID.MatchString(n.Network) || n.IPAM == "" && len(n.Pools)+len(n.Addresses) > 0 {
		return n, errors.New("no engine has written it")
	}
	return n, nil
}

// load reads all notes of a directory.
func load(dir string, bad func(file string, err error)) (map[string]*entry, error) {
	out := map[string]*entry{}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := atomicfile.Collect(dir); err != nil {
		return nil, err
	}
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, d := range list {
		id, ok := strings.CutSuffix(d.Name(), ".json")
		if !ok || !noteID.MatchString(id) {
			continue
		}
		path := filepath.Join(dir, d.Name())
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		n, err := parseNote(id, b)
		switch {
		case errdefs.IsFailedPrecondition(err):
			return nil, fmt.Errorf("note %q: %w", path, err)
		case err != nil:
			bad(path, err)
			continue
		}
		e := newEntry(n)
		e.old = true
		out[id] = e
	}
	return out, nil
}

// entry is a note in memory.
type entry struct {
	id, network string // as in the note; these never change

	op   chan struct{} // held (full) by who reads or changes the note, or asks a plugin because of it
	note note
	old  bool // of an engine before this one
	gone bool // nothing is left

	// Guarded by Store.mu.
	left bool // the network driver is to be told the end
	over bool // the IPAM driver, too
	busy bool // somebody tells the end until it is heard
}

func newEntry(n note) *entry {
	return &entry{id: n.ID, network: n.Network, op: make(chan struct{}, 1), note: n}
}

// lock waits for the entry's turn, which may be as long as a plugin takes.
func (e *entry) lock(ctx context.Context) error {
	select {
	case e.op <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (e *entry) unlock() { <-e.op }

// entry is the note of an id; nil: there is none.
func (s *Store) entry(id string) *entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.notes[id]
}

// open gives the note of an id, a new one if there is none, locked.
func (s *Store) open(ctx context.Context, id, network, container string) (*entry, error) {
	if !noteID.MatchString(id) {
		return nil, fmt.Errorf("%q is no id", id)
	}
	for {
		s.mu.Lock()
		e := s.notes[id]
		if e == nil {
			e = newEntry(note{Version: format, ID: id, Network: network, Container: container})
			s.notes[id] = e
		}
		s.mu.Unlock()
		if err := e.lock(ctx); err != nil {
			return nil, err
		}
		if !e.gone {
			return e, nil
		}
		e.unlock()
	}
}

// save writes a note, or erases one that has nothing to end; the entry is locked. With
// sync it is there after the power has gone.
func (s *Store) save(e *entry, sync bool) error {
	path := filepath.Join(s.cfg.Dir, e.note.ID+".json")
	if e.note.empty() {
		s.mu.Lock()
		delete(s.notes, e.note.ID)
		s.mu.Unlock()
		e.gone = true
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	b, err := json.Marshal(e.note)
	if err != nil {
		return err
	}
	return atomicfile.Write(path, append(b, '\n'), 0o600, atomicfile.Options{Sync: sync})
}

package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"

	"escale.dev/escale/internal/sys/atomicfile"
	"github.com/containerd/errdefs"
)

const (
	recordFile    = "container.json"
	removedPrefix = ".removed-"

	// passingFile lies beside a record that was not made durable (Record.passing).
	passingFile = "passing"

	// announcedFile names the volumes that are about to be made for a container without a record.
	announcedFile = "volumes"
)

// store keeps the records: in memory with indexes by id and name, and on disk
// at dir/<id>/container.json. Safe for concurrent use.
type store struct {
	dir string

	mu    sync.RWMutex
	byID  map[ID]*entry
	names map[string]ID     // reserved names, also of containers being created
	tasks map[string]*entry // what an orchestrator keeps, by the id of its task
	dark  map[ID]error      // what has a record that cannot be read; set by load alone
	half  []ID              // what has none, as a create that was killed leaves it; set by load alone
}

func newStore(dir string) *store {
	return &store{dir: dir, byID: map[ID]*entry{}, names: map[string]ID{}, tasks: map[string]*entry{}, dark: map[ID]error{}}
}

// load reads every record. One that cannot be read, as a power cut may leave it,
// does not keep the engine from the others: all that belongs to it stays as it
// is (dark). Records of a newer engine do, and then nothing is touched
// (docs/decisions/0009). A directory without a whole record is what a create
// killed half-way left (half), as is one whose record
// was not meant to outlive a power cut and has not.
func (s *store) load() ([]*entry, error) {
	if err := os.MkdirAll(s.dir, 0o710); err != nil {
		return nil, err
	}
	dirs, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	var out []*entry
	var halfMade, newer []ID
	for _, d := range dirs {
		if !idRule.MatchString(d.Name()) {
			continue // what is on its way out, or not ours
		}
		rec, err := readRecord(filepath.Join(s.dir, d.Name(), recordFile))
		if err == nil {
			err = rec.check(ID(d.Name()))
		}
		switch {
		case errors.Is(err, os.ErrNotExist):
			halfMade = append(halfMade, ID(d.Name()))
			continue
		case errdefs.IsFailedPrecondition(err):
			newer = append(newer, ID(d.Name()))
			continue
		case err != nil && s.passing(ID(d.Name())):
			halfMade = append(halfMade, ID(d.Name()))
			continue
		case err != nil:
			s.dark[ID(d.Name())] = err
			continue
		}
		e := newEntry(rec)
		s.names[rec.Name] = rec.ID
		s.add(e)
		out = append(out, e)
	}
	if len(newer) > 0 {
		return nil, errNewer(newer)
	}
	s.half = halfMade
	return out, nil
}

// announce notes durably the volumes without a name that are about to be made for a
// container, until settled. Blocks for the disk.
func (s *store) announce(id ID, volumes []string) error {
	b, err := json.Marshal(volumes)
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(s.path(id), announcedFile), b, 0o600, atomicfile.Options{Sync: true})
}

// announced are the volumes of a container that has no record, of which some may have been made.
func (s *store) announced(id ID) (volumes []string) {
	b, err := os.ReadFile(filepath.Join(s.path(id), announcedFile))
	if err == nil {
		_ = json.Unmarshal(b, &volumes) // half of a list is nothing: it was not durable, and so no volume was made
	}
	return volumes
}

// settled forgets what was announced: the record tells it now.
func (s *store) settled(id ID) error {
	err := os.Remove(filepath.Join(s.path(id), announcedFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// errNewer says what to do about containers of a newer engine, of which it names three.
func errNewer(ids []ID) error {
	var names []string
	for _, id := range ids[:min(len(ids), 3)] {
		names = append(names, id.Short())
	}
	if more := len(ids) - len(names); more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	return kindf(errdefs.ErrFailedPrecondition, "a newer version of Escale has written %s, and this one does not understand it: start that version again; to go back to this one, remove these containers with it first", strings.Join(names, ", "))
}

func readRecord(path string) (Record, error) {
	var rec Record
	b, err := os.ReadFile(path)
	if err != nil {
		return rec, err
	}
	if err := json.Unmarshal(b, &rec); err != nil {
		return rec, fmt.Errorf("%s: %w", path, err)
	}
	if rec.Format > RecordFormat {
		return rec, fmt.Errorf("%s: format %d, this version knows %d: %w", path, rec.Format, RecordFormat, errdefs.ErrFailedPrecondition)
	}
	return rec, nil
}

// check refuses (DataLoss) a record that no engine has written for id. What it holds becomes
// paths, names of things in the kernel and moves of the container's life.
func (r *Record) check(id ID) error {
	what := ""
	switch {
	case r.ID != id:
		what = fmt.Sprintf("of the id %q", r.ID)
	case !nameRule.MatchString(r.Name):
		what = fmt.Sprintf("of the name %q", r.Name)
	case r.Config == nil || r.HostConfig == nil:
		what = "incomplete"
	case moves[r.State.Status] == nil:
		what = fmt.Sprintf("of the state %q", r.State.Status)
	case r.State.Pid < 0 || r.State.Monitor < 0:
		what = "of no process"
	default:
		return nil
	}
	return fmt.Errorf("%s/%s: a record %s: %w", id, recordFile, what, errdefs.ErrDataLoss)
}

// save writes a record; durable says whether it must survive a power cut.
func (s *store) save(rec *Record, durable bool) error {
	b, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(s.path(rec.ID), recordFile), b, 0o600, atomicfile.Options{Sync: durable})
}

// markPassing says of a container's directory that what is in it need not be durable.
func (s *store) markPassing(id ID) error {
	f, err := os.OpenFile(filepath.Join(s.path(id), passingFile), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

func (s *store) passing(id ID) bool {
	_, err := os.Lstat(filepath.Join(s.path(id), passingFile))
	return err == nil
}

// path is the container's durable directory.
func (s *store) path(id ID) string { return filepath.Join(s.dir, string(id)) }

// removeUnfinished removes what a monitor was about to write when it or its
// machine died: it puts files in place under another name. Called when no
// monitor of the container lives.
func (s *store) removeUnfinished(id ID) {
	left, _ := filepath.Glob(filepath.Join(s.path(id), "*.tmp")) // the only error is that of a bad pattern
	for _, path := range left {
		_ = os.Remove(path) // it goes with the container at the latest
	}
}

// reserve takes a name for id, or tells who has it.
func (s *store) reserve(name string, id ID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if owner, ok := s.names[name]; ok && owner != id {
		return kindf(errdefs.ErrConflict, "Conflict. The container name %q is already in use by container %q. You have to remove (or rename) that container to be able to reuse that name.", "/"+name, owner)
	}
	s.names[name] = id
	return nil
}

// release frees a name if id still holds it.
func (s *store) release(name string, id ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.names[name] == id {
		delete(s.names, name)
	}
}

func (s *store) add(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byID[e.id] = e
	if o := e.rec.Owner; o != nil {
		s.tasks[o.Task] = e
	}
}

// disown forgets whose task a container was.
func (s *store) disown(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.tasks, func(_ string, o *entry) bool { return o == e })
}

// ofTask finds the container of a task; nil: it has none.
func (s *store) ofTask(task string) *entry {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.tasks[task]
}

// kept are all containers of tasks.
func (s *store) kept() []*entry {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Collect(maps.Values(s.tasks))
}

// remove forgets a container; its directory is renamed at once and deleted by
// the caller's leisure (collect).
func (s *store) remove(e *entry) error {
	if err := s.discard(e.id); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byID, e.id)
	maps.DeleteFunc(s.tasks, func(_ string, o *entry) bool { return o == e })
	for name, id := range s.names {
		if id == e.id {
			delete(s.names, name)
		}
	}
	return nil
}

// discard renames a container's directory so that no later start finds it.
func (s *store) discard(id ID) error {
	err := os.Rename(s.path(id), filepath.Join(s.dir, removedPrefix+string(id)))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// collect deletes the directories of removed containers; blocks on the disk.
func (s *store) collect() {
	for _, name := range names(s.dir) {
		if strings.HasPrefix(name, removedPrefix) {
			os.RemoveAll(filepath.Join(s.dir, name))
		}
	}
}

// names lists a directory; one that cannot be read has none. Not filepath.Glob:
// a root may well have "[" in its name.
func names(dir string) []string {
	d, err := os.Open(dir)
	if err != nil {
		return nil
	}
	defer d.Close()
	list, _ := d.Readdirnames(-1)
	return list
}

// find looks a container up by full id, name, or unique prefix of an id.
func (s *store) find(ref string) (*entry, error) {
	e, err := s.findPlain(ref)
	if err != nil && strings.Contains(strings.TrimPrefix(ref, "/"), "/") {
		return s.byLink(ref)
	}
	return e, err
}

// hold is find, and locks the container for an operation; the caller unlocks it.
func (s *store) hold(ctx context.Context, ref string) (*entry, error) {
	e, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	if err := e.op.lock(ctx); err != nil {
		return nil, err
	}
	return e, nil
}

// findPlain is find without links.
func (s *store) findPlain(ref string) (*entry, error) {
	name := strings.TrimPrefix(ref, "/")
	if name == "" {
		return nil, kindf(errInvalid, "invalid name or ID supplied: %q", ref)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if e, ok := s.byID[ID(ref)]; ok {
		return e, nil
	}
	if e, ok := s.byID[s.names[name]]; ok {
		return e, nil
	}
	var found *entry
	for id, e := range s.byID {
		if strings.HasPrefix(string(id), ref) {
			if found != nil {
				return nil, kindf(errdefs.ErrInvalidArgument, "multiple IDs found with provided prefix: %s", ref)
			}
			found = e
		}
	}
	if found == nil {
		return nil, errNoSuch(ref)
	}
	return found, nil
}

// all returns every container, newest first.
func (s *store) all() []*entry {
	s.mu.RLock()
	out := make([]*entry, 0, len(s.byID))
	for _, e := range s.byID {
		out = append(out, e)
	}
	s.mu.RUnlock()
	sort.Slice(out, func(i, j int) bool { return out[i].created.After(out[j].created) })
	return out
}

package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// intentFile is the first thing in a run directory: what a start noted before it touched
// the kernel. The record on the disk knows of the start only once it has succeeded or
// failed, so an engine that comes up asks for the note (recovery.takeIntent). It goes with
// the boot, as what it tells of does.
const intentFile = "intent.json"

// intent is what a start writes down before it begins.
type intent struct {
	BootID   string
	Cgroup   string // where the process will be, as the specification has it
	ByClient bool   // a client asked, so the restart policy begins afresh
}

// begin moves a record to the start that in tells of. Kinds: that of State.move.
func (r *Record) begin(in intent) error {
	if err := r.State.move(Starting); err != nil {
		return err
	}
	r.State.Generation++
	r.State.BootID, r.State.Cgroup = in.BootID, in.Cgroup
	if in.ByClient {
		r.ManuallyStopped, r.RestartCount = false, 0
	}
	return nil
}

// writeIntent makes a run directory with its note. An engine that is killed half-way
// leaves a note that cannot be read, and nothing else.
func writeIntent(dir string, in intent) error {
	b, err := json.Marshal(in)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, intentFile), b, 0o600)
}

// readIntent reads the note of a start; os.ErrNotExist if there was none.
func readIntent(dir string) (intent, error) {
	var in intent
	path := filepath.Join(dir, intentFile)
	b, err := os.ReadFile(path)
	if err != nil {
		return in, err
	}
	if err := json.Unmarshal(b, &in); err != nil {
		return in, fmt.Errorf("%s: %w", path, err)
	}
	return in, nil
}

// takeIntent makes good what the record of a container does not know yet: that a start
// was under way when the engine before was killed.
func (m recovery) takeIntent(e *entry) {
	e.mu.Lock()
	defer e.mu.Unlock()
	in, err := readIntent(m.runDir(e.id, e.rec.State.Generation+1))
	if err == nil {
		err = e.rec.begin(in)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		// The start had not begun, or is older than the record: what it left is swept.
		m.log.Info("a start is not gone on with", "container", e.id.Short(), "reason", err)
	}
}

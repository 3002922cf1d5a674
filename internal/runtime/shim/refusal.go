package shim

import (
	"encoding/json"
	"strings"
	"syscall"

	"escale.dev/escale/internal/runtime"
)

// refusal is how the OCI runtime said that it could not start a process.
type refusal struct {
	text   string // what became of the runtime's own process
	log    string // the end of its log: JSON, a line an entry
	stderr string
}

func (r *refusal) Error() string { return r.text }

// words are the runtime's own, "" when it said none.
func (r *refusal) words() string {
	var last string
	for line := range strings.Lines(r.log) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal([]byte(line), &entry) == nil && (entry.Level == "error" || entry.Level == "fatal") {
			last = entry.Msg
		}
	}
	if last == "" {
		last = r.stderr
	}
	return strings.TrimSpace(last)
}

// startError puts the refusal into Docker's words, and into the exit code that
// Docker gives a process which was never there. Clients match on both.
func (r *refusal) startError(exec string) *runtime.StartError {
	words := r.words()
	e := &runtime.StartError{Code: 128}
	has := func(s string) bool { return strings.Contains(strings.ToLower(words), strings.ToLower(s)) }
	switch {
	case has(syscall.EACCES.Error()), has(syscall.EISDIR.Error()):
		e.Code = 126
	case has("executable file not found"), has(syscall.ENOENT.Error()), has(syscall.ENOTDIR.Error()):
		e.Code = 127
	}
	if words == "" {
		words = r.text
	}
	// We call run where Docker calls create and start.
	words = strings.Replace(words, "runc run failed: ", "runc create failed: ", 1)
	if exec != "" {
		e.Message = "OCI runtime exec failed: " + words + ": unknown"
		return e
	}
	e.Message = "failed to create task for container: failed to create shim task: OCI runtime create failed: " + words + ": unknown"
	if has(syscall.ENOTDIR.Error()) {
		e.Message += ": Are you trying to mount a directory onto a file (or vice-versa)? Check if the specified host path exists and is the expected type"
	}
	return e
}

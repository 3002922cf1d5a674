package native

import (
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// A container that is paused before it is started goes on when it is resumed, and one
// whose processes are among others' dies when it is paused and killed.
func TestPaused(t *testing.T) {
	l := newLab(t, "exec sleep 1000")
	l.write()
	l.detached("create", l.id)
	l.must("pause", l.id)
	if got := l.state().Status; got != "paused" {
		t.Errorf("created and paused: %s", got)
	}
	l.must("resume", l.id)
	l.await(specs.StateCreated)
	l.must("start", l.id)
	if out, err := l.call("start", l.id); err == nil || !strings.Contains(out, "cannot start an already running container") {
		t.Errorf("started twice: %v: %s", err, out)
	}
	l.must("delete", "--force", l.id)

	l.spec.Linux.Namespaces = slices.DeleteFunc(l.spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.PIDNamespace })
	l.write()
	l.detached("run", "-d", l.id)
	l.must("pause", l.id)
	l.must("kill", l.id, "KILL")
	l.await(specs.StateStopped)
	if out, err := l.call("start", l.id); err == nil || !strings.Contains(out, "cannot start a container that has stopped") {
		t.Errorf("start of what has stopped: %v: %s", err, out)
	}
	l.must("delete", l.id)
	l.nothingLeft()
}

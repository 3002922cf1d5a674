package container

import (
	"context"
	"os"
	"slices"
	"strings"
)

// Unlink takes a link, named "/parent/alias", from the container that has it:
// from its record, and from its /etc/hosts, which a running one sees at once.
// Docker's words and kinds for what is no link.
func (m *Manager) Unlink(ctx context.Context, ref string) error {
	parent, alias, ok := strings.Cut(strings.TrimPrefix(ref, "/"), "/")
	if !ok {
		if _, err := m.store.find(ref); err != nil {
			return err
		}
		return kindf(errConflict, "Conflict, cannot remove the default link name of the container")
	}
	e, err := m.store.find(parent)
	if err != nil {
		return errNoSuch(ref)
	}
	if err := e.op.lock(ctx); err != nil {
		return err
	}
	defer e.op.unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	old := e.rec.HostConfig
	next := copyHostConfig(old)
	next.Links = slices.DeleteFunc(slices.Clone(old.Links), func(l string) bool {
		_, a := cutLink(l)
		return a == alias
	})
	if e.removed || len(next.Links) == len(old.Links) {
		return errNoSuch(ref)
	}
	e.rec.HostConfig = next
	if err := m.store.save(&e.rec, true); err != nil {
		e.rec.HostConfig = old
		return err
	}
	m.forgetHost(e.id, alias)
	return nil
}

// forgetHost takes the lines of a link out of a container's /etc/hosts. The file
// is written in place: a running container has it mounted.
func (m *core) forgetHost(id ID, alias string) {
	path := m.hostFilesOf(id).hosts
	text, err := os.ReadFile(path)
	if err != nil {
		return // it was never started
	}
	var out strings.Builder
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) < 2 || f[1] != alias {
			out.WriteString(line)
		}
	}
	if err := os.WriteFile(path, []byte(out.String()), 0o644); err != nil {
		m.log.Warn("taking a link out of /etc/hosts", "container", id.Short(), "error", err)
	}
}

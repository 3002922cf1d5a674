package container

import (
	"context"
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
	m.editHosts(e.id, func(lines []string) []string {
		return slices.DeleteFunc(lines, func(line string) bool {
			f := strings.Fields(line)
			return len(f) > 1 && f[1] == alias
		})
	})
	return nil
}

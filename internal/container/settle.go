package container

import "context"

// AwaitReaped blocks until the kernel holds nothing of runs that have ended.
func (m *Manager) AwaitReaped(ctx context.Context) error {
	for _, e := range m.store.all() {
		if e.state().Running() {
			continue
		}
		if err := m.waitReaped(ctx, e); err != nil {
			return err
		}
	}
	return nil
}

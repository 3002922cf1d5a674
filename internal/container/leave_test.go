package container

import (
	"strings"
	"syscall"
	"testing"

	"github.com/moby/moby/api/types/container"
)

// New connections go elsewhere before a container hears that it is to end, and a check
// that finds it well meanwhile does not bring them back; after a restart they come again.
func TestLeavesFirst(t *testing.T) {
	none := 0
	for _, c := range []struct {
		name string
		end  func(*testing.T, *Manager, func(container.HealthStatus)) error
		want string
	}{
		{"stop", func(t *testing.T, m *Manager, is func(container.HealthStatus)) error {
			done := make(chan error, 1)
			go func() { done <- m.Stop(t.Context(), "sick", Stop{}) }()
			is(container.Healthy)
			return <-done
		}, "healthy out terminated killed"},
		{"stop at once", func(t *testing.T, m *Manager, _ func(container.HealthStatus)) error {
			return m.Stop(t.Context(), "sick", Stop{Timeout: &none})
		}, "healthy out terminated killed"},
		{"kill", func(t *testing.T, m *Manager, _ func(container.HealthStatus)) error {
			return m.Kill(t.Context(), "sick", "")
		}, "healthy out killed"},
		{"a signal that ends nothing", func(t *testing.T, m *Manager, _ func(container.HealthStatus)) error {
			return m.Kill(t.Context(), "sick", "TERM")
		}, "healthy terminated"},
		{"restart", func(t *testing.T, m *Manager, is func(container.HealthStatus)) error {
			err := m.Restart(t.Context(), "sick", Stop{Timeout: &none})
			is(container.Healthy)
			return err
		}, "healthy out terminated killed healthy"},
		{"paused", func(t *testing.T, m *Manager, _ func(container.HealthStatus)) error {
			if err := m.Pause(t.Context(), "sick"); err != nil {
				return err
			}
			return m.Unpause(t.Context(), "sick")
		}, "healthy out in"},
		{"stopped while paused", func(t *testing.T, m *Manager, _ func(container.HealthStatus)) error {
			if err := m.Pause(t.Context(), "sick"); err != nil {
				return err
			}
			return m.Stop(t.Context(), "sick", Stop{})
		}, "healthy out out out terminated killed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			world(t, func(t *testing.T, f *fakeEngine, m *Manager) {
				id, is := sick(t, m, container.RestartPolicy{}, "")
				is(container.Healthy)
				f.tasks[string(id)].ignore = syscall.SIGTERM
				if err := c.end(t, m, is); err != nil {
					t.Fatal(err)
				}
				if got := strings.Join(f.ways, " "); got != c.want {
					t.Errorf("%s, want %s", got, c.want)
				}
			})
		})
	}
}

package shim

import (
	"testing"

	"escale.dev/escale/internal/sys/systemd/systemdtest"
)

// A cleaned up container leaves no unit, in whatever state; one without a unit needs no systemd.
func TestRemoveUnit(t *testing.T) {
	s := systemdtest.Start(t, t.TempDir())
	for _, failed := range []bool{false, true} {
		s.Add("docker-x.scope", failed)
		for range 2 { // the second time there is none
			if err := removeUnit(t.Context(), "a.slice:docker:x"); err != nil {
				t.Error(err)
			}
		}
		if left := s.Units(); len(left) > 0 {
			t.Errorf("left over: %v", left)
		}
	}
	calls := len(s.Calls())
	if err := removeUnit(t.Context(), "/docker/x"); err != nil || len(s.Calls()) != calls {
		t.Errorf("a cgroup without a unit: %v, systemd was asked %v", err, s.Calls()[calls:])
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/none")
	if err := removeUnit(t.Context(), "a.slice:docker:x"); err != nil {
		t.Errorf("without systemd: %v", err)
	}
}

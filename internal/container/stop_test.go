package container

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// A stop that waits for nothing sends the stop signal all the same, the KILL after it;
// one of KILL is sent once.
func TestStopAtOnce(t *testing.T) {
	for signal, want := range map[string][]string{
		"":     {"terminated", "killed"},
		"USR1": {"user defined signal 1", "killed"},
		"KILL": {"killed"},
	} {
		world(t, func(t *testing.T, f *fakeEngine, m *Manager) {
			id := create(t, m, "it", nil)
			if err := m.Start(t.Context(), "it"); err != nil {
				t.Fatal(err)
			}
			f.tasks[string(id)].ignore, _ = stopSignal(Stop{Signal: signal}, nil)
			if signal == "KILL" {
				f.tasks[string(id)].ignore = 0
			}
			before := time.Now()
			if err := m.Stop(t.Context(), "it", Stop{Signal: signal, Timeout: new(int)}); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(before); took != 0 {
				t.Errorf("%q: waited %v", signal, took)
			}
			synctest.Wait()
			if s := status(t, m, id); s.Status != Exited || s.ExitCode != 137 {
				t.Errorf("%q: %+v", signal, s)
			}
			got := slices.DeleteFunc(slices.Clone(f.ways), func(s string) bool {
				return !slices.Contains([]string{"terminated", "killed", "user defined signal 1"}, s)
			})
			if !slices.Equal(got, want) {
				t.Errorf("%q: sent %q, want %q", signal, got, want)
			}
		})
	}
}

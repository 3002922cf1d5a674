package container

import (
	"testing"

	"github.com/containerd/errdefs"
)

func TestMovesRefuseWhatIsIllegal(t *testing.T) {
	all := []Status{Created, Starting, Running, Paused, Restarting, Exited, Removing, Dead}
	legal := map[[2]Status]bool{}
	for from, tos := range moves {
		for _, to := range tos {
			legal[[2]Status{from, to}] = true
		}
	}
	for _, from := range all {
		for _, to := range all {
			s := State{Status: from}
			err := s.move(to)
			switch {
			case legal[[2]Status{from, to}] && (err != nil || s.Status != to):
				t.Errorf("%s → %s: %v", from, to, err)
			case !legal[[2]Status{from, to}] && (!errdefs.IsConflict(err) || s.Status != from):
				t.Errorf("%s → %s: got %v and %s, want it refused", from, to, err, s.Status)
			}
		}
	}
	// What must never be: a process without a start, a removal under a process.
	for _, bad := range [][2]Status{{Created, Running}, {Exited, Running}, {Running, Removing}, {Paused, Removing}, {Removing, Starting}, {Dead, Running}} {
		if legal[bad] {
			t.Errorf("%s → %s is in the table", bad[0], bad[1])
		}
	}
}

package container

import (
	"github.com/containerd/errdefs"
)

// moves holds the legal moves of a container's life; anything else is a bug in
// the engine and is refused before it reaches the disk.
var moves = map[Status][]Status{
	Created:    {Starting, Removing},
	Starting:   {Running, Created, Exited, Restarting, Removing},
	Running:    {Running, Paused, Exited, Restarting},
	Paused:     {Running, Exited, Restarting},
	Restarting: {Starting, Exited, Removing},
	Exited:     {Starting, Removing, Restarting},
	Removing:   {Removing, Dead},
	Dead:       {Removing},
}

// move takes s to status next, or refuses.
func (s *State) move(next Status) error {
	for _, m := range moves[s.Status] {
		if m == next {
			s.Status = next
			return nil
		}
	}
	return kindf(errdefs.ErrConflict, "container cannot go from %s to %s", s.Status, next)
}

// clearProcess forgets the process of the last run.
func (s *State) clearProcess() {
	s.Pid, s.PidStart, s.Monitor = 0, 0, 0
}

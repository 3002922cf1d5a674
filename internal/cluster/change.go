package cluster

import (
	"maps"
	"reflect"
)

// incidental are labels that tell where a service was read from and what it was then:
// a change of them alone needs no new containers.
var incidental = []string{
	"com.docker.compose.config-hash", "com.docker.compose.depends_on", "com.docker.compose.project.config_files",
	"com.docker.compose.project.environment_file", "com.docker.compose.project.working_dir", "com.docker.compose.version",
}

// Like tells whether containers made as one spec says are what the other says.
func (s TaskSpec) Like(other TaskSpec) bool { return reflect.DeepEqual(s.bare(), other.bare()) }

// bare is the spec without what containers do not show.
func (s TaskSpec) bare() TaskSpec {
	s.Pull, s.Auth, s.Needs, s.Grace, s.Fresh, s.Restart = "", "", nil, 0, 0, RestartPolicy{}
	if s.Container != nil && s.Container.Labels != nil {
		c := *s.Container
		c.Labels = maps.Clone(c.Labels)
		for _, l := range incidental {
			delete(c.Labels, l)
		}
		s.Container = &c
	}
	if s.Placement.Keep != nil {
		s.Placement.Keep = &Keep{Node: s.Placement.Keep.Node}
	}
	return s
}

// Replaces tells whether a service of this spec needs other containers than one of want.
func (s *ServiceSpec) Replaces(want *ServiceSpec) bool {
	return !s.Task.Like(want.Task) || !reflect.DeepEqual(s.Networks, want.Networks) || !reflect.DeepEqual(s.Ports, want.Ports)
}

// Asked is the spec that was asked last, though the service may have gone back from it.
func (s *Service) Asked() *ServiceSpec {
	if s.Status.Wanted != nil {
		return s.Status.Wanted
	}
	return &s.Spec
}

// Change is the service with another spec; nil when it has that already. A spec whose
// containers differ gets a number of its own, and the one before is kept to go back to.
// One that a rollout has given up is not tried again until another is asked for.
func (s *Service) Change(want ServiceSpec) *Service {
	is := s.Asked()
	want.Number = is.Number
	if reflect.DeepEqual(*is, want) {
		return nil
	}
	c := Copy(s)
	c.Labels, c.Status.Wanted = want.Labels, nil
	want.Number = s.Spec.Number
	if s.Spec.Replaces(&want) {
		c.Numbers++
		want.Number = c.Numbers
		before := Copy(s).Spec
		c.Previous = &before
	}
	c.Spec = want
	return c
}

// Up counts the places of a service and those of them that are as they are to be: with
// a healthy task of its spec, with one that did what it had to do, or with one that a
// client has stopped, which are counted apart, too.
func (s *Service) Up(slots []Slot) (up, want, halted int) {
	want = len(slots)
	switch m := s.Spec.Mode; {
	case m.Schedule != "":
		return want, want, 0 // runs come and go
	case m.Replicated != nil:
		want = int(m.Replicated.Replicas)
	case m.Job != nil:
		want = int(m.Job.Total)
	}
	for _, slot := range slots {
		t := slot.Current()
		if t.SpecNumber != s.Spec.Number {
			continue
		}
		ended := t.Status.State == TaskComplete || t.Status.State.Ended() && t.Desired.Stops() // and is left so
		switch {
		case t.Halted && !t.Status.State.Ended():
			up, halted = up+1, halted+1
		case ended, t.Status.State == TaskRunning && t.Status.Healthy:
			up++
		}
	}
	return up, want, halted
}

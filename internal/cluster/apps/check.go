package apps

import (
	"fmt"
	"regexp"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/sys/errtext"
	"github.com/containerd/errdefs"
)

// Bounds of what an app can be.
const (
	maxFile     = 500 << 10 // bytes of a secret or a config, as in Docker
	maxReplicas = 10_000
	maxServices = 1000
)

var (
	projectName = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,127}$`)
	partName    = regexp.MustCompile(`^[a-zA-Z0-9._-]{1,128}$`)
)

// say is an error of a kind, which its words do not name: clients are shown them.
func say(kind interface{ WithMessage(string) error }, format string, args ...any) error {
	return kind.WithMessage(fmt.Sprintf(format, args...))
}

func bad(format string, args ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
}

// check looks at a spec that a client has sent; swarm: to a cluster, which has secrets and
// configs of its own. InvalidArgument.
func check(name string, s *cluster.AppSpec, swarm bool) error {
	switch {
	case !projectName.MatchString(name):
		return bad("a name is of lower-case letters, digits, dashes and underscores, and begins with a letter or digit")
	case s.Removed || s.Volumed || s.Released:
		return bad("a spec does not say that the app goes")
	case len(s.Services) == 0:
		return bad("it has no services")
	case len(s.Services) > maxServices:
		return bad("it has %d services; %d are possible", len(s.Services), maxServices)
	}
	for part, n := range s.Networks {
		if !partName.MatchString(part) || n.Name == "" || n.Removed {
			return bad("network %q: bad name or spec", part)
		}
	}
	for part, v := range s.Volumes {
		if !partName.MatchString(part) || v.Name == "" || v.Removed {
			return bad("volume %q: bad name or spec", part)
		}
	}
	for part, f := range s.Secrets {
		if err := checkFile(part, f.External && !swarm, f.Data); err != nil {
			return fmt.Errorf("secret %q: %w", part, err)
		}
	}
	for part, f := range s.Configs {
		if err := checkFile(part, f.External && !swarm, f.Data); err != nil {
			return fmt.Errorf("config %q: %w", part, err)
		}
	}
	for _, part := range sortedKeys(s.Services) {
		service := s.Services[part]
		if !partName.MatchString(part) {
			return bad("service %q: bad name", part)
		}
		if err := checkService(s, &service); err != nil {
			return fmt.Errorf("service %q: %w", part, err)
		}
	}
	return checkCircles(name, s)
}

func checkFile(part string, external bool, data []byte) error {
	switch {
	case !partName.MatchString(part):
		return bad("bad name")
	case external:
		return bad("it is external, and there is no store of secrets and configs outside of apps")
	case len(data) > maxFile:
		return bad("it has %d bytes; %d are possible", len(data), maxFile)
	}
	return nil
}

func checkMode(m cluster.Mode) error {
	n := 0
	for _, set := range []bool{m.Replicated != nil, m.Global, m.Job != nil, m.GlobalJob} {
		if set {
			n++
		}
	}
	switch {
	case n != 1:
		return bad("exactly one mode is wanted")
	case m.Replicated != nil && m.Replicated.Replicas > maxReplicas:
		return bad("%d replicas; %d are possible", m.Replicated.Replicas, maxReplicas)
	case m.Job != nil && max(m.Job.Total, m.Job.Concurrent) > maxReplicas:
		return bad("%d runs, %d at once; %d are possible", m.Job.Total, m.Job.Concurrent, maxReplicas)
	case m.Schedule != "" && m.Job == nil:
		return bad("only a job can have a schedule")
	}
	if m.Schedule != "" {
		if _, err := cluster.ParseSchedule(m.Schedule); err != nil {
			return bad("%s", errtext.Of(err))
		}
	}
	return nil
}

// disjoint refuses an app that would have what another has: containers of one name.
// (Networks and volumes of one name may be shared when they are external to all but one.)
func disjoint(v store.View, name string, s *cluster.AppSpec) error {
	names := map[string]string{}
	for _, other := range store.List[*cluster.App](v) {
		if other.Name == name {
			continue
		}
		for part, service := range other.Spec.Services {
			if service.Task.Name != "" {
				names[service.Task.Name] = other.Name + "." + part
			}
		}
		for _, part := range sortedKeys(s.Services) {
			if _, taken := other.Spec.Services[clash(name, part, other.Name)]; taken {
				return say(errdefs.ErrConflict, "service %q would be named as one of app %s", part, other.Name)
			}
		}
	}
	for _, part := range sortedKeys(s.Services) {
		if by := names[s.Services[part].Task.Name]; by != "" {
			return say(errdefs.ErrConflict, "service %q: container name %q is that of %s", part, s.Services[part].Task.Name, by)
		}
	}
	return nil
}

// clash is the part of another app whose full name is that of a part of this one; apps
// a and a_b can have one.
func clash(name, part, other string) string {
	full, prefix := cluster.Full(name, part), cluster.Full(other, "")
	if len(full) <= len(prefix) || full[:len(prefix)] != prefix {
		return ""
	}
	return full[len(prefix):]
}

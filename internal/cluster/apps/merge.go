package apps

import (
	"bytes"
	"maps"
	"slices"

	"escale.dev/escale/internal/cluster"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/mount"
)

// merge makes the next spec of what was and what is asked.
func merge(name string, was, asked cluster.AppSpec, o Put) (cluster.AppSpec, error) {
	next := asked
	next.Services = map[string]cluster.ServiceSpec{}
	for part, s := range asked.Services {
		old, there := was.Services[part]
		s.Halted = o.Create && (!there || old.Halted)
		s.Task.Force, s.Task.Fresh = max(s.Task.Force, old.Task.Force), max(s.Task.Fresh, old.Task.Fresh)
		if o.RenewVolumes {
			s.Task.Fresh++
		}
		next.Services[part] = s
	}
	for _, part := range o.Replace {
		s, ok := next.Services[part]
		if !ok {
			return next, say(errdefs.ErrInvalidArgument, "no service %q to be replaced", part)
		}
		s.Task.Force++
		next.Services[part] = s
	}
	if !o.Merge {
		remake(&was, &next)
		restartReaders(&was, &next)
		restartDependents(was, next.Services, name)
		return next, nil
	}
	if len(asked.Services) == 0 { // services are taken out only: the files are those of before
		next.Source, next.Dir, next.Files = was.Source, was.Dir, was.Files
	}
	kept := map[string]cluster.ServiceSpec{}
	for part, s := range was.Services {
		if _, asked := next.Services[part]; !asked && !slices.Contains(o.Remove, part) {
			kept[part] = s
		}
	}
	keepUsed(&next, &was, kept)
	maps.Copy(next.Services, kept)
	remake(&was, &next)
	restartReaders(&was, &next)
	restartDependents(was, next.Services, name)
	return next, nil
}

// restartReaders has services exchanged whose secrets or configs have another content:
// a container has what they were when it was made.
func restartReaders(was, next *cluster.AppSpec) {
	for part, s := range next.Services {
		old, there := was.Services[part]
		if !there || old.Replaces(&s) {
			continue
		}
		changed := slices.ContainsFunc(s.Task.Secrets, func(f cluster.FileRef) bool {
			return !bytes.Equal(was.Secrets[f.Name].Data, next.Secrets[f.Name].Data)
		}) || slices.ContainsFunc(s.Task.Configs, func(f cluster.FileRef) bool {
			return !bytes.Equal(was.Configs[f.Name].Data, next.Configs[f.Name].Data)
		})
		if changed {
			s.Task.Force++
			next.Services[part] = s
		}
	}
}

// restartDependents has services exchanged whose dependencies are, where depends_on says
// that they are restarted with them.
func restartDependents(was cluster.AppSpec, next map[string]cluster.ServiceSpec, app string) {
	replaced := map[string]bool{}
	for name, s := range next {
		old, there := was.Services[name]
		replaced[cluster.Full(app, name)] = there && old.Replaces(&s)
	}
	for again := true; again; {
		again = false
		for name, s := range next {
			full := cluster.Full(app, name)
			if _, there := was.Services[name]; !there || replaced[full] {
				continue
			}
			if slices.ContainsFunc(s.Task.Needs, func(n cluster.Need) bool { return n.Restart && replaced[n.Service] }) {
				s.Task.Force++
				next[name] = s
				replaced[full], again = true, true
			}
		}
	}
}

// keepUsed takes over into next what services that are kept use of what was.
func keepUsed(next, was *cluster.AppSpec, kept map[string]cluster.ServiceSpec) {
	networks, volumes, secrets, configs := map[string]bool{}, map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, s := range kept {
		for _, n := range s.Networks {
			networks[n.Network] = true
		}
		for _, m := range s.Task.Host.Mounts {
			volumes[m.Source] = volumes[m.Source] || m.Type == mount.TypeVolume
		}
		for _, f := range s.Task.Secrets {
			secrets[f.Name] = true
		}
		for _, f := range s.Task.Configs {
			configs[f.Name] = true
		}
	}
	next.Networks = with(next.Networks, was.Networks, func(_ string, n cluster.NetworkSpec) bool { return networks[n.Name] })
	next.Volumes = with(next.Volumes, was.Volumes, func(_ string, v cluster.VolumeSpec) bool { return volumes[v.Name] })
	next.Secrets = with(next.Secrets, was.Secrets, func(name string, _ cluster.SecretSpec) bool { return secrets[name] })
	next.Configs = with(next.Configs, was.Configs, func(name string, _ cluster.ConfigSpec) bool { return configs[name] })
}

// with is a map with those of another that it has not and that are used.
func with[S any](m, other map[string]S, used func(string, S) bool) map[string]S {
	out := map[string]S{}
	for name, s := range other {
		if used(name, s) {
			out[name] = s
		}
	}
	maps.Copy(out, m)
	return out
}

func sortedKeys[T any](m map[string]T) []string { return slices.Sorted(maps.Keys(m)) }

package apps

import (
	"maps"
	"slices"
	"strings"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
)

// remake counts on the networks that have to be made anew, and says so to the services
// on them: their tasks are made for it, and so they are exchanged.
func remake(was, next *cluster.AppSpec) {
	made := map[string]uint64{}
	next.Networks = maps.Clone(next.Networks)
	for part, n := range next.Networks {
		old := was.Networks[part]
		n.Made = 0
		if old.Name == n.Name {
			n.Made = old.Made
		}
		if old.Differs(n) {
			n.Made++
		}
		next.Networks[part] = n
		made[n.Name] = n.Made
	}
	for part, s := range next.Services {
		s.Networks = slices.Clone(s.Networks)
		for i := range s.Networks {
			s.Networks[i].Made = made[s.Networks[i].Network]
		}
		next.Services[part] = s
	}
}

// free refuses (Conflict) to make a network anew on which others than the app's
// containers are: it cannot be taken from under them.
func (a *Apps) free(was *cluster.App, name string, next *cluster.AppSpec) error {
	if was == nil || a.n == nil {
		return nil
	}
	for _, part := range sortedKeys(next.Networks) {
		n := next.Networks[part]
		if !was.Spec.Networks[part].Differs(n) {
			continue
		}
		if on := a.n.Strangers(n.Name, name); len(on) > 0 {
			return say(errdefs.ErrConflict, "network %q has to be made anew, and there are others than the app's containers on it: %s. Disconnect them first", part, strings.Join(on, ", "))
		}
	}
	return nil
}

// disconnected are those of the services whose containers somebody has disconnected from
// networks, with what from, unless they are exchanged anyway: they are to be.
func (a *Apps) disconnected(name string, was, next *cluster.AppSpec, services []string) map[string][]string {
	out := map[string][]string{}
	v := a.s.View()
	for _, part := range services {
		s, err := store.Named[*cluster.Service](v, cluster.Full(name, part))
		old, want := was.Services[part], next.Services[part]
		if a.n == nil || err != nil || old.Replaces(&want) {
			continue
		}
		var networks []string
		for _, n := range want.Networks {
			networks = append(networks, n.Network)
		}
		var running []string
		for _, t := range store.List[*cluster.Task](v, store.Owner(s.ID)) {
			if t.Status.State == cluster.TaskRunning && !t.Halted && t.SpecNumber == s.Spec.Number {
				running = append(running, t.ID)
			}
		}
		if missing := a.n.Missing(running, networks); len(missing) > 0 {
			out[part] = missing
		}
	}
	return out
}

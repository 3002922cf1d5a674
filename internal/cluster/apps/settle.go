package apps

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/address"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
)

// LabelBinds is a label of a service: anywhere has its tasks go to all nodes, though they bind
// paths, or publish ports at addresses, that one node has.
const LabelBinds = "escale.binds"

// settling is how a spec becomes what it is in a cluster.
type settling struct {
	v    store.View
	a    *Apps
	name string
	s    *cluster.AppSpec
	own  map[string]string   // networks of one node, by name: what they are
	why  map[string][]string // by service: what holds it on one node
	here bool                // some of it is of this very node
}

// settle makes of a spec what it is in a cluster: its networks span the nodes, and what uses
// things that exist on one node alone is kept there. Of a host that is in none it stays as it is.
// What was asked is not changed. NotFound for a secret or config of the swarm's that is not there.
func (a *Apps) settle(name string, was, asked cluster.AppSpec) (cluster.AppSpec, error) {
	v := a.s.View()
	if !a.clustered(v) {
		return asked, nil
	}
	out := cluster.Copy(&cluster.App{Spec: asked}).Spec
	s := settling{v: v, a: a, name: name, s: &out, own: map[string]string{}, why: map[string][]string{}}
	s.networks()
	for _, part := range sortedKeys(out.Services) {
		service := out.Services[part]
		s.ports(&service)
		s.aliases(&service)
		out.Services[part] = service
		s.holds(part, &service)
	}
	s.together()
	s.keep(was)
	return out, s.external()
}

// clustered tells whether the host is in a cluster.
func (a *Apps) clustered(v store.View) bool {
	_, err := store.Named[*cluster.Cluster](v, cluster.DefaultCluster)
	return err == nil && a.n != nil
}

// networks makes those of the app overlay networks, to which containers that no task has can be
// attached, too. Those of another driver stay what they are, on one node.
func (s *settling) networks() {
	for part, n := range s.s.Networks {
		if n.External {
			if driver := s.a.n.Driver(n.Name); driver != "" && driver != "overlay" && address.Overlay(s.v, n.Name) == nil {
				s.own[n.Name] = fmt.Sprintf("network %s (%s)", n.Name, driver)
			}
			continue
		}
		if n.Create == nil {
			n.Create = &network.CreateRequest{}
		}
		switch driver := cmp.Or(n.Create.Driver, "default"); {
		case driver == "overlay", driver == "default" && !bridged(n.Create.Options):
			n.Create.Driver, n.Create.Attachable = "overlay", true
		default:
			s.own[n.Name] = fmt.Sprintf("network %s (%s)", part, strings.Replace(driver, "default", "bridge", 1))
		}
		s.s.Networks[part] = n
	}
}

// bridged tells whether options are those of a bridge of one host.
func bridged(options map[string]string) bool {
	for name := range options {
		if strings.HasPrefix(name, "com.docker.network.bridge.") {
			return true
		}
	}
	return false
}

// ports has those that are published at every address published on every node.
func (s *settling) ports(service *cluster.ServiceSpec) {
	for i := range service.Ports {
		if p := &service.Ports[i]; p.Address == "0.0.0.0" || p.Address == "::" {
			p.Address = ""
		}
	}
}

// aliases has others find a container that has a name of its own by that name, on whatever node
// it is.
func (s *settling) aliases(service *cluster.ServiceSpec) {
	name := service.Task.Name
	if name == "" {
		return
	}
	for i := range service.Networks {
		at := &service.Networks[i]
		if s.own[at.Network] != "" {
			continue
		}
		set := network.EndpointSettings{}
		if at.Settings != nil {
			set = *at.Settings
		}
		if !slices.Contains(set.Aliases, name) {
			set.Aliases = append(slices.Clone(set.Aliases), name)
		}
		at.Settings = &set
	}
}

// everywhere are paths that every machine has, each its own, so that nobody is held by them.
var everywhere = []string{"/dev", "/proc", "/sys", "/etc/localtime", "/etc/timezone"}

// holds notes what holds a service on one node.
func (s *settling) holds(part string, service *cluster.ServiceSpec) {
	for _, at := range service.Networks {
		if what := s.own[at.Network]; what != "" {
			s.why[part] = append(s.why[part], what)
		}
	}
	if free(service) {
		return
	}
	var here []string
	for _, path := range binds(service.Task.Host) {
		if !slices.ContainsFunc(everywhere, func(dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }) {
			here = append(here, "bind "+path)
		}
	}
	for _, p := range service.Ports {
		if p.Address != "" {
			here = append(here, fmt.Sprintf("port %s:%s", p.Address, cmp.Or(p.Range(), "0")))
		}
	}
	if len(here) > 0 {
		s.here = true
		s.why[part] = append(s.why[part], here...)
	}
}

// binds are the paths of the host that a container sees.
func binds(h *container.HostConfig) (out []string) {
	for _, m := range h.Mounts {
		if m.Type == mount.TypeBind {
			out = append(out, filepath.Clean(m.Source))
		}
	}
	for _, b := range h.Binds {
		if from, _, _ := strings.Cut(b, ":"); filepath.IsAbs(from) {
			out = append(out, filepath.Clean(from))
		}
	}
	return out
}

// free tells whether somebody has said where the service is to be, or it is on every node.
func free(service *cluster.ServiceSpec) bool {
	if service.Mode.Global || service.Mode.GlobalJob || service.Labels[LabelBinds] == "anywhere" {
		return true
	}
	return slices.ContainsFunc(service.Task.Placement.Constraints, func(c string) bool {
		c = strings.ReplaceAll(c, " ", "")
		return strings.HasPrefix(c, "node.id==") || strings.HasPrefix(c, "node.hostname==") || strings.HasPrefix(c, "node.labels.")
	})
}

// together keeps services on one node that share what is of a container: its network, processes
// or volumes.
func (s *settling) together() {
	by := map[string]string{} // services, by the name of their first container
	for part, service := range s.s.Services {
		by[cmp.Or(service.Task.Name, s.name+"-"+part+"-1")] = part
	}
	for _, part := range sortedKeys(s.s.Services) {
		for _, name := range joined(s.s.Services[part].Task.Host) {
			other, ours := by[name]
			if !ours || other == part {
				continue
			}
			s.why[part] = append(s.why[part], "container "+name)
			s.why[other] = append(s.why[other], "what shares with it, "+part)
		}
	}
}

// joined are the containers of which a container shares something.
func joined(h *container.HostConfig) (out []string) {
	for _, mode := range []string{string(h.NetworkMode), string(h.IpcMode), string(h.PidMode)} {
		if name, ok := strings.CutPrefix(mode, "container:"); ok {
			out = append(out, name)
		}
	}
	for _, from := range h.VolumesFrom {
		name, _, _ := strings.Cut(from, ":")
		out = append(out, name)
	}
	return out
}

// keep writes where services are kept: all of them on one node. That is this one if something
// of it is wanted, else the one where they are.
func (s *settling) keep(was cluster.AppSpec) {
	node := s.a.n.Node()
	for _, part := range sortedKeys(was.Services) {
		k := was.Services[part].Task.Placement.Keep
		if k == nil || s.here {
			continue
		}
		if _, err := store.Find[*cluster.Node](s.v, k.Node); err == nil {
			node = k.Node
			break
		}
	}
	for part, service := range s.s.Services {
		service.Task.Placement.Keep = nil
		if why := s.why[part]; len(why) > 0 && !service.Mode.Global && !service.Mode.GlobalJob {
			service.Task.Placement.Keep = &cluster.Keep{Node: node, Why: strings.Join(slices.Compact(why), ", ")}
		}
		s.s.Services[part] = service
	}
}

// external has references to secrets and configs of the swarm's lead there: they are by name.
func (s *settling) external() error {
	for _, part := range sortedKeys(s.s.Secrets) {
		f := s.s.Secrets[part]
		if !f.External {
			continue
		}
		name := cmp.Or(f.Name, part)
		if _, err := store.Named[*cluster.Secret](s.v, name); err != nil {
			return say(errdefs.ErrNotFound, "secret not found: %s", name)
		}
		delete(s.s.Secrets, part)
		s.s.Secrets[name] = cluster.SecretSpec{Name: name, External: true}
		s.refer(part, name, func(t *cluster.TaskSpec) []cluster.FileRef { return t.Secrets })
	}
	for _, part := range sortedKeys(s.s.Configs) {
		f := s.s.Configs[part]
		if !f.External {
			continue
		}
		name := cmp.Or(f.Name, part)
		if _, err := store.Named[*cluster.Config](s.v, name); err != nil {
			return say(errdefs.ErrNotFound, "config not found: %s", name)
		}
		delete(s.s.Configs, part)
		s.s.Configs[name] = cluster.ConfigSpec{Name: name, External: true}
		s.refer(part, name, func(t *cluster.TaskSpec) []cluster.FileRef { return t.Configs })
	}
	return nil
}

func (s *settling) refer(part, name string, refs func(*cluster.TaskSpec) []cluster.FileRef) {
	for _, service := range s.s.Services {
		list := refs(&service.Task) // shared with the spec, which is a copy
		for i := range list {
			if list[i].Name == part {
				list[i].Name = name
			}
		}
	}
}

// tellKept adds to a plan where services are kept, and why.
func tellKept(v store.View, p *Plan, s *cluster.AppSpec) {
	for i := range p.Steps {
		st := &p.Steps[i]
		k := s.Services[st.Name].Task.Placement.Keep
		if st.Kind != "service" || k == nil || !slices.Contains([]string{actionCreate, actionChange, actionReplace}, st.Action) {
			continue
		}
		name := k.Node
		if n, err := store.Find[*cluster.Node](v, k.Node); err == nil {
			name = cmp.Or(n.Name, n.ID)
		}
		st.Why = append(st.Why, fmt.Sprintf("kept on node %s: %s", name, k.Why))
	}
}

// found are the volumes of a spec that the cluster does not know and this node has: they are
// its from now on.
func (a *Apps) found(ctx context.Context, name string, s *cluster.AppSpec) (out []store.Change) {
	v := a.s.View()
	if !a.clustered(v) {
		return nil
	}
	for _, part := range sortedKeys(s.Volumes) {
		vol, full := s.Volumes[part], cluster.Full(name, part)
		if _, err := store.Named[*cluster.Volume](v, full); err == nil || !cluster.LocalDriver(vol.Driver, vol.Options) || !a.n.Has(ctx, vol.Name) {
			continue
		}
		out = append(out, store.Create(&cluster.Volume{Meta: cluster.Meta{Name: full}, Spec: vol, Status: cluster.VolumeStatus{Node: a.n.Node()}}))
	}
	return out
}

// forget has the volumes go, when that is wanted, that an app of a name has left behind, and tells
// whether there were any.
func (a *Apps) forget(ctx context.Context, name string, wanted bool) (bool, error) {
	for wanted {
		var changes []store.Change
		for _, vol := range store.List[*cluster.Volume](a.s.View()) {
			if vol.Owner != "" || vol.Status.Node == "" || vol.Spec.External || vol.Spec.Removed || vol.Spec.Labels[labelProject] != name {
				continue
			}
			c := cluster.Copy(vol)
			c.Spec.Removed = true
			changes = append(changes, store.Update(c))
		}
		if len(changes) == 0 {
			return false, nil
		}
		if _, err := a.s.Commit(ctx, changes...); !errdefs.IsConflict(err) {
			return true, err
		}
	}
	return false, nil
}

package swarm

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
)

// Filters narrow a list: for each key the values of which one must match.
type Filters map[string][]string

// begins tells whether one of the values of key begins what is given, or there are none.
func (f Filters) begins(key, is string) bool {
	return len(f[key]) == 0 || slices.ContainsFunc(f[key], func(p string) bool { return strings.HasPrefix(is, p) })
}

// is tells whether one of the values of key is what is given, or there are none.
func (f Filters) is(key, is string) bool { return len(f[key]) == 0 || slices.Contains(f[key], is) }

// labels tells whether all labels of key are there.
func (f Filters) labels(key string, has map[string]string) bool {
	for _, want := range f[key] {
		name, value, valued := strings.Cut(want, "=")
		if is, ok := has[name]; !ok || valued && is != value {
			return false
		}
	}
	return true
}

// Nodes lists nodes. Filters: id, name, label (of engines), node.label, role, membership.
func (s *Swarm) Nodes(f Filters) ([]swarm.Node, error) {
	v := s.Store.View()
	c, err := the(v)
	if err != nil {
		return nil, err
	}
	for _, r := range f["role"] {
		if r != "manager" && r != "worker" {
			return nil, say(errdefs.ErrInvalidArgument, "Invalid role filter: '%s'", r)
		}
	}
	for _, m := range f["membership"] {
		if m != "accepted" && m != "pending" {
			return nil, say(errdefs.ErrInvalidArgument, "Invalid membership filter: '%s'", m)
		}
	}
	out := []swarm.Node{}
	for _, n := range store.List[*cluster.Node](v) {
		node := tellNode(c, n)
		if f.begins("id", n.ID) && f.begins("name", n.Name) && f.labels("label", n.Status.EngineLabels) && f.labels("node.label", n.Spec.Labels) &&
			f.is("role", string(node.Spec.Role)) && f.is("membership", "accepted") {
			out = append(out, node)
		}
	}
	return out, nil
}

// GetNode tells of a node. NotFound.
func (s *Swarm) GetNode(ref string) (swarm.Node, error) {
	v := s.Store.View()
	n, err := find[*cluster.Node](v, "node", ref)
	if err != nil {
		return swarm.Node{}, err
	}
	c, err := the(v)
	if err != nil {
		return swarm.Node{}, err
	}
	return tellNode(c, n), nil
}

// tellNode is a node in Docker's form.
func tellNode(c *cluster.Cluster, n *cluster.Node) swarm.Node {
	out := swarm.Node{
		ID: n.ID, Meta: meta(&n.Meta),
		Spec: swarm.NodeSpec{
			Annotations: swarm.Annotations{Labels: n.Spec.Labels}, Role: swarm.NodeRoleWorker, Availability: swarm.NodeAvailability(cmp.Or(n.Spec.Availability, cluster.Active)),
		},
		Description: swarm.NodeDescription{
			Hostname: n.Name, Platform: swarm.Platform{Architecture: machine(n.Status.Platform.Architecture), OS: n.Status.Platform.OS},
			Resources: tellResources(n.Status.Resources, n.Status.Named), TLSInfo: nodeTLS(c, n),
			Engine: swarm.EngineDescription{EngineVersion: n.Status.Version, Labels: n.Status.EngineLabels},
		},
		Status: swarm.NodeStatus{State: swarm.NodeStateDown, Message: n.Status.Message, Addr: n.Status.Addr},
	}
	if out.Spec.Labels == nil {
		out.Spec.Labels = map[string]string{}
	}
	if n.Spec.Manager {
		out.Spec.Role = swarm.NodeRoleManager
	}
	if n.Status.Ready {
		out.Status.State = swarm.NodeStateReady
	}
	for _, p := range n.Status.Plugins {
		out.Description.Engine.Plugins = append(out.Description.Engine.Plugins, swarm.PluginDescription{Type: p.Type, Name: p.Name})
	}
	if m := n.Status.Manager; m != nil && n.Spec.Manager {
		out.ManagerStatus = &swarm.ManagerStatus{Leader: m.Leader, Addr: m.Addr, Reachability: swarm.ReachabilityUnreachable}
		if m.Reachable {
			out.ManagerStatus.Reachability = swarm.ReachabilityReachable
		}
	}
	return out
}

// machine is the kernel's name for an architecture, which nodes of Docker show.
func machine(arch string) string {
	switch arch {
	case "amd64":
		return "x86_64"
	case "arm64":
		return "aarch64"
	}
	return arch
}

// tellResources are resources in Docker's form; of some kinds each has a name.
func tellResources(r cluster.Resources, named map[string][]string) swarm.Resources {
	return swarm.Resources{NanoCPUs: r.NanoCPUs, MemoryBytes: r.Memory, GenericResources: generic(r.Generic, named)}
}

// generic are resources of kinds that people make up: each by its name, or counted.
func generic(counts map[string]int64, named map[string][]string) (out []swarm.GenericResource) {
	for _, kind := range sortedKeys(counts) {
		for _, name := range named[kind] {
			out = append(out, swarm.GenericResource{NamedResourceSpec: &swarm.NamedGenericResource{Kind: kind, Value: name}})
		}
		if len(named[kind]) == 0 {
			out = append(out, swarm.GenericResource{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: kind, Value: counts[kind]}})
		}
	}
	return out
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// UpdateNode changes what people say of a node, as it was at a version.
func (s *Swarm) UpdateNode(ctx context.Context, ref string, version uint64, asked swarm.NodeSpec) error {
	v := s.Store.View()
	n, err := find[*cluster.Node](v, "node", ref)
	if err != nil {
		return err
	}
	availability, err := availabilityOf(asked.Availability)
	if err != nil {
		return err
	}
	switch asked.Role {
	case swarm.NodeRoleManager, swarm.NodeRoleWorker:
	default:
		return say(errdefs.ErrInvalidArgument, "invalid Role: %q", asked.Role)
	}
	if version != n.Revision {
		return errOutOfOrder
	}
	manager := asked.Role == swarm.NodeRoleManager
	if n.Spec.Manager && !manager && managers(v) == 1 {
		return rpc(errdefs.ErrFailedPrecondition, "attempting to demote the last manager of the swarm")
	}
	if asked.Name != "" {
		return invalid("a node is named by its host, and cannot be given another name")
	}
	n = store.Copy(n)
	n.Spec.Availability, n.Spec.Labels, n.Spec.Manager = availability, asked.Labels, manager
	_, err = s.Store.Commit(ctx, store.Update(n))
	return written(err)
}

func managers(v store.View) (n int) {
	for _, node := range store.List[*cluster.Node](v) {
		if node.Spec.Manager {
			n++
		}
	}
	return n
}

// RemoveNode forgets a node that is down, or any worker by force. No other is to believe its
// certificate any more.
func (s *Swarm) RemoveNode(ctx context.Context, ref string, force bool) error {
	for tries := 0; ; tries++ {
		v := s.Store.View()
		n, err := removable(v, ref, force)
		if err != nil {
			return err
		}
		c, err := the(v)
		if err != nil {
			return err
		}
		c = store.Copy(c)
		c.Bar(n.ID, s.Now())
		if _, err = s.Store.Commit(ctx, store.Delete(n), store.Update(c)); !errdefs.IsConflict(err) || tries == removals {
			return written(err)
		}
	}
}

// removals is how often a removal is tried again when the node, or the swarm, was changed
// meanwhile.
const removals = 5

// removable finds a node that may be removed.
func removable(v store.View, ref string, force bool) (*cluster.Node, error) {
	n, err := find[*cluster.Node](v, "node", ref)
	switch {
	case err != nil:
		return nil, err
	case n.Spec.Manager:
		return nil, rpc(errdefs.ErrFailedPrecondition, "node %s is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal", n.ID)
	case n.Status.Ready && !force:
		return nil, rpc(errdefs.ErrFailedPrecondition, "node %s is not down and can't be removed", n.ID)
	}
	return n, nil
}

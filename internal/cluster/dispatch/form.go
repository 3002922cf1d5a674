package dispatch

import (
	"bytes"
	"encoding/json"
	"hash/fnv"
	"slices"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/moby/moby/api/types/mount"
)

// Topics are what nodes are interested in, and what objects are about: a node gets an
// object when they have one in common. everybody is one that all nodes have, ingress
// that of published ports, which all nodes answer.
const (
	everybody = "all"
	ingress   = "ingress"
)

// place is where an object stands: who gets it whole, and who gets what others may see.
type place struct {
	own    string // topic
	shared []string
	print  uint64 // of what others see
}

// placeOf says where an object stands. raw is it as it was written.
func placeOf(v store.View, o cluster.Object, raw json.RawMessage) place {
	m := o.Base()
	var p place
	switch o := o.(type) {
	case *cluster.Cluster:
		p.shared = []string{everybody}
	case *cluster.Node:
		p.own, p.shared = "self:"+m.ID, []string{"node:" + m.ID}
	case *cluster.Task:
		if o.Node == "" || o.Status.State.Before(cluster.TaskAssigned) {
			return p
		}
		p.own = "tasks:" + o.Node
		if !o.Status.State.Ended() {
			p.shared = networks(v, o.Networks)
			if s, err := store.Find[*cluster.Service](v, o.Owner); err == nil && balanced(s) {
				p.shared = append(p.shared, ingress)
			}
		}
	case *cluster.Service:
		p.own, p.shared = "service:"+m.ID, networks(v, o.Spec.Networks)
		if balanced(o) {
			p.shared = append(p.shared, ingress)
		}
	case *cluster.Network:
		p.shared = []string{"net:" + o.Spec.Name}
		if o.Spec.Create != nil && o.Spec.Create.Ingress {
			p.shared = append(p.shared, ingress)
		}
		// A container of any node may want it; and each node removes its own.
		if o.Spec.Create != nil && o.Spec.Create.Attachable || o.Spec.Removed {
			p.shared = append(p.shared, everybody)
		}
	case *cluster.Volume:
		if o.Status.Owed { // what others have under its name is not it
			p.own = "self:" + o.Status.Node
			break
		}
		p.shared = []string{"volume:" + o.Spec.Name}
		if o.Spec.Removed {
			p.shared = append(p.shared, everybody)
		}
	case *cluster.Secret, *cluster.Config:
		p.shared = []string{string(o.Kind()) + ":" + m.ID, string(o.Kind()) + ":" + m.Name}
	case *cluster.App:
		p.shared = []string{"app:" + m.ID}
	}
	p.print = printOf(strip(o, raw))
	return p
}

// balanced tells whether every node answers for a service.
func balanced(s *cluster.Service) bool {
	return slices.ContainsFunc(s.Spec.Ports, func(p cluster.Port) bool { return !p.Host })
}

// networks are the topics of attachments. The networks that every engine has of its own
// connect no nodes.
func networks(v store.View, list []cluster.Attachment) []string {
	var out []string
	for _, a := range list {
		name := a.Network
		if n, err := store.Find[*cluster.Network](v, name); err == nil {
			name = n.Spec.Name
		}
		switch name {
		case "", "host", "none", "bridge":
		default:
			out = append(out, "net:"+name)
		}
	}
	return out
}

// fields are what others may see of an object that is not for them: of what it is made
// from, and of how it became what it is, they are told nothing. A network is for all who
// have it, but which address it gave out last is no news.
var fields = map[cluster.Kind]tree{
	cluster.KindCluster: {"ID": nil, "Name": nil, "Status": {"DataPathPort": nil}},
	cluster.KindNode:    {"ID": nil, "Name": nil, "Status": {"Ready": nil, "Addr": nil, "DataPathAddr": nil}},
	cluster.KindApp:     {"ID": nil, "Name": nil},
	cluster.KindService: {
		"ID": nil, "Name": nil, "Owner": nil, "Spec": {"Mode": nil, "Ports": nil, "Endpoint": nil, "Networks": nil},
		"Status": {"VIPs": nil, "Ports": nil},
	},
	cluster.KindTask: {
		"ID": nil, "Name": nil, "Owner": nil, "Node": nil, "Slot": nil, "App": nil, "Halted": nil, "Networks": nil, "Addresses": nil,
		"Desired": nil, "Status": {"State": nil, "Healthy": nil},
	},
	cluster.KindNetwork: {
		"ID": nil, "Name": nil, "Labels": nil, "Owner": nil, "Spec": nil,
		"Status": {"VNI": nil, "Attached": nil, "Subnets": {"Prefix": nil, "Range": nil, "Gateway": nil, "Aux": nil}},
	},
}

// tree are names of fields; nil is all that there is.
type tree map[string]tree

// keep leaves of a value what the tree names; of a list, of each that is in it.
func (t tree) keep(value any) any {
	switch value := value.(type) {
	case map[string]any:
		for name, v := range value {
			below, ok := t[name]
			switch {
			case !ok:
				delete(value, name)
			case below != nil:
				value[name] = below.keep(v)
			}
		}
	case []any:
		for i, v := range value {
			value[i] = t.keep(v)
		}
	}
	return value
}

// strip is an object as those see it who only have to reach it.
func strip(o cluster.Object, raw json.RawMessage) json.RawMessage {
	t, ok := fields[o.Kind()]
	if !ok {
		return raw
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	m := map[string]any{}
	if err := d.Decode(&m); err != nil {
		panic(err) // the store has read it
	}
	t.keep(m)
	if o, ok := o.(*cluster.Task); ok {
		coarsen(m, o)
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic(err) // it was read as JSON
	}
	return b
}

// coarsen leaves one state of those on a task's way to running, so that few of its steps
// concern others.
func coarsen(m map[string]any, t *cluster.Task) {
	desired, state := cluster.TaskRunning, cluster.TaskAssigned
	if t.Desired.Stops() {
		desired = cluster.TaskShutdown
	}
	if t.Status.State == cluster.TaskRunning {
		state = cluster.TaskRunning
	}
	m["Desired"], m["Status"] = desired, map[string]any{"State": state, "Healthy": t.Status.Healthy}
}

// printOf tells two forms apart.
func printOf(raw []byte) uint64 {
	h := fnv.New64a()
	_, _ = h.Write(raw) // never fails
	return h.Sum64()
}

// wants is what a node is interested in: topics, and the secrets and configs that its
// tasks use, the keys of encrypted networks that they are on, and no others.
type wants struct {
	topics map[string]bool
	grants map[Ref]bool
}

// wantsOf says what a node needs for its tasks.
func wantsOf(v store.View, node string) wants {
	w := wants{map[string]bool{everybody: true, ingress: true, "self:" + node: true, "tasks:" + node: true}, map[Ref]bool{}}
	for _, n := range store.List[*cluster.Network](v) {
		for _, a := range n.Status.Attached {
			if a.Node != node {
				continue
			}
			if a.Container != "" {
				w.topics["net:"+n.Spec.Name] = true
			}
			w.keys(v, n)
		}
	}
	for _, t := range store.List[*cluster.Task](v, store.OnNode(node)) {
		if t.Status.State.Before(cluster.TaskAssigned) {
			continue
		}
		w.topics["service:"+t.Owner] = true
		if t.Status.State.Ended() {
			continue
		}
		if t.App != "" {
			w.topics["app:"+t.App] = true
		}
		for _, n := range networks(v, t.Networks) {
			w.topics[n] = true
		}
		for _, a := range t.Addresses {
			if n, err := store.Find[*cluster.Network](v, a.Network); err == nil {
				w.keys(v, n)
			}
		}
		if t.Spec.Host != nil {
			for _, m := range t.Spec.Host.Mounts {
				if m.Type == mount.TypeVolume {
					w.topics["volume:"+m.Source] = true
				}
			}
		}
		if !t.Desired.Stops() {
			grant[*cluster.Secret](v, &w, t, t.Spec.Secrets)
			grant[*cluster.Config](v, &w, t, t.Spec.Configs)
		}
	}
	return w
}

// keys notes those of a network that the node is on.
func (w *wants) keys(v store.View, n *cluster.Network) {
	if !n.Encrypted() {
		return
	}
	name := cluster.KeysOf(n.ID)
	w.topics[string(cluster.KindSecret)+":"+name] = true
	if s, err := store.Named[*cluster.Secret](v, name); err == nil {
		w.grants[Ref{cluster.KindSecret, s.ID}] = true
	}
}

// grant notes what a task's references mean, as its node will find it: by id, by name in
// the task's app, by name.
func grant[T cluster.Object](v store.View, w *wants, t *cluster.Task, refs []cluster.FileRef) {
	var none T
	k := none.Kind()
	for _, ref := range refs {
		if ref.ID != "" {
			w.topics[string(k)+":"+ref.ID], w.grants[Ref{k, ref.ID}] = true, true
			continue
		}
		names := []string{ref.Name}
		if a, err := store.Find[*cluster.App](v, t.App); err == nil {
			names = []string{cluster.Full(a.Name, ref.Name), ref.Name}
		}
		found := false
		for _, name := range names {
			w.topics[string(k)+":"+name] = true
			if o, err := store.Named[T](v, name); err == nil && !found && !cluster.IsInternal(o) {
				found = true
				w.grants[Ref{k, o.Base().ID}] = true
			}
		}
	}
}

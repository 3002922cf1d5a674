package swarm

import (
	"context"
	"reflect"
	"strconv"
	"time"

	"escale.dev/escale/internal/cluster"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"
)

// Events tells of what happens to nodes, services, secrets, configs and networks of the
// swarm until ctx ends or the store does. It blocks.
func (s *Swarm) Events(ctx context.Context, tell func(events.Message)) error {
	kinds := []cluster.Kind{cluster.KindNode, cluster.KindService, cluster.KindSecret, cluster.KindConfig, cluster.KindNetwork}
	for {
		w, err := s.Store.Watch(s.Store.View().Revision(), kinds...)
		for err == nil {
			commits, failed := w.Next(ctx)
			err = failed
			if _, none := the(s.Store.View()); none != nil {
				continue
			}
			for _, c := range commits {
				for _, e := range c.Events {
					if m, ok := event(e.Old, e.New); ok {
						now := time.Now()
						m.Time, m.TimeNano = now.Unix(), now.UnixNano()
						tell(m)
					}
				}
			}
		}
		if !errdefs.IsOutOfRange(err) { // else: slower than the changes; what is lost is lost
			return err
		}
	}
}

// event is what is told of a change, if anything.
func event(was, is cluster.Object) (m events.Message, ok bool) {
	o, action := is, events.ActionUpdate
	switch {
	case was == nil || reflect.ValueOf(was).IsNil():
		was, action = nil, events.ActionCreate
	case is == nil || reflect.ValueOf(is).IsNil():
		o, action = was, events.ActionRemove
	}
	b := o.Base()
	attrs := map[string]string{"name": b.Name}
	told := action != events.ActionUpdate
	switch o := o.(type) {
	case *cluster.Node:
		if !told {
			told = nodeAttrs(attrs, was.(*cluster.Node), o)
		}
	case *cluster.Service:
		if !told {
			told = serviceAttrs(attrs, was.(*cluster.Service), o)
		}
	case *cluster.Secret:
		told = !o.Replaced() && !o.Internal() // that it was is told of the one that has its name
	case *cluster.Config:
		told = !o.Replaced()
	case *cluster.Network:
		told = told && b.Owner == ""
		if o.Spec.Name != "" {
			attrs["name"] = o.Spec.Name
		}
	}
	return events.Message{
		Type: events.Type(o.Kind()), Action: action, Scope: "swarm", Actor: events.Actor{ID: b.ID, Attributes: attrs},
	}, told
}

// differ notes what has changed, in Docker's form.
func differ(attrs map[string]string, what, was, is string) bool {
	if was != is {
		attrs[what+".old"], attrs[what+".new"] = was, is
	}
	return was != is
}

func nodeAttrs(attrs map[string]string, was, is *cluster.Node) bool {
	state := func(n *cluster.Node) string { return map[bool]string{true: "ready", false: "down"}[n.Status.Ready] }
	role := func(n *cluster.Node) string { return map[bool]string{true: "manager", false: "worker"}[n.Spec.Manager] }
	leader := func(n *cluster.Node) bool { return n.Status.Manager != nil && n.Status.Manager.Leader }
	told := differ(attrs, "state", state(was), state(is))
	told = differ(attrs, "availability", string(was.Spec.Availability), string(is.Spec.Availability)) || told
	told = differ(attrs, "role", role(was), role(is)) || told
	told = differ(attrs, "leader", strconv.FormatBool(leader(was)), strconv.FormatBool(leader(is))) || told
	return told || !reflect.DeepEqual(was.Spec, is.Spec)
}

func serviceAttrs(attrs map[string]string, was, is *cluster.Service) bool {
	replicas := func(s *cluster.Service) string {
		if m := s.Spec.Mode.Replicated; m != nil {
			return strconv.FormatUint(m.Replicas, 10)
		}
		return ""
	}
	rollout := func(s *cluster.Service) string {
		if r := s.Status.Rollout; r != nil {
			return string(r.State)
		}
		return ""
	}
	told := differ(attrs, "replicas", replicas(was), replicas(is))
	told = differ(attrs, "image", was.Spec.Task.Container.Image, is.Spec.Task.Container.Image) || told
	told = differ(attrs, "updatestate", rollout(was), rollout(is)) || told
	return told || !reflect.DeepEqual(was.Spec, is.Spec)
}

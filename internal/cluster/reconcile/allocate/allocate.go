// Package allocate is the loop that gives overlay networks their numbers and subnets,
// services their addresses and published ports, and tasks their addresses, before they get
// their nodes. An address is nobody else's as long as its task has not ended.
package allocate

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/address"
	"escale.dev/escale/internal/cluster/store/loop"
	"escale.dev/escale/internal/sys/errtext"
)

// Loop is the loop.
type Loop struct{}

var _ loop.Loop = Loop{}

// The beginnings of keys; an id follows.
const (
	ofNetwork = "network:"
	ofService = "service:"
	ofCluster = "cluster:"
)

// Name implements loop.Loop.
func (Loop) Name() string { return "allocate" }

// Kinds implements loop.Loop.
func (Loop) Kinds() []cluster.Kind {
	return []cluster.Kind{cluster.KindCluster, cluster.KindNetwork, cluster.KindService, cluster.KindTask, cluster.KindNode}
}

// Keys implements loop.Loop.
func (l Loop) Keys(v store.View, e store.Event) []string {
	switch e.Kind() {
	case cluster.KindCluster:
		if e.New != nil {
			return []string{ofCluster + e.New.Base().ID}
		}
	case cluster.KindNetwork:
		return l.network(v, e)
	case cluster.KindService:
		s, _ := e.New.(*cluster.Service)
		old, _ := e.Old.(*cluster.Service)
		var keys []string
		if old != nil && (s == nil || len(s.Status.VIPs) < len(old.Status.VIPs) || len(old.Status.Ports) > 0 && !slices.Equal(s.Status.Ports, old.Status.Ports)) {
			keys = waiting(v) // what it had may be what others wait for
		}
		if s != nil {
			keys = append(keys, ofService+s.ID)
		}
		return keys
	case cluster.KindTask:
		return l.task(v, e)
	case cluster.KindNode:
		if n := address.Ingress(v); n != nil && (e.Old == nil || e.New == nil) {
			return []string{ofNetwork + n.ID}
		}
	}
	return nil
}

// network: one that is new is looked at, and all that may wait for it once it is whole.
// That somebody has got an address of it concerns nobody.
func (l Loop) network(v store.View, e store.Event) []string {
	n, _ := e.New.(*cluster.Network)
	old, _ := e.Old.(*cluster.Network)
	switch {
	case n == nil && !old.Overlay(), old == nil && !n.Overlay():
		return nil
	case n == nil, old == nil, n.Overlay() != old.Overlay(), n.Ready() != old.Ready(), n.Status.Full && len(n.Status.Attached) < len(old.Status.Attached), n.Status.Err != old.Status.Err:
		return l.All(v)
	}
	return nil
}

func (l Loop) task(v store.View, e store.Event) []string {
	t, _ := e.New.(*cluster.Task)
	if t != nil && waits(t) {
		if len(address.Missing(v, t)) == 0 {
			return nil
		}
		return []string{ofService + t.Owner}
	}
	if t != nil && !t.Status.State.Ended() {
		return nil
	}
	old, _ := e.Old.(*cluster.Task)
	if old == nil || old.Status.State.Ended() {
		return nil
	}
	for _, a := range old.Addresses {
		if n, err := store.Find[*cluster.Network](v, a.Network); err == nil && n.Status.Full {
			return waiting(v)
		}
	}
	return nil
}

// waiting is all that could not have what it needs.
func waiting(v store.View) (out []string) {
	for _, n := range store.List[*cluster.Network](v) {
		if n.Overlay() && (n.Status.Err != "" || n.Status.Full) {
			out = append(out, ofNetwork+n.ID)
		}
	}
	for _, s := range store.List[*cluster.Service](v) {
		if s.Status.Err != "" {
			out = append(out, ofService+s.ID)
		}
	}
	return out
}

// All implements loop.Loop.
func (Loop) All(v store.View) (out []string) {
	for _, c := range store.List[*cluster.Cluster](v) {
		out = append(out, ofCluster+c.ID)
	}
	for _, n := range store.List[*cluster.Network](v) {
		if n.Overlay() {
			out = append(out, ofNetwork+n.ID)
		}
	}
	for _, s := range store.List[*cluster.Service](v) {
		out = append(out, ofService+s.ID)
	}
	return out
}

// waits tells whether a task has no node yet, and is to have one.
func waits(t *cluster.Task) bool {
	return t.Waits() && !t.Desired.Stops()
}

// Decide implements loop.Loop.
func (Loop) Decide(v store.View, key string, _ time.Time) (d loop.Decision) {
	if id, ok := strings.CutPrefix(key, ofNetwork); ok {
		if n, err := store.Find[*cluster.Network](v, id); err == nil && n.Overlay() && !n.Spec.Removed {
			d.Changes = overlay(v, n)
		}
		return d
	}
	if id, ok := strings.CutPrefix(key, ofCluster); ok {
		if c, err := store.Find[*cluster.Cluster](v, id); err == nil && !c.Status.Ingress {
			c = store.Copy(c)
			c.Status.Ingress = true
			d.Changes = append(d.Changes, store.Update(c))
			in := cluster.NewIngress()
			if _, err := store.Named[*cluster.Network](v, in.Name); err != nil && address.Ingress(v) == nil {
				d.Changes = append(d.Changes, store.Create(in))
			}
		}
		return d
	}
	s, err := store.Find[*cluster.Service](v, strings.TrimPrefix(key, ofService))
	if err != nil {
		return d
	}
	w := &work{v: v, s: store.Copy(s), books: map[string]*address.Book{}}
	w.service()
	w.tasks()
	d.Changes = w.changes(s)
	return d
}

// work is one look at a service.
type work struct {
	v     store.View
	s     *cluster.Service // a copy
	books map[string]*address.Book
	taken []*cluster.Task // changed
}

// book is that of a network; nil: it is not whole yet.
func (w *work) book(n *cluster.Network) *address.Book {
	if w.books[n.ID] == nil && n.Ready() {
		w.books[n.ID] = address.Open(w.v, n)
	}
	return w.books[n.ID]
}

// service gives the service its addresses and ports.
func (w *work) service() {
	st := &w.s.Status
	st.Err = ""
	if w.s.Spec.Endpoint == cluster.EndpointDNSRR {
		st.VIPs = nil
	} else {
		w.vips()
	}
	w.ports()
}

func (w *work) vips() {
	st := &w.s.Status
	wanted := address.Wanted(w.v, w.s, w.s.Spec.Networks)
	var vips []cluster.VIP
	for _, n := range wanted {
		has := slices.DeleteFunc(slices.Clone(st.VIPs), func(a cluster.VIP) bool { return a.Network != n.ID })
		if len(has) == 0 {
			has = w.vip(n)
		}
		vips = append(vips, has...)
	}
	st.VIPs = vips
}

func (w *work) vip(n *cluster.Network) (out []cluster.VIP) {
	b := w.book(n)
	if b == nil {
		w.s.Status.Err = unmade(n)
		return nil
	}
	got, err := b.Take()
	b.Network().Status.Full = err != nil
	if err != nil {
		w.s.Status.Err = errtext.Of(err)
	}
	for _, p := range got {
		out = append(out, cluster.VIP{Network: n.ID, Addr: p})
	}
	return out
}

// unmade says what is wrong with a network; "" is nothing that somebody could do about.
func unmade(n *cluster.Network) string {
	if n.Status.Err == "" {
		return ""
	}
	return "network " + n.Spec.Name + ": " + n.Status.Err
}

// most is how many tasks one look takes: with the service and its networks they are one
// commit.
const most = store.MaxChanges - 20

// tasks gives those that wait their addresses.
func (w *work) tasks() {
	for _, t := range store.List[*cluster.Task](w.v, store.Owner(w.s.ID)) {
		if len(w.taken) == most {
			return
		}
		if !waits(t) {
			continue
		}
		if missing := address.Missing(w.v, t); len(missing) > 0 && !early(w.v, t) {
			w.task(t, missing)
		}
	}
}

// asked are the addresses that a task is to have on a network, as its spec says.
func asked(v store.View, t *cluster.Task, n *cluster.Network) []netip.Addr {
	for _, a := range t.Networks {
		if s := a.Settings; s == nil || s.IPAMConfig == nil {
			continue
		}
		if o := address.Overlay(v, a.Network); o != nil && o.ID == n.ID {
			return []netip.Addr{a.Settings.IPAMConfig.IPv4Address, a.Settings.IPAMConfig.IPv6Address}
		}
	}
	return nil
}

// early tells whether a network that the task is to be on has still to give way to another one
// of its name.
func early(v store.View, t *cluster.Task) bool {
	return slices.ContainsFunc(t.Networks, func(a cluster.Attachment) bool {
		n := address.Overlay(v, a.Network)
		return n != nil && n.Owner != "" && n.Spec.Made < a.Made
	})
}

// task gives one task its addresses, all or none: none of a service that has none itself,
// whose name would lead nowhere.
func (w *work) task(t *cluster.Task, missing []*cluster.Network) {
	c := store.Copy(t)
	why := w.s.Status.Err
	for _, n := range missing {
		if why != "" {
			break
		}
		b := w.book(n)
		if b == nil {
			why = unmade(n)
			break
		}
		got, err := b.Take(asked(w.v, c, n)...)
		if b.Network().Status.Full = err != nil; err != nil {
			why = errtext.Of(err)
			break
		}
		for _, p := range got {
			c.Addresses = append(c.Addresses, cluster.TaskAddress{Network: n.ID, Addr: p})
		}
	}
	if len(address.Missing(w.v, c)) > 0 {
		if w.s.Status.Err = why; why == t.Status.Err {
			return
		}
		c = store.Copy(t)
		c.Status.Err, c.Status.Message = why, "pending address allocation"
	} else {
		c.Status.Err = ""
	}
	w.taken = append(w.taken, c)
}

// changes are what has become of it.
func (w *work) changes(was *cluster.Service) (out []store.Change) {
	if same(was.Status, w.s.Status) {
		out = append(out, store.Unchanged(was))
	} else {
		out = append(out, store.Update(w.s))
	}
	for _, b := range w.books {
		n := b.Network()
		old, err := store.Find[*cluster.Network](w.v, n.ID)
		if err == nil && (old.Status.Full != n.Status.Full || !slices.EqualFunc(old.Status.Subnets, n.Status.Subnets, func(a, b cluster.Subnet) bool { return a.Last == b.Last })) {
			out = append(out, store.Update(n))
		}
	}
	for _, t := range w.taken {
		out = append(out, store.Update(t))
	}
	if len(out) == 1 && out[0].Op == store.OpUnchanged {
		return nil
	}
	return out
}

func same(a, b cluster.ServiceStatus) bool {
	return a.Err == b.Err && slices.Equal(a.VIPs, b.VIPs) && slices.Equal(a.Ports, b.Ports)
}

package network

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
)

// table holds the networks that there are and who is on them.
type table struct {
	mu     sync.Mutex
	left   *sync.Cond // an endpoint has gone, or the removal of a network is over
	byName map[string]*attached
	claims map[string][]netip.Prefix          // networks that are being made: names, and subnets as far as they are known
	kept   map[string]map[string][]netip.Addr // what containers ask for, by their ids and what they call the network
}

// attached is a network with its driver and the containers on it. Its fields but
// the first three are guarded by the table's lock; info is replaced, never changed.
type attached struct {
	driver     Driver    // nil: it only lends its configuration
	addresses  Addresses // nil: the engine gives them out
	pools      []*pool
	info       Info
	spec       Spec
	containers map[string]Endpoint
	leaving    map[string]parting // by id the endpoints whose container has ended, until nothing of them is left
	freed      uint64             // how many have given their addresses back, of those and of those that came to nothing
	joining    int                // how many are about to be on it
	going      bool               // it is being removed
	broken     error              // why an engine that took it up could not make it whole
}

func newTable() *table {
	t := &table{byName: map[string]*attached{}, claims: map[string][]netip.Prefix{}, kept: map[string]map[string][]netip.Addr{}}
	t.left = sync.NewCond(&t.mu)
	return t
}

// find is the network of an id, a name, or a beginning of the id that only it
// has; NotFound, or InvalidArgument when several begin so.
func (t *table) find(ref string) (*attached, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.findLocked(ref)
}

func (t *table) findLocked(ref string) (*attached, error) {
	if a, ok := t.byName[ref]; ok && len(ref) != 64 {
		return a, nil
	}
	var found []*attached
	for _, a := range t.byName {
		if a.info.ID == ref {
			return a, nil
		}
		if ref != "" && strings.HasPrefix(a.info.ID, ref) {
			found = append(found, a)
		}
	}
	if a, ok := t.byName[ref]; ok {
		return a, nil
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return nil, worded(errdefs.ErrNotFound, "network %s not found", ref)
	default:
		return nil, worded(errdefs.ErrInvalidArgument, "network %s is ambiguous (%d matches found based on ID prefix)", ref, len(found))
	}
}

// hold is find for who is about to join: the network is not removed before free.
func (t *table) hold(ref string) (*attached, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	a, err := t.findLocked(ref)
	if err != nil {
		return nil, err
	}
	if a.going {
		return nil, worded(errdefs.ErrNotFound, "network %s not found", ref)
	}
	a.joining++
	return a, nil
}

func (t *table) free(list []*attached) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, a := range list {
		a.joining--
	}
}

// of is the network of an endpoint; nil when it is no more, though another may
// have its name.
func (t *table) of(ep Endpoint) *attached {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ofLocked(ep)
}

func (t *table) ofLocked(ep Endpoint) *attached {
	a := t.byName[ep.Network]
	if a == nil || ep.NetworkID != "" && a.info.ID != ep.NetworkID {
		return nil
	}
	return a
}

// driverOf is the driver of an endpoint's network; nil when there is none.
func (t *table) driverOf(ep Endpoint) Driver {
	if a := t.of(ep); a != nil {
		return a.driver
	}
	return nil
}

// record and forget keep who is on which network.
func (t *table) record(id string, eps []Endpoint) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, ep := range eps {
		if a := t.ofLocked(ep); a != nil {
			a.containers[id] = ep
		}
	}
}

// forget tells whether the endpoint was there: whoever is told so calls
// giveBack.
func (t *table) forget(id string, ep Endpoint) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	a := t.ofLocked(ep)
	switch {
	case a == nil:
		return false
	case a.containers[id].EndpointID == ep.EndpointID:
		delete(a.containers, id)
	case !a.isLeaving(ep) || a.leaving[ep.EndpointID].releasing:
		return false
	}
	a.leaves(ep, true)
	return true
}

// part notes that a container has ended: it is on no network any more, though some
// of it may be left for a while.
func (t *table) part(id string, eps []Endpoint) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, ep := range eps {
		a := t.ofLocked(ep)
		if a == nil || a.containers[id].EndpointID != ep.EndpointID {
			continue
		}
		delete(a.containers, id)
		a.leaves(ep, false)
	}
}

// withLink are the endpoints of the container that has a link on the host.
func (t *table) withLink(link string) (id string, eps []Endpoint) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, a := range t.byName {
		for container, ep := range a.containers {
			if ep.HostLink == link {
				id = container
			}
		}
	}
	for _, a := range t.byName {
		if ep, ok := a.containers[id]; ok {
			eps = append(eps, ep)
		}
	}
	return id, eps
}

// infoOf is the network's Info without its containers.
func (t *table) infoOf(a *attached) Info {
	t.mu.Lock()
	defer t.mu.Unlock()
	return a.info
}

// snapshot is the network's Info with its containers. Called with the lock held.
func (a *attached) snapshot() Info {
	info := a.info
	info.Containers = maps.Clone(a.containers)
	return info
}

// put adds a network, or replaces it.
func (t *table) put(a *attached) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.byName[a.info.Name] = a
	t.keepAll(a)
}

// drain takes all networks out.
func (t *table) drain() map[string]*attached {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := t.byName
	t.byName = map[string]*attached{}
	return all
}

// claim takes a name for a network that is about to be made; see unclaim. Kinds:
// InvalidArgument, Conflict.
func (t *table) claim(name string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if strings.TrimSpace(name) == "" {
		return worded(errdefs.ErrInvalidArgument, "invalid name: name is empty")
	}
	_, there := t.byName[name]
	if _, claimed := t.claims[name]; there || claimed {
		return worded(errdefs.ErrConflict, "network with name %s already exists", name)
	}
	t.claims[name] = nil
	return nil
}

func (t *table) claimSubnets(name string, list []netip.Prefix) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.claims[name] = list
}

func (t *table) unclaim(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.claims, name)
}

// subnets are those of all networks.
func (t *table) subnets() []netip.Prefix {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []netip.Prefix
	for _, list := range t.claims {
		out = append(out, list...)
	}
	for _, a := range t.byName {
		if !a.info.ConfigOnly {
			out = append(out, prefixes(a.info.IPAM.Subnets)...)
		}
	}
	return out
}

// leave begins the removal of a network, so that nobody joins it any more, or
// tells why it stays. What containers that have ended have there is waited for, and so is
// the end of another's removal: who then makes one of that name finds the name free.
func (t *table) leave(ctx context.Context, ref string) (*attached, error) {
	defer t.wakes(ctx)()
	t.mu.Lock()
	defer t.mu.Unlock()
	a, err := t.findLocked(ref)
	for first := a; err == nil && (a.going || len(a.leaving) > 0 && len(a.containers) == 0) && ctx.Err() == nil; {
		t.left.Wait()
		if a, err = t.findLocked(ref); err == nil && a != first { // another one bears its name by now
			err = worded(errdefs.ErrNotFound, "network %s not found", ref)
		}
	}
	if err == nil && a.going {
		err = worded(errdefs.ErrUnavailable, "network %s is being removed", ref)
	}
	if err != nil {
		return nil, err
	}
	if a.info.Predefined() {
		return nil, worded(errdefs.ErrPermissionDenied, "%s is a pre-defined network and cannot be removed", a.info.Name)
	}
	if a.info.ConfigOnly {
		for _, o := range t.byName {
			if o.info.ConfigFrom == a.info.Name {
				return nil, worded(errdefs.ErrPermissionDenied, "error while removing network: configuration network %q is in use", a.info.Name)
			}
		}
	}
	if len(a.containers) > 0 || a.joining > 0 || len(a.leaving) > 0 {
		var eps []string
		for id, ep := range a.containers {
			name := id
			if len(ep.DNSNames) > 0 {
				name = ep.DNSNames[0]
			}
			eps = append(eps, fmt.Sprintf(`name:%q id:%q`, name, ep.EndpointID[:min(12, len(ep.EndpointID))]))
		}
		slices.Sort(eps)
		return nil, worded(errdefs.ErrPermissionDenied, "error while removing network: network %s has active endpoints (%s)", a.info.Name, strings.Join(eps, ", "))
	}
	a.going = true
	return a, nil
}

// stay ends a removal that did not succeed.
func (t *table) stay(a *attached) {
	t.mu.Lock()
	defer t.mu.Unlock()
	a.going = false
	t.left.Broadcast()
}

// made are all networks by their id, and the drivers of other makers that made them.
func (t *table) made() map[string]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := map[string]string{}
	for _, a := range t.byName {
		out[a.info.ID] = ""
		if a.driver != nil && foreign(a.driver) {
			out[a.info.ID] = a.info.Driver
		}
	}
	return out
}

// drop takes a network out that was removed.
func (t *table) drop(a *attached) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byName[a.info.Name] == a {
		delete(t.byName, a.info.Name)
	}
	t.left.Broadcast()
}

// empty forgets who is on the networks.
func (t *table) empty() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, a := range t.byName {
		clear(a.containers)
		clear(a.leaving)
	}
}

// inspect tells of one network.
func (t *table) inspect(ref string) (Info, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	a, err := t.findLocked(ref)
	if err != nil {
		return Info{}, err
	}
	return a.snapshot(), nil
}

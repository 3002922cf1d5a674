package daemon

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/network/ipam"
	api "github.com/moby/moby/api/types/swarm"
)

// kindOf is what kinds of generic resources are called.
var kindOf = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]*$`)

// generics reads what this node has beside processors and memory: how much of each kind, and
// the names of those that have some.
func generics(asked []string) (counts map[string]int64, named map[string][]string, err error) {
	for _, text := range asked {
		kind, value, ok := strings.Cut(text, "=")
		n, wrong := strconv.ParseInt(value, 10, 64)
		_, counted := counts[kind]
		switch {
		case !ok || !kindOf.MatchString(kind) || value == "" || strings.ContainsAny(value, ", "):
			return nil, nil, fmt.Errorf("invalid --node-generic-resource %q: want KIND=NUMBER or KIND=NAME", text)
		case wrong == nil && n < 0:
			return nil, nil, fmt.Errorf("invalid --node-generic-resource %q: less than nothing", text)
		case counted && (wrong == nil || named[kind] == nil):
			return nil, nil, fmt.Errorf("invalid --node-generic-resource %q: a kind is counted once, or each of it has a name", text)
		case slices.Contains(named[kind], value):
			return nil, nil, fmt.Errorf("invalid --node-generic-resource %q: it is there twice", text)
		}
		if counts == nil {
			counts, named = map[string]int64{}, map[string][]string{}
		}
		if wrong == nil {
			counts[kind] = n
			continue
		}
		named[kind] = append(named[kind], value)
		counts[kind]++
	}
	return counts, named, nil
}

// generic are the same in Docker's form.
func (o *orchestrator) generic() (out []api.GenericResource) {
	counts, named, err := generics(o.d.cfg.Generic)
	if err != nil {
		return nil // it was checked
	}
	for _, kind := range slices.Sorted(maps.Keys(counts)) {
		for _, name := range named[kind] {
			out = append(out, api.GenericResource{NamedResourceSpec: &api.NamedGenericResource{Kind: kind, Value: name}})
		}
		if named[kind] == nil {
			out = append(out, api.GenericResource{DiscreteResourceSpec: &api.DiscreteGenericResource{Kind: kind, Value: counts[kind]}})
		}
	}
	return out
}

// outward writes what the node has beside its engine: resources of kinds that people make
// up, and where it reaches to by itself, with which no overlay network is to overlap.
func (o *orchestrator) outward(s *cluster.NodeStatus) {
	s.Resources.Generic, s.Named, _ = generics(o.d.cfg.Generic) // it was checked
	s.Routes = o.reach.now(func() ([]netip.Prefix, error) {
		var own []netip.Prefix
		for _, n := range o.d.networks.List() {
			for _, sub := range n.IPAM.Subnets {
				own = append(own, sub.Prefix)
			}
		}
		all, err := ipam.Host(0)
		if err != nil {
			o.log.Warn("which subnets this node reaches is not known: overlay networks may overlap with them", "error", err)
		}
		return routes(all, own), err
	})
}

// looked is how often it is looked where a node reaches to.
const looked = time.Minute

// reach is where a node reaches to, which is asked for with every beat. It may be asked by
// several goroutines.
type reach struct {
	mu   sync.Mutex
	at   time.Time
	list []netip.Prefix
}

// now is what look gives, or gave not long ago.
func (r *reach) now(look func() ([]netip.Prefix, error)) []netip.Prefix {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.at.IsZero() || time.Since(r.at) > looked {
		if list, err := look(); err == nil {
			r.list = list
		}
		r.at = time.Now()
	}
	return r.list
}

// routes are the subnets in a list that lie in none of own, nor in one another, the widest
// first. What leads nowhere else is not among them.
func routes(list, own []netip.Prefix) (out []netip.Prefix) {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b netip.Prefix) int { return cmp.Or(a.Bits()-b.Bits(), a.Addr().Compare(b.Addr())) })
	within := func(p netip.Prefix, of []netip.Prefix) bool {
		return slices.ContainsFunc(of, func(o netip.Prefix) bool { return o.Bits() <= p.Bits() && o.Contains(p.Addr()) })
	}
	for _, p := range list {
		if p = p.Masked(); !p.Addr().IsLoopback() && !within(p, own) && !within(p, out) {
			out = append(out, p)
		}
	}
	return out
}

package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"

	"escale.dev/escale/internal/network/lb"
	"escale.dev/escale/internal/sys/netns"
	"github.com/moby/locker"
)

// Services are what a cluster has on one of its networks.
type Services struct {
	// Names are further names there; they come before those of containers.
	Names map[string][]netip.Addr
	// Balanced are addresses of services and who serves them.
	Balanced []lb.Service
}

// balance knows the services of networks, by the networks' ids.
type balance struct {
	mu       sync.Mutex
	services map[string][]lb.Service
	// behind are networks of which some container does not know yet what it should, and the
	// addresses whose datagrams may go astray there.
	behind map[string][]netip.Addr
	busy   *locker.Locker // by container: whose namespace is being changed
}

func newBalance() *balance {
	return &balance{services: map[string][]lb.Service{}, behind: map[string][]netip.Addr{}, busy: locker.New()}
}

// of are the services on the networks of some endpoints.
func (b *balance) of(eps []Endpoint) (out []lb.Service) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, ep := range eps {
		out = append(out, b.services[ep.NetworkID]...)
	}
	return out
}

// set notes the services of a network. same: the containers know them all already; otherwise
// lost are the addresses that some serve no more who may have done.
func (b *balance) set(network string, list []lb.Service) (lost []netip.Addr, same bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	had, told := b.services[network]
	behind, late := b.behind[network]
	if told && !late && lb.Equal(had, list) {
		return nil, true
	}
	b.services[network] = list
	delete(b.behind, network)
	if !told { // what an engine before this one has told them is not known
		return vips(list), false
	}
	return append(lb.Lost(had, list), behind...), false
}

// late notes that a container does not know the services of its networks, all of which are
// told of them with the next word.
func (b *balance) late(lost []netip.Addr, networks ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, id := range networks {
		if _, there := b.services[id]; there {
			b.behind[id] = append(b.behind[id], lost...)
		}
	}
}

// drop forgets a network.
func (b *balance) drop(network string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.services, network)
	delete(b.behind, network)
}

// at once is how many namespaces are changed at a time.
const atOnce = 8

// SetServices says what services there are on a network of the cluster's, and lets the
// containers of this host that are on it know. Blocks for a millisecond or two for each. An
// error is of some containers; the others know, and those are told when it is called again.
func (m *Manager) SetServices(_ context.Context, network string, s Services) error {
	info, err := m.Find(network)
	if err != nil {
		return err
	}
	m.names.setServices(info.ID, s.Names)
	lost, same := m.balance.set(info.ID, s.Balanced)
	if same {
		return nil
	}
	// Who comes from now on knows them by itself.
	if info, err = m.Inspect(info.ID); err != nil {
		return err
	}
	var group sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	slots := make(chan struct{}, atOnce)
	for id := range info.Containers {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			if err := m.balanceIn(id, lost); err != nil {
				mu.Lock()
				errs = append(errs, fmt.Errorf("container %s: %w", id, err))
				mu.Unlock()
			}
		})
	}
	if group.Wait(); len(errs) > 0 {
		m.balance.late(lost, info.ID)
	}
	return errors.Join(errs...)
}

// balanceIn makes the services of a container's namespace those of its networks. Datagrams to
// lost addresses find who serves them now.
func (m *Manager) balanceIn(id string, lost []netip.Addr) error {
	m.balance.busy.Lock(id)
	defer func() { _ = m.balance.busy.Unlock(id) }() // it is locked
	eps := m.networks.endpoints(id)
	if len(eps) == 0 {
		return nil // it has ended
	}
	ns, err := netns.Open(m.Path(id, eps))
	if err != nil {
		return err
	}
	defer ns.Close()
	return ns.Do(func() error { return lb.Set(m.balance.of(eps), lost) })
}

// balanced lets a container know the services of networks that it has come to, or left, by
// these endpoints. It runs all the same when that cannot be, and is told again with the next
// word of one of them.
func (m *Manager) balanced(id string, lost []netip.Addr, eps ...Endpoint) {
	if len(m.balance.of(eps)) == 0 {
		return
	}
	if err := m.balanceIn(id, lost); err != nil {
		m.log.Error("addresses of services lead nowhere in a container", "container", id, "error", err)
		for _, ep := range eps {
			m.balance.late(lost, ep.NetworkID)
		}
	}
}

// vips are the addresses of services.
func vips(list []lb.Service) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, s.VIP)
	}
	return out
}

// endpoints are those of a container that is on networks.
func (t *table) endpoints(id string) (eps []Endpoint) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, a := range t.byName {
		if ep, ok := a.containers[id]; ok {
			eps = append(eps, ep)
		}
	}
	return eps
}

// setServices replaces the further names on a network, by its id.
func (x *index) setServices(network string, names map[string][]netip.Addr) {
	lower := make(map[string][]netip.Addr, len(names))
	for name, addrs := range names {
		lower[strings.ToLower(name)] = addrs
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.services[network] = lower; len(lower) == 0 {
		delete(x.services, network)
	}
}

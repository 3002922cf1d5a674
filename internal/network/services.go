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

// balance knows the services of networks, by their id.
type balance struct {
	mu       sync.Mutex
	services map[string][]lb.Service
	busy     *locker.Locker // by container: whose namespace is being changed
}

func newBalance() *balance { return &balance{services: map[string][]lb.Service{}, busy: locker.New()} }

// of are the services on the networks of some endpoints.
func (b *balance) of(eps []Endpoint) (out []lb.Service) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, ep := range eps {
		out = append(out, b.services[ep.NetworkID]...)
	}
	return out
}

// at once is how many namespaces are changed at a time.
const atOnce = 8

// SetServices says what services there are on a network of the cluster's, and lets the
// containers of this host that are on it know. Blocks for a millisecond or two for each. An
// error is of some containers; the others know.
func (m *Manager) SetServices(_ context.Context, network string, s Services) error {
	info, err := m.Inspect(network)
	if err != nil {
		return err
	}
	m.names.setServices(info.Name, s.Names)
	m.balance.mu.Lock()
	same := lb.Equal(m.balance.services[info.ID], s.Balanced)
	if m.balance.services[info.ID] = s.Balanced; len(s.Balanced) == 0 {
		delete(m.balance.services, info.ID)
	}
	m.balance.mu.Unlock()
	if same {
		return nil
	}
	var group sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	slots := make(chan struct{}, atOnce)
	for id := range info.Containers {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			if err := m.balanceIn(id); err != nil {
				mu.Lock()
				errs = append(errs, fmt.Errorf("container %s: %w", id, err))
				mu.Unlock()
			}
		})
	}
	group.Wait()
	return errors.Join(errs...)
}

// balanceIn makes the services of a container's namespace those of its networks.
func (m *Manager) balanceIn(id string) error {
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
	return ns.Do(func() error { return lb.Set(m.balance.of(eps)) })
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

// setServices replaces the further names on a network.
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

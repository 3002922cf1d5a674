package network

import (
	"context"
	"net/netip"
	"slices"

	"github.com/containerd/errdefs"
)

// parting is an endpoint on its way out.
type parting struct {
	addrs     []netip.Addr
	releasing bool // the kernel has nothing of it any more
}

// leaves notes that an endpoint is on its way out. Called with the table's lock held,
// as is isLeaving.
func (a *attached) leaves(ep Endpoint, releasing bool) {
	p := parting{releasing: releasing}
	for _, s := range []string{ep.IP, ep.IP6} {
		if ip, err := netip.ParseAddr(s); err == nil {
			p.addrs = append(p.addrs, ip)
		}
	}
	if a.leaving == nil {
		a.leaving = map[string]parting{}
	}
	a.leaving[ep.EndpointID] = p
}

func (a *attached) isLeaving(ep Endpoint) bool {
	_, ok := a.leaving[ep.EndpointID]
	return ok
}

// giveBack gives the addresses of an endpoint back, of one that forget has told of or of one
// that came to nothing, and wakes who waits for one.
func (t *table) giveBack(ctx context.Context, a *attached, ep Endpoint) {
	a.release(ctx, ep)
	t.released(a, ep)
}

// released ends what forget began: the addresses of the endpoint are free.
func (t *table) released(a *attached, ep Endpoint) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(a.leaving, ep.EndpointID)
	a.freed++
	t.left.Broadcast()
}

// await waits for the end of those that have one of the addresses and whose container
// has ended, for leavePatience at most: what is taken after that is somebody else's, or
// the kernel's. An address of a container that runs is not waited for. The error is
// that of ctx.
func (t *table) await(ctx context.Context, a *attached, addrs ...netip.Addr) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !a.parts(addrs) {
		return nil
	}
	patient, cancel := context.WithTimeout(ctx, leavePatience)
	defer cancel()
	defer t.wakes(patient)()
	for a.parts(addrs) && patient.Err() == nil {
		t.left.Wait()
	}
	return ctx.Err()
}

// take is take of the network, and on a full one waits for the addresses of those whose
// container has ended, as await does for one that is asked for.
func (t *table) take(ctx context.Context, a *attached, j *Join, v6 bool, want netip.Addr) (place, error) {
	full := func(err error) bool { return errdefs.IsUnavailable(err) && a.addresses == nil && !want.IsValid() }
	at, err := a.take(ctx, j, v6, want)
	if !full(err) {
		return at, err
	}
	patient, cancel := context.WithTimeout(ctx, leavePatience)
	defer cancel()
	t.mu.Lock()
	seen := a.freed
	t.mu.Unlock()
	for more := true; full(err) && more; {
		if at, err = a.take(ctx, j, v6, want); full(err) {
			seen, more = t.awaitFreed(patient, a, v6, seen)
		}
	}
	if ctx.Err() != nil && full(err) {
		return at, ctx.Err()
	}
	return at, err
}

// awaitFreed waits until somebody has given addresses back since seen were.
// It gives how many have by now, and false when nobody with an address of the family is
// leaving, or ctx ends.
func (t *table) awaitFreed(ctx context.Context, a *attached, v6 bool, seen uint64) (uint64, bool) {
	defer t.wakes(ctx)()
	t.mu.Lock()
	defer t.mu.Unlock()
	leaving := func() bool {
		for _, p := range a.leaving {
			if slices.ContainsFunc(p.addrs, func(ip netip.Addr) bool { return ip.Is6() == v6 }) {
				return true
			}
		}
		return false
	}
	for a.freed == seen && leaving() && ctx.Err() == nil {
		t.left.Wait()
	}
	return a.freed, a.freed != seen
}

// parts tells whether one of the addresses is that of an endpoint on its way out.
// Called with the table's lock held.
func (a *attached) parts(addrs []netip.Addr) bool {
	for _, p := range a.leaving {
		if slices.ContainsFunc(p.addrs, func(ip netip.Addr) bool { return slices.Contains(addrs, ip) }) {
			return true
		}
	}
	return false
}

// wakes lets those who wait for left look again when ctx ends, until stop. The lock
// makes sure that none of them is between its look and its sleep.
func (t *table) wakes(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.left.Broadcast()
	})
}

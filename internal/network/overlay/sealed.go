package overlay

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"escale.dev/escale/internal/network/firewall"
	"escale.dev/escale/internal/network/overlay/esp"
	"github.com/containerd/errdefs"
)

// ability is whether the kernel encrypts.
type ability struct {
	probe func() error
	mu    sync.Mutex
	asked time.Time
	err   error
}

// now asks the kernel, unless it has said yes, or no within the last minute.
func (a *ability) now() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.asked.IsZero() || a.err != nil && time.Since(a.asked) > time.Minute {
		a.err, a.asked = a.probe(), time.Now()
	}
	return a.err
}

// SetKeys says by which keys a network is encrypted; they are used as SetPeers comes next.
// Without any, what the kernel has stays as it is. NotFound when there is no such network.
func (d *Driver) SetKeys(_ context.Context, id string, k esp.Keys) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.networks[id]
	if s == nil {
		return fmt.Errorf("network %s not found: %w", id, errdefs.ErrNotFound)
	}
	if k.Known() {
		s.keys = k
	}
	return nil
}

// from are the UDP ports that the VXLAN link of a network sends from, the last one not among
// them; 0: those of the kernel's choice.
func (s *spanned) from() (low, high int) {
	if !s.seal {
		return 0, 0
	}
	low = int(esp.Port(s.vni))
	return low, low + 1
}

// encrypt has the kernel encrypt what goes to the nodes of peers, and take nothing else from
// them. Called with mu held, as all that follow.
func (d *Driver) encrypt(s *spanned) error {
	n := esp.Network{ID: s.id, VNI: s.vni, To: d.under.Port, Local: d.under.Local, Keys: s.keys}
	for _, p := range s.peers {
		if p.VTEP != n.Local && !slices.Contains(n.Peers, p.VTEP) {
			n.Peers = append(n.Peers, p.VTEP)
		}
	}
	slices.SortFunc(n.Peers, netip.Addr.Compare)
	if err := d.sealed(); err != nil { // the port may be another one
		return err
	}
	return d.cipher.Set(n)
}

// sealed has the firewall drop what is not encrypted of the networks that are to be.
func (d *Driver) sealed() error {
	var list []firewall.Sealed
	for _, s := range d.networks {
		if s.seal && s.vni != 0 {
			list = append(list, firewall.Sealed{VNI: s.vni, From: esp.Port(s.vni), To: cmp.Or(d.under.Port, defaultPort)})
		}
	}
	slices.SortFunc(list, func(a, b firewall.Sealed) int { return cmp.Compare(a.VNI, b.VNI) })
	return d.Bridges.Seal(list)
}

// sweepSealed removes what the kernel has of networks that nobody knows.
func (d *Driver) sweepSealed() error {
	var known []uint32
	for _, s := range d.networks {
		if s.seal {
			known = append(known, s.vni)
		}
	}
	return d.cipher.Sweep(known)
}

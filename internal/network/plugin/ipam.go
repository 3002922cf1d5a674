package plugin

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"

	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/plugin"
	"github.com/containerd/errdefs"
)

// addresses are those of one IPAM driver.
type addresses struct {
	*Store
	name string
}

var _ network.Addresses = addresses{}

// ipamCaps are what an IPAM driver says of itself.
type ipamCaps struct {
	RequiresMACAddress    bool
	RequiresRequestReplay bool
}

// ipam finds an IPAM driver and what it wants. One that is to be told after a start of
// the engine what it gave is told first.
func (s *Store) ipam(ctx context.Context, name string, known bool) (caller, ipamCaps, error) {
	c, err := s.find(ctx, name, plugin.IpamDriver, known)
	if err != nil {
		return c, ipamCaps{}, err
	}
	s.mu.Lock()
	caps, ok := s.caps[name]
	turn := s.replay[name]
	if turn == nil {
		turn = new(sync.Mutex)
		s.replay[name] = turn
	}
	s.mu.Unlock()
	if ok {
		return c, caps, nil
	}
	turn.Lock()
	defer turn.Unlock()
	if err := c.call(ctx, "GetCapabilities", nil, &caps, plugin.How{}); err != nil && !isRemote(err) {
		return c, caps, err
	}
	s.mu.Lock()
	_, done := s.caps[name]
	s.mu.Unlock()
	if caps.RequiresRequestReplay && !done {
		if err := s.tellAgain(ctx, c); err != nil {
			return c, caps, err
		}
	}
	s.mu.Lock()
	s.caps[name] = caps
	s.mu.Unlock()
	return c, caps, nil
}

// tellAgain repeats to an IPAM driver what an engine before this one had of it, pools
// first. An error says that it cannot be reached.
func (s *Store) tellAgain(ctx context.Context, c caller) error {
	moved := map[string]string{} // ids of pools
	all := s.all()
	slices.SortFunc(all, func(a, b *entry) int { return len(a.network) - len(b.network) })
	for _, e := range all {
		if err := e.lock(ctx); err != nil {
			return err
		}
		var err error
		if _, over := s.marked(e); e.old && !e.gone && !over && e.note.IPAM == c.Name {
			err = s.repeat(ctx, c, e, moved)
		}
		e.unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// repeat repeats what one entry has.
func (s *Store) repeat(ctx context.Context, c caller, e *entry, moved map[string]string) error {
	object := func(err error) error {
		if isRemote(err) {
			s.cfg.Logger.Warn("an IPAM driver was told again what it gave and objects", "plugin", c.Name, "id", e.note.ID, "error", err)
			return nil
		}
		return err
	}
	for i, p := range e.note.Pools {
		if p.ID == "" {
			continue
		}
		p.Pool = p.Prefix
		got, err := c.requestPool(ctx, p)
		if err == nil && got.PoolID != p.ID {
			moved[p.ID], e.note.Pools[i].ID = got.PoolID, got.PoolID
		}
		if err := object(err); err != nil {
			return err
		}
	}
	for i, a := range e.note.Addresses {
		if id, ok := moved[a.PoolID]; ok {
			e.note.Addresses[i].PoolID, a.PoolID = id, id
		}
		if p, err := netip.ParsePrefix(a.Address); err == nil {
			a.Want = p.Addr().String()
			_, err = c.requestAddress(ctx, a)
			if err := object(err); err != nil {
				return err
			}
		}
	}
	return s.save(e, false)
}

func (c caller) requestPool(ctx context.Context, p poolNote) (got granted, err error) {
	err = c.call(ctx, "RequestPool", map[string]any{
		"AddressSpace": p.AddressSpace, "Pool": p.Pool, "SubPool": p.SubPool, "Options": p.Options, "V6": p.V6,
	}, &got, plugin.How{})
	return got, err
}

func (c caller) requestAddress(ctx context.Context, a addressNote) (string, error) {
	var got struct{ Address string }
	err := c.call(ctx, "RequestAddress", map[string]any{"PoolID": a.PoolID, "Address": a.Want, "Options": a.Options}, &got, plugin.How{})
	return got.Address, err
}

// Pools implements network.Addresses.
func (s addresses) Pools(ctx context.Context, ask network.PoolRequest) ([]network.Subnet, error) {
	ctx, cancel := s.bound(ctx, makeTime)
	defer cancel()
	c, _, err := s.ipam(ctx, s.name, false)
	if err != nil {
		return nil, err
	}
	var spaces struct{ LocalDefaultAddressSpace string }
	if err := c.call(ctx, "GetDefaultAddressSpaces", nil, &spaces, plugin.How{}); err != nil {
		return nil, err
	}
	e, err := s.open(ctx, ask.Network, "", "")
	if err != nil {
		return nil, err
	}
	e.note.IPAM = s.name
	var out []network.Subnet
	for _, want := range ask.Subnets {
		var got network.Subnet
		if got, err = s.pool(ctx, c, e, spaces.LocalDefaultAddressSpace, want, ask); err != nil {
			break
		}
		out = append(out, got)
	}
	e.unlock()
	if err != nil {
		s.end(ctx, e, true, true)
		return nil, err
	}
	return out, nil
}

// pool requests one pool, its gateway and the addresses in it that are others'; the
// entry is locked.
func (s addresses) pool(ctx context.Context, c caller, e *entry, space string, want network.Subnet, ask network.PoolRequest) (got network.Subnet, err error) {
	v6 := want.Prefix.Addr().Is6()
	p := poolNote{AddressSpace: space, V6: v6, Options: ours(ask.Options, ask.Network)}
	if want.Prefix.Bits() > 0 {
		p.Pool = want.Prefix.String()
	}
	if want.Range.IsValid() {
		p.SubPool = want.Range.String()
	}
	e.note.Pools = append(e.note.Pools, p)
	if err := s.save(e, true); err != nil {
		return got, err
	}
	last := len(e.note.Pools) - 1
	answer, err := c.requestPool(ctx, p)
	if isRemote(err) { // it gave none
		e.note.Pools = e.note.Pools[:last]
	}
	if err != nil {
		return got, err
	}
	e.note.Pools[last].ID = answer.PoolID
	prefix, gateway, err := answer.parse(v6)
	if err == nil && answer.PoolID == "" {
		err = fmt.Errorf("plugin %s gives pool %s without an id", c.Name, prefix)
	}
	if err != nil {
		return got, err
	}
	e.note.Pools[last].Prefix = prefix.String()
	if err := s.save(e, true); err != nil {
		return got, err
	}
	got = network.Subnet{Prefix: prefix, Range: want.Range, Gateway: gateway, Asked: want.Asked}
	if want.Gateway.IsValid() || !gateway.IsValid() && !ask.NoGateway(v6) {
		options := ours(map[string]string{optAddressType: optGateway}, ask.Network)
		at, err := s.request(ctx, c, e, answer.PoolID, prefix, want.Gateway, options)
		if err != nil {
			return got, errdefs.ErrInternal.WithMessage(fmt.Sprintf("failed to allocate gateway (%s): %s", textOf(want.Gateway), err))
		}
		got.Gateway = at.Addr()
	}
	for _, name := range slices.Sorted(maps.Keys(want.Aux)) {
		a := want.Aux[name]
		if !prefix.Contains(a) {
			return got, errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("auxiliary address: (%s:%s) must belong to the master pool: %s", name, a, prefix))
		}
		if a != got.Gateway {
			if _, err := s.request(ctx, c, e, answer.PoolID, prefix, a, ours(nil, ask.Network)); err != nil {
				return got, errdefs.ErrInternal.WithMessage(fmt.Sprintf("failed to allocate secondary ip address (%s:%s): %s", name, a, err))
			}
		}
	}
	got.Aux = want.Aux
	return got, nil
}

func textOf(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// ours adds to options for whom something is asked.
func ours(options map[string]string, id string) map[string]string {
	out := maps.Clone(options)
	if out == nil {
		out = map[string]string{}
	}
	out[optOurs] = id
	return out
}

// request requests one address; the entry is locked.
func (s addresses) request(ctx context.Context, c caller, e *entry, pool string, prefix netip.Prefix, want netip.Addr, options map[string]string) (netip.Prefix, error) {
	a := addressNote{PoolID: pool, Want: textOf(want), Options: options}
	e.note.Addresses = append(e.note.Addresses, a)
	if err := s.save(e, true); err != nil {
		return netip.Prefix{}, err
	}
	last := len(e.note.Addresses) - 1
	text, err := c.requestAddress(ctx, a)
	if isRemote(err) { // it gave none
		e.note.Addresses = e.note.Addresses[:last]
		return netip.Prefix{}, withNote(err, s.save(e, false))
	}
	if err != nil {
		return netip.Prefix{}, err
	}
	e.note.Addresses[last].Address = text
	at, err := parseAddress(text, prefix)
	return at, errors.Join(err, s.save(e, true))
}

// Take implements network.Addresses.
func (s addresses) Take(ctx context.Context, ask *network.AddressRequest) (netip.Prefix, error) {
	at, err := s.take(ctx, ask)
	if err != nil {
		s.GiveBack(ctx, ask.Endpoint)
	}
	return at, err
}

func (s addresses) take(ctx context.Context, ask *network.AddressRequest) (at netip.Prefix, err error) {
	ctx, cancel := s.bound(ctx, joinTime)
	defer cancel()
	c, caps, err := s.ipam(ctx, s.name, true)
	if err != nil {
		return at, err
	}
	pool, err := s.poolID(ctx, ask.Network, ask.Subnet)
	if err != nil {
		return at, err
	}
	if caps.RequiresMACAddress && len(ask.MAC) == 0 {
		sum := sha256.Sum256([]byte(ask.Endpoint))
		ask.MAC = net.HardwareAddr{0x02, 0x42, sum[0], sum[1], sum[2], sum[3]}
	}
	options := ours(nil, ask.Endpoint)
	if caps.RequiresMACAddress {
		options[optMAC] = ask.MAC.String()
	}
	e, err := s.open(ctx, ask.Endpoint, ask.Network, ask.Container)
	if err != nil {
		return at, err
	}
	defer e.unlock()
	e.note.IPAM = s.name
	return s.request(ctx, c, e, pool, ask.Subnet, ask.Want, options)
}

// poolID is the pool of a network that has a prefix.
func (s *Store) poolID(ctx context.Context, network string, prefix netip.Prefix) (id string, err error) {
	err = s.eachPool(ctx, network, func(p netip.Prefix, one string) {
		if p == prefix {
			id = one
		}
	})
	if err == nil && id == "" {
		err = fmt.Errorf("network %s: its IPAM driver has given no pool %s", network, prefix)
	}
	return id, err
}

// poolOf is the prefix of the pool of a network that has an address.
func (s *Store) poolOf(ctx context.Context, network string, at netip.Addr) (pool netip.Prefix, err error) {
	err = s.eachPool(ctx, network, func(p netip.Prefix, _ string) {
		if p.Contains(at) {
			pool = p
		}
	})
	if err == nil && !pool.IsValid() {
		err = errdefs.ErrNotFound.WithMessage(fmt.Sprintf("network %s has no pool with address %s", network, at))
	}
	return pool, err
}

func (s *Store) eachPool(ctx context.Context, network string, f func(p netip.Prefix, id string)) error {
	e := s.entry(network)
	if e == nil {
		return nil
	}
	if err := e.lock(ctx); err != nil {
		return err
	}
	defer e.unlock()
	for _, p := range e.note.Pools {
		if prefix, err := netip.ParsePrefix(p.Prefix); err == nil {
			f(prefix, p.ID)
		}
	}
	return nil
}

// GiveBack implements network.Addresses.
func (s addresses) GiveBack(ctx context.Context, endpoint string) {
	s.end(ctx, s.entry(endpoint), true, true)
}

// Drop implements network.Addresses.
func (s addresses) Drop(ctx context.Context, id string) { s.end(ctx, s.entry(id), true, true) }

// endAddresses gives back what an entry has; the entry is locked. What was asked for
// without an answer is asked for again in the same words, to be given back then. What has
// been given back is not in the note any more when a plugin cannot be reached half-way.
func (s *Store) endAddresses(ctx context.Context, e *entry) error {
	n := &e.note
	if n.empty() {
		return nil
	}
	c, err := s.find(ctx, n.IPAM, plugin.IpamDriver, false)
	if err != nil {
		return err
	}
	how := plugin.How{Timeout: endTime, Once: true}
	for len(n.Addresses) > 0 {
		if err := s.endAddress(ctx, c, e, len(n.Addresses)-1); err != nil {
			return err
		}
	}
	for len(n.Pools) > 0 {
		p := n.Pools[len(n.Pools)-1]
		if p.ID == "" {
			got, err := c.requestPool(ctx, p)
			if err != nil && !isRemote(err) {
				return err
			}
			p.ID = got.PoolID
		}
		if p.ID != "" {
			err = c.call(ctx, "ReleasePool", map[string]any{"PoolID": p.ID}, nil, how)
			if err := s.heard("ReleasePool", e, err); err != nil {
				return err
			}
		}
		n.Pools = n.Pools[:len(n.Pools)-1]
	}
	return nil
}

// endAddress gives back one address of a note.
func (s *Store) endAddress(ctx context.Context, c caller, e *entry, at int) (err error) {
	a := &e.note.Addresses[at]
	a.Ending = true // cut off here, an endpoint that lives all the same asks for it again
	if err := s.save(e, false); err != nil {
		return err
	}
	if a.Address == "" {
		if a.Address, err = c.requestAddress(ctx, *a); err != nil && !isRemote(err) {
			return err
		}
	}
	text := a.Address
	if p, bad := netip.ParsePrefix(text); bad == nil {
		text = p.Addr().String()
	}
	if text != "" {
		err = c.call(ctx, "ReleaseAddress", map[string]any{"PoolID": a.PoolID, "Address": text}, nil, plugin.How{Timeout: endTime, Once: true})
		if err := s.heard("ReleaseAddress", e, err); err != nil {
			return err
		}
	}
	e.note.Addresses = slices.Delete(e.note.Addresses, at, at+1)
	return nil
}

// endGoing goes on with what an engine before this one was giving back; the entry is locked.
func (s *Store) endGoing(ctx context.Context, e *entry) error {
	for i := len(e.note.Addresses) - 1; i >= 0; i-- {
		if !e.note.Addresses[i].Ending {
			continue
		}
		c, err := s.find(ctx, e.note.IPAM, plugin.IpamDriver, true)
		if err == nil {
			err = s.endAddress(ctx, c, e, i)
		}
		if err != nil {
			return err
		}
	}
	if e.note.empty() {
		return s.save(e, false)
	}
	return nil
}

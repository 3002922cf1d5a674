package bridge

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/sys/netns"
	"escale.dev/escale/internal/sys/rtnl"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// plug is a link of ours on a bridge.
type plug struct {
	network string // id
	hairpin bool
}

// Mends implements network.Mender.
func (d *Driver) Mends(whose func(hostLink string) (network.Live, bool)) { d.whose = whose }

// Watch implements network.Watcher: the firewall's rules, and bridges and links of
// containers that somebody deletes.
func (d *Driver) Watch(ctx context.Context, ready func()) error {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK)
	if err != nil {
		ready()
		return errors.Join(fmt.Errorf("links of the host: %w", err), d.fw.Watch(ctx, func() {}))
	}
	defer context.AfterFunc(ctx, s.Close)()
	ended := make(chan error, 1)
	go func() { ended <- healer{d}.watchLinks(ctx, s) }()
	err = d.fw.Watch(ctx, ready)
	s.Close()
	return errors.Join(err, <-ended)
}

// healer makes bridges and links anew that somebody removed.
type healer struct{ *Driver }

// watchLinks heals as long as the socket is open.
func (d healer) watchLinks(ctx context.Context, s *nl.NetlinkSocket) error {
	for {
		msgs, _, err := s.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS): // some were lost: any bridge may be gone
			d.heal(0)
			d.mendAll()
			continue
		case err != nil:
			return err
		}
		for _, m := range msgs {
			if m.Header.Type != unix.RTM_DELLINK || len(m.Data) < unix.SizeofIfInfomsg {
				continue
			}
			info := nl.DeserializeIfInfomsg(m.Data)
			d.heal(int(info.Index))
			if info.Family != unix.AF_UNSPEC { // it left a bridge
				continue
			}
			attrs, err := nl.ParseRouteAttrAsMap(m.Data[unix.SizeofIfInfomsg:])
			if name, ok := attrs[unix.IFLA_IFNAME]; err == nil && ok {
				d.mend(unix.ByteSliceToString(name.Value))
			}
		}
	}
}

// heal makes the bridge with this index anew, or with 0 whichever is gone, if a
// network wants it, with its address and its ports.
func (d healer) heal(index int) {
	d.mu.Lock()
	var hurt []*bridged
	for _, b := range d.networks {
		if index == 0 || b.index == index {
			hurt = append(hurt, b)
		}
	}
	d.mu.Unlock()
	for _, b := range hurt {
		if err := d.healOne(b); err != nil {
			d.log.Error("bridge that somebody removed could not be made anew", "bridge", b.opts.link, "error", err)
		}
	}
}

func (d healer) healOne(old *bridged) error {
	if l, err := netlink.LinkByIndex(old.index); err == nil && l.Type() == "bridge" {
		return nil // a port of it has gone, or an index is used again
	}
	d.healing.Lock()
	defer d.healing.Unlock()
	d.mu.Lock()
	present := d.networks[old.spec.ID] == old
	d.mu.Unlock()
	if !present { // removed by its owner, or made anew by another call
		return nil
	}
	d.log.Warn("bridge was removed by somebody: making it anew", "bridge", old.opts.link)
	b := &bridged{spec: old.spec, opts: old.opts}
	if err := d.ensureAgain(b, old); err != nil {
		return err
	}
	d.mu.Lock()
	if d.networks[old.spec.ID] != old {
		d.mu.Unlock()
		return deleteLink(b.opts.link) // its network was removed meanwhile
	}
	d.networks[old.spec.ID] = b
	plugs := maps.Clone(d.plugs)
	d.mu.Unlock()
	c, err := rtnl.Dial()
	if err != nil {
		return err
	}
	defer c.Close()
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(plugs)) {
		if plugs[name].network != old.spec.ID {
			continue
		}
		l, err := netlink.LinkByName(name)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			continue // its container ends
		}
		if err == nil {
			err = netlink.LinkSetMasterByIndex(l, b.index)
		}
		if err == nil {
			err = c.Do(portRequest(b, name, plugs[name].hairpin))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("link %q: %w", name, err))
		}
	}
	d.healed(old.spec.ID)
	return errors.Join(errs...)
}

// ensureAgain makes a bridge as it was; the default one with the address it had.
func (d healer) ensureAgain(b, old *bridged) error {
	if old.spec.Name != network.Bridge {
		return d.ensure(b)
	}
	index, _, err := d.ensureBridge(b.opts.link, netip.PrefixFrom(old.v4.Gateway, old.v4.Prefix.Bits()), nil)
	if err != nil {
		return err
	}
	b.index, b.v4, b.v6 = index, old.v4, old.v6
	return d.settings(b)
}

// note remembers a port; forget does not.
func (d *Driver) note(link, id string, hairpin bool) {
	if !d.ours(link) {
		return // a record may say anything
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.plugs[link] = plug{id, hairpin}
}

func (d *Driver) forget(link string) {
	d.healing.Lock() // whoever makes it anew has done so by then
	defer d.healing.Unlock()
	delete(d.mended, link)
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.plugs, link)
}

// How often a link is made anew at once; then the next start of the engine does it.
// A container with the right to may delete its own.
const (
	mendsAtMost = 5
	mendsWithin = time.Minute
)

// mendAll makes all links anew that are gone.
func (d healer) mendAll() {
	d.mu.Lock()
	names := slices.Sorted(maps.Keys(d.plugs))
	d.mu.Unlock()
	for _, name := range names {
		d.mend(name)
	}
}

// mend makes a link of a container that runs anew if somebody has deleted it.
func (d healer) mend(name string) {
	d.healing.Lock()
	defer d.healing.Unlock()
	d.mu.Lock()
	p, wanted := d.plugs[name]
	b := d.networks[p.network]
	d.mu.Unlock()
	if !wanted || b == nil {
		return
	}
	if _, err := netlink.LinkByName(name); !errors.As(err, new(netlink.LinkNotFoundError)) {
		return
	}
	l, ok := d.whose(name)
	if !ok || !netns.Bound(l.Path) {
		return // its container ends
	}
	now := time.Now()
	recent := slices.DeleteFunc(d.mended[name], func(at time.Time) bool { return now.Sub(at) > mendsWithin })
	if len(recent) >= mendsAtMost {
		d.log.Warn("link of a running container is deleted again and again: it is left so", "container", l.ContainerID, "link", name)
		return
	}
	d.mended[name] = append(recent, now)
	if err := d.reconnect(b, l, p.hairpin); err != nil {
		d.log.Error("link that somebody removed could not be made anew", "container", l.ContainerID, "link", name, "error", err)
	}
}

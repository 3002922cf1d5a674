package overlay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/network/overlay/esp"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

var _ network.Watcher = (*Driver)(nil)

// settling is how long after a loss it is made good: what is lost comes in many pieces.
const settling = 100 * time.Millisecond

// Watch implements network.Watcher: states and policies of encrypted networks that somebody
// removes are made anew. Without them nothing of these networks goes out or comes in.
func (d *Driver) Watch(ctx context.Context, ready func()) error {
	defer ready()
	s, err := nl.Subscribe(unix.NETLINK_XFRM, nl.XFRMNLGRP_SA, nl.XFRMNLGRP_POLICY)
	if esp.Absent(err) {
		return nil // there is nothing to lose
	}
	if err != nil {
		return fmt.Errorf("XFRM: %w", err)
	}
	defer context.AfterFunc(ctx, s.Close)()
	lost := make(chan struct{}, 1)
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-lost:
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(settling):
				d.remake()
			}
		}
	}()
	ready()
	for {
		msgs, _, err := s.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !errors.Is(err, unix.ENOBUFS): // then some were lost
			return fmt.Errorf("XFRM: %w", err)
		}
		loss := err != nil
		for _, m := range msgs {
			switch nl.XfrmMsgType(m.Header.Type) {
			case nl.XFRM_MSG_DELSA, nl.XFRM_MSG_FLUSHSA, nl.XFRM_MSG_DELPOLICY, nl.XFRM_MSG_FLUSHPOLICY:
				loss = true
			}
		}
		if loss {
			select {
			case lost <- struct{}{}:
			default:
			}
		}
	}
}

// remake makes what the kernel is to have of encrypted networks, as far as it has not.
func (d *Driver) remake() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for id, s := range d.networks {
		if !s.seal || !s.told || len(s.peers) == 0 || !s.keys.Known() || !d.under.Local.IsValid() {
			continue
		}
		if err := d.encrypt(s); err != nil {
			d.log.Error("an encrypted network is cut off from other nodes", "network", id, "error", err)
		}
	}
}

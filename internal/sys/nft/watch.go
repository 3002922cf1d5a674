package nft

import (
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Event is a change of somebody's tables. Table is empty when changes were lost,
// so that anything may have happened.
type Event struct {
	Family Family
	Table  string
	Kind   Kind
	By     uint32 // netlink's id of the socket that made it
}

// Kind is what an Event tells of.
type Kind int

// The kinds of events.
const (
	Lost     Kind = iota // the kernel dropped events
	Deleted              // a table is gone
	Chains               // a chain came or went
	Rules                // a rule came or went
	Contents             // a set or map, or elements of one, went
)

// Watcher receives the changes that any program makes to nftables.
type Watcher struct{ conn *netlink.Conn }

// Watch starts to listen, in the network namespace of the calling thread.
func Watch() (*Watcher, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("nftables events: %w", err)
	}
	if err := conn.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		conn.Close()
		return nil, fmt.Errorf("nftables events: %w", err)
	}
	return &Watcher{conn: conn}, nil
}

// Next blocks until something has changed. Its error is permanent: the watcher
// was closed.
func (w *Watcher) Next() ([]Event, error) {
	for {
		msgs, err := w.conn.Receive()
		if errors.Is(err, unix.ENOBUFS) {
			return []Event{{Kind: Lost}}, nil
		}
		if err != nil {
			return nil, err
		}
		var events []Event
		for _, m := range msgs {
			if e, ok := event(m); ok {
				events = append(events, e)
			}
		}
		if len(events) > 0 {
			return events, nil
		}
	}
}

// Close ends Next.
func (w *Watcher) Close() error { return w.conn.Close() }

// event reads what one message tells. In all of them the body begins with a
// struct nfgenmsg, whose first byte is the family, and attribute 1 names the table.
func event(m netlink.Message) (Event, bool) {
	const header = 4
	if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Data) < header {
		return Event{}, false
	}
	e := Event{By: m.Header.PID}
	switch m.Data[0] {
	case unix.NFPROTO_INET:
		e.Family = Inet
	case unix.NFPROTO_IPV4:
		e.Family = IPv4
	case unix.NFPROTO_IPV6:
		e.Family = IPv6
	case unix.NFPROTO_BRIDGE:
		e.Family = Bridge
	default:
		return Event{}, false
	}
	switch m.Header.Type & 0xff {
	case unix.NFT_MSG_DELTABLE:
		e.Kind = Deleted
	case unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN:
		e.Kind = Chains
	case unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE:
		e.Kind = Rules
	case unix.NFT_MSG_DELSET, unix.NFT_MSG_DELSETELEM:
		e.Kind = Contents
	default:
		return Event{}, false
	}
	attrs, err := netlink.NewAttributeDecoder(m.Data[header:])
	if err != nil {
		return Event{}, false
	}
	for attrs.Next() {
		if attrs.Type() == unix.NFTA_TABLE_NAME {
			e.Table = attrs.String()
			return e, true
		}
	}
	return Event{}, false
}

package bridge

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"escale.dev/escale/internal/sys/rtnl"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// remover deletes links of the host. The kernel waits some 20 ms for each,
// holding up every other change of links meanwhile, but no longer for many at
// once: so those that come while it is at work go together in the next round.
type remover struct {
	group uint32 // number of the group in which links are gathered to be deleted

	mu      sync.Mutex
	working bool
	waiting []removal
}

type removal struct {
	link string
	done chan<- error
}

// remove deletes a link by name and blocks until it is gone; one that is not
// there is no error.
func (r *remover) remove(link string) error {
	done := make(chan error, 1)
	r.mu.Lock()
	r.waiting = append(r.waiting, removal{link, done})
	if !r.working {
		r.working = true
		go r.work()
	}
	r.mu.Unlock()
	return <-done
}

// work goes on for as long as links wait.
func (r *remover) work() {
	for {
		r.mu.Lock()
		round := r.waiting
		r.waiting = nil
		if len(round) == 0 {
			r.working = false
			r.mu.Unlock()
			return
		}
		r.mu.Unlock()
		names := make([]string, len(round))
		for i, w := range round {
			names[i] = w.link
		}
		err := deleteLinks(r.group, names)
		for _, w := range round {
			w.done <- err
		}
	}
}

// deleteLinks deletes links in one go; those that are not there are no error.
func deleteLinks(group uint32, names []string) error {
	if len(names) == 1 {
		return deleteLink(names[0])
	}
	c, err := rtnl.Dial()
	if err != nil {
		return err
	}
	defer c.Close()
	for part := range slices.Chunk(names, 200) { // what fits into a message and its answers into a buffer
		reqs := make([]*nl.NetlinkRequest, len(part))
		for i, n := range part {
			reqs[i] = nl.NewNetlinkRequest(unix.RTM_NEWLINK, 0)
			reqs[i].AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
			reqs[i].AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(n)))
			reqs[i].AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(group)))
		}
		errs, err := c.DoAll(reqs...)
		if err != nil {
			return fmt.Errorf("delete links: %w", err)
		}
		for i, err := range errs {
			if err != nil && !errors.Is(err, unix.ENODEV) {
				return fmt.Errorf("delete link %q: %w", part[i], err)
			}
		}
	}
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, 0)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(group)))
	if err := c.Do(req); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete links %q: %w", names, err)
	}
	return nil
}

// deleteLink deletes one link; one that is not there is no error.
func deleteLink(name string) error {
	c, err := rtnl.Dial()
	if err != nil {
		return err
	}
	defer c.Close()
	// Off its bridge first: there it would go down before it is gone.
	off := nl.NewNetlinkRequest(unix.RTM_NEWLINK, 0)
	off.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	off.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	off.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(0)))
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, 0)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	if err := c.Do(off, req); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete link %q: %w", name, err)
	}
	return nil
}

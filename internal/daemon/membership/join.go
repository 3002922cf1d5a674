package membership

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"escale.dev/escale/internal/api/node"
	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/dispatch"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
)

// Joining is how a host comes into a cluster that is there.
type Joining struct {
	Managers []string // host:port; one of them has to answer
	Token    string
	// Listen is where the node is called, once it is a manager, and Addr what the others are
	// told, "" for the address by which it reaches a manager: host:port.
	Listen, Addr string
	DataPath     string // address of the overlay networks' packets; "": that of Addr
	Availability string
}

// joins is how long a join waits for the node to be what it is to be; it goes on after that.
const joins = 20 * time.Second

// Join makes this host a node. It blocks until the node is connected and, with the token of a
// manager, one of those that keep the store. Kinds as those of node.Join; AlreadyExists when it
// is in a cluster; Conflict when it keeps apps; context.DeadlineExceeded when it takes longer: it goes on then.
func (m *Membership) Join(ctx context.Context, j Joining) error {
	if err := m.turn(ctx, func(ctx context.Context) error { return (joiner{m}).join(ctx, j) }); err != nil {
		return err
	}
	return m.settle(ctx)
}

// settle waits until the node is what it is to be.
func (m *Membership) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, joins)
	defer cancel()
	for {
		if (joiner{m}).settledIn() {
			return nil
		}
		select {
		case <-time.After(raised / 4):
		case <-ctx.Done():
			return fmt.Errorf("joining: %w", context.DeadlineExceeded)
		}
	}
}

// joiner brings the host into a cluster that is there.
type joiner struct{ *Membership }

// settledIn tells whether the node is what it is to be.
func (m joiner) settledIn() bool {
	m.mu.Lock()
	remote, s, r := m.remote, m.server, m.rec
	m.mu.Unlock()
	if remote == nil || !remote.Connected() {
		return false
	}
	return !wanted(remote.View(), r.Node) || r.Phase == manager && s != nil && s.open()
}

func (m joiner) join(ctx context.Context, j Joining) (err error) {
	m.mu.Lock()
	phase, own := m.rec.Phase, m.own
	m.mu.Unlock()
	if phase != alone {
		return errInCluster
	}
	if err := keepsNone(own); err != nil {
		return err
	}
	r := record{Phase: worker, Listen: j.Listen, Addr: j.Addr, DataPath: j.DataPath}
	if err := free(r.Listen, r.peers()); err != nil {
		return err
	}
	if r.Addr != "" {
		switch err := reach(ctx, r.Listen, r.Addr); {
		case errdefs.IsUnavailable(err): // others may see more of the network
			m.log.Warn("it is not known whether other nodes reach this one", "address", r.Addr, "error", err)
		case err != nil:
			return err
		}
	}
	joined, err := m.knock(ctx, j)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, joined.Keeper.Forget())
		}
	}()
	if r.Node, r.Managers = joined.Keeper.Identity().Node, joined.Managers; r.Addr == "" {
		if r.Addr, err = ownAddr(ctx, joined.Managers, r.Listen); err != nil {
			return err
		}
	}
	if err := r.write(m.cfg.Dir); err != nil {
		return err
	}
	m.mu.Lock()
	m.keeper, m.own = joined.Keeper, nil
	m.mu.Unlock()
	if err := errors.Join(own.Close(), m.cfg.Forget()); err != nil {
		m.log.Warn("what the host had by itself stays on disk until the engine starts again", "error", err)
	}
	return m.enter(r)
}

// keepsNone tells whether a host can be part of a cluster that has objects of its own. Conflict
// when it keeps apps.
func keepsNone(own store.Store) error {
	if list := store.List[*cluster.App](own.View()); len(list) > 0 {
		return fmt.Errorf("this engine keeps %d apps (%s is one), which no other cluster can take over: take them down first (escale down), or make the cluster here (swarm init): %w", len(list), list[0].Name, errdefs.ErrConflict)
	}
	return nil
}

// answers is how long one manager has to let a node in.
const answers = 10 * time.Second

// knock asks managers, one after the other, until one lets the node in.
func (m joiner) knock(ctx context.Context, j Joining) (joined *node.Joined, err error) {
	if err := os.MkdirAll(m.cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	err = fmt.Errorf("no manager is named: %w", errdefs.ErrInvalidArgument)
	for _, addr := range j.Managers {
		asking, cancel := context.WithTimeout(ctx, answers)
		joined, err = node.Join(asking, addr, j.Token, j.Availability, filepath.Join(m.cfg.Dir, identityFile))
		cancel()
		if err == nil || errdefs.IsInvalidArgument(err) || errdefs.IsFailedPrecondition(err) {
			break
		}
	}
	return joined, err
}

// ownAddr is the address by which this host reaches managers, with the port of another.
func ownAddr(ctx context.Context, list []dispatch.Manager, listen string) (string, error) {
	_, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return "", err
	}
	var d net.Dialer
	err = fmt.Errorf("no manager: %w", errdefs.ErrUnavailable)
	for _, to := range list {
		var c net.Conn
		if c, err = d.DialContext(ctx, "udp", to.Addr); err != nil { // nothing is sent: the kernel chooses the route
			continue
		}
		a, bad := netip.ParseAddrPort(c.LocalAddr().String())
		_ = c.Close() // it was not used
		if bad == nil {
			return netip.AddrPortFrom(a.Addr().Unmap(), uint16(n)).String(), nil
		}
	}
	return "", err
}

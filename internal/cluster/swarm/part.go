package swarm

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
)

// Leave ends this node's part in the swarm. The last manager's takes all services,
// tasks, secrets and configs of the swarm along; apps stay. It blocks until the tasks
// have gone.
func (s *Swarm) Leave(ctx context.Context, force bool) error {
	part := s.Membership.Part()
	if !part.In {
		return errNoSwarm
	}
	if part.Manager {
		all, reachable := 0, 0
		for _, n := range store.List[*cluster.Node](s.Store.View()) {
			if m := n.Status.Manager; n.Spec.Manager && m != nil {
				all++
				if m.Reachable {
					reachable++
				}
			}
		}
		const warning = "You are attempting to leave the swarm on a node that is participating as a manager. "
		switch {
		case !force && all <= 1:
			return say(errdefs.ErrUnavailable, warning+"Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message. ")
		case !force:
			return say(errdefs.ErrUnavailable, warning+"Removing this node leaves %d managers out of %d. Without a Raft quorum your swarm will be inaccessible. "+
				"The only way to restore a swarm that has lost consensus is to reinitialize it with `--force-new-cluster`. Use `--force` to suppress this message.", reachable-1, all)
		case all <= 1 && part.Ready:
			if err := erase(ctx, s.Store); err != nil {
				return err
			}
		}
	}
	return s.Membership.Leave(ctx)
}

// ends is how long tasks of a swarm that ends may take to go; those of nodes that are away
// do not.
const ends = time.Minute

// erase removes all that is the swarm's, and waits until it is gone.
func erase(ctx context.Context, s store.Store) error {
	ctx, cancel := context.WithTimeout(ctx, ends)
	defer cancel()
	for {
		w, err := s.Watch(s.View().Revision())
		if err != nil {
			return err
		}
		v := s.View()
		last := leftovers(v)
		if len(last) == 0 {
			return nil
		}
		if changes := leaving(last); len(changes) > 0 {
			if _, err := s.Commit(ctx, changes...); err != nil && !errdefs.IsConflict(err) && !errdefs.IsNotFound(err) {
				return err
			}
			continue
		}
		if _, err := w.Next(ctx); err != nil && !errdefs.IsOutOfRange(err) {
			if ctx.Err() != nil && errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
				return nil // what is left is that of nodes that are away: they are told nothing any more
			}
			return err
		}
	}
}

// leftovers is what is left of a swarm, in the order in which it goes: services, their
// tasks, and what they used.
func leftovers(v store.View) (out []cluster.Object) {
	out = mine(out, store.List[*cluster.Service](v))
	for _, t := range store.List[*cluster.Task](v) {
		if t.App == "" {
			out = append(out, t)
		}
	}
	if len(out) > 0 {
		return out
	}
	out = mine(out, store.List[*cluster.Network](v))
	for _, s := range store.List[*cluster.Secret](v) {
		if s.Owner == "" && !s.Internal() { // the others go with their networks
			out = append(out, s)
		}
	}
	return mine(out, store.List[*cluster.Config](v))
}

// mine appends what no app has.
func mine[T cluster.Object](out []cluster.Object, list []T) []cluster.Object {
	for _, o := range list {
		if o.Base().Owner == "" {
			out = append(out, o)
		}
	}
	return out
}

// leaving are the changes by which it goes; tasks go by themselves.
func leaving(list []cluster.Object) (out []store.Change) {
	for _, o := range list {
		if len(out) >= store.MaxChanges {
			break
		}
		switch o := o.(type) {
		case *cluster.Task:
		case *cluster.Network: // the engines' go first
			if !o.Spec.Removed {
				o = store.Copy(o)
				o.Spec.Removed = true
				out = append(out, store.Update(o))
			}
		default:
			out = append(out, store.Delete(o))
		}
	}
	return out
}

// Unlock opens the store of a manager that is locked. Conflict: it is not.
func (s *Swarm) Unlock(ctx context.Context, r swarm.UnlockRequest) error {
	part := s.Membership.Part()
	switch {
	case !part.In:
		return errNoSwarm
	case !part.Manager:
		return errWorker
	}
	err := s.Membership.Unlock(ctx, r.UnlockKey)
	switch {
	case errdefs.IsConflict(err):
		return say(errdefs.ErrConflict, "swarm is not locked")
	case errdefs.IsPermissionDenied(err):
		return say(errdefs.ErrInvalidArgument, "swarm could not be unlocked: invalid key provided")
	}
	return err
}

// Join makes this host a node of a swarm that is there.
func (s *Swarm) Join(ctx context.Context, r swarm.JoinRequest) error {
	if s.Membership.Part().In {
		return errInSwarm
	}
	availability, err := availabilityOf(r.Availability)
	if err != nil {
		return err
	}
	h := host(s.Addrs)
	addr, at, err := h.listen(r.ListenAddr)
	if err != nil {
		return err
	}
	j := Joining{Token: r.JoinToken, Listen: netAddr(addr, at), Availability: string(availability)}
	for _, remote := range r.RemoteAddrs {
		to, err := remoteAddr(remote)
		if err != nil {
			return err
		}
		j.Managers = append(j.Managers, to)
	}
	if len(j.Managers) == 0 {
		return say(errdefs.ErrInvalidArgument, "at least 1 RemoteAddr is required to join")
	}
	if a, err := netip.ParseAddr(addr); r.AdvertiseAddr != "" || err == nil && !a.IsUnspecified() {
		advertised, err := h.advertise(r.AdvertiseAddr, addr, at)
		if err != nil {
			return err
		}
		j.Addr = advertised.String()
	}
	if r.DataPathAddr != "" {
		a, err := h.addr(r.DataPathAddr, errBadDataPath)
		if err != nil {
			return err
		}
		j.DataPath = a.String()
	}
	err = s.Membership.Join(ctx, j)
	switch {
	case errdefs.IsAlreadyExists(err):
		return errInSwarm
	case errors.Is(err, context.DeadlineExceeded):
		return say(errdefs.ErrUnavailable, `Timeout was reached before node joined. The attempt to join the swarm will continue in the background. Use the "docker info" command to see the current swarm status of your node.`)
	}
	return err
}

var errBadDataPath = say(errdefs.ErrInvalidArgument, "data path address must be a non-zero IP address or network interface (without a port number)")

// remoteAddr is where a manager is called; without a port at the usual one.
func remoteAddr(asked string) (string, error) {
	name, at, err := net.SplitHostPort(asked)
	if err != nil {
		name, at = strings.Trim(asked, "[]"), port
	}
	if n, err := strconv.ParseUint(at, 10, 16); err != nil || n == 0 || name == "" {
		return "", say(errdefs.ErrInvalidArgument, "invalid remote address %q: host:port wanted", asked)
	}
	return net.JoinHostPort(name, at), nil
}

// Info is what this node tells of itself to whoever asks.
func (s *Swarm) Info() swarm.Info {
	part := s.Membership.Part()
	out := swarm.Info{LocalNodeState: part.state()}
	if !part.In {
		return out
	}
	out.NodeID, out.NodeAddr, out.ControlAvailable, out.Error, out.RemoteManagers = part.Node, part.Addr, part.Manager && part.Ready, part.Err, part.Managers
	if !out.ControlAvailable {
		return out
	}
	v := s.Store.View()
	c, err := the(v)
	if err != nil {
		return out
	}
	out.RemoteManagers = nil
	for _, n := range store.List[*cluster.Node](v) {
		out.Nodes++
		if n.Spec.Manager {
			out.Managers++
		}
		if m := n.Status.Manager; m != nil && m.Addr != "" {
			out.RemoteManagers = append(out.RemoteManagers, swarm.Peer{NodeID: n.ID, Addr: m.Addr})
		}
	}
	slices.SortStableFunc(out.RemoteManagers, func(a, b swarm.Peer) int {
		own := func(p swarm.Peer) int {
			if p.NodeID == part.Node {
				return 0
			}
			return 1
		}
		return own(a) - own(b)
	})
	i := info(c)
	out.Cluster = &i
	return out
}

// state is Docker's word for a part.
func (p Part) state() swarm.LocalNodeState {
	switch {
	case !p.In:
		return swarm.LocalNodeStateInactive
	case p.Locked:
		return swarm.LocalNodeStateLocked
	case p.Err != "":
		return swarm.LocalNodeStateError
	case !p.Ready:
		return swarm.LocalNodeStatePending
	}
	return swarm.LocalNodeStateActive
}

// State is the word for this node's part in a swarm, as /_ping gives it.
func (s *Swarm) State() string {
	part := s.Membership.Part()
	state := string(part.state())
	switch {
	case state != string(swarm.LocalNodeStateActive):
		return state
	case part.Manager:
		return state + "/manager"
	}
	return state + "/worker"
}

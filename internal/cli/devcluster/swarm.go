package devcluster

import (
	"context"
	"fmt"

	"escale.dev/escale/client"
	"github.com/moby/moby/api/types/swarm"
	moby "github.com/moby/moby/client"
)

// engine is the node's, by its socket.
func (n *node) engine() (*client.Client, error) {
	return client.New(client.Options{Host: "unix://" + n.socket()})
}

// join makes the node part of the swarm, which the first one begins. It tells whether the
// node was part of it already.
func (n *node) join(ctx context.Context, others []*node) (was bool, err error) {
	e, err := n.engine()
	if err != nil {
		return false, err
	}
	defer e.Close()
	info, err := e.Info(ctx, moby.InfoOptions{})
	if err != nil {
		return false, err
	}
	if info.Info.Swarm.LocalNodeState != swarm.LocalNodeStateInactive {
		return true, nil
	}
	listen := fmt.Sprintf("%s:2377", n.Addr)
	if len(others) == 0 {
		_, err := e.SwarmInit(ctx, moby.SwarmInitOptions{ListenAddr: listen, AdvertiseAddr: n.Addr.String()})
		return false, err
	}
	first, err := others[0].engine()
	if err != nil {
		return false, err
	}
	defer first.Close()
	s, err := first.SwarmInspect(ctx, moby.SwarmInspectOptions{})
	if err != nil {
		return false, err
	}
	token := s.Swarm.JoinTokens.Worker
	if n.Manager {
		token = s.Swarm.JoinTokens.Manager
	}
	var remotes []string
	for _, o := range others {
		if o.Manager {
			remotes = append(remotes, fmt.Sprintf("%s:2377", o.Addr))
		}
	}
	_, err = e.SwarmJoin(ctx, moby.SwarmJoinOptions{ListenAddr: listen, AdvertiseAddr: n.Addr.String(), RemoteAddrs: remotes, JoinToken: token})
	return false, err
}

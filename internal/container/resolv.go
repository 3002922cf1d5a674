package container

import (
	"context"
	"sync"

	"escale.dev/escale/internal/network"
	"github.com/containerd/errdefs"
)

// resolve is what the container or the engine says instead of the machine's
// resolv.conf.
func (m *core) resolve(rec *Record) network.Resolve {
	h, d := rec.HostConfig, m.defaults()
	s := network.Resolve{Search: h.DNSSearch, Options: h.DNSOptions}
	for _, a := range h.DNS {
		s.Servers = append(s.Servers, a.String())
	}
	return s.Or(network.Resolve{Servers: d.DNS, Search: d.DNSSearch, Options: d.DNSOptions})
}

// writeResolvConf writes the container's resolv.conf as its networks ask for. What
// somebody has changed in the container stays.
func (m *core) writeResolvConf(rec *Record, eps []network.Endpoint) error {
	return m.cfg.Networks.WriteResolvConf(m.hostFilesOf(rec.ID).resolv, m.resolve(rec), rec.HostConfig.NetworkMode.IsHost(), string(rec.ID), eps)
}

// takeUpNetworks lets the engine go on with what it does itself for the networks of
// the containers that live, on the descriptors that their monitors hold.
func (m recovery) takeUpNetworks(ctx context.Context, entries []*entry) {
	slots := make(chan struct{}, 16) // as in Open
	var wg sync.WaitGroup
	for _, e := range entries {
		v := e.view()
		if !v.State.Running() || len(v.Endpoints) == 0 {
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := m.takeUpNetwork(ctx, e, &v); err != nil {
				m.log.Warn("taking up the network of a container", "container", e.id.Short(), "error", err)
			}
		})
	}
	wg.Wait()
}

func (m recovery) takeUpNetwork(ctx context.Context, e *entry, v *View) error {
	e.mu.Lock()
	r := e.run
	e.mu.Unlock()
	if r == nil || r.task == nil {
		return nil
	}
	held, err := r.task.Held(ctx)
	if err != nil && !errdefs.IsNotImplemented(err) { // a monitor of before: all is made anew
		m.log.Warn("what the monitor holds", "container", e.id.Short(), "error", err)
	}
	defer closeAll(held)
	made, err := m.cfg.Networks.TakeUp(ctx, network.Survivor{ContainerID: string(e.id), Endpoints: v.Endpoints, Resolve: m.resolve(&v.Record), Held: held})
	defer closeAll(made)
	if err != nil || len(made) == 0 {
		return err
	}
	if err := r.task.Hold(ctx, made); err != nil && !errdefs.IsNotImplemented(err) {
		return err
	}
	return nil
}

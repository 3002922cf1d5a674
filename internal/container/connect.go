package container

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"

	"escale.dev/escale/internal/network"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	apievents "github.com/moby/moby/api/types/events"
	apinetwork "github.com/moby/moby/api/types/network"
)

// Connect puts a container on one more network, from now on and at each of its
// starts. Kinds and words of errors are Docker's.
func (m *Manager) Connect(ctx context.Context, ref, name string, settings *apinetwork.EndpointSettings) error {
	e, err := m.store.hold(ctx, ref)
	if err != nil {
		return err
	}
	defer e.op.unlock()
	if settings == nil {
		settings = &apinetwork.EndpointSettings{}
	}
	v := e.view()
	mode := v.HostConfig.NetworkMode
	switch {
	case v.State.Status == Removing || v.State.Status == Dead:
		return errBeingRemoved(v.ID)
	case mode.IsContainer(), mode.IsHost():
		return kindf(errInvalid, "container sharing network namespace with another container or host cannot be connected to any other network")
	}
	if v.State.Running() {
		return wirer{m.core}.connectLive(ctx, e, &v, name, settings)
	}
	return wirer{m.core}.connectStopped(e, &v, name, settings)
}

func errBeingRemoved(id ID) error {
	return fmt.Errorf("Container %s is marked for removal and cannot be connected or disconnected to the network", id) //nolint:staticcheck // Docker's words.
}

// wirer changes which networks containers are on.
type wirer struct{ *core }

// connectStopped notes a network for the next start.
func (m wirer) connectStopped(e *entry, v *View, name string, settings *apinetwork.EndpointSettings) error {
	info, err := m.cfg.Networks.Find(name)
	if err != nil {
		return err
	}
	wanted := maps.Clone(wantedNetworks(&v.Record))
	if _, twice := wanted[info.Name]; !twice { // else as it is, as with Docker
		wanted[info.Name] = settings
	}
	if err := m.cfg.Networks.Validate(network.Request{Networks: wanted, There: true, Later: true}); err != nil {
		return err
	}
	return m.rewire(e, wanted, nil)
}

// rewire writes down which networks a container is to be on, and where it is on
// them if it runs. The addresses that it asks for are kept for it.
func (m wirer) rewire(e *entry, wanted map[string]*apinetwork.EndpointSettings, change func(*Record) error) error {
	err := m.update(e, true, func(rec *Record) error {
		if change != nil {
			if err := change(rec); err != nil {
				return err
			}
		}
		rec.Networking, rec.NoNetworks = wanted, len(wanted) == 0
		return nil
	})
	if err == nil {
		m.cfg.Networks.Keep(string(e.id), wanted)
	}
	return err
}

// errRunEnded: the container ended while its networks were being changed.
var errRunEnded = errors.New("the container has ended meanwhile")

// connectLive connects a container that runs.
func (m wirer) connectLive(ctx context.Context, e *entry, v *View, name string, settings *apinetwork.EndpointSettings) error {
	info, err := m.cfg.Networks.Find(name)
	if err != nil {
		return err
	}
	req := networkRequest(&v.Record, map[string]*apinetwork.EndpointSettings{info.Name: settings})
	req.Resolve = m.resolve(&v.Record)
	change, err := m.cfg.Networks.Connect(ctx, req, v.Endpoints)
	if err != nil {
		return err
	}
	wanted := maps.Clone(wantedNetworks(&v.Record))
	wanted[info.Name] = settings
	if err := m.changed(ctx, e, v, wanted, change, apievents.ActionConnect); err != nil {
		closeAll(change.Held)
		return err
	}
	if err := m.writeResolvConf(&v.Record, change.Endpoints); err != nil {
		m.log.Warn("resolv.conf", "container", v.ID.Short(), "error", err)
	}
	m.hold(ctx, e, change.Held)
	return nil
}

// hold gives sockets to the monitor of a container that runs. One of before takes
// none: the engine keeps them.
func (m wirer) hold(ctx context.Context, e *entry, files []*os.File) {
	e.mu.Lock()
	r := e.run
	e.mu.Unlock()
	if len(files) == 0 || r == nil || r.task == nil {
		closeAll(files)
		return
	}
	err := r.task.Hold(ctx, files)
	e.mu.Lock()
	defer e.mu.Unlock()
	if err != nil && e.rec.State.Running() && e.run == r {
		e.sockets = append(e.sockets, files...)
	} else {
		closeAll(files)
	}
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// Disconnect takes a container from a network, for good. With force, one of a
// network that is no more is forgotten too.
func (m *Manager) Disconnect(ctx context.Context, ref, name string, force bool) error {
	e, err := m.store.hold(ctx, ref)
	if err != nil {
		return err
	}
	defer e.op.unlock()
	v := e.view()
	if v.State.Status == Removing || v.State.Status == Dead {
		return errBeingRemoved(v.ID)
	}
	info, err := m.cfg.Networks.Find(name)
	if err == nil {
		name = info.Name
	} else if v.State.Running() && !force || !errdefs.IsNotFound(err) {
		return err
	}
	if v.HostConfig.NetworkMode.IsHost() && name == apinetwork.NetworkHost {
		return kindf(errInvalid, "cannot disconnect container from host network - container was created in host network mode")
	}
	wanted := maps.Clone(wantedNetworks(&v.Record))
	if !v.State.Running() || err != nil {
		if _, ok := wanted[name]; !ok {
			return fmt.Errorf("container %s is not connected to the network %s", v.ID, name)
		}
		delete(wanted, name)
		return wirer{m.core}.rewire(e, wanted, nil)
	}
	delete(wanted, name)
	change, err := m.cfg.Networks.Disconnect(ctx, string(v.ID), name, v.Endpoints)
	if change == nil {
		return err
	}
	if err != nil {
		m.log.Warn("leaving a network", "container", v.ID.Short(), "network", name, "error", err)
	}
	return wirer{m.core}.changed(ctx, e, &v, wanted, change, apievents.ActionDisconnect)
}

// changed writes down where a container that runs is now, and so in its /etc/hosts:
// there an address goes before the record says so and comes after it, so that an
// engine that is killed in between leaves none that is not the container's. One that
// has ended meanwhile loses all its networks again: its end knew nothing of the new one.
func (m wirer) changed(ctx context.Context, e *entry, v *View, wanted map[string]*apinetwork.EndpointSettings, change *network.Change, action apievents.Action) error {
	own := hostLines(v.Config, &change.Changed)
	err := m.rewire(e, wanted, func(rec *Record) error {
		if !sameRun(rec, v) {
			return errRunEnded
		}
		if action == apievents.ActionDisconnect {
			m.editHosts(v.ID, withoutLines(own))
		}
		rec.Endpoints = change.Endpoints
		return writeEndpoints(m.runDir(v.ID, v.State.Generation), change.Endpoints)
	})
	if errors.Is(err, errRunEnded) {
		if down := m.cfg.Networks.Teardown(context.WithoutCancel(ctx), string(v.ID), change.Endpoints); down != nil {
			m.log.Warn("networks of a container that ended", "container", v.ID.Short(), "error", down)
		}
		return kindf(errConflict, "container %s: %s", v.ID, err)
	}
	if err == nil && action == apievents.ActionConnect {
		e.mu.Lock()
		if sameRun(&e.rec, v) { // a later one has written it anew
			m.editHosts(v.ID, withLines(own))
		}
		e.mu.Unlock()
	}
	if err == nil {
		m.tellNetworks(action, &v.Record, []network.Endpoint{change.Changed})
	}
	return err
}

// sameRun tells whether the container still runs as when it was seen.
func sameRun(rec *Record, v *View) bool {
	return rec.State.Running() && rec.State.Generation == v.State.Generation
}

// BalanceLabel names the group of containers that may share a port of the host:
// those with the same value, and the same port of their own behind it.
const BalanceLabel = "escale.balance"

// networkRequest is what a container asks of the networks.
func networkRequest(rec *Record, networks map[string]*apinetwork.EndpointSettings) network.Request {
	_, probed := newProbe(rec.Config)
	return network.Request{
		There: true, ContainerID: string(rec.ID), Name: rec.Name, Hostname: rec.Config.Hostname, Main: string(rec.HostConfig.NetworkMode), Networks: networks,
		Balance: rec.Config.Labels[BalanceLabel], Probed: probed,
		Exposed: rec.Config.ExposedPorts, Bindings: rec.HostConfig.PortBindings, PublishAll: rec.HostConfig.PublishAllPorts,
	}
}

// nameNetworks puts the networks that a client asks for under their names,
// whatever it called them, the main one among them if it is a user's.
func (m creator) nameNetworks(rec *Record) error {
	mode := rec.HostConfig.NetworkMode
	if mode.IsHost() || mode.IsContainer() {
		return nil
	}
	asked := rec.Networking
	if len(asked) == 0 && mode.IsUserDefined() {
		asked = map[string]*apinetwork.EndpointSettings{string(mode): {}}
	}
	named := make(map[string]*apinetwork.EndpointSettings, len(asked))
	for ref, settings := range asked {
		info, err := m.cfg.Networks.Find(ref)
		if errdefs.IsNotFound(err) {
			info.Name = ref // to be made until the start
		} else if err != nil {
			return err
		}
		if _, twice := named[info.Name]; twice {
			return kindf(errInvalid, "network %s is specified multiple times", info.Name)
		}
		named[info.Name] = settings
	}
	rec.Networking = named
	if mode.IsUserDefined() {
		info, err := m.cfg.Networks.Find(string(mode))
		if errdefs.IsNotFound(err) {
			return nil
		} else if err != nil {
			return err
		}
		if string(mode) != info.Name {
			rec.HostConfig.NetworkMode = container.NetworkMode(info.ID) // a beginning of the id may soon be another's
		}
	}
	return nil
}

package container

import (
	"escale.dev/escale/internal/events"
	"escale.dev/escale/internal/network"
	apievents "github.com/moby/moby/api/types/events"
	apinetwork "github.com/moby/moby/api/types/network"
)

// tellNetworks publishes that a container joined its networks, or left them.
func (m *core) tellNetworks(action apievents.Action, rec *Record, eps []network.Endpoint) {
	names := make([]string, 0, 1)
	for _, ep := range eps {
		if ep.Network == "" {
			continue // it stands for the namespace of a container on no network
		}
		names = append(names, ep.Network)
	}
	if rec.HostConfig.NetworkMode.IsHost() {
		names = append(names, apinetwork.NetworkHost)
	}
	for _, name := range names {
		n, err := m.cfg.Networks.Find(name)
		if err != nil {
			m.log.Debug("event of a network", "network", name, "error", err) // removed meanwhile
			continue
		}
		m.cfg.Events.Publish(events.Message{
			Type: apievents.NetworkEventType, Action: action,
			Actor: apievents.Actor{ID: n.ID, Attributes: map[string]string{"container": string(rec.ID), "name": n.Name, "type": n.Driver}},
		})
	}
}

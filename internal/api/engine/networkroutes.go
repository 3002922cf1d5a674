package engine

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"time"

	"escale.dev/escale/internal/container"
	enginenet "escale.dev/escale/internal/network"
	"github.com/containerd/errdefs"
	apievents "github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/network"
)

// networkRoutes answer for networks.
type networkRoutes struct{ *Server }

func (n networkRoutes) routes() []route {
	return []route{
		{http.MethodGet, "/networks", n.list},
		{http.MethodPost, "/networks/prune", n.prune},
		{http.MethodGet, "/networks/{name}", n.inspect},
	}
}

// network is a network as a list of them shows it.
func (n networkRoutes) network(i *enginenet.Info) network.Network {
	out := network.Network{
		Name: i.Name, ID: i.ID, Created: i.Created, Scope: i.Scope, Driver: i.Driver, EnableIPv4: true,
		IPAM:   network.IPAM{Driver: "default", Config: []network.IPAMConfig{}},
		Labels: map[string]string{}, Options: i.Options,
	}
	if out.Options == nil {
		out.Options = map[string]string{}
	}
	if subnet, err := netip.ParsePrefix(i.Subnet); err == nil {
		c := network.IPAMConfig{Subnet: subnet}
		c.Gateway, _ = netip.ParseAddr(i.Gateway) // an empty one is the zero address
		out.IPAM.Config = append(out.IPAM.Config, c)
	}
	return out
}

func (n networkRoutes) list(w *response, r *request) error {
	f, err := parseFilters(r.query.get("filters"), []string{"dangling", "driver", "id", "label", "name", "scope", "type"})
	if err != nil {
		return err
	}
	dangling, err := f.truth("dangling", false)
	if err != nil {
		return err
	}
	for _, t := range f["type"] {
		if t != "builtin" && t != "custom" {
			return invalidf("invalid filter: 'type'='%s'", t)
		}
	}
	names, ids := f.patterns("name"), f.patterns("id")
	answer := []network.Network{}
	for _, i := range n.cfg.Networks.List() {
		switch {
		case f.has("dangling") && dangling, // those that are always there are not
			!f.exact("driver", i.Driver), !f.exact("scope", i.Scope), !f.exact("type", "builtin"), f.has("label"),
			len(names) > 0 && !anyMatch(names, i.Name), len(ids) > 0 && !anyMatch(ids, i.ID):
			continue
		}
		answer = append(answer, n.network(&i))
	}
	return writeJSON(w, http.StatusOK, answer)
}

func (n networkRoutes) inspect(w *response, r *request) error {
	if scope := r.query.get("scope"); scope != "" && scope != "local" {
		return errdefs.ErrNotFound.WithMessage(fmt.Sprintf("network %s not found", r.name))
	}
	i, err := n.cfg.Networks.Inspect(r.name)
	if err != nil {
		return err
	}
	answer := network.Inspect{Network: n.network(&i), Containers: map[string]network.EndpointResource{}}
	for id, ep := range i.Containers {
		res := network.EndpointResource{EndpointID: ep.EndpointID}
		if v, err := n.cfg.Containers.Get(id); err == nil {
			res.Name = v.Name
		}
		if addr, err := netip.ParseAddr(ep.IP); err == nil {
			prefix := netip.PrefixFrom(addr, ep.PrefixLen)
			if addr.Is4() {
				res.IPv4Address = prefix
			} else {
				res.IPv6Address = prefix
			}
		}
		if mac, err := net.ParseMAC(ep.MAC); err == nil {
			res.MacAddress = network.HardwareAddr(mac)
		}
		answer.Containers[id] = res
	}
	for _, v := range n.cfg.Containers.List() {
		if i.Name == network.NetworkHost && v.HostConfig.NetworkMode.IsHost() && v.State.Status == container.Running {
			answer.Containers[string(v.ID)] = network.EndpointResource{Name: v.Name}
		}
	}
	return writeJSON(w, http.StatusOK, answer)
}

// prune removes networks of the user's that nobody is on. There are none yet,
// and those that are always there stay.
func (n networkRoutes) prune(w *response, r *request) error {
	f, err := parseFilters(r.query.get("filters"), []string{"label", "label!", "until"})
	if err != nil {
		return err
	}
	if _, err := f.time("until", time.Now()); err != nil {
		return err
	}
	n.tellPrune(apievents.NetworkEventType, 0)
	return writeJSON(w, http.StatusOK, network.PruneReport{})
}

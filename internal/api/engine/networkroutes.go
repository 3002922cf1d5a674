package engine

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
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
		{http.MethodPost, "/networks/create", n.create},
		{http.MethodPost, "/networks/{name}/connect", n.connect},
		{http.MethodPost, "/networks/{name}/disconnect", n.disconnect},
		{http.MethodGet, "/networks/{name}", n.inspect},
		{http.MethodDelete, "/networks/{name}", n.remove},
	}
}

// network is a network as a list of them shows it.
func (n networkRoutes) network(i *enginenet.Info) network.Network {
	out := network.Network{
		Name: i.Name, ID: i.ID, Created: i.Created, Scope: i.Scope, Driver: i.Driver, EnableIPv4: i.EnableIPv4, EnableIPv6: i.EnableIPv6,
		IPAM:     network.IPAM{Driver: i.IPAM.Driver, Options: i.IPAM.Options, Config: []network.IPAMConfig{}},
		Internal: i.Internal, Attachable: i.Attachable, Ingress: i.Ingress, ConfigOnly: i.ConfigOnly, ConfigFrom: network.ConfigReference{Network: i.ConfigFrom},
		Labels: i.Labels, Options: i.Options,
	}
	if out.IPAM.Driver == "" {
		out.IPAM.Driver = "default"
	}
	if out.Options == nil {
		out.Options = map[string]string{}
	}
	if out.Labels == nil {
		out.Labels = map[string]string{}
	}
	for _, s := range i.IPAM.Subnets {
		out.IPAM.Config = append(out.IPAM.Config, network.IPAMConfig{Subnet: s.Prefix, Gateway: s.Gateway, IPRange: s.Range, AuxAddress: s.Aux})
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
		case f.has("dangling") && dangling != (!i.Predefined() && len(i.Containers) == 0),
			!f.exact("driver", i.Driver), !f.exact("scope", i.Scope), !f.exact("type", kindOfNetwork(&i)), !f.labels("label", i.Labels),
			len(names) > 0 && !anyMatch(names, i.Name), len(ids) > 0 && !anyMatch(ids, i.ID):
			continue
		}
		answer = append(answer, n.network(&i))
	}
	return writeJSON(w, http.StatusOK, answer)
}

// kindOfNetwork is the type by which lists are filtered.
func kindOfNetwork(i *enginenet.Info) string {
	if i.Predefined() {
		return "builtin"
	}
	return "custom"
}

func (n networkRoutes) inspect(w *response, r *request) error {
	if s := r.query.get("verbose"); s != "" { // it tells more of networks of a cluster only
		if _, err := strconv.ParseBool(s); err != nil {
			return invalidf("invalid value for verbose: %s: %s", s, err)
		}
	}
	i, err := n.cfg.Networks.Inspect(r.name)
	if err != nil {
		return err
	}
	if scope := r.query.get("scope"); scope != "" && scope != i.Scope {
		if scope != "swarm" || !n.everywhere(&i) {
			return errdefs.ErrNotFound.WithMessage(fmt.Sprintf("network %s not found", r.name))
		}
		i.Scope, i.Containers = scope, nil
	}
	answer := network.Inspect{Network: n.network(&i), Containers: map[string]network.EndpointResource{}}
	for id, ep := range i.Containers {
		res := network.EndpointResource{EndpointID: ep.EndpointID}
		if v, err := n.cfg.Containers.Get(id); err == nil {
			res.Name = v.Name
		}
		if addr, err := netip.ParseAddr(ep.IP); err == nil {
			res.IPv4Address = netip.PrefixFrom(addr, ep.PrefixLen)
		}
		if addr, err := netip.ParseAddr(ep.IP6); err == nil {
			res.IPv6Address = netip.PrefixFrom(addr, ep.PrefixLen6)
		}
		if mac, err := net.ParseMAC(ep.MAC); err == nil {
			res.MacAddress = network.HardwareAddr(mac)
		}
		answer.Containers[id] = res
	}
	for _, v := range n.cfg.Containers.List() {
		if i.Name == network.NetworkHost && i.Scope != "swarm" && v.HostConfig.NetworkMode.IsHost() && v.State.Status == container.Running {
			answer.Containers[string(v.ID)] = network.EndpointResource{Name: v.Name}
		}
	}
	return writeJSON(w, http.StatusOK, answer)
}

// everywhere tells whether a network of this host is one that every node of the swarm has
// under that name, for its services: clients ask a manager for it in the swarm's scope.
func (n networkRoutes) everywhere(i *enginenet.Info) bool {
	if i.Name != network.NetworkHost && i.Name != network.NetworkBridge {
		return false
	}
	_, err := n.cfg.Swarm.Inspect()
	return err == nil
}

// createNetworkBody is what a client sends. Addresses are read by the networks,
// which tell all that is wrong with them.
type createNetworkBody struct {
	Name, Driver, Scope                       string
	EnableIPv4, EnableIPv6                    *bool
	Internal, Attachable, Ingress, ConfigOnly bool
	ConfigFrom                                *network.ConfigReference
	IPAM                                      *struct {
		Driver  string
		Options map[string]string
		Config  []struct {
			Subnet, IPRange, Gateway string
			AuxiliaryAddresses       map[string]string
		}
	}
	Options, Labels map[string]string
}

func (n networkRoutes) create(w *response, r *request) error {
	var body createNetworkBody
	if err := readJSON(w, r, &body); err != nil {
		return err
	}
	c := enginenet.Create{
		Name: body.Name, Driver: body.Driver, Scope: body.Scope, EnableIPv4: body.EnableIPv4, EnableIPv6: body.EnableIPv6,
		Internal: body.Internal, Attachable: body.Attachable, Ingress: body.Ingress, ConfigOnly: body.ConfigOnly,
		Options: body.Options, Labels: body.Labels,
	}
	if r.version.before(48) {
		c.EnableIPv4 = nil
	}
	if body.ConfigFrom != nil {
		c.ConfigFrom = body.ConfigFrom.Network
	}
	if body.IPAM != nil {
		c.IPAM = &enginenet.CreateIPAM{Driver: body.IPAM.Driver, Options: body.IPAM.Options}
		for _, s := range body.IPAM.Config {
			c.IPAM.Config = append(c.IPAM.Config, enginenet.CreateSubnet{Subnet: s.Subnet, IPRange: s.IPRange, Gateway: s.Gateway, Aux: s.AuxiliaryAddresses})
		}
	}
	info, err := n.cfg.Networks.Create(detached(r), c)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, network.CreateResponse{ID: info.ID})
}

func (n networkRoutes) remove(w *response, r *request) error {
	if err := n.cfg.Networks.Remove(detached(r), r.name); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (n networkRoutes) connect(w *response, r *request) error {
	var body network.ConnectRequest
	if err := readJSON(w, r, &body); err != nil {
		return err
	}
	if body.EndpointConfig != nil {
		if r.version.before(44) {
			body.EndpointConfig.MacAddress = nil
		}
		if r.version.before(48) {
			body.EndpointConfig.GwPriority = 0
		}
	}
	if err := n.cfg.Containers.Connect(detached(r), body.Container, r.name, body.EndpointConfig); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (n networkRoutes) disconnect(w *response, r *request) error {
	var body network.DisconnectRequest
	if err := readJSON(w, r, &body); err != nil {
		return err
	}
	if err := n.cfg.Containers.Disconnect(detached(r), body.Container, r.name, body.Force); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// prune removes networks of the user's that nobody is on.
func (n networkRoutes) prune(w *response, r *request) error {
	f, err := parseFilters(r.query.get("filters"), []string{"label", "label!", "until"})
	if err != nil {
		return err
	}
	until, err := f.time("until", time.Now())
	if err != nil {
		return err
	}
	var report network.PruneReport
	for _, i := range n.cfg.Networks.List() {
		if i.Predefined() || i.ConfigOnly || len(i.Containers) > 0 || !until.IsZero() && i.Created.After(until) ||
			!f.labels("label", i.Labels) || !f.unlabelled("label!", i.Labels) {
			continue
		}
		if r.Context().Err() != nil {
			break // the client has left
		}
		if err := n.cfg.Networks.Remove(detached(r), i.ID); err != nil {
			if !errdefs.IsNotFound(err) && !errdefs.IsPermissionDenied(err) {
				n.log.Warn("pruning network", "network", i.Name, "error", err)
			}
			continue
		}
		report.NetworksDeleted = append(report.NetworksDeleted, i.Name)
	}
	n.tellPrune(apievents.NetworkEventType, 0)
	return writeJSON(w, http.StatusOK, report)
}

package spec

import (
	"encoding/csv"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// attachment is one --network, in the short form (a name) or the long one
// (name=x,alias=y,ip=…).
type attachment struct {
	target      string
	aliases     []string
	links       []string
	driverOpts  map[string]string
	ip4, ip6    string
	linkLocal   []string
	mac         string
	gatewayRank int
}

// networks is the value of --network.
type networks []attachment

func (n *networks) Type() string   { return "network" }
func (n *networks) String() string { return "" }

func (n *networks) Set(s string) error {
	a := attachment{target: s}
	if longForm(s) {
		fields, err := csv.NewReader(strings.NewReader(s)).Read()
		if err != nil {
			return err
		}
		a = attachment{}
		for _, f := range fields {
			if err := a.field(f); err != nil {
				return err
			}
		}
		if a.target == "" {
			return errors.New("network name/id is not specified")
		}
	}
	*n = append(*n, a)
	return nil
}

// longForm reports whether an = stands between two word characters.
func longForm(s string) bool {
	wordChar := func(c byte) bool { return letter(c) || digit(c) || c == '_' }
	for i := 1; i < len(s)-1; i++ {
		if s[i] == '=' && wordChar(s[i-1]) && wordChar(s[i+1]) {
			return true
		}
	}
	return false
}

func (a *attachment) field(f string) error {
	key, value, ok := strings.Cut(strings.ToLower(f), "=")
	if !ok || key == "" {
		return fmt.Errorf("invalid field %s", f)
	}
	value = strings.TrimSpace(value)
	switch strings.TrimSpace(key) {
	case "name":
		a.target = value
	case "alias":
		a.aliases = append(a.aliases, value)
	case "ip":
		a.ip4 = value
	case "ip6":
		a.ip6 = value
	case "mac-address":
		a.mac = value
	case "link-local-ip":
		a.linkLocal = append(a.linkLocal, value)
	case "driver-opt":
		k, v, ok := strings.Cut(value, "=")
		if !ok || k == "" {
			return errors.New("invalid key value pair format in driver options")
		}
		if a.driverOpts == nil {
			a.driverOpts = map[string]string{}
		}
		a.driverOpts[strings.TrimSpace(k)] = strings.TrimSpace(v)
	case "gw-priority":
		n, err := strconv.Atoi(value)
		if err != nil {
			var num *strconv.NumError
			if errors.As(err, &num) {
				err = num.Err
			}
			return fmt.Errorf("invalid gw-priority (%s): %w", value, err)
		}
		a.gatewayRank = n
	default:
		return fmt.Errorf("invalid field key %s", strings.TrimSpace(key))
	}
	return nil
}

// mode is the HostConfig.NetworkMode of the first network.
func (n networks) mode() container.NetworkMode {
	if len(n) == 0 {
		return network.NetworkDefault
	}
	return container.NetworkMode(n[0].target)
}

// endpoints makes the endpoint of every network. The older flags that name no
// network (--ip, --network-alias, --link…) belong to the first.
func (o *Options) endpoints() (map[string]*network.EndpointSettings, error) {
	list := o.networks
	if len(list) == 0 {
		list = networks{{target: network.NetworkDefault}}
	}
	out := make(map[string]*network.EndpointSettings, len(list))
	var userDefined, builtin bool
	for i, a := range list {
		if container.NetworkMode(a.target).IsUserDefined() {
			userDefined = true
		} else {
			builtin = true
		}
		if i == 0 {
			if err := o.merge(&a); err != nil {
				return nil, err
			}
		}
		ep, plain, err := a.endpoint()
		if err != nil {
			return nil, err
		}
		if _, twice := out[a.target]; twice {
			return nil, fmt.Errorf("network %q is specified multiple times", a.target)
		}
		// A lone network without any option is told by NetworkMode alone.
		if plain && len(o.networks) == 1 {
			continue
		}
		out[a.target] = ep
	}
	if userDefined && builtin && len(o.networks) > 0 {
		return nil, errors.New("conflicting options: cannot attach both user-defined and non-user-defined network-modes")
	}
	return out, nil
}

func (o *Options) merge(a *attachment) error {
	conflict := func(own, flag bool, what, other string) error {
		if own && flag {
			return fmt.Errorf("conflicting options: cannot specify both %s and per-network %s", what, other)
		}
		return nil
	}
	for _, err := range []error{
		conflict(len(a.aliases) > 0, len(o.aliases.Values) > 0, "--network-alias", "alias"),
		conflict(len(a.links) > 0, len(o.links.Values) > 0, "--link", "links"),
		conflict(a.ip4 != "", o.ip4 != "", "--ip", "IPv4 address"),
		conflict(a.ip6 != "", o.ip6 != "", "--ip6", "IPv6 address"),
		conflict(a.mac != "", o.mac != "", "--mac-address", "MAC address"),
		conflict(len(a.linkLocal) > 0, len(o.linkLocal.Values) > 0, "--link-local-ip", "link-local IP addresses"),
	} {
		if err != nil {
			return err
		}
	}
	if len(o.aliases.Values) > 0 {
		a.aliases = o.aliases.Values
	}
	// On the default bridge --link is a legacy link (HostConfig.Links); on a
	// user-defined network it is an alias of the endpoint.
	if container.NetworkMode(a.target).IsUserDefined() && len(o.links.Values) > 0 {
		a.links = o.links.Values
	}
	if o.ip4 != "" {
		a.ip4 = o.ip4
	}
	if o.ip6 != "" {
		a.ip6 = o.ip6
	}
	if o.mac != "" {
		a.mac = o.mac
	}
	if len(o.linkLocal.Values) > 0 {
		a.linkLocal = o.linkLocal.Values
	}
	return nil
}

// endpoint makes the settings; plain tells that nothing was asked for.
func (a *attachment) endpoint() (ep *network.EndpointSettings, plain bool, err error) {
	if strings.TrimSpace(a.target) == "" {
		return nil, false, errors.New("no name set for network")
	}
	if !container.NetworkMode(a.target).IsUserDefined() {
		if len(a.aliases) > 0 {
			return nil, false, errors.New("network-scoped aliases are only supported for user-defined networks")
		}
		if len(a.links) > 0 {
			return nil, false, errors.New("links are only supported for user-defined networks")
		}
	}
	ep = &network.EndpointSettings{
		Aliases:    a.aliases,
		Links:      a.links,
		DriverOpts: a.driverOpts,
		GwPriority: a.gatewayRank,
	}
	if a.ip4 != "" || a.ip6 != "" || len(a.linkLocal) > 0 {
		if ep.IPAMConfig, err = a.ipam(); err != nil {
			return nil, false, err
		}
	}
	if a.mac != "" {
		hw, err := net.ParseMAC(strings.TrimSpace(a.mac))
		if err != nil {
			return nil, false, fmt.Errorf("%s is not a valid mac address", a.mac)
		}
		ep.MacAddress = network.HardwareAddr(hw)
	}
	plain = len(a.aliases) == 0 && len(a.links) == 0 && len(a.driverOpts) == 0 && a.gatewayRank == 0 &&
		ep.IPAMConfig == nil && a.mac == ""
	return ep, plain, nil
}

func (a *attachment) ipam() (*network.EndpointIPAMConfig, error) {
	cfg := &network.EndpointIPAMConfig{}
	var err error
	if a.ip4 != "" {
		if cfg.IPv4Address, err = addr(a.ip4, "IPv4"); err != nil {
			return nil, err
		}
	}
	if a.ip6 != "" {
		if cfg.IPv6Address, err = addr(a.ip6, "IPv6"); err != nil {
			return nil, err
		}
	}
	for _, s := range a.linkLocal {
		ip, err := addr(s, "link-local IP")
		if err != nil {
			return nil, err
		}
		cfg.LinkLocalIPs = append(cfg.LinkLocalIPs, ip)
	}
	return cfg, nil
}

// ports turns -p and --expose into what the container exposes and where the
// host publishes it.
func (o *Options) ports() (network.PortSet, network.PortMap, error) {
	exposed, published := network.PortSet{}, network.PortMap{}
	for _, s := range o.publish.Values {
		if strings.Contains(s, "=") {
			long, err := longPublish(s)
			if err != nil {
				return nil, nil, err
			}
			s = long
		}
		if err := publish(s, exposed, published); err != nil {
			return nil, nil, err
		}
	}
	for _, s := range o.expose.Values {
		if strings.Contains(s, ":") {
			return nil, nil, fmt.Errorf("invalid port format for --expose: %s", s)
		}
		ports, proto, _ := strings.Cut(s, "/")
		if proto == "" {
			proto = "tcp"
		}
		first, last, err := portRange(ports)
		switch {
		case ports == "":
			err = errors.New("empty string specified for ports")
		case errors.Is(err, errBackwards):
			err = fmt.Errorf("invalid range specified for port: %s", ports)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("invalid range format for --expose: %s, error: %w", s, err)
		}
		for n := first; n <= last; n++ {
			p, _ := network.PortFrom(uint16(n), network.IPProtocol(proto))
			exposed[p] = struct{}{}
		}
	}
	return exposed, published, nil
}

// longPublish rewrites target=80,published=8080,protocol=tcp.
func longPublish(s string) (string, error) {
	p := map[string]string{"protocol": "tcp"}
	for _, f := range strings.Split(s, ",") {
		k, v, ok := strings.Cut(f, "=")
		if !ok || k == "" {
			return "", fmt.Errorf("invalid publish opts format (should be name=value but got '%s')", f)
		}
		p[k] = v
	}
	return p["published"] + ":" + p["target"] + "/" + p["protocol"], nil
}

// publish reads [IP:][HOST[-HOST]:]CONTAINER[-CONTAINER][/PROTO].
func publish(s string, exposed network.PortSet, published network.PortMap) error {
	parts := strings.Split(s, ":")
	n := len(parts)
	inside, proto, _ := strings.Cut(parts[n-1], "/")
	if inside == "" {
		return fmt.Errorf("no port specified: %s<empty>", s)
	}
	if proto == "" {
		proto = "tcp"
	}
	switch proto = strings.ToLower(proto); proto {
	case "tcp", "udp", "sctp":
	default:
		return fmt.Errorf("invalid proto: %s", proto)
	}
	var host, ip string
	if n >= 2 {
		host = parts[n-2]
	}
	if n >= 3 {
		ip = strings.Join(parts[:n-2], ":")
	}
	hostIP, err := publishIP(ip)
	if err != nil {
		return err
	}
	first, last, err := portRange(inside)
	if err != nil {
		return fmt.Errorf("invalid containerPort: %s", inside)
	}
	hostFirst, hostLast := 0, 0
	if host != "" {
		if hostFirst, hostLast, err = portRange(host); err != nil {
			return fmt.Errorf("invalid hostPort: %s", host)
		}
		// One port of the container may be published on any of a range of the
		// host's; otherwise the two ranges must pair up.
		if last-first != hostLast-hostFirst && last != first {
			return fmt.Errorf("invalid ranges specified for container and host Ports: %s and %s", inside, host)
		}
	}
	for i := 0; i <= last-first; i++ {
		port, _ := network.PortFrom(uint16(first+i), network.IPProtocol(proto))
		b := network.PortBinding{HostIP: hostIP}
		if host != "" {
			b.HostPort = strconv.Itoa(hostFirst + i)
			if first == last && hostFirst != hostLast {
				b.HostPort += "-" + strconv.Itoa(hostLast)
			}
		}
		exposed[port] = struct{}{}
		published[port] = append(published[port], b)
	}
	return nil
}

func publishIP(s string) (netip.Addr, error) {
	if s == "" {
		return netip.Addr{}, nil
	}
	raw := s
	if s[0] == '[' {
		if !strings.HasSuffix(s, "]") {
			return netip.Addr{}, fmt.Errorf("invalid IP address %s: missing ']' in address", raw)
		}
		s = s[1 : len(s)-1]
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("invalid IP address: %s", s)
	}
	return a, nil
}

// errBackwards: a range whose end comes before its begin.
var errBackwards = errors.New("invalid port range")

// portRange reads N or N-M with 0 ≤ N ≤ M ≤ 65535.
func portRange(s string) (first, last int, err error) {
	a, b, isRange := strings.Cut(s, "-")
	f, err := strconv.ParseUint(a, 10, 16)
	if err != nil {
		return 0, 0, err
	}
	if !isRange {
		return int(f), int(f), nil
	}
	l, err := strconv.ParseUint(b, 10, 16)
	if err != nil {
		return 0, 0, err
	}
	if l < f {
		return 0, 0, fmt.Errorf("%w '%s'", errBackwards, s)
	}
	return int(f), int(l), nil
}

// Connection makes the settings of a container on a network that it is connected
// to when it is there already.
func Connection(ip, ip6 string, linkLocal, links, aliases, options []string, priority int) (*network.EndpointSettings, error) {
	a := attachment{ip4: ip, ip6: ip6, linkLocal: linkLocal}
	ipam, err := a.ipam()
	if err != nil {
		return nil, err
	}
	driver := map[string]string{}
	for _, o := range options {
		k, v, ok := strings.Cut(o, "=")
		if k = strings.TrimSpace(k); !ok || k == "" {
			return nil, errors.New("invalid key/value pair format in driver options")
		}
		driver[k] = strings.TrimSpace(v)
	}
	for _, l := range links {
		if _, err := checkLink(l); err != nil {
			return nil, err
		}
	}
	return &network.EndpointSettings{IPAMConfig: ipam, Links: links, Aliases: aliases, DriverOpts: driver, GwPriority: priority}, nil
}

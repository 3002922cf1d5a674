package spec

import (
	"encoding/csv"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	container "escale.dev/escale/internal/cli/spec"
)

// ports is the value of --publish: [HOST:]CONTAINER[/PROTO] with ranges, or
// target=PORT,published=PORT,protocol=PROTO,mode=ingress|host.
type ports []swarm.PortConfig

func (p *ports) Type() string   { return "port" }
func (p *ports) String() string { return "" }

func (p *ports) Set(s string) error {
	if container.LongForm(s) {
		one, err := longPort(s)
		if err == nil {
			*p = append(*p, one)
		}
		return err
	}
	found, err := container.Publish(s)
	if err != nil {
		return err
	}
	var list []swarm.PortConfig
	for port, bindings := range found {
		for _, b := range bindings {
			if b.HostIP.IsValid() {
				return errors.New("hostip is not supported")
			}
			first, last, err := container.PortRange(b.HostPort)
			if err != nil && b.HostPort != "" {
				return fmt.Errorf("invalid hostport binding (%s) for port (%s)", b.HostPort, port.Port())
			}
			for n := first; n <= last; n++ {
				list = append(list, swarm.PortConfig{Protocol: port.Proto(), TargetPort: uint32(port.Num()), PublishedPort: uint32(n), PublishMode: swarm.PortConfigPublishModeIngress})
			}
		}
	}
	slices.SortFunc(list, swarm.PortConfig.Compare)
	*p = append(*p, list...)
	return nil
}

func longPort(s string) (swarm.PortConfig, error) {
	p := swarm.PortConfig{PublishMode: swarm.PortConfigPublishModeIngress, Protocol: network.TCP}
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return p, err
	}
	for _, f := range fields {
		key, value, ok := strings.Cut(strings.ToLower(f), "=")
		if !ok || key == "" {
			return p, fmt.Errorf("invalid field: %s", f)
		}
		switch key {
		case "protocol":
			if value != "tcp" && value != "udp" && value != "sctp" {
				return p, fmt.Errorf("invalid protocol value '%s'", value)
			}
			p.Protocol = network.IPProtocol(value)
		case "mode":
			if value != "ingress" && value != "host" {
				return p, fmt.Errorf("invalid publish mode value (%s): must be either 'ingress' or 'host'", value)
			}
			p.PublishMode = swarm.PortConfigPublishMode(value)
		case "target":
			p.TargetPort, err = portNumber(key, value)
		case "published":
			p.PublishedPort, err = portNumber(key, value)
		default:
			return p, fmt.Errorf("invalid field key: %s", key)
		}
		if err != nil {
			return p, err
		}
	}
	if p.TargetPort == 0 {
		return p, errors.New("missing mandatory field 'target'")
	}
	return p, nil
}

func portNumber(key, s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		var num *strconv.NumError
		if errors.As(err, &num) {
			err = num.Err
		}
		return 0, fmt.Errorf("invalid %s port (%s): value must be an integer: %w", key, s, err)
	}
	return uint32(n), nil
}

// updatePorts takes some away and adds others. What was there already and is added
// again stays away when it is taken away, too.
func updatePorts(have []swarm.PortConfig, remove, add ports) []swarm.PortConfig {
	key := func(p swarm.PortConfig) string {
		return fmt.Sprintf("%d:%d/%s/%s", p.PublishedPort, p.TargetPort, p.Protocol, p.PublishMode)
	}
	known, list := map[string]bool{}, []swarm.PortConfig{}
	for _, p := range have {
		gone := slices.ContainsFunc(remove, func(r swarm.PortConfig) bool { return samePort(p, r) })
		if !gone && !known[key(p)] {
			list = append(list, p)
		}
		known[key(p)] = true
	}
	for _, p := range add {
		if !known[key(p)] {
			list = append(list, p)
		}
	}
	slices.SortStableFunc(list, func(x, y swarm.PortConfig) int { return strings.Compare(key(x), key(y)) })
	return list
}

// samePort tells whether both lead to one port of the tasks in one way.
func samePort(x, y swarm.PortConfig) bool {
	proto := func(p swarm.PortConfig) network.IPProtocol {
		if p.Protocol == "" {
			return network.TCP
		}
		return p.Protocol
	}
	mode := func(p swarm.PortConfig) swarm.PortConfigPublishMode {
		if p.PublishMode == "" {
			return swarm.PortConfigPublishModeIngress
		}
		return p.PublishMode
	}
	return x.TargetPort == y.TargetPort && proto(x) == proto(y) && mode(x) == mode(y)
}

package container

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	apinetwork "github.com/moby/moby/api/types/network"
)

// linkEnv are the variables by which a container finds those it is linked to,
// as Docker names them. Links are of the default network only; elsewhere names
// do. strict: a container that does not run is an error, else it is left out.
func (m *core) linkEnv(rec *Record, strict bool) ([]string, error) {
	if !rec.HostConfig.NetworkMode.IsBridge() {
		return nil, nil
	}
	var env []string
	for _, l := range rec.HostConfig.Links {
		ref, alias := cutLink(l)
		other, err := m.store.find(ref)
		name := "/" + rec.Name + "/" + alias
		if err != nil {
			if strict {
				return nil, fmt.Errorf("Cannot link to a non running container: /%s AS %s", ref, name) //nolint:staticcheck // Docker's words.
			}
			continue
		}
		v := other.view()
		ip := bridgeIP(&v.Record)
		switch {
		case ip != "" && v.State.Running():
			env = append(env, linkVariables(name, alias, ip, v.Config)...)
		case !strict:
		case !v.State.Running():
			return nil, fmt.Errorf("Cannot link to a non running container: /%s AS %s", v.Name, name) //nolint:staticcheck // Docker's words.
		default:
			return nil, fmt.Errorf("container %s not attached to default bridge network", v.ID)
		}
	}
	return env, nil
}

func bridgeIP(rec *Record) string {
	for _, ep := range rec.Endpoints {
		if ep.Network == apinetwork.NetworkBridge {
			return ep.IP
		}
	}
	return ""
}

// linkVariables are those of one link: for the first exposed port, for each of
// them, for each range of consecutive ones, then name and environment.
func linkVariables(name, alias, ip string, c *container.Config) []string {
	prefix := strings.ReplaceAll(strings.ToUpper(alias), "-", "_")
	var env []string
	set := func(key, format string, args ...any) { env = append(env, key+"="+fmt.Sprintf(format, args...)) }
	ports := sortedPorts(c.ExposedPorts)
	key := func(p apinetwork.Port) string {
		return fmt.Sprintf("%s_PORT_%d_%s", prefix, p.Num(), strings.ToUpper(string(p.Proto())))
	}
	url := func(p apinetwork.Port) string { return fmt.Sprintf("%s://%s:%d", p.Proto(), ip, p.Num()) }
	for i, first := 0, 0; i < len(ports); i++ {
		p := ports[i]
		if i == 0 {
			set(prefix+"_PORT", "%s", url(p))
		}
		set(key(p), "%s", url(p))
		set(key(p)+"_ADDR", "%s", ip)
		set(key(p)+"_PORT", "%d", p.Num())
		set(key(p)+"_PROTO", "%s", p.Proto())
		if i+1 < len(ports) && ports[i+1].Proto() == p.Proto() && ports[i+1].Num() == p.Num()+1 {
			continue
		}
		if first != i {
			set(key(ports[first])+"_START", "%s", url(ports[first]))
			set(key(ports[first])+"_PORT_START", "%d", ports[first].Num())
			set(key(ports[first])+"_END", "%s", url(p))
			set(key(ports[first])+"_PORT_END", "%d", p.Num())
		}
		first = i + 1
	}
	set(prefix+"_NAME", "%s", name)
	for _, kv := range c.Env {
		k, v, ok := strings.Cut(kv, "=")
		if ok && k != "HOME" && k != "PATH" {
			set(prefix+"_ENV_"+k, "%s", v)
		}
	}
	return env
}

// sortedPorts puts TCP first, then by protocol and number.
func sortedPorts(set apinetwork.PortSet) []apinetwork.Port {
	ports := make([]apinetwork.Port, 0, len(set))
	for p := range set {
		ports = append(ports, p)
	}
	slices.SortFunc(ports, func(a, b apinetwork.Port) int {
		if a.Proto() == b.Proto() {
			return cmp.Compare(a.Num(), b.Num())
		}
		if a.Proto() == apinetwork.TCP {
			return -1
		}
		if b.Proto() == apinetwork.TCP {
			return 1
		}
		return cmp.Compare(a.Proto(), b.Proto())
	})
	return ports
}

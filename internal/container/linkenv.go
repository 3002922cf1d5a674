package container

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/network"
)

// Link is what --link asks for: another container under a name of one's own.
type Link struct {
	Ref   string // id or name of the other; the id since its creation
	Alias string
}

// Links are those of a record.
func Links(rec *Record) []Link {
	if len(rec.HostConfig.Links) == 0 {
		return nil
	}
	list := make([]Link, 0, len(rec.HostConfig.Links))
	for _, l := range rec.HostConfig.Links {
		ref, alias := cutLink(l)
		list = append(list, Link{Ref: ref, Alias: alias})
	}
	return list
}

// To tells whether the link leads to a container.
func (l Link) To(rec *Record) bool { return l.Ref == string(rec.ID) || l.Ref == rec.Name }

// checkLinks refuses links that cannot be, in Docker's words, and writes down
// whom they mean, whatever those are called later.
func (m creator) checkLinks(rec *Record) error {
	h := rec.HostConfig
	if len(h.Links) == 0 {
		return nil
	}
	mode := h.NetworkMode
	switch {
	case mode.IsHost():
		return kindf(errInvalid, "conflicting options: host type networking can't be used with links. This would result in undefined behavior")
	case mode.IsContainer():
		return kindf(errInvalid, "conflicting options: container type network can't be used with links. This would result in undefined behavior")
	}
	links := make([]string, 0, len(h.Links))
	for _, l := range h.Links {
		if l == "" {
			return kindf(errInvalid, "empty string specified for links")
		}
		if strings.Count(l, ":") > 1 {
			return kindf(errInvalid, "bad format for links: %s", l)
		}
		ref, alias := cutLink(l)
		other, err := m.store.find(ref)
		if err != nil {
			return kindf(errInvalid, "could not get container for %s: %s", ref, err)
		}
		if other.view().HostConfig.NetworkMode.IsHost() {
			return kindf(errInvalid, "conflicting options: host type networking can't be used with links. This would result in undefined behavior")
		}
		links = append(links, string(other.id)+":"+alias)
	}
	h.Links = links
	return nil
}

// byLink finds what "container/alias" means. Called without the store's lock.
func (s *store) byLink(ref string) (*entry, error) {
	owner, alias, ok := strings.Cut(strings.TrimPrefix(ref, "/"), "/")
	if !ok {
		return nil, errNoSuch(ref)
	}
	e, err := s.findPlain(owner)
	if err != nil {
		return nil, errNoSuch(ref)
	}
	v := e.view()
	for _, l := range Links(&v.Record) {
		if l.Alias != alias {
			continue
		}
		if other, err := s.findPlain(l.Ref); err == nil {
			return other, nil
		}
	}
	return nil, errNoSuch(ref)
}

// linkEnv are the variables that tell a container about those it is linked to.
// One that does not run cannot be linked to.
func (s *start) linkEnv() ([]string, error) {
	if len(s.rec.HostConfig.Links) == 0 || s.rec.HostConfig.NetworkMode.IsUserDefined() {
		return nil, nil
	}
	var env []string
	for _, l := range Links(&s.rec) {
		other, err := s.m.store.find(l.Ref)
		if err != nil {
			continue // removed meanwhile, and the link with it
		}
		v := other.view()
		name := "/" + s.rec.Name + "/" + l.Alias
		if !v.State.Running() {
			return nil, errors.New("Cannot link to a non running container: /" + v.Name + " AS " + name)
		}
		env = append(env, linkVariables(l.Alias, name, &v)...)
	}
	return env, nil
}

// linkVariables describe a linked container as Docker's links do: its address
// by port, runs of ports also by their first and last, its name, and what was
// set in its environment.
func linkVariables(alias, name string, v *View) []string {
	prefix := strings.ToUpper(strings.ReplaceAll(alias, "-", "_"))
	var ip string
	for _, ep := range v.Endpoints {
		if a, err := netip.ParseAddr(ep.IP); err == nil && a.Is4() {
			ip = ep.IP
		}
	}
	ports := make([]network.Port, 0, len(v.Config.ExposedPorts))
	for p := range v.Config.ExposedPorts {
		ports = append(ports, p)
	}
	slices.SortFunc(ports, func(a, b network.Port) int {
		if c := int(a.Num()) - int(b.Num()); c != 0 {
			return c
		}
		return strings.Compare(string(a.Proto()), string(b.Proto())) // tcp comes before udp
	})
	var env []string
	url := func(p network.Port) string { return fmt.Sprintf("%s://%s:%d", p.Proto(), ip, p.Num()) }
	if len(ports) > 0 {
		env = append(env, prefix+"_PORT="+url(ports[0]))
	}
	for i := 0; i < len(ports); {
		first, last := ports[i], ports[i]
		j := i + 1
		for ; j < len(ports) && ports[j].Proto() == last.Proto() && ports[j].Num() == last.Num()+1; j++ {
			last = ports[j]
		}
		for _, p := range ports[i:j] {
			env = append(env, portVariables(prefix, ip, url(p), p)...)
		}
		if j > i+1 {
			key := fmt.Sprintf("%s_PORT_%d_%s", prefix, first.Num(), strings.ToUpper(string(first.Proto())))
			env = append(env, key+"_START="+url(first), fmt.Sprintf("%s_PORT_START=%d", key, first.Num()),
				key+"_END="+url(last), fmt.Sprintf("%s_PORT_END=%d", key, last.Num()))
		}
		i = j
	}
	env = append(env, prefix+"_NAME="+name)
	for _, kv := range v.Config.Env {
		if k, _, ok := strings.Cut(kv, "="); ok && k != "HOME" && k != "PATH" {
			env = append(env, prefix+"_ENV_"+kv)
		}
	}
	return env
}

func portVariables(prefix, ip, url string, p network.Port) []string {
	key := fmt.Sprintf("%s_PORT_%d_%s", prefix, p.Num(), strings.ToUpper(string(p.Proto())))
	return []string{
		key + "=" + url, key + "_ADDR=" + ip, fmt.Sprintf("%s_PORT=%d", key, p.Num()), key + "_PROTO=" + string(p.Proto()),
	}
}

package container

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// hostFiles are the files of a container that are bound over those in /etc.
type hostFiles struct{ hostname, hosts, resolv string }

func (m *core) hostFilesOf(id ID) hostFiles {
	dir := m.store.path(id)
	return hostFiles{hostname: filepath.Join(dir, "hostname"), hosts: filepath.Join(dir, "hosts"), resolv: filepath.Join(dir, "resolv.conf")}
}

// writeHostFiles writes hostname, hosts and resolv.conf for a start. A container
// that shares another's network shares its files.
func (s *start) writeHostFiles() (hostFiles, error) {
	mode := s.rec.HostConfig.NetworkMode
	if mode.IsContainer() {
		other, err := s.m.store.find(mode.ConnectedContainer())
		if err != nil {
			return hostFiles{}, err
		}
		return s.m.hostFilesOf(other.id), nil
	}
	f := s.m.hostFilesOf(s.e.id)
	for file, text := range map[string]string{f.hostname: s.rec.Config.Hostname + "\n", f.hosts: s.hosts()} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return f, err
		}
	}
	return f, s.m.writeResolvConf(&s.rec, s.endpoints())
}

// hosts is /etc/hosts: the machine's own on the host's network, else the
// loopback names, the container's own, links and what --add-host says.
func (s *start) hosts() string {
	var b strings.Builder
	h := s.rec.HostConfig
	if h.NetworkMode.IsHost() {
		host, _ := os.ReadFile("/etc/hosts")
		b.Write(host)
		if b.Len() > 0 && !strings.HasSuffix(b.String(), "\n") {
			b.WriteByte('\n')
		}
	} else {
		b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	}
	for _, extra := range h.ExtraHosts {
		host, ip, ok := cutHost(extra)
		if !ok {
			continue
		}
		if ip == "host-gateway" {
			for _, ip := range s.gateways() {
				fmt.Fprintf(&b, "%s\t%s\n", ip, host)
			}
			continue
		}
		fmt.Fprintf(&b, "%s\t%s\n", ip, host)
	}
	for _, l := range h.Links {
		ref, alias := cutLink(l)
		if other, err := s.m.store.find(ref); err == nil {
			v := other.view()
			for _, ep := range v.Endpoints {
				fmt.Fprintf(&b, "%s\t%s %s %s\n", ep.IP, alias, v.Config.Hostname, v.Name)
			}
		}
	}
	for _, ep := range s.endpoints() {
		for _, line := range hostLines(s.rec.Config, &ep) {
			b.WriteString(line)
		}
	}
	return b.String()
}

// cutLink splits "container:alias"; without an alias the container's name is it.
// What an inspection shows, "/container:/user/alias", is read too.
func cutLink(l string) (ref, alias string) {
	ref, alias, ok := strings.Cut(l, ":")
	if !ok {
		alias = ref
	}
	return strings.TrimPrefix(ref, "/"), path.Base(alias)
}

// cutHost splits "name:address"; the address may hold colons or stand in brackets.
func cutHost(s string) (host, ip string, ok bool) {
	host, ip, ok = strings.Cut(s, ":")
	if !ok {
		host, ip, ok = strings.Cut(s, "=")
	}
	return host, strings.Trim(ip, "[]"), ok
}

// gateways are what host-gateway stands for: the engine's settings, else the
// host's address on the default network, whatever networks the container is on.
// An engine without a default network has but that of the container's own.
func (s *start) gateways() []string {
	if g := s.m.cfg.Defaults.HostGateways; len(g) > 0 {
		return g
	}
	if g := s.m.cfg.Networks.HostGateway(); g != "" {
		return []string{g}
	}
	for _, ep := range s.endpoints() {
		if ep.Gateway != "" {
			return []string{ep.Gateway}
		}
	}
	return nil
}

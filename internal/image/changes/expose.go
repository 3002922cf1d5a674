package changes

import (
	"net/netip"
	"strconv"
	"strings"
)

func (s *state) expose(in instruction) error {
	words := fields(in.rest)
	if len(words) == 0 {
		return problemf("EXPOSE requires at least one argument")
	}
	if err := in.noFlags(); err != nil {
		return err
	}
	for _, w := range words {
		specs, err := expandWords(w, s.config.Env)
		if err != nil {
			return err
		}
		for _, spec := range specs {
			if err := s.exposeOne(spec); err != nil {
				return err
			}
		}
	}
	return nil
}

// exposeOne reads "[[ip:]hostport:]port[-port][/proto]"; what belongs to the
// host is checked and left out.
func (s *state) exposeOne(spec string) error {
	ip, host, port := splitSpec(spec)
	port, proto, _ := strings.Cut(port, "/")
	if port == "" {
		return problemf("no port specified: %s<empty>", spec)
	}
	if proto == "" {
		proto = "tcp"
	}
	proto = strings.ToLower(proto)
	if proto != "tcp" && proto != "udp" && proto != "sctp" {
		return problemf("invalid proto: %s", proto)
	}
	if ip != "" {
		if _, err := netip.ParseAddr(strings.Trim(ip, "[]")); err != nil {
			return problemf("invalid IP address: %s", err)
		}
	}
	first, last, ok := portRange(port)
	if !ok {
		return problemf("invalid containerPort: %s", port)
	}
	if host != "" {
		hostFirst, hostLast, ok := portRange(host)
		if !ok {
			return problemf("invalid hostPort: %s", host)
		}
		if last-first != hostLast-hostFirst && first != last {
			return problemf("invalid ranges specified for container and host Ports: %s and %s", port, host)
		}
	}
	if s.config.ExposedPorts == nil {
		s.config.ExposedPorts = map[string]struct{}{}
	}
	for p := first; p <= last; p++ {
		s.config.ExposedPorts[strconv.Itoa(p)+"/"+proto] = struct{}{}
	}
	return nil
}

// splitSpec cuts at the last two colons, so that an IPv6 address stays whole.
func splitSpec(spec string) (ip, host, port string) {
	i := strings.LastIndexByte(spec, ':')
	if i < 0 {
		return "", "", spec
	}
	front, port := spec[:i], spec[i+1:]
	if i = strings.LastIndexByte(front, ':'); i < 0 {
		return "", front, port
	}
	return front[:i], front[i+1:], port
}

func portRange(s string) (first, last int, ok bool) {
	a, b, isRange := strings.Cut(s, "-")
	if !isRange {
		b = a
	}
	lo, err1 := strconv.ParseUint(a, 10, 16)
	hi, err2 := strconv.ParseUint(b, 10, 16)
	return int(lo), int(hi), err1 == nil && err2 == nil && lo <= hi
}

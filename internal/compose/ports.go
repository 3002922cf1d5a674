package compose

import (
	"cmp"
	"strconv"
	"strings"

	"escale.dev/escale/internal/cluster"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/moby/moby/api/types/network"
)

// ports are the published ports. A range of as many ports of the container has been made as many
// ports by who read the file; what is left is the range of the host of which one is taken.
func ports(s *types.ServiceConfig) ([]cluster.Port, error) {
	var out []cluster.Port
	for _, p := range s.Ports {
		if p.Target == 0 || p.Target > 65535 {
			return nil, refused("ports", "port %d is none", p.Target)
		}
		c := cluster.Port{Name: p.Name, Proto: network.IPProtocol(cmp.Or(p.Protocol, "tcp")), Target: uint16(p.Target), Address: p.HostIP, Host: p.Mode == "host"}
		var ok bool
		if c.Published, c.Last, ok = published(p.Published); !ok {
			return nil, refused("ports", "published port %q: a number or a range wanted", p.Published)
		}
		out = append(out, c)
	}
	return out, nil
}

// published reads a port of the host or a range of them, whose last is 0 when it has but one; ""
// and 0 are any.
func published(text string) (first, last uint16, ok bool) {
	if text == "" {
		return 0, 0, true
	}
	from, to, ranges := strings.Cut(text, "-")
	if !ranges {
		to = from
	}
	lo, err1 := strconv.ParseUint(from, 10, 16)
	hi, err2 := strconv.ParseUint(to, 10, 16)
	if err1 != nil || err2 != nil || hi < lo || lo == 0 && hi != 0 {
		return 0, 0, false
	}
	if lo == hi {
		hi = 0
	}
	return uint16(lo), uint16(hi), true
}

// ranged tells whether a port is published at one of a range.
func ranged(p types.ServicePortConfig) bool {
	_, last, ok := published(p.Published)
	return ok && last != 0
}

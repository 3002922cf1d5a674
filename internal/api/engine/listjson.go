package engine

import (
	"context"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"escale.dev/escale/internal/container"
	"escale.dev/escale/internal/image"
	enginenet "escale.dev/escale/internal/network"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/network"
)

type endpoint = enginenet.Endpoint

// humanDuration is a duration in Docker's words ("5 seconds", "About an hour").
func humanDuration(d time.Duration) string { return units.HumanDuration(max(0, d)) }

// listEncoder writes the elements of /containers/json. A list is asked for far
// more often than anything else, so it is written without reflection.
type listEncoder struct {
	version version
	now     time.Time
	images  func(ref string) image.Image
	links   map[container.ID][]string // further names, by links
	known   func(v *container.View, name string, ep *endpoint) *endpoint
	buf     []byte
}

func (s *Server) listEncoder(ctx context.Context, ver version, views []container.View) listEncoder {
	return listEncoder{version: ver, now: time.Now(), images: s.imageCache(ctx), links: linkNames(views), known: s.remembering()}
}

// container appends one element.
func (l *listEncoder) container(v *container.View, size containerSize) {
	b := append(l.buf, `{"Id":"`...)
	b = append(b, v.ID...)
	b = append(b, `","Names":[`...)
	b = appendString(b, "/"+v.Name)
	for _, name := range l.links[v.ID] {
		b = appendString(append(b, ','), name)
	}
	b = append(b, `],"Image":`...)
	b = appendString(b, l.imageName(v))
	b = append(b, `,"ImageID":`...)
	b = appendString(b, v.ImageID)
	b = append(b, `,"Command":`...)
	b = appendString(b, commandLine(v.Path, v.Args))
	b = append(b, `,"Created":`...)
	b = appendInt(b, v.Created.Unix())
	b = append(b, `,"Ports":`...)
	b = appendPorts(b, v)
	if size.rw > 0 {
		b = appendInt(append(b, `,"SizeRw":`...), size.rw)
	}
	if size.root > 0 {
		b = appendInt(append(b, `,"SizeRootFs":`...), size.root)
	}
	b = append(b, `,"Labels":`...)
	if v.Config.Labels == nil {
		b = append(b, "{}"...)
	} else {
		b = appendStringMap(b, v.Config.Labels)
	}
	b = append(b, `,"State":"`...)
	b = append(b, shownStatus(&v.State)...)
	b = append(b, `","Status":`...)
	b = appendString(b, statusText(&v.State, l.now))
	b = append(b, `,"HostConfig":{"NetworkMode":`...)
	b = appendString(b, string(v.HostConfig.NetworkMode))
	if !l.version.before(46) && len(v.HostConfig.Annotations) > 0 {
		b = append(b, `,"Annotations":`...)
		b = appendStringMap(b, v.HostConfig.Annotations)
	}
	b = append(b, '}')
	if !l.version.before(52) {
		b = append(b, `,"Health":{"Status":`...)
		b = appendString(b, healthWord(&v.State))
		b = append(b, `,"FailingStreak":`...)
		streak := 0
		if v.State.Health != nil {
			streak = v.State.Health.FailingStreak
		}
		b = append(appendInt(b, streak), '}')
	}
	b = append(b, `,"NetworkSettings":{"Networks":`...)
	b = l.networks(b, v)
	b = append(b, `},"Mounts":`...)
	b = appendMounts(b, v.Mounts)
	l.buf = append(b, '}')
}

// imageName is the name the container was made from as long as it still means
// the container's image, else the image's id.
func (l *listEncoder) imageName(v *container.View) string {
	asked := v.Config.Image
	if asked == v.ImageID || l.images(asked).ID == v.ImageID {
		return asked
	}
	return v.ImageID
}

// networks appends the container's networks by name.
func (l *listEncoder) networks(b []byte, v *container.View) []byte {
	b = append(b, '{')
	first := true
	eachNetwork(v, func(name string, asked *network.EndpointSettings, ep *endpoint) {
		if !first {
			b = append(b, ',')
		}
		first = false
		b = append(appendString(b, name), ':')
		b = l.network(b, v, asked, l.known(v, name, ep))
	})
	return append(b, '}')
}

func (l *listEncoder) network(b []byte, v *container.View, asked *network.EndpointSettings, ep *endpoint) []byte {
	es := endpointSettings(v, asked, ep)
	b = append(b, `{"IPAMConfig":`...)
	b = appendIPAM(b, es.IPAMConfig)
	b = append(b, `,"Links":`...)
	b = appendStrings(b, es.Links)
	b = append(b, `,"Aliases":`...)
	b = appendStrings(b, es.Aliases)
	b = append(b, `,"MacAddress":`...)
	b = appendString(b, es.MacAddress.String())
	b = append(b, `,"NetworkID":`...)
	b = appendString(b, es.NetworkID)
	b = append(b, `,"EndpointID":`...)
	b = appendString(b, es.EndpointID)
	b = append(b, `,"Gateway":`...)
	b = appendAddr(b, es.Gateway)
	b = append(b, `,"IPAddress":`...)
	b = appendAddr(b, es.IPAddress)
	b = append(b, `,"IPPrefixLen":`...)
	b = appendInt(b, es.IPPrefixLen)
	b = append(b, `,"IPv6Gateway":`...)
	b = appendAddr(b, es.IPv6Gateway)
	b = append(b, `,"GlobalIPv6Address":`...)
	b = appendAddr(b, es.GlobalIPv6Address)
	b = append(b, `,"GlobalIPv6PrefixLen":`...)
	b = appendInt(b, es.GlobalIPv6PrefixLen)
	b = append(b, `,"DriverOpts":`...)
	b = appendStringMap(b, es.DriverOpts)
	if !l.version.before(44) {
		b = append(b, `,"DNSNames":`...)
		b = appendStrings(b, es.DNSNames)
	}
	if !l.version.before(48) {
		b = append(b, `,"GwPriority":`...)
		b = appendInt(b, es.GwPriority)
	}
	return append(b, '}')
}

func appendIPAM(b []byte, c *network.EndpointIPAMConfig) []byte {
	if c == nil {
		return append(b, "null"...)
	}
	b = append(b, '{')
	sep := ""
	field := func(name string) {
		b = append(append(append(b, sep...), name...), ':')
		sep = ","
	}
	if c.IPv4Address.IsValid() {
		field(`"IPv4Address"`)
		b = appendAddr(b, c.IPv4Address)
	}
	if c.IPv6Address.IsValid() {
		field(`"IPv6Address"`)
		b = appendAddr(b, c.IPv6Address)
	}
	if len(c.LinkLocalIPs) > 0 {
		field(`"LinkLocalIPs"`)
		b = append(b, '[')
		for i, a := range c.LinkLocalIPs {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendAddr(b, a)
		}
		b = append(b, ']')
	}
	return append(b, '}')
}

// portLine is one element of a container's Ports.
type portLine struct {
	ip              netip.Addr
	private, public uint16
	proto           network.IPProtocol
}

// appendPorts appends the container's ports: those exposed while it runs, with
// where they are published.
func appendPorts(b []byte, v *container.View) []byte {
	var space [8]portLine
	lines := space[:0]
	for i := range v.Endpoints {
		for port, bindings := range v.Endpoints[i].Ports {
			if len(bindings) == 0 {
				lines = append(lines, portLine{private: port.Num(), proto: port.Proto()})
			}
			for _, bind := range bindings {
				public, _ := strconv.ParseUint(bind.HostPort, 10, 16) // the engine's own number
				lines = append(lines, portLine{ip: bind.HostIP, private: port.Num(), public: uint16(public), proto: port.Proto()})
			}
		}
	}
	if v.State.Running() && len(v.Endpoints) > 0 {
		for port := range v.Config.ExposedPorts {
			known := slices.ContainsFunc(lines, func(l portLine) bool { return l.private == port.Num() && l.proto == port.Proto() })
			if !known {
				lines = append(lines, portLine{private: port.Num(), proto: port.Proto()})
			}
		}
	}
	slices.SortFunc(lines, func(x, y portLine) int {
		if x.private != y.private {
			return int(x.private) - int(y.private)
		}
		if x.proto != y.proto {
			if x.proto < y.proto {
				return -1
			}
			return 1
		}
		if x.public != y.public {
			return int(x.public) - int(y.public)
		}
		return x.ip.Compare(y.ip)
	})
	b = append(b, '[')
	for i, p := range lines {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, '{')
		if p.ip.IsValid() {
			b = append(b, `"IP":`...)
			b = append(appendAddr(b, p.ip), ',')
		}
		b = append(b, `"PrivatePort":`...)
		b = appendInt(b, p.private)
		if p.public != 0 {
			b = append(b, `,"PublicPort":`...)
			b = appendInt(b, p.public)
		}
		b = append(b, `,"Type":`...)
		b = append(appendString(b, string(p.proto)), '}')
	}
	return append(b, ']')
}

func appendMounts(b []byte, mounts []container.Mount) []byte {
	b = append(b, '[')
	for i := range mounts {
		m := &mounts[i]
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, '{')
		if m.Type != "" {
			b = append(b, `"Type":`...)
			b = append(appendString(b, string(m.Type)), ',')
		}
		if m.Name != "" {
			b = append(b, `"Name":`...)
			b = append(appendString(b, m.Name), ',')
		}
		b = append(b, `"Source":`...)
		b = appendString(b, m.Source)
		b = append(b, `,"Destination":`...)
		b = appendString(b, m.Destination)
		if m.Driver != "" {
			b = append(b, `,"Driver":`...)
			b = appendString(b, m.Driver)
		}
		b = append(b, `,"Mode":`...)
		b = appendString(b, m.Mode)
		b = append(b, `,"RW":`...)
		b = append(b, boolWord(m.RW)...)
		b = append(b, `,"Propagation":`...)
		b = append(appendString(b, string(m.Propagation)), '}')
	}
	return append(b, ']')
}

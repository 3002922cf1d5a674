// Package resolvconf makes the resolv.conf of containers from the host's and from
// what is said instead of it, and tells where a container's name server forwards
// questions to.
//
// Source: resolv.conf(5).
package resolvconf

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"escale.dev/escale/internal/network/dns"
	"golang.org/x/sys/unix"
)

const (
	// Path is where a machine keeps its file.
	Path = "/etc/resolv.conf"

	// resolved is where systemd-resolved keeps the servers that stand behind its stub.
	resolved = "/run/systemd/resolve/resolv.conf"

	// stub is where systemd-resolved answers.
	stub = "127.0.0.53"
)

// maxFile is how long a file may be, in bytes: containers can write to theirs.
const maxFile = 1 << 20

// Kind is how a container reaches name servers.
type Kind int

// The kinds.
const (
	Host   Kind = iota // as the host does
	Bridge             // over the default network, without a name server of ours
	Served             // by ours, which forwards
)

// words are how the file calls the kinds.
var words = map[Kind]string{Bridge: " (legacy)", Served: " (internal resolver)"}

// Settings are what a container or the engine says instead of the host's file.
type Settings struct {
	Servers         []string // addresses
	Search, Options []string
}

// or fills what is not said with what other says.
func or(s, other []string) []string {
	if len(s) > 0 {
		return s
	}
	return other
}

// Or gives s, with what it does not say from other.
func (s Settings) Or(other Settings) Settings {
	return Settings{Servers: or(s.Servers, other.Servers), Search: or(s.Search, other.Search), Options: or(s.Options, other.Options)}
}

// file is what a resolv.conf says.
type file struct {
	path            string
	servers         []netip.Addr
	search, options []string
	other           []string // whole lines
	wrong           []string // servers that are no addresses
}

func parse(path, text string) file {
	f := file{path: path}
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) == 0 || words[0][0] == '#' || words[0][0] == ';' {
			continue
		}
		switch {
		case len(words) > 1 && words[0] == "nameserver":
			if a, err := netip.ParseAddr(words[1]); err == nil {
				f.servers = append(f.servers, a)
			} else {
				f.wrong = append(f.wrong, words[1])
			}
		case len(words) > 1 && (words[0] == "search" || words[0] == "domain"):
			f.search = words[1:]
		case len(words) > 1 && words[0] == "options":
			f.options = append(f.options, words[1:]...)
		case words[0] != "nameserver" && words[0] != "search" && words[0] != "domain" && words[0] != "options":
			f.other = append(f.other, strings.TrimSpace(line))
		}
	}
	return f
}

// load reads the host's file, "" being that of the machine. One that is not there
// says nothing.
func load(path string, kind Kind) (file, string, error) {
	if path == "" {
		path = Path
	}
	b, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return file{path: path}, "", nil
	}
	if err != nil {
		return file{}, "", err
	}
	f := parse(path, string(b))
	// A container cannot reach systemd-resolved's stub; our name server can.
	if kind == Bridge && path == Path && len(f.servers) == 1 && f.servers[0].String() == stub {
		if b, err := readFile(resolved); err == nil {
			return parse(resolved, string(b)), string(b), nil
		}
	}
	return f, string(b), nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && (!info.Mode().IsRegular() || len(b) > maxFile) {
		err = fmt.Errorf("%s: %w", path, errForeign)
	}
	return b, err
}

var errForeign = errors.New("no configuration of a name resolver")

// public stand in where a container can reach none of the host's servers.
var public = map[bool][]netip.Addr{
	false: {netip.MustParseAddr("8.8.8.8"), netip.MustParseAddr("8.8.4.4")},
	true:  {netip.MustParseAddr("2001:4860:4860::8888"), netip.MustParseAddr("2001:4860:4860::8844")},
}

// Make gives a container's file, and where questions that ours does not answer go.
// path is the host's file, "" that of the machine; ipv6 tells whether the container
// has an address of that family.
func Make(path string, kind Kind, s Settings, ipv6 bool) (text string, up dns.Upstream, err error) {
	f, whole, err := load(path, kind)
	if err != nil {
		return "", up, err
	}
	if kind == Host && len(s.Servers)+len(s.Search)+len(s.Options) == 0 {
		return whole, up, nil
	}
	c := conf{file: f, kind: kind}
	if err := c.override(s); err != nil {
		return "", up, err
	}
	switch kind {
	case Bridge:
		c.leaveLoopbackOut(ipv6)
	case Served:
		up = c.serve()
	}
	return c.String(), up, nil
}

// conf is a container's file in the making.
type conf struct {
	file
	kind      Kind
	overrides []string
	external  []string // servers that ours forwards to, as the file shows them
	warning   string
	ndots     string // where the option comes from
}

func (c *conf) override(s Settings) error {
	if hasNdots(c.options) {
		c.ndots = "host"
	}
	if len(s.Servers) > 0 {
		c.servers, c.overrides = nil, append(c.overrides, "nameservers")
		for _, text := range s.Servers {
			a, err := netip.ParseAddr(text)
			if err != nil {
				return fmt.Errorf("bad nameserver address %s", text)
			}
			c.servers = append(c.servers, a)
		}
	}
	if len(s.Search) > 0 {
		c.search, c.overrides = slices.DeleteFunc(slices.Clone(s.Search), func(d string) bool { return d == "." }), append(c.overrides, "search")
	}
	if len(s.Options) > 0 {
		c.options, c.overrides, c.ndots = slices.Clone(s.Options), append(c.overrides, "options"), ""
		if hasNdots(c.options) {
			c.ndots = "override"
		}
	}
	return nil
}

func hasNdots(options []string) bool {
	return slices.ContainsFunc(options, func(o string) bool { return o == "ndots" || strings.HasPrefix(o, "ndots:") })
}

// leaveLoopbackOut leaves out those of the host's servers that a container cannot reach.
func (c *conf) leaveLoopbackOut(ipv6 bool) {
	if slices.Contains(c.overrides, "nameservers") {
		return
	}
	c.servers = slices.DeleteFunc(slices.Clone(c.servers), func(a netip.Addr) bool { return a.IsLoopback() || a.Is6() && !ipv6 })
	if len(c.servers) > 0 {
		return
	}
	c.servers = public[false]
	if ipv6 {
		c.servers = slices.Concat(c.servers, public[true])
	}
	c.warning = "Used default nameservers."
}

// serve puts our name server in place of the others.
func (c *conf) serve() dns.Upstream {
	own := slices.Contains(c.overrides, "nameservers")
	up := dns.Upstream{Search: c.search, Options: c.options}
	for _, a := range c.servers {
		up.Servers = append(up.Servers, dns.Server{Addr: netip.AddrPortFrom(a, 53), InContainer: own})
		if own {
			c.external = append(c.external, a.String())
		} else {
			c.external = append(c.external, "host("+a.String()+")")
		}
	}
	if len(c.servers) == 0 {
		c.warning = "NO EXTERNAL NAMESERVERS DEFINED"
	}
	c.servers = []netip.Addr{dns.Address}
	c.options = slices.DeleteFunc(slices.Clone(c.options), func(o string) bool {
		name, value, _ := strings.Cut(o, ":")
		n, err := strconv.Atoi(value)
		return name == "ndots" && (err != nil || n < 0)
	})
	if !hasNdots(c.options) {
		c.options, c.ndots = append(c.options, "ndots:0"), "internal"
	}
	return up
}

// String is the file. Tools look at the remarks at its end, which are Docker's.
func (c *conf) String() string {
	var b strings.Builder
	b.WriteString("\n")
	for _, a := range c.servers {
		fmt.Fprintf(&b, "nameserver %s\n", a)
	}
	if len(c.search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(c.search, " "))
	}
	if len(c.options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(c.options, " "))
	}
	for _, line := range c.other {
		fmt.Fprintf(&b, "%s\n", line)
	}
	fmt.Fprintf(&b, "\n# Based on host file: '%s'%s\n", c.path, words[c.kind])
	if c.warning != "" {
		fmt.Fprintf(&b, "# %s\n", c.warning)
	}
	if len(c.external) > 0 {
		fmt.Fprintf(&b, "# ExtServers: [%s]\n", strings.Join(c.external, " "))
	}
	if len(c.wrong) > 0 {
		fmt.Fprintf(&b, "# Invalid nameservers: %v\n", c.wrong)
	}
	fmt.Fprintf(&b, "# Overrides: [%s]\n", strings.Join(c.overrides, " "))
	if c.ndots != "" {
		fmt.Fprintf(&b, "# Option ndots from: %s\n", c.ndots)
	}
	return b.String()
}

package daemon

import (
	"fmt"
	"net/netip"
	"path/filepath"

	"github.com/spf13/pflag"
)

// dnsConfig is how containers that do not say otherwise find names.
type dnsConfig struct {
	DNS        []string // addresses of servers; none: the machine's
	DNSSearch  []string
	DNSOptions []string
	ResolvConf string // where the machine's stand; empty: /etc/resolv.conf
}

func (c *dnsConfig) flags(fs *pflag.FlagSet) {
	fs.StringArrayVar(&c.DNS, "dns", nil, "DNS server of containers")
	fs.StringArrayVar(&c.DNSSearch, "dns-search", nil, "DNS search domain of containers")
	fs.StringArrayVar(&c.DNSOptions, "dns-opt", nil, "Resolver option of containers")
	fs.StringVar(&c.ResolvConf, "resolv-conf", "", "The resolver configuration that those of containers are made from (default /etc/resolv.conf)")
}

func (c *dnsConfig) validate() error {
	for _, a := range c.DNS {
		if _, err := netip.ParseAddr(a); err != nil {
			return fmt.Errorf("invalid --dns %q: not an IP address", a)
		}
	}
	if c.ResolvConf != "" && !filepath.IsAbs(c.ResolvConf) {
		return fmt.Errorf("invalid --resolv-conf %q: an absolute path wanted", c.ResolvConf)
	}
	return nil
}

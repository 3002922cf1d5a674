package daemon

import (
	"fmt"
	"net/netip"

	"escale.dev/escale/internal/network"
	"github.com/spf13/pflag"
)

// publishConfig says where ports of containers are published, and how that gets
// on with the host's firewall.
type publishConfig struct {
	IP             string
	PublishDefault string
	UserlandProxy  bool
	Firewall       string
}

// The words of --publish-default and --firewall.
const (
	publishAll      = "all"
	publishLoopback = "loopback"
	firewallAuto    = "auto"
	firewallStrict  = "strict"
)

func (c *publishConfig) flags(fs *pflag.FlagSet) {
	fs.StringVar(&c.IP, "ip", "", "Address of the host at which the default network's ports are published when nobody says otherwise (default: all)")
	fs.StringVar(&c.PublishDefault, "publish-default", publishAll, `Where ports are published when nobody says otherwise: "all" of the host's addresses, "loopback", or an address`)
	fs.BoolVar(&c.UserlandProxy, "userland-proxy", true, "Pass on what comes to published ports at [::1], or by IPv6 for a container without; the kernel does the rest")
	fs.StringVar(&c.Firewall, "firewall", firewallAuto, `With another firewall on the host: "auto" lets containers through it by tagged rules, "strict" leaves all to its rules`)
}

func (c *publishConfig) validate() error {
	if c.IP != "" {
		if _, err := netip.ParseAddr(c.IP); err != nil {
			return fmt.Errorf("invalid --ip %q: want an IP address", c.IP)
		}
	}
	if _, err := c.publish(); err != nil {
		return err
	}
	switch c.Firewall {
	case firewallAuto, firewallStrict:
		return nil
	default:
		return fmt.Errorf("invalid --firewall %q: want %q or %q", c.Firewall, firewallAuto, firewallStrict)
	}
}

// publish are the addresses that --publish-default names; none: all.
func (c *publishConfig) publish() ([]netip.Addr, error) {
	switch c.PublishDefault {
	case publishAll, "":
		return nil, nil
	case publishLoopback:
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}, nil
	}
	a, err := netip.ParseAddr(c.PublishDefault)
	if err != nil {
		return nil, fmt.Errorf("invalid --publish-default %q: want %q, %q or an IP address", c.PublishDefault, publishAll, publishLoopback)
	}
	return []netip.Addr{a.Unmap()}, nil
}

// apply enters it into the configuration of the networks.
func (c *publishConfig) apply(to *network.Config) error {
	var err error
	if to.Publish, err = c.publish(); err != nil {
		return err
	}
	if c.IP != "" {
		a, err := netip.ParseAddr(c.IP)
		if err != nil {
			return fmt.Errorf("invalid --ip %q: %w", c.IP, err)
		}
		to.Binding = a.Unmap()
	}
	to.Forward, to.Strict = c.UserlandProxy, c.Firewall == firewallStrict
	return nil
}

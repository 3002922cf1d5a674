package network

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"regexp"

	"escale.dev/escale/internal/events"
	"escale.dev/escale/internal/network/ipam"
	"github.com/containerd/errdefs"
)

// DefaultInstance is the name of the engine that has a machine to itself.
const DefaultInstance = "escale"

// maxLink is how long a link's name can be (IFNAMSIZ, less the final zero).
const maxLink = 15

// Config says how an engine's networks are to be. What is in the kernel carries
// the instance's name, so that several engines live on one machine.
type Config struct {
	Instance   string       // letters, digits, "-" and "_"
	BridgeName string       // of the default network; empty: derived from Instance
	BIP        netip.Prefix // the default bridge's address and subnet; invalid: a free one of Pools
	Pools      []ipam.Range // where subnets come from; empty: Docker's
	MTU        int          // bytes; 0: 1500
	ICC        bool         // containers on the default bridge may reach each other
	IPForward  bool         // turn the host's ip_forward on if it is off
	IPMasq     bool         // what leaves the default bridge bears the host's address
	Binding    netip.Addr   // where ports of the default network are published; the zero Addr: as Publish says
	Publish    []netip.Addr // where ports are published that name no address of the host; empty: everywhere
	Forward    bool         // pass on what comes to published ports by IPv6 and cannot be translated
	// Strict leaves the chains of other firewalls alone: what may pass is for their
	// owner to say.
	Strict   bool
	NetnsDir string // absolute; handles of namespaces are bound in it
	// IngressFile keeps what is published for a cluster until the machine stops; absolute.
	// Empty: it is not kept.
	IngressFile string
	Dir         string         // absolute; records of the networks that users make. Empty: they can make none
	Seed        string         // what the machine's own range of IPv6 is derived from
	Events      EventPublisher // nil: nobody is told
	Logger      *slog.Logger

	Resolver   Resolver // answers names in containers; nil: nobody does
	ResolvConf string   // the host's file; empty: /etc/resolv.conf
	Others     Others   // drivers of other makers; nil: none
	Spanning   Spanning // networks of a cluster; nil: none
}

// DefaultConfig is what an engine without options has; NetnsDir and Logger are
// the caller's to set.
func DefaultConfig() Config {
	return Config{Instance: DefaultInstance, Pools: ipam.Default(), MTU: 1500, ICC: true, IPForward: true, IPMasq: true, Forward: true}
}

// EventPublisher receives what happened to networks.
type EventPublisher interface{ Publish(events.Message) }

var instanceName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_-]{0,63}$`)

// Validate tells what is wrong with the configuration, as InvalidArgument.
func (c Config) Validate() error {
	invalid := func(format string, args ...any) error {
		return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
	}
	if !instanceName.MatchString(c.Instance) {
		return invalid("instance %q: letters, digits, - and _ wanted", c.Instance)
	}
	if len(c.BridgeName) > maxLink {
		return invalid("bridge %q: the name is longer than %d characters", c.BridgeName, maxLink)
	}
	if c.BIP != (netip.Prefix{}) {
		if _, err := ipam.New(c.BIP, netip.Prefix{}, c.BIP.Addr()); err != nil {
			return fmt.Errorf("bip: %w", err)
		}
		if c.BIP.Masked().Addr() == c.BIP.Addr() {
			return invalid("bip %q: the address of a host wanted, not of the subnet", c.BIP)
		}
	}
	for _, p := range c.Pools {
		if err := p.Validate(); err != nil {
			return err
		}
	}
	if c.MTU != 0 && (c.MTU < 68 || c.MTU > 65535) {
		return invalid("mtu %d: 68 to 65535 wanted", c.MTU)
	}
	if c.Dir != "" && !filepath.IsAbs(c.Dir) {
		return invalid("folder of networks %q: an absolute path wanted", c.Dir)
	}
	if !filepath.IsAbs(c.NetnsDir) {
		return invalid("folder of network namespaces %q: an absolute path wanted", c.NetnsDir)
	}
	return nil
}

// Bridge is the name of the default network's bridge.
func (c Config) Bridge() string {
	switch {
	case c.BridgeName != "":
		return c.BridgeName
	case c.Instance == DefaultInstance:
		return "escale0"
	case len("esc-"+c.Instance) <= maxLink:
		return "esc-" + c.Instance
	default:
		return "esc-" + c.digest("")[:maxLink-len("esc-")]
	}
}

// LinkPrefix begins the name of every link of this instance on the host's side.
func (c Config) LinkPrefix() string { return "veth" + c.digest("")[:4] }

// LinkGroup is the number of the group in which this instance gathers links that
// it deletes together. Its high bit keeps it away from what people choose.
func (c Config) LinkGroup() uint32 {
	sum := sha256.Sum256([]byte("links\x00" + c.Instance))
	return 1<<31 | binary.BigEndian.Uint32(sum[:])
}

// NetworkID is the id of the network of this name: the same after a restart.
func (c Config) NetworkID(name string) string { return c.digest(name) }

func (c Config) digest(name string) string {
	sum := sha256.Sum256([]byte("network\x00" + c.Instance + "\x00" + name))
	return hex.EncodeToString(sum[:])
}

// Ranges are the ranges that subnets of a family come from: where the
// configuration names none of it, Docker's for IPv4, the machine's own for IPv6.
func (c Config) Ranges(v6 bool) []ipam.Range {
	var out []ipam.Range
	for _, r := range c.Pools {
		if r.Base.Addr().Is6() == v6 {
			out = append(out, r)
		}
	}
	switch {
	case len(out) > 0:
		return out
	case v6:
		return []ipam.Range{ipam.Local(c.Seed)}
	default:
		return ipam.Default()
	}
}

// LinkMTU is the MTU of links, in bytes.
func (c Config) LinkMTU() int {
	if c.MTU == 0 {
		return 1500
	}
	return c.MTU
}

// logger is the configured logger, or one that is silent.
func (c Config) logger() *slog.Logger {
	if c.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return c.Logger
}
